"""Adapters on the command line: fused into the weights, or named for draft and final, and found again by a replay."""

import json

import pytest
from small_adapters import save_adapter

from twig.engine.cli.main import run
from twig.engine.cli.status import DIFFERS, DONE, USER_ERROR
from twig.engine.models.checkpoint import load


@pytest.fixture(scope="module")
def files(tiny_checkpoint, tmp_path_factory):
    folder, components = tmp_path_factory.mktemp("adapters"), load(tiny_checkpoint)
    return [save_adapter(folder / f"{name}.safetensors", components, i) for i, name in enumerate(("ink", "dots"))]


@pytest.fixture
def generate(tiny_checkpoint, tmp_path, capsys):
    def generate(*options):
        plain = ["generate", "a star", "--steps", "1", "--preset", "off", "--quiet", "--model", str(tiny_checkpoint)]
        status = run([*plain, "--out", str(tmp_path), *options])
        return status, capsys.readouterr().err

    return generate


def test_what_was_drawn_with_adapters_is_drawn_again(generate, files, tmp_path):
    ink, dots = files
    status, _ = generate(
        "--lora", f"{ink}:0.5", "--adapter", f"dots={dots}", "--use", "dots:0.8", "--draft-use", "dots"
    )
    assert status == DONE
    (manifest,) = tmp_path.glob("*.json")
    told = json.loads(manifest.read_text())
    assert (told["request"]["draft"]["lora"], told["request"]["final"]["lora"]) == ({"dots": 1.0}, {"dots": 0.8})
    assert told["model"]["lora"][0]["path"] == str(ink)
    assert told["model"]["lora"][0]["weight"] == 0.5
    assert told["model"]["adapters"][0]["name"] == "dots"
    assert run(["inspect", str(manifest), "--replay"]) == DONE
    assert run(["inspect", str(manifest), "--replay", "--adapter", f"dots={ink}"]) == USER_ERROR
    ink.rename(ink.with_suffix(".gone"))
    try:
        assert run(["inspect", str(manifest), "--replay"]) == USER_ERROR
        assert run(["inspect", str(manifest), "--replay", "--lora", f"{ink.with_suffix('.gone')}"]) in (
            USER_ERROR,
            DIFFERS,
        )
    finally:
        ink.with_suffix(".gone").rename(ink)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--use", "ink"],
            "--use and --draft-use: there is no adapter 'ink'; no adapters were loaded; load others with --adapter",
        ),
        (["--use", "ink:much"], "ink:much: an adapter's weight is a number"),
        (["--adapter", "ink"], "--adapter ink: write NAME=FILE"),
        (["--lora", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
    ],
)
def test_what_is_wrong_is_said_in_options(generate, options, message):
    status, said = generate(*options)
    assert status == USER_ERROR
    assert message in " ".join(said.split())
