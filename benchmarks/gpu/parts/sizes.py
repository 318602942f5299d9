"""Pictures of ten sizes, again and again: memory finds its plateau."""

from collections.abc import Iterator

import torch

from ....engine.api.request import GenerationRequest, SimilarityPolicy
from ....engine.api.settings import Stage
from ....engine.batching.scheduler import Limits
from ....engine.engine import Engine
from ...printing import Row
from ..bench import Bench
from ..models import random_components

_PASSES = 4
_GROWTH = 0.01
"""Share of what is allocated by which the last pass may exceed the one before."""


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of memory after each pass over the sizes, and whether the last ones are alike."""
    served = Engine(
        random_components(bench), device=bench.device, dtype=bench.dtype, limits=Limits(slots=4, rows=8),
        arena_budget=bench.pick(2**30, 2**22),
    )  # fmt: skip
    height, _ = served.components.size
    unit = height // 8
    sizes = [
        (unit * h, unit * w)
        for h, w in ((8, 8), (8, 6), (6, 8), (6, 6), (4, 8), (8, 4), (5, 7), (7, 5), (4, 4), (10, 6))
    ]
    sizes = sizes[: bench.pick(len(sizes), 3)]
    allocated: list[int] = []
    for turn in range(_PASSES):
        bench.tidy()
        failed = [error for size in sizes for error in _drawn(served, size)]
        bench.tidy()
        allocated.append(bench.allocated())
        yield {
            "measure": "pass", "pass": turn, "sizes": len(sizes), "allocated": allocated[-1],
            "reserved": torch.cuda.memory_reserved(bench.device) if bench.cuda else 0,
            "arenas": served.arenas.nbytes, "shapes": len(served.arenas.shapes), "ok": not failed,
            **({"why": failed[0]} if failed else {}),
        }  # fmt: skip
    grown = allocated[-1] - allocated[-2]
    yield {"measure": "plateau", "grown": grown, "ok": grown <= _GROWTH * max(1, allocated[-2])}


def _drawn(served: Engine, size: tuple[int, int]) -> list[str]:
    """Errors of two pictures of a size."""
    stage = Stage(steps=2)
    asked = [
        GenerationRequest(
            prompt="a red star", seed=i, height=size[0], width=size[1], draft=stage, final=stage,
            similarity=SimilarityPolicy(limits={}, retries=0),
        )
        for i in range(2)
    ]  # fmt: skip
    return [f"{size}: {result.error}" for result in served.generate(asked) if result.error is not None]
