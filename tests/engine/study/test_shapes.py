"""What goes into a bank: drafts that show what was asked for and do not look recalled, and label maps of a user's."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from small_banks import CIRCLE, SQUARE, drawn
from tiny_models import LABELS
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import GateDecision, GenerationResult, Score, Verdict
from twig.engine.avoidance.gathering import shapes_of
from twig.engine.cli.main import run
from twig.engine.cli.status import DONE, USER_ERROR
from twig.engine.models.bank import Bank
from twig.engine.study.shapes import Drafted, bank, brought, drafted


@dataclass
class Labelled:
    """What of a segmenter is asked here."""

    labels: tuple[str, ...] = LABELS
    names: tuple[str, ...] = LABELS
    background: frozenset[int] = field(default_factory=lambda: frozenset({0}))


CIRCLE_AND_SQUARE = drawn([(CIRCLE, 18, 18, 8), (SQUARE, 44, 44, 9)])


def result(prompt, labels, guidance=0.5):
    signals = {"guidance": Score(guidance, None, True)}
    return GenerationResult(
        GenerationRequest(prompt=prompt), 0, Verdict.ACCEPTED,
        label_map=labels.astype(np.uint16), gate=GateDecision(False, signals),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "labels", "count"),
    [
        ("a circle and a square", CIRCLE_AND_SQUARE, 2),
        ("a circle", CIRCLE_AND_SQUARE, 0),  # more than was asked for
        ("two circles", drawn([(CIRCLE, 18, 18, 8), (CIRCLE, 44, 44, 9)]), 2),
        ("something", CIRCLE_AND_SQUARE, 2),
        ("something", drawn([(CIRCLE, 18, 18, 8), (CIRCLE, 44, 44, 9)]), 0),  # one of them may be a fragment
        ("something", np.zeros((64, 64), int), 0),
    ],
)
def test_drafts_count_that_show_what_their_caption_names(prompt, labels, count):
    found = list(drafted([result(prompt, labels)], Labelled()))
    assert sum(len(each.shapes) for each in found) == count


def test_what_looks_recalled_stays_out():
    shapes = shapes_of(CIRCLE_AND_SQUARE, LABELS, {0})
    fresh, recalled, unmeasured = (Drafted(shapes, {"guidance": value}) for value in (0.5, 1.5, float("nan")))
    assert len(bank([fresh], (), {"guidance": 1.0}).shapes) == 2
    for one in (recalled, unmeasured, Drafted(shapes, {})):
        with pytest.raises(InvalidRequestError, match="no whole object in 0 fresh drafts"):
            bank([one], (), {"guidance": 1.0})


def test_a_bank_says_what_it_was_gathered_from():
    shapes = shapes_of(CIRCLE_AND_SQUARE, LABELS, {0})
    found = bank([Drafted(shapes, {})], [shapes_of(drawn([(CIRCLE, 30, 30, 9)]), LABELS, {0})], {})
    assert found.description == "1 drafts and 1 label maps"
    assert [len(shelf) for shelf in found.by_label.values()] == [2, 1]


@pytest.fixture
def maps(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    Image.fromarray(CIRCLE_AND_SQUARE.astype(np.uint8)).save(folder / "grey.png")
    indexed = Image.fromarray(drawn([(SQUARE, 30, 30, 9)]).astype(np.uint8), "P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed.save(folder / "indexed.png")
    return folder


def test_label_maps_are_read_by_their_numbers(maps):
    found = brought(maps, Labelled())
    assert [sorted(shape.label for shape in shapes) for shapes in found] == [["circle", "square"], ["square"]]


def test_what_is_no_label_map_is_refused(maps, tmp_path):
    Image.new("RGB", (64, 64)).save(maps / "colour.png")
    with pytest.raises(
        InvalidRequestError, match=r"colour.png has pixels of mode RGB; a label map has one number a pixel"
    ):
        brought(maps, Labelled())
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(maps / "colour.png")
    with pytest.raises(InvalidRequestError, match="holds label 9; the segmenter's are 0 to 3"):
        brought(maps, Labelled())
    with pytest.raises(InvalidRequestError, match="holds no label maps"):
        brought(tmp_path / "nowhere", Labelled())


def test_a_bank_is_gathered_shown_and_refused_from_the_command_line(tiny_checkpoint, maps, tmp_path, capsys):
    out = tmp_path / "out" / "limits.json"
    words = ["--model", str(tiny_checkpoint), "--label-maps", str(maps), "--out", str(out)]
    assert run(["calibrate", *words]) == DONE
    made = out.with_name("bank.safetensors")
    assert not out.exists(), "label maps alone give no limits"
    assert capsys.readouterr().out.startswith(f"{'bank':24}3 shapes of 2 classes, from 2 label maps")
    assert run(["bank", "show", str(made), "--out", str(tmp_path / "sheet.png"), "--json"]) == DONE
    assert Bank.load(made).version in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").width > 500
    for shape in maps.iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(shape)
    assert run(["calibrate", *words]) == USER_ERROR
    assert "no whole object in 0 fresh drafts and 2 label maps" in capsys.readouterr().err


def test_what_is_no_bank_cannot_be_shown(tmp_path, capsys):
    (tmp_path / "bank.safetensors").write_bytes(b"\0" * 64)
    assert run(["bank", "show", str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == USER_ERROR
    assert "is no bank of shapes" in capsys.readouterr().err
