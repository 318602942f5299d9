"""Tiles of masked attention on a GPU: `python -m twig.benchmarks.attention_tiles`; `kernels/tiles.py` is chosen by it.

A tile is timed after its output agrees with the reference in fp64, beside plain attention of the same shapes, as
replays of a graph of several calls: what a launch costs the host stays out of it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer

from ..kernels.masked_attention import launch_masked_attention, masked_attention_reference, split_heads
from ..kernels.testing import ATTENTION_SHAPES, TOLERANCES, AttentionShape, assert_close, attention_inputs
from ..kernels.tiles import LONGEST_TILE, AttentionTile
from .device_timing import time_calls
from .gpu.calls import as_graph
from .printing import Row, line
from .rows import write_rows

BATCH = 32
_CALLS = 10
SHORT = [AttentionTile(*sizes, looped=False) for sizes in ((64, 4, 32), (64, 4, 64), (128, 8, 32), (64, 8, 32))]
LONG = [AttentionTile(*sizes, looped=True) for sizes in ((64, 4, 32), (64, 8, 32), (128, 8, 32), (64, 4, 16))]
SHAPES = (*ATTENTION_SHAPES, AttentionShape("sd15-512", 40, 8, 64, 231))


def held(inputs: dict[str, Any], tile: AttentionTile) -> None:
    """Raise AssertionError for a tile that computes something else."""
    two: dict[str, Any] = {
        name: value[:2] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }
    exact: dict[str, Any] = {
        name: value.double() if isinstance(value, torch.Tensor) else value for name, value in two.items()
    }
    actual = launch_masked_attention(**two, tile=tile)[0]
    assert_close(actual, masked_attention_reference(**exact)[0], TOLERANCES[torch.float16], str(tuple(tile)))


def tile_rows(shape: AttentionShape) -> Iterator[Row]:
    """Rows of each tile of one shape; what a wrong one does to the device ends the command."""
    inputs = attention_inputs(
        BATCH, shape.heads, (shape.side,) * 2, shape.length, shape.head_dim, torch.float16, "cuda"
    )
    q, k, v = (split_heads(inputs[name], shape.heads) for name in "qkv")
    calls: dict[str, Callable[[], object]] = {"plain sdpa": partial(F.scaled_dot_product_attention, q, k, v)}
    for tile in LONG if shape.length > LONGEST_TILE else SHORT:
        held(inputs, tile)
        calls[str(tuple(tile[:3]))] = partial(launch_masked_attention, **inputs, tile=tile)
    times = time_calls({name: as_graph(partial(_several, call)) for name, call in calls.items()})
    for name, microseconds in times.items():
        over = microseconds["p50"] / times["plain sdpa"]["p50"]
        one = {percentile: value / _CALLS for percentile, value in microseconds.items()}
        yield {**shape._asdict(), "batch": BATCH, "tile": name, **one, "over_sdpa": over}


def _several(call: Callable[[], object]) -> None:
    for _ in range(_CALLS):
        call()


def main(out: Annotated[Path, typer.Option(help="Folder for the rows.")] = Path("out/benchmarks")) -> None:
    """Time tiles of masked attention on this machine's GPU."""
    if not torch.cuda.is_available():
        typer.echo("There is no CUDA device here, so no tile is timed.")
        return
    for shape in SHAPES:
        for row in tile_rows(shape):
            typer.echo(line(row))
            write_rows(out / "attention_tiles.jsonl", [row])


if __name__ == "__main__":
    typer.run(main)
