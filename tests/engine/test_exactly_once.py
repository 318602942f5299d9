"""A step runs once: what fails after the solver fails its request alone, or is done again, without stepping again."""

import numpy as np
import pytest
import torch

from twig.engine.api.mechanisms import Avoidance, InitialNoise, Repulsion
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.batching import denoising as batched
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.judging.registry import Registry, Work
from twig.engine.stages import denoising as staged

GUILTY = "a moon"
POLICY = Avoidance(initial_noise=InitialNoise(sharpness_steps=1), repulsion=Repulsion(radius=4.0))
CROWD = [
    GenerationRequest(
        prompt=prompt, seed=seed, draft=Stage(steps=1), final=Stage(steps=2), avoidance=POLICY, explain=True,
        similarity=SimilarityPolicy(limits={}, retries=0),
    )
    for seed, prompt in enumerate((GUILTY, "a red star", "a blue house", "a tree"))
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    components = Engine.from_pretrained(tiny_checkpoint).components
    works = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    named = tuple(Work(str(number), str(number), "0" * 64, "") for number in range(2))
    return components, Registry(components.hashes["vae"], named, torch.eye(2, 320), works)


@pytest.fixture
def engine(model):
    components, registry = model
    return Engine(components, limits=Limits(slots=4, rows=8), registry=registry)


@pytest.fixture(scope="module")
def wanted(model):
    """What becomes of `CROWD` without a fault, by prompt, and the steps it took."""
    components, registry = model
    engine = Engine(components, limits=Limits(slots=4, rows=8), registry=registry)
    return {result.request.prompt: result for result in engine.generate(CROWD)}, engine.stats().steps


def after(work, is_due):
    """`work`, which runs out of memory where it is due, after all that it computes."""

    def fails(*arguments):
        made = work(*arguments)
        if is_due(*arguments):
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return made

    return fails


def before(work, is_due):
    """`work`, which runs out of memory where it is due before it does anything."""

    def fails(*arguments):
        if is_due(*arguments):
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return work(*arguments)

    return fails


@pytest.mark.parametrize("name", ["sharpness_move", "repulsion", "step_change"])
def test_what_fails_for_a_batch_is_done_for_fewer_and_the_step_is_not_repeated(engine, wanted, monkeypatch, name):
    """The first call is for all four, the second for half of them."""
    left = ["all four", "two"]
    monkeypatch.setattr(batched, name, after(getattr(batched, name), lambda *_: left and left.pop()))
    assert_as_without_fault(engine, wanted, engine.generate(CROWD))
    assert not left


def test_masses_that_cannot_be_kept_for_a_batch_are_kept_for_fewer(engine, wanted, monkeypatch):
    keep = before(engine.stages.denoising._keep, lambda record, heard, jobs: len(jobs) > 1)
    monkeypatch.setattr(engine.stages.denoising, "_keep", keep)
    assert_as_without_fault(engine, wanted, engine.generate(CROWD))


def assert_as_without_fault(engine, wanted, results):
    expected, steps = wanted
    for result in results:
        same = expected[result.request.prompt]
        assert result.verdict is Verdict.ACCEPTED, result.error
        assert result.rows == same.rows
        # Within rounding, for a batch without one of its jobs is padded otherwise.
        assert np.abs(np.asarray(result.image, int) - np.asarray(same.image, int)).max() <= 1
        found, meant = result.explanation, same.explanation
        assert found.noise_moved == pytest.approx(meant.noise_moved)
        assert found.repulsion == pytest.approx(meant.repulsion)
        assert found.mass_outside == pytest.approx(meant.mass_outside, nan_ok=True)
        assert meant.noise_moved > 0 < meant.repulsion[0]
    assert engine.stats().steps == steps
    assert engine.scheduler.free_slots == engine.limits.slots


@pytest.mark.parametrize("place", ["_move_noise", "_repel", "_keep"])
def test_who_makes_it_fail_fails_alone(engine, wanted, monkeypatch, place):
    owner = staged.Denoising if place == "_keep" else batched.DenoisingLoop
    guilty = before(getattr(owner, place), lambda *a: any(job.request.prompt == GUILTY for job in a[-1]))
    monkeypatch.setattr(owner, place, guilty)
    results = engine.generate(CROWD)
    assert (results[0].verdict, results[0].error) == (Verdict.FAILED, "OutOfMemoryError: tried to allocate 20 GiB")
    assert_as_without_fault(engine, wanted, results[1:])
