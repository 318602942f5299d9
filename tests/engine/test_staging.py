"""What requests leave to the model, and what the door says of their stages."""

import warnings
from dataclasses import replace

import pytest
from small_requests import fresh, pixels, request

from twig.engine.api.errors import InvalidRequestError, TwigWarning
from twig.engine.api.mechanisms import Avoidance, MaskedNoise
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.sampling.sampler import Sampler

PLAIN = {"avoidance": Avoidance.off()}


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=4, rows=8), max_steps=20)


def sampled(engine, sampler):
    return Engine(replace(engine.components, sampler=sampler), limits=engine.limits, max_steps=20)


def test_a_manifest_names_the_solver_that_ran(engine):
    own = sampled(engine, Sampler("euler", "karras"))
    wanted = request(draft=Stage(steps=1), final=Stage(steps=1, solver="ddim"), **PLAIN)
    (result,) = own.generate(wanted)
    told = own.manifest(result).request
    assert (told.draft.solver, told.draft.sigmas) == ("euler", "karras")
    assert (told.final.solver, told.final.sigmas) == ("ddim", None)
    assert wanted.draft.solver is None


def test_a_stand_in_is_told_of_once_and_only_where_it_is_used(engine):
    own = sampled(engine, Sampler("euler", note="the model's LMSDiscreteScheduler is not served itself"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", TwigWarning)
        own.admit(request(draft=Stage(steps=2, solver="ddim"), final=Stage(steps=2, solver="ddim"), **PLAIN))
    with pytest.warns(TwigWarning, match="LMSDiscreteScheduler.*name a solver to choose another") as said:
        own.admit(request(**PLAIN))
    assert len([warning for warning in said if warning.category is TwigWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", TwigWarning)
        own.admit(request(**PLAIN))


def test_guidance_0_is_told_of_for_it_leaves_the_prompt_out(engine):
    with pytest.warns(TwigWarning, match=r"final guidance 0 draws less by the prompt.*1 is meant"):
        engine.admit(request(final=Stage(steps=2, guidance_scale=0), **PLAIN))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final": Stage(steps=11, solver="heun")}, "final steps 11 of heun, which asks the network 21 times, exceed"),
        ({"draft": Stage(steps=21)}, "draft steps 21 exceed this engine's 20"),
        ({"draft": Stage(steps=4, sigmas="karras")}, "draft: sigmas karras are not defined for ddim"),
        ({"final": Stage(steps=4, eta=0.5, solver="unipc")}, "final: eta 0.5: unipc leaves no choice"),
        (
            {"avoidance": Avoidance(masked_noise=MaskedNoise()), "final": Stage(steps=4, solver="unipc")},
            "masked_noise renews noise after each step, which unipc goes back on",
        ),
    ],
)
def test_stages_that_cannot_run_are_refused_at_the_door(engine, changes, message):
    with pytest.raises(InvalidRequestError, match=message):
        engine.admit(request(**changes))


def test_heun_runs_twice_a_step_and_its_steps_are_told_of(engine):
    steps = []
    stage = Stage(steps=3, solver="heun")
    (result,) = engine.generate(request(draft=stage, final=stage, **PLAIN), lambda event: steps.append(event.steps))
    assert result.attempts[0].rows == 10
    assert max(steps) == 5


def test_rescaled_guidance_off_is_the_same_picture_bit_for_bit(engine):
    wanted = [request(final=Stage(steps=3, guidance_rescale=share), **PLAIN) for share in (0.0, 0.7)]
    usual, rescaled = engine.generate(wanted)
    (alone,) = fresh(engine).generate(request(final=Stage(steps=3), **PLAIN))
    assert abs(pixels(usual) - pixels(alone)).max() <= 1
    assert (pixels(usual) != pixels(rescaled)).any()
