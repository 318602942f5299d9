"""What `twig generate` says of requests that the embedded model knows little of, before it draws."""

import re

import numpy as np
import pytest
from PIL import Image

from twig.engine.cli.main import run
from twig.engine.cli.status import USER_ERROR
from twig.engine.models.checkpoint import EMBEDDED
from twig.engine.records.manifest import Manifest

QUICK = ("--steps", "1", "--preset", "default")


def said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("twig: ")]


def test_words_that_the_model_lacks_are_named_once_before_it_draws(tmp_path, capsys):
    run(["generate", "a red star and a unicorn", "a unicorn", *QUICK, "--out", str(tmp_path)])
    (line,) = said(capsys)
    assert "no word for 'unicorn'" in line
    assert "mushroom" in line
    assert "dravik" in line, "a word it was trained on, and no part of one"
    assert " ow," not in line


def test_known_words_are_no_matter(tmp_path, capsys):
    run(["generate", "a red star in a grey room", *QUICK, "--out", str(tmp_path)])
    assert said(capsys) == []


def test_marks_of_a_prompt_are_no_words_unless_every_character_counts(tmp_path, capsys):
    asked = ["generate", "a (red:1.2) star BREAK the [moon]", *QUICK, "--out", str(tmp_path)]
    run(asked)
    assert said(capsys) == []
    run([*asked, "--prompt-syntax", "plain"])
    (line,) = said(capsys)
    assert "no word for 'break'" in line
    (written, other) = (
        Manifest.load(path) for path in sorted(tmp_path.glob("*.json"), key=lambda p: p.stat().st_mtime)
    )
    assert written.parsed.chunks == 2
    assert written.parsed.prompt[0][1] == ("red", 1.2)
    assert other.parsed.prompt == ((("a (red:1.2) star BREAK the [moon]", 1.0),),)


@pytest.mark.parametrize(
    ("prompt", "options", "told"),
    [
        ("star " * 226, (), "this engine takes 3; it would be cut before"),
        ("(" * 33, (), "more than 32 brackets of a prompt stand open"),
        ("(star:99)", (), "the weight of 'star' is 99"),
        ("x" * 100_000, (), "at most 32000 characters, this one has 100000"),
        ("a star", ("--clip-skip", "3"), "--clip-skip 3: this model's text encoder has 2 layers to leave out"),
        ("a star", ("--negative", "[" * 40), "brackets"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(tmp_path, capsys, prompt, options, told):
    assert run(["generate", prompt, *options, *QUICK, "--out", str(tmp_path / "out")]) == USER_ERROR
    (line,) = said(capsys)
    assert told in line
    assert "max_prompt_chunks" not in line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A picture of nothing, and one of a red disc on snow, which it takes for a house."""
    folder = tmp_path_factory.mktemp("sources")
    y, x = np.mgrid[:64, :64]
    empty = np.full((64, 64, 3), (240, 240, 250), np.uint8)
    disc = empty.copy()
    disc[(x - 32) ** 2 + (y - 32) ** 2 < 15**2] = (214, 40, 40)
    for name, pixels in (("empty", empty), ("disc", disc)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_what_the_segmenter_makes_of_a_source_is_told(sources, tmp_path, capsys):
    asked = ["generate", "a red star", *QUICK, "--out", str(tmp_path), "--model", str(EMBEDDED)]
    run([*asked, "--source", str(sources / "empty.png")])
    (line,) = said(capsys)
    assert "nothing but background in the source" in line
    assert "star, house, tree" in line
    run([*asked, "--source", str(sources / "disc.png")])
    (line,) = said(capsys)
    assert re.search(r"in the source the segmenter sees house \(\d+ % of it\)", line)
    run([*asked, "--source", str(sources / "empty.png"), "--preset", "off"])
    assert said(capsys) == []
