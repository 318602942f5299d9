"""`twig inspect` as a user meets it: what a manifest says, and its replay."""

import json
import shutil

import pytest
from PIL import Image

from drawn_folders import PROMPT, manifests, pictures
from model_folders import edit
from twig.engine.cli.main import run
from twig.engine.cli.status import DIFFERS, DONE, USER_ERROR


@pytest.fixture
def copied(generated, tmp_path):
    """A copy of `generated` to change."""
    return shutil.copytree(generated, tmp_path / "copy")


def test_inspect_prints_the_manifest(generated, capsys):
    assert run(["inspect", str(manifests(generated)[0])]) == DONE
    out = capsys.readouterr().out
    for text in ("accepted", PROMPT, "seed 0", "ssim", "delayed_guidance, moved_control", "are those of the manifest"):
        assert text in out


def test_inspect_notices_another_picture(copied, capsys):
    Image.new("RGB", (64, 64)).save(pictures(copied)[0])
    run(["inspect", str(manifests(copied)[0])])
    assert "NOT those of the manifest" in capsys.readouterr().out
    pictures(copied)[0].unlink()
    run(["inspect", str(manifests(copied)[0])])
    assert "not beside the manifest" in capsys.readouterr().out


def test_inspect_keeps_control_characters_off_the_terminal(copied, capsys):
    manifest = manifests(copied)[0]
    edit(manifest, request=json.loads(manifest.read_text())["request"] | {"prompt": "\x1b[2Jgone"})
    run(["inspect", str(manifest)])
    assert "\x1b" not in capsys.readouterr().out


def test_a_replay_is_identical(generated, capsys):
    assert run(["inspect", str(manifests(generated)[1]), "--replay"]) == DONE
    assert "identical in draft" in capsys.readouterr().out


def test_a_replay_that_differs_says_by_how_much(copied, capsys):
    manifest = manifests(copied)[0]
    edit(manifest, request=json.loads(manifest.read_text())["request"] | {"seed": 1})
    assert run(["inspect", str(manifest), "--replay"]) == DIFFERS
    assert "NOT identical, on the same kind of machine: differs in draft" in capsys.readouterr().out


def test_a_replay_fetches_nothing_that_a_manifest_names(copied, capsys):
    manifest = manifests(copied)[0]
    edit(manifest, model=json.loads(manifest.read_text())["model"] | {"source": "somebody/model"})
    assert run(["inspect", str(manifest), "--replay"]) == USER_ERROR
    assert '"somebody/model", which is not on this disk' in capsys.readouterr().err


def test_a_replay_with_another_model_is_refused(copied, tiny_checkpoint, tmp_path, capsys):
    manifest = manifests(copied)[0]
    hashes = json.loads(manifest.read_text())["model"]
    edit(manifest, model=hashes | {"hashes": hashes["hashes"] | {"unet": "00" * 32}})
    assert run(["inspect", str(manifest), "--replay", "--model", str(tiny_checkpoint)]) == USER_ERROR
    assert "its unet has SHA-256 0000" in capsys.readouterr().err


def test_a_replay_judges_by_the_limits_of_then(strict_checkpoint, tiny_checkpoint, tmp_path, capsys):
    options = ["--steps", "1", "--retries", "1", "--model", str(strict_checkpoint), "--out", str(tmp_path / "out")]
    run(["generate", "a star", *options])
    replayed = ["inspect", str(manifests(tmp_path / "out")[0]), "--replay", "--model", str(tiny_checkpoint)]
    assert run(replayed) == DONE, capsys.readouterr().out
