"""Company never changes a picture: bit for bit at one bucket, by rounding across buckets."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_requests import ALWAYS, NEVER, Padded, fresh, pixels, request

from twig.engine.api.mechanisms import (
    Avoidance,
    DelayedGuidance,
    InitialNoise,
    MaskedAttention,
    MaskedNoise,
    MovedControl,
    RestatedPrompt,
)
from twig.engine.api.request import Gate, GenerationRequest
from twig.engine.api.settings import Solver, Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=8, rows=8), max_pixels=96 * 96)


LONGEST = "a red star on the moon, " * 25  # three chunks

policies = st.builds(
    Avoidance,
    delayed_guidance=st.none() | st.builds(DelayedGuidance, stop=st.sampled_from([0.2, 0.4])),
    initial_noise=st.none() | st.builds(InitialNoise, resample=st.sampled_from([0.0, 0.5])),
    masked_noise=st.none() | st.builds(MaskedNoise, strength=st.sampled_from([0.3, 1.0])),
    masked_attention=st.none()
    | st.builds(
        MaskedAttention,
        bias=st.sampled_from([-2.0, -6.0]),
        scale=st.sampled_from([1.0, 1.3]),
        gain=st.sampled_from([1.0, 0.5]),
        tokens=st.sampled_from(["words", "padding", "all", "spikes"]),
    ),
    restated_prompt=st.none() | st.builds(RestatedPrompt, stop=st.sampled_from([0.5, 1.0])),
    moved_control=st.none()
    | st.builds(
        MovedControl,
        rows=st.sampled_from(["both", "conditional"]),
        negative=st.sampled_from([0.0, 0.5]),
        negative_against=st.sampled_from(["moved", "none"]),
    ),
)


stages = st.builds(
    Stage,
    steps=st.integers(2, 5),
    guidance_scale=st.sampled_from([1.0, 3.0, 7.5]),
    solver=st.sampled_from(list(Solver)),
    cache_interval=st.sampled_from([1, 2, 3]),
)


requests = st.builds(
    GenerationRequest,
    prompt=st.sampled_from(
        ["a red star", "a (blue:1.3) house and a [moon]", "a star and a square", "", "a star BREAK tree", LONGEST]
    ),
    negative_prompt=st.sampled_from(["", "a green house"]),
    seed=st.integers(0, 2**40),
    draft=stages,
    final=stages,
    num_images=st.integers(1, 2),
    avoidance=policies,
    similarity=st.sampled_from([ALWAYS, NEVER]),
    gate=st.sampled_from([None, Gate(limits={"agreement": 2.0}), Gate(limits={"agreement": 0.0}, witnesses=1)]),
    priority=st.integers(-1, 1),
).filter(lambda wanted: wanted.avoidance.masked_noise is None or wanted.final.solver not in ("unipc", "heun"))


def tried(examples):
    """Settings of what is tried on that many batches."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


EXAMPLES = pytest.mark.parametrize("examples", [3, pytest.param(12, marks=pytest.mark.slow)])
"""New ones in every run."""


@EXAMPLES
def test_company_does_not_matter_bit_for_bit_at_one_bucket(engine, examples):
    @tried(examples)
    @given(st.lists(requests, min_size=2, max_size=4), st.data())
    def holds(batch, data):
        arrivals = [data.draw(st.integers(0, 4)) for _ in batch]
        together = drawn_together(engine, batch, arrivals)
        alone = Padded(engine.components, limits=Limits(slots=6, rows=6, boundary=1))
        for i, wanted in enumerate(batch):
            for one in alone.generate(wanted):
                other = together[i, one.index]
                assert np.array_equal(pixels(one), pixels(other))
                assert dataclasses.asdict(one)["attempts"] == dataclasses.asdict(other)["attempts"]

    holds()


def drawn_together(engine, batch, arrivals):
    """Results by number and index of requests that arrive some steps apart, in company that is cancelled."""
    together = Padded(engine.components, limits=Limits(slots=6, rows=6, boundary=1))
    results, ids = {}, {}
    for i, (wanted, pause) in enumerate(zip(batch, arrivals, strict=True)):
        ids[together.submit(wanted)] = i
        for _ in range(pause):
            collect(results, ids, together.step())
    doomed = together.submit(request("the moon", steps=8))
    for _ in range(6):
        collect(results, ids, together.step())
    together.cancel(doomed)
    while together.pending:
        for loop in map(together.arenas.loop, together.arenas.shapes):
            loop.buffers.poison()
        collect(results, ids, together.step())
    return results


def collect(results, ids, events):
    for event in events:
        if event.result is not None and event.id in ids:
            results[ids[event.id], event.index] = event.result


@EXAMPLES
def test_across_buckets_latents_differ_by_rounding_only(engine, examples):
    @tried(examples)
    @given(st.lists(requests, min_size=3, max_size=4))
    def holds(batch):
        batch = [wanted.model_copy(update={"num_images": 1, "similarity": ALWAYS}) for wanted in batch]
        together = latents_of(fresh(engine), batch)
        for wanted, latent in zip(batch, together, strict=True):
            (alone,) = latents_of(fresh(engine), [wanted])
            assert torch.isfinite(latent).all()
            assert (latent - alone).abs().max() <= 1e-4 * max(1.0, float(alone.abs().max()))

    holds()


def latents_of(engine, batch):
    """Final latents, read when a job is about to be judged."""
    found = {}
    judge = engine.stages.judging.judge

    def spy(jobs):
        for job in jobs:
            found[job.request_id] = engine.arenas.latent(job).clone()
        judge(jobs)

    engine.stages.judging.judge = spy
    engine.generate(batch)
    return [found[id] for id in sorted(found)]
