"""Out of memory at each stage: the request that causes it fails with its reason, and nobody else notices."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from ....engine.api.request import GenerationRequest, SimilarityPolicy
from ....engine.api.settings import Stage
from ....engine.batching.job import Job
from ....engine.batching.scheduler import Limits
from ....engine.engine import Engine
from ...contenders import quality
from ...printing import Row
from ..bench import Bench
from ..models import embedded
from .operators import checked

STAGES = (
    ("encoding", "encode"), ("starting", "start_draft"), ("denoising", "denoise"), ("segmenting", "segment"),
    ("starting", "start_final"), ("judging", "judge"),
)  # fmt: skip
_UNLUCKY = 2
_COUNT = 4


def measure(bench: Bench) -> Iterator[Row]:
    """A row for each stage."""
    served = Engine(embedded(bench.device), device=bench.device, limits=Limits(slots=_COUNT, rows=2 * _COUNT))
    served.warmup()
    stage, policy = Stage(steps=bench.pick(6, 2)), SimilarityPolicy(limits={}, retries=0)
    asked = [
        GenerationRequest(prompt="a red star", seed=i, draft=stage, final=stage, similarity=policy)
        for i in range(_COUNT)
    ]
    expected = [np.asarray(result.image) for result in served.generate(asked)]
    for name, verb in STAGES:
        stage_of = getattr(served.stages, name)
        check = partial(fault, bench, served, asked, expected, stage_of, verb)
        yield checked({"measure": "fault", "stage": name, "verb": verb}, check)


@contextmanager
def out_of_memory(bench: Bench, stage: Any, verb: str) -> Iterator[None]:
    """Let a stage ask for more memory than there is whenever the unlucky request is in its batch."""
    real: Callable[..., object] = getattr(stage, verb)

    def failing(jobs: Job | Sequence[Job], *more: object) -> object:
        several = [jobs] if isinstance(jobs, Job) else jobs
        if any(job.request.seed == _UNLUCKY for job in several):
            torch.empty(2**50, dtype=torch.int8, device=bench.device)
        return real(jobs, *more)

    setattr(stage, verb, failing)
    try:
        yield
    finally:
        delattr(stage, verb)


def fault(
    bench: Bench, served: Engine, asked: list[GenerationRequest], expected: list[np.ndarray], stage: Any, verb: str
) -> Row:
    """Let one stage run out of memory; hold the others' pictures to `expected`, and the engine to its word."""
    with out_of_memory(bench, stage, verb):
        results = served.generate(asked)
    failed = [result.request.seed for result in results if result.error is not None]
    reasons = [f"{result.request.seed}: {result.error}" for result in results if result.error is not None]
    assert failed == [_UNLUCKY], f"{_UNLUCKY} should fail, and these did: {reasons}"
    kept = [(np.asarray(r.image), e) for r, e in zip(results, expected, strict=True) if r.error is None]
    found = quality([a for a, _ in kept], [b for _, b in kept])
    assert found["ssim_lowest"] >= 0.999, f"a neighbour's picture has SSIM {found['ssim_lowest']:.4f}"
    assert not served.pending, "a job is left"
    assert served.scheduler.free_slots == served.limits.slots, "a slot is held"
    again = served.generate(asked)
    assert all(result.error is None for result in again), "the engine does not go on"
    return {**found, "reason": str(results[_UNLUCKY].error)[:120]}
