"""A mask that the user brings decides where a final keeps away, in every preset but `off`."""

import warnings

import numpy as np
import pytest

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, MaskedNoise, MovedControl
from twig.engine.api.presets import Preset
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine

PROMPT = "a red star on a green field"


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pretrained()


def half(side):
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    return mask if side == "left" else ~mask


def request(preset=Preset.DEFAULT, **changes):
    stages = {"draft": Stage(steps=8), "final": Stage(steps=8)}
    return GenerationRequest(prompt=PROMPT, seed=11, **preset.settings | stages | changes)


@pytest.mark.parametrize("preset", [Preset.GENTLE, Preset.DEFAULT, Preset.STRICT])
def test_finals_keep_out_of_the_half_that_is_masked(engine, preset):
    results = engine.generate([request(preset, mask=half(side)) for side in ("left", "right")])
    background = engine.components.segmenter.background
    for side, result in zip(("left", "right"), results, strict=True):
        followed = ~np.isin(result.control_map, list(background))
        assert (followed & half(side)).sum() <= 0.1 * followed.sum(), side
    left, right = (np.asarray(result.image, int) for result in results)
    assert np.abs(left - right).max() > 100, "another mask, another picture"


def test_a_mask_stands_above_the_gate(engine):
    """Who brings a mask wants it avoided, whatever the draft looks like."""
    (result,) = engine.generate(request(Preset.GENTLE, mask=half("left")))
    assert result.gate.opened
    assert result.gate.rows == 0
    assert result.attempts[0].avoidance.moved_control is not None


def test_off_is_off_with_a_mask_too(engine):
    anything = SimilarityPolicy(limits={})
    masked, plain = engine.generate([request(Preset.OFF, similarity=anything, mask=m) for m in (half("left"), None)])
    assert masked.image.tobytes() == plain.image.tobytes()


@pytest.mark.parametrize("preset", [Preset.GENTLE, Preset.DEFAULT, Preset.STRICT])
@pytest.mark.parametrize(("value", "message"), [(False, "marks nothing"), (True, "whole picture")])
def test_a_mask_that_cannot_steer_is_refused(engine, preset, value, message):
    with pytest.raises(InvalidRequestError, match=message):
        engine.generate(request(preset, mask=np.full((64, 64), value)))


def test_inside_the_whole_picture_masked_noise_can_act(engine):
    policy = Avoidance(moved_control=None, masked_noise=MaskedNoise())
    whole, part = engine.generate(
        [request(avoidance=policy, mask=mask) for mask in (np.ones((64, 64), bool), half("left"))]
    )
    assert whole.image.tobytes() != part.image.tobytes()


@pytest.mark.parametrize("control", [None, MovedControl(warp="none")])
def test_a_mask_that_no_mechanism_heeds_is_warned_about(engine, control):
    policy = Avoidance(delayed_guidance=DelayedGuidance(), moved_control=control)
    with pytest.warns(UserWarning, match="mask: no mechanism"):
        engine.estimate(request(avoidance=policy, mask=half("left")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.estimate(request(mask=half("left")))
