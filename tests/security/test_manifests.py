"""Manifests written by anybody: read, or refused in one line that names the field."""

import json
import random

import pytest

from twig.engine.api.choices import Precision
from twig.engine.api.errors import TwigError
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Attempt, GateDecision, GenerationResult, Score, Verdict
from twig.engine.cli.main import run
from twig.engine.records.manifest import Manifest
from twig.engine.records.model_record import ModelRecord

pytestmark = pytest.mark.slow

VALUES = [
    None, True, False, 0, -1, 7, 10**90, 1.5, -1e300, "", "text", "\x1b[2J", "a\nverdict accepted", "..", "/", "a\0b",
    "Infinity", [], [[]], [1], {}, {"a": 1}, {"": None},
]  # fmt: skip


@pytest.fixture
def manifest(tmp_path):
    """What a whole manifest holds."""
    scores = {"ssim": Score(0.25, 0.5, True), "hausdorff": Score(float("inf"), None, True)}
    result = GenerationResult(
        GenerationRequest(prompt="a red star"), 0, Verdict.ACCEPTED, gate=GateDecision(True, scores),
        attempts=(Attempt(11, Avoidance(), scores, rows=36, steps=20),), rule="refuse if ssim > 0.5",
    )  # fmt: skip
    model = ModelRecord(hashes={"unet": "00" * 32}, device="cpu", dtype=Precision.FLOAT32)
    Manifest.of(result, model, image="a.png").save(tmp_path / "whole.json")
    return json.loads((tmp_path / "whole.json").read_text())


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed(value, path, new):
    """Return a copy of a JSON value with `new` at `path`, or without anything there."""
    whole = json.loads(json.dumps(value))
    parent = whole
    for key in path[:-1]:
        parent = parent[key]
    if new is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return whole


def test_a_manifest_with_any_field_changed_is_read_or_refused(manifest, tmp_path):
    chance, path = random.Random(0), tmp_path / "a.json"
    refused = 0
    for place in list(places(manifest))[1:]:
        for new in (..., *chance.sample(VALUES, 8)):
            path.write_text(json.dumps(changed(manifest, place, new)))
            message = ""
            try:
                Manifest.load(path)
            except TwigError as error:
                message = str(error)
            refused += bool(message)
            assert message.isprintable()
            assert len(message) < 1000
    assert refused > 500


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("index", 7, "index 7 is none of the request's 1 images"),
        ("index", -1, "index -1 is none"),
        ("image", "..", "name of a file beside the manifest"),
        ("image", "../../etc/passwd", "name of a file beside the manifest"),
        ("image", "a\0b", "name of a file beside the manifest"),
        ("image", "", "name of a file beside the manifest"),
        ("rule", "refuse if " + "(" * 1000, "deep within one another"),
        ("rule", "refuse whatever", "expected 'if'"),
    ],
)
def test_a_field_that_contradicts_the_others_is_named(manifest, tmp_path, field, value, message):
    (tmp_path / "a.json").write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(TwigError, match=message):
        Manifest.load(tmp_path / "a.json")


def test_a_command_ends_in_a_line_for_each_of_them(manifest, tmp_path, capsys):
    for number, value in enumerate(VALUES):
        (tmp_path / "a.json").write_text(json.dumps(manifest | {"index": value, "number": number}))
        assert run(["inspect", str(tmp_path / "a.json")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
