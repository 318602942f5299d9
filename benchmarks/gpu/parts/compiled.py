"""The two-step job by diffusers' pipelines under `torch.compile`, against the engine.

The whole UNet and the whole ControlNet are compiled, on channels-last weights, as diffusers advises; autoencoder and
text encoder stay eager. The ways take longer and longer to compile; one that the budget leaves no time for is named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ....engine.batching.scheduler import ContinuousPolicy, Limits
from ....engine.models import memory
from ....engine.models.checkpoint import Components
from ...contenders import Contender, DiffusersPipelines, EngineContender, Models
from ...printing import Row
from ...workloads import closed
from ..bench import Bench
from ..models import random_models


@dataclass(frozen=True)
class Way:
    """A way of compiling: a mode of `torch.compile`, options beside it, seconds of the budget that must be left."""

    name: str
    mode: str
    changes: Mapping[str, Any]
    seconds: float


WAYS = (
    Way("reduce-overhead", "reduce-overhead", {}, 0),
    Way("max-autotune, convolutions by cuDNN", "max-autotune", {"max_autotune_conv_backends": "ATEN"}, 150),
    Way("max-autotune", "max-autotune", {}, 300),
)


def measure(bench: Bench) -> Iterator[Row]:
    """A row for each way of compiling: seconds of compiling and of a job, and how often faster the engine is."""
    models = random_models(bench)
    ours = EngineContender(models.engine(ContinuousPolicy(), Limits(slots=2, rows=4)))
    steps = bench.pick(20, 2)
    engine_seconds = job_seconds(bench, ours, steps)
    for way in WAYS[:1] if bench.quick else WAYS:
        row: Row = {"measure": "compiled", "way": way.name, "requests": 1, "steps": steps, "engine": engine_seconds}
        if bench.left < way.seconds:
            yield {**row, "skipped": f"{max(0, bench.left):.0f} seconds are left, and {way.seconds:.0f} are needed"}
            continue
        torch._dynamo.reset()
        pipelines = DiffusersPipelines(compiled(models, way, bench))
        compiling = bench.elapsed(partial(pipelines, closed(1, 2)))
        seconds = job_seconds(bench, pipelines, steps)
        yield {**row, "compiling": compiling, "seconds": seconds, "over_compiled": seconds / engine_seconds}
        bench.tidy()


def compiled(models: Models, way: Way, bench: Bench) -> Components:
    """The plain model with UNet and ControlNet compiled, on weights of its own; in the quick run only traced."""
    assert models.plain.controlnet is not None
    unet, controlnet = memory.twin(models.plain.unet, "unet"), memory.twin(models.plain.controlnet, "controlnet")
    for network in (unet, controlnet):
        network.to(memory_format=torch.channels_last)
        if bench.quick:
            network.compile(backend="eager")
        else:
            network.compile(options={**torch._inductor.list_mode_options(way.mode), **way.changes})
    return replace(models.plain, unet=unet, controlnet=controlnet)


def job_seconds(bench: Bench, racer: Contender, steps: int) -> float:
    """Seconds of a job of one request, the median of a few; the first is not counted."""
    spent = [bench.elapsed(partial(racer, closed(1, steps, turn))) for turn in range(bench.pick(5, 2))]
    return float(np.median(spent[1:]))
