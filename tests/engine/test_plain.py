"""What is drawn without a ControlNet, a segmenter or limits, and what is refused instead."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_requests import fresh, pixels, request, same

from twig.engine.api.errors import InvalidRequestError, TwigWarning
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, InitialNoise, MovedControl
from twig.engine.api.presets import Preset
from twig.engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.judging.registry import index_works, pictures_in
from twig.engine.records.wording import HELD_AGAINST_WORKS, ending_text, gate_text
from twig.engine.stages.decoding import Decoder

USUAL = SimilarityPolicy()
PLAINLY = Preset.PLAIN.settings | {"draft": Stage(steps=2), "final": Stage(steps=2)}


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=4, rows=4))


@pytest.fixture(scope="module")
def bare(engine):
    """The same model without a ControlNet and a segmenter."""
    return Engine(replace(engine.components, controlnet=None, segmenter=None), limits=engine.limits)


def plain(**changes):
    return request(**{"avoidance": Avoidance.off(), "similarity": USUAL} | changes)


def test_a_plain_picture_needs_neither_controlnet_nor_segmenter(engine, bare):
    (whole,), (lone,) = engine.generate(plain()), bare.generate(plain(explain=True))
    assert (pixels(lone) == pixels(whole)).all()
    assert (whole.verdict, lone.verdict) == (Verdict.ACCEPTED, Verdict.NOT_JUDGED)
    assert lone.scores == {}
    assert lone.mask is None
    assert ending_text(lone).startswith("not judged, not measured: ")
    assert bare.manifest(lone).hashes.mask is None


def test_mechanisms_that_need_no_shape_are_drawn_without_a_segmenter(bare):
    (result,) = bare.generate(plain(avoidance=Avoidance(delayed_guidance=DelayedGuidance(), moved_control=None)))
    assert result.image is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"avoidance": Avoidance()}, "needs a ControlNet and this model has none: load one with controlnet=..."),
        ({"avoidance": Avoidance(moved_control=None, initial_noise=InitialNoise(resample=1))}, "needs a segmenter"),
        ({"similarity": SimilarityPolicy(rule="refuse if ssim > 0.5")}, "ssim is measured where the shape"),
        ({"similarity": SimilarityPolicy(limits={"ssim": 0.5})}, "ssim is measured where the shape"),
        ({"source": True}, "a source is there for its shape"),
    ],
)
def test_what_needs_them_is_refused_in_words_of_the_remedy(engine, bare, changes, message):
    if "source" in changes:
        (drawn,) = engine.generate(plain())
        changes = {"source": drawn.draft}
    with pytest.raises(InvalidRequestError, match=message):
        bare.admit(GenerationRequest(prompt="a red star", **{"avoidance": Avoidance.off()} | changes))


def test_a_picture_that_nothing_is_said_of_is_measured_and_not_judged(engine):
    unlimited = fresh(Engine(replace(engine.components, calibration=None), limits=engine.limits))
    (silent,), (accepting,) = (
        unlimited.generate(plain(similarity=policy)) for policy in (USUAL, SimilarityPolicy(rule="accept everything"))
    )
    assert silent.verdict is Verdict.NOT_JUDGED
    assert silent.scores["ssim"].limit is None
    assert "no calibrated limits" in ending_text(silent)
    assert accepting.verdict is Verdict.ACCEPTED
    assert unlimited.stats().judged == 2


@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_that_no_call_has_room_for_is_refused(engine, rows):
    narrow = fresh(engine, limits=Limits(slots=2, rows=rows))
    wide = request(avoidance=Avoidance(moved_control=MovedControl(negative=1.0, negative_against="none")))
    with pytest.raises(InvalidRequestError, match=rf"needs 4 rows .* calls have {rows}; give it Limits\(rows=4\)"):
        narrow.admit(wide)
    if rows == 2:
        assert narrow.generate(plain())[0].image is not None


def test_marks_that_are_not_served_are_warned_about(engine):
    with pytest.warns(TwigWarning, match=r"\[from:to:when\], AND in a prompt is read as plain characters"):
        engine.admit(plain(prompt="a [red:blue:0.5] star AND a moon"))


def test_a_plain_picture_is_the_draft_in_one_run_and_is_segmented_by_nobody(engine, monkeypatch):
    (off,) = engine.generate(plain())
    calls = []
    monkeypatch.setattr(Decoder, "labels", lambda *given: calls.append(given))
    asked = plain(**PLAINLY)
    (result,) = engine.generate(asked)
    assert (pixels(result) == np.asarray(off.draft)).all()
    assert (result.rows, engine.estimate(asked)) == (off.draft_rows, off.draft_rows)
    assert (calls, result.mask, result.scores) == ([], None, {})
    assert result.verdict is Verdict.NOT_JUDGED
    assert ending_text(result) == f"not judged, the plain picture, {HELD_AGAINST_WORKS}"
    assert gate_text(result.gate).startswith("shut, as was asked for: guidance ")


def test_plain_pictures_of_one_request_are_held_against_no_draft(engine):
    asked = plain(**PLAINLY, num_images=3)
    results = engine.generate(asked)
    assert [result.verdict for result in results] == [Verdict.NOT_JUDGED] * 3
    assert [result.scores for result in results] == [{}] * 3
    assert len({pixels(result).tobytes() for result in results}) == 3
    assert engine.estimate(asked) == results[0].draft_rows + sum(result.rows - result.draft_rows for result in results)


def test_plain_and_other_drafts_are_segmented_in_one_batch(engine):
    others = [plain(seed=1), plain(seed=2, **PLAINLY), plain(seed=3)]
    alone = [engine.generate(each)[0] for each in others]
    together = engine.generate(others)
    assert [result.mask is None for result in together] == [False, True, False]
    for one, other in zip(alone, together, strict=True):
        assert same(one, other, 1)


def test_a_plain_picture_without_guidance_takes_one_run(engine):
    stage = Stage(steps=2, guidance_scale=1)
    (result,) = engine.generate(plain(**PLAINLY | {"draft": stage, "final": stage}))
    assert (result.rows, len(result.attempts)) == (2, 1)


def test_a_plain_picture_is_held_against_registered_works(engine, tmp_path):
    (drawn,) = engine.generate(plain(**PLAINLY))
    drawn.image.save(tmp_path / "work.png")
    works = index_works(engine.components, pictures_in(tmp_path))
    guarded = fresh(engine, registry=works)
    rule = SimilarityPolicy(rule="refuse if registry_descriptor > 0.95; retry 1")
    (result,) = guarded.generate(plain(**PLAINLY | {"similarity": rule}))
    assert [attempt.passed for attempt in result.attempts] == [False, True]
    assert result.verdict is Verdict.ACCEPTED
    assert all(name.startswith("registry_") for name in result.scores)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.ones((64, 64), bool)}, "leave out the mask"),
        ({"gate": Gate(shut=True), "source": Image.new("RGB", (64, 64))}, "leave out the source"),
    ],
)
def test_a_shut_gate_takes_nothing_that_takes_the_drafts_place(changes, message):
    with pytest.raises(ValueError, match=message):
        GenerationRequest(prompt="a red star", **PLAINLY | changes)
    with pytest.raises(ValueError, match="leave limits out"):
        Gate(shut=True, limits={"guidance": 1.0})
