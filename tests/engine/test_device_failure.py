"""A device that failed for good: everybody hears why, nothing is tried again, nobody is let in any more."""

import asyncio

import pytest

from twig.engine.aio import AsyncEngine
from twig.engine.api.errors import EngineClosedError
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine

FAILURE = "CUDA error: an illegal memory access was encountered"
REASON = f"the device failed, and the engine with it, for good: {FAILURE}"
CROWD = [
    GenerationRequest(
        prompt="a star", seed=seed, num_images=1 + seed, draft=Stage(steps=1), final=Stage(steps=1),
        similarity=SimilarityPolicy(limits={}, retries=0),
    )
    for seed in range(3)
]  # fmt: skip


def fail(*_):
    raise RuntimeError(f"{FAILURE}\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n")


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint).components


@pytest.fixture
def engine(components):
    return Engine(components, limits=Limits(slots=2, rows=4))


PLACES = [
    ("encoding", "encode"), ("starting", "start_draft"), ("denoising", "denoise"), ("segmenting", "segment"),
    ("starting", "start_final"), ("judging", "judge"), ("denoising", "previews"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "verb"), PLACES, ids=[verb for _, verb in PLACES])
def test_it_ends_every_request_with_its_reason_and_the_engine(engine, monkeypatch, stage, verb):
    monkeypatch.setattr(getattr(engine.stages, stage), verb, fail)
    monkeypatch.setattr("twig.engine.results.draft_of", fail)
    results = engine.generate([request.model_copy(update={"preview": 1}) for request in CROWD])
    assert [(result.verdict, result.error) for result in results] == [(Verdict.FAILED, REASON)] * 6
    assert not engine.alive
    assert engine.pending == 0
    with pytest.raises(EngineClosedError, match="illegal memory access"):
        engine.submit(CROWD[0])
    assert engine.close() == []


def test_who_waits_in_an_event_loop_hears_it_too(engine, monkeypatch):
    monkeypatch.setattr(engine.stages.denoising, "denoise", fail)

    async def ask():
        async with AsyncEngine(engine) as running:
            (result,) = await running.generate(CROWD[0])
            assert result.error == REASON
            assert not running.alive
            with pytest.raises(EngineClosedError, match="illegal memory access"):
                await running.generate(CROWD[0])

    asyncio.run(ask())
