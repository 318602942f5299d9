"""Adapters by the row: the operator against fp64, and what a call of the UNet costs with 0, 1, 4 and 16 of them."""

from collections.abc import Iterator
from functools import partial

import torch

from ....kernels import Window, low_rank_rows
from ....kernels.low_rank_rows import low_rank_rows_reference
from ....kernels.testing import TOLERANCES, assert_close, low_rank_inputs
from ...adapters import ATTENTION, CONVOLUTIONS, adapter_rows
from ...printing import Row
from ..bench import Bench, named
from ..models import random_components
from .operators import checked

_WIDE = ("x", "y", "down", "up")
_RANKS = (4, 17, 128)
Shape = tuple[int, tuple[int, int] | int | None, int, int]
SHAPES: tuple[tuple[Shape, Window], ...] = (
    ((7, 61, 112, 320), Window()),
    ((6, None, 320, 640), Window()),
    ((6, (13, 9), 96, 160), Window(3, 1, 1)),
    ((6, (14, 10), 64, 64), Window(3, 2, 1)),
    ((16, 4096, 320, 320), Window()),
    ((16, 256, 1280, 10240), Window()),
    ((16, (32, 32), 640, 640), Window(3, 1, 1)),
)


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of every check, then of the calls."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for shape, window in SHAPES[: bench.pick(len(SHAPES), 4)]:
            row: Row = {"measure": "fp64", "kernel": "low_rank_rows", "shape": [*shape], "window": [*window]}
            yield checked({**row, "precision": named(dtype)}, partial(_held, bench, shape, window, dtype))
    for endings in (ATTENTION, ATTENTION + CONVOLUTIONS):
        yield from adapter_rows(bench, random_components(bench), endings, bench.pick(16, 4), 16, bench.pick(20, 1))
        bench.tidy()


def _held(bench: Bench, shape: Shape, window: Window, dtype: torch.dtype) -> Row:
    """Hold the operator to its reference in fp64; a second adapter of a row, and ranks above 64, round once more."""
    inputs = low_rank_inputs(*shape, window=window, dtype=dtype, device=bench.device, ranks=_RANKS)
    exact = {name: value.double() if name in _WIDE else value for name, value in inputs.items()}
    low_rank_rows_reference(**exact)
    found = low_rank_rows(**inputs)
    assert_close(found, exact["y"], 4 * TOLERANCES[dtype], "output")
    return {"error": float(((found - exact["y"]).abs() / exact["y"].abs().clamp_min(1)).max())}
