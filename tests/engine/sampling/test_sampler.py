import diffusers
import pytest

from twig.engine.api.choices import Sigmas, Solver
from twig.engine.api.settings import Stage
from twig.engine.sampling.sampler import NEAREST, SAME, Sampler, sampler_of


def saved(name, **changes):
    """The configuration that a scheduler of diffusers writes."""
    made = getattr(diffusers, name)(beta_schedule="scaled_linear", **changes)
    return {**made.config, "_class_name": name}


@pytest.mark.parametrize("name", SAME)
def test_schedulers_that_are_served_stand_for_themselves(name):
    sampler = sampler_of(saved(name))
    assert (sampler.solver, sampler.note, sampler.sigmas) == (SAME[name], None, None)


@pytest.mark.parametrize("name", sorted(set(NEAREST) - {"DPMSolverSDEScheduler"}))
def test_for_others_the_nearest_stands_in_and_says_so(name):
    sampler = sampler_of(saved(name))
    assert sampler.solver is NEAREST[name][0]
    assert f"the model's {name} is not served itself: {sampler.solver} stands in for it" in sampler.note


@pytest.mark.parametrize(
    ("name", "changes", "solver", "said"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", None),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp_2m", "solver_order 3"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc", "solver_order 3"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "unipc", "solver_type 'bh1'"),
    ],
)
def test_settings_that_make_another_method_are_told_of(name, changes, solver, said):
    sampler = sampler_of(saved(name, **changes))
    assert sampler.solver == solver
    assert sampler.note is None if said is None else f"asks for {said}" in sampler.note


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_noise_levels_of_a_folder_are_kept_for_the_solvers_that_take_them(kind):
    sampler = sampler_of(saved("EulerDiscreteScheduler", **{f"use_{kind}_sigmas": True}))
    assert sampler.settled(Stage()) == Stage(solver="euler", sigmas=kind)
    assert sampler.settled(Stage(solver="unipc")) == Stage(solver="unipc", sigmas=kind)
    assert sampler.settled(Stage(solver="ddim")) == Stage(solver="ddim")
    assert sampler.settled(Stage(sigmas="ays")).sigmas is Sigmas.AYS


def test_what_a_stage_names_is_left_alone():
    stage = Stage(solver="ddim", eta=0.2)
    assert Sampler(Solver.EULER).settled(stage) is stage
    assert sampler_of(saved("DDPMScheduler")).settled(Stage()) == Stage(solver="ddim", eta=1.0)
