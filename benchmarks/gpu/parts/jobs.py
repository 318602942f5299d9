"""The same two-step job by the engine, the plain reference and diffusers' pipelines, all eager but for our graphs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from ....engine.api.mechanisms import MaskedAttention
from ....engine.api.request import GenerationRequest
from ....engine.batching.scheduler import ContinuousPolicy, Limits
from ...contenders import (
    CONTINUOUS,
    DIFFUSERS,
    REFERENCE,
    Contender,
    DiffusersPipelines,
    EngineContender,
    Models,
    Reference,
    quality,
)
from ...printing import Row
from ...workloads import closed
from ..bench import Bench
from ..models import random_models

LEAST_SSIM = 0.9
_AGREED = 4
"""Steps of the job whose pictures are compared: over many, rounding grows into another picture of random weights."""


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of agreement after few steps, then of whole jobs."""
    models = random_models(bench)
    racers = contenders(bench, models)
    yield from agreement(bench, racers)
    yield from (race(bench, racers, size) for size in ((1,) if bench.quick else (1, 8)))


def contenders(bench: Bench, models: Models) -> dict[str, Contender]:
    """Everyone, by name; the engine's graphs are captured."""
    rows = bench.pick(16, 4)
    served = models.engine(ContinuousPolicy(), Limits(slots=rows // 2, rows=rows))
    return {
        REFERENCE: Reference(models.plain),
        DIFFUSERS: DiffusersPipelines(models.plain),
        CONTINUOUS: EngineContender(served),
    }


def agreement(bench: Bench, racers: Mapping[str, Contender]) -> Iterator[Row]:
    """How near everybody's pictures are to the reference's; under masked attention too, which the pipelines lack."""
    plain = closed(bench.pick(2, 1), bench.pick(_AGREED, 2), 5)
    masked = [
        r.model_copy(update={"avoidance": r.avoidance.model_copy(update={"masked_attention": MaskedAttention()})})
        for r in plain
    ]
    engine_alone = {name: racer for name, racer in racers.items() if name != DIFFUSERS}
    for what, able, asked in (("plain", racers, plain), ("masked attention", engine_alone, masked)):
        expected = racers[REFERENCE](asked)
        for name, racer in able.items():
            if name != REFERENCE:
                yield agreed({"measure": "agreement", "job": what, "contender": name}, racer, asked, expected)


def agreed(row: Row, racer: Contender, asked: Sequence[GenerationRequest], expected: Sequence[np.ndarray]) -> Row:
    """The row with how near the pictures are."""
    try:
        found = quality(racer(asked), expected)
    except Exception as error:
        return {**row, "ok": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {**row, **found, "ok": found["ssim_lowest"] >= LEAST_SSIM}


def race(bench: Bench, racers: Mapping[str, Contender], size: int, steps: int = 20) -> Row:
    """Seconds of a job of `size` requests for everyone, in turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in racers}
    steps = bench.pick(steps, 2)
    for turn in range(bench.pick(4, 1)):
        asked = closed(size, steps, turn)
        for name, racer in racers.items():
            if name == REFERENCE and size > 1:
                continue  # one request at a time: it is known from the single one
            spent = bench.elapsed(partial(racer, asked))
            if turn or bench.quick:
                seconds[name].append(spent)
    medians = {name: float(np.median(values)) for name, values in seconds.items() if values}
    speedups = {f"over {name}": medians[name] / medians[CONTINUOUS] for name in medians if name != CONTINUOUS}
    return {"measure": "job", "requests": size, "steps": steps, "seconds": medians, **speedups}
