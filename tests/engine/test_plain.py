"""What is drawn without a ControlNet, a segmenter or limits, and what is refused instead."""

from dataclasses import replace

import pytest
from small_requests import fresh, pixels, request

from twig.engine.api.errors import InvalidRequestError, TwigWarning
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, InitialNoise, MovedControl
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.records.wording import ending_text

USUAL = SimilarityPolicy()


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
