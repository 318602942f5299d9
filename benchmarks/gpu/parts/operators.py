"""Every kernel against its reference: attention in fp64, step and gather and noise bit for bit; then how fast.

What an operator allocates is poisoned with NaN first, so that a value which nobody wrote is seen.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ....kernels import NoiseStream, StepColumns, TokenRow, denoise_step, gather_rows, masked_attention, philox_normal
from ....kernels import masked_attention_with_mass as with_mass
from ....kernels.denoise_step import denoise_step_reference
from ....kernels.gather_rows import gather_rows_reference
from ....kernels.masked_attention import masked_attention_reference
from ....kernels.testing import ATTENTION_SHAPES, TOLERANCES, AttentionShape, assert_close, attention_inputs
from ...device_timing import time_calls
from ...kernels import attention_calls, attention_cost, step_rows
from ...printing import Row
from ..bench import Bench, named
from .machine import copy

HEAD_DIMS = (40, 64, 80, 160)
LENGTHS = (77, 154, 231)
GRIDS = ((8, 8), (5, 7), (33, 31))
ROW_COUNTS = (2, 16, 32)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill fresh memory with NaN, or the largest integer."""
    switches: Any = torch.utils.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    before, switches.fill_uninitialized_memory = switches.fill_uninitialized_memory, True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        switches.fill_uninitialized_memory = before


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of every check, then, where there is a GPU, of attention and step against what PyTorch offers."""
    for head_dim, length, dtype in attention_cases(bench):
        yield from (checked(row, check) for row, check in attention_checks(bench, head_dim, length, dtype))
    for name, check in {"denoise_step": check_step, "gather_rows": check_gather, "philox": check_noise}.items():
        yield checked({"measure": "bitwise", "kernel": name}, partial(check, bench))
    if bench.cuda and not bench.quick:
        yield from attention_rows()
        bandwidth = float(str(copy(bench)["bytes_per_second"]))
        yield from ({"measure": "timed", **row} for row in step_rows(bandwidth))


def checked(row: Row, check: Callable[[], Row | None]) -> Row:
    """The row with what the check found: `ok`, and why it is not."""
    try:
        return {**row, "ok": True, **(check() or {})}
    except Exception as error:
        return {**row, "ok": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def attention_cases(bench: Bench) -> Iterator[tuple[int, int, torch.dtype]]:
    """Head dimension, tokens and number type of each case."""
    cases = itertools.product(HEAD_DIMS, LENGTHS, (torch.float16, torch.bfloat16))
    yield from itertools.islice(cases, bench.pick(len(HEAD_DIMS) * len(LENGTHS) * 2, 2))


def attention_checks(
    bench: Bench, head_dim: int, length: int, dtype: torch.dtype
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """A row and a check for each grid, with and without masses."""
    row: Row = {"measure": "fp64", "kernel": "masked_attention", "head_dim": head_dim, "tokens": length}
    row["precision"] = named(dtype)
    for grid in GRIDS:
        yield {**row, "grid": grid}, partial(check_attention, bench, head_dim, length, dtype, grid)
    if length == LENGTHS[0]:
        grid = GRIDS[1]
        yield {**row, "grid": grid, "masses": True}, partial(check_masses, bench, head_dim, length, dtype, grid)


def _exact(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments in fp64."""
    return {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def check_attention(
    bench: Bench, head_dim: int, length: int, dtype: torch.dtype, grid: tuple[int, int], active: bool = True
) -> Row:
    """Hold an attention output to fp64; return the largest error."""
    inputs = attention_inputs(3, 2, grid, length, head_dim, dtype, bench.device, active)
    expected = masked_attention_reference(**_exact(inputs))[0]
    with poisoned():
        actual = masked_attention(**inputs)
    assert_close(actual, expected, TOLERANCES[dtype], "output")
    return {"error": float(((actual - expected).abs() / expected.abs().clamp_min(1)).max())}


def check_masses(bench: Bench, head_dim: int, length: int, dtype: torch.dtype, grid: tuple[int, int]) -> Row:
    """Hold output and masses to fp64."""
    inputs = attention_inputs(3, 2, grid, length, head_dim, dtype, bench.device)
    with poisoned():
        actual = with_mass(**inputs)
    expected = masked_attention_reference(**_exact(inputs))
    for name, one, other in zip(("output", "inside", "outside"), actual, expected, strict=True):
        assert_close(one, other, TOLERANCES[dtype], name)
    return {"error": max(float((a - b).abs().max()) for a, b in zip(actual[1:], expected[1:], strict=True))}


def step_arguments(bench: Bench, shape: tuple[int, int, int], jobs: int, eps: torch.Tensor) -> list[torch.Tensor]:
    """Arguments of a step in which every term of the equations acts; slots are in disorder, one is unused."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(bench.device)

    def integers(high: int, *size: int) -> torch.Tensor:
        return torch.randint(high, size, generator=generator).to(bench.device)

    slots = torch.randperm(jobs + 1, generator=generator)[:jobs].to(bench.device)
    slots[jobs // 2] = -1
    masks = torch.rand(jobs + 1, *shape[1:], generator=generator).to(bench.device)
    return [
        normal(jobs + 1, *shape), normal(jobs + 1, *shape), eps, slots, integers(len(eps), jobs, 4), normal(jobs, 4),
        integers(5, jobs), normal(jobs + 1, 5, len(StepColumns)), masks, integers(2**40, jobs + 1),
        normal(jobs + 1, *shape), integers(len(eps), jobs, 2), normal(jobs).relu(),
    ]  # fmt: skip


def check_step(bench: Bench) -> None:
    """Hold the step to its reference on the device and on a CPU, bit for bit, in each layout and number type."""
    for shape, dtype in itertools.product(((4, 64, 64), (4, 13, 9)), (torch.float16, torch.bfloat16, torch.float32)):
        for layout in (torch.contiguous_format, torch.channels_last):
            eps = torch.randn(14, *shape, device=bench.device).to(dtype).contiguous(memory_format=layout)
            arguments = step_arguments(bench, shape, 7, eps)
            ours, here, there = (
                [tensor.clone() for tensor in arguments],
                [tensor.clone() for tensor in arguments],
                [tensor.cpu() for tensor in arguments],
            )
            denoise_step(*ours)
            denoise_step_reference(*here)
            denoise_step_reference(*there)
            for which, name in ((0, "latents"), (1, "history"), (10, "carried")):
                assert torch.equal(ours[which], here[which]), f"{name} {shape} {dtype} {layout}: not the reference's"
                assert torch.equal(ours[which].cpu(), there[which]), f"{name} {shape} {dtype} {layout}: not a CPU's"


def check_gather(bench: Bench) -> None:
    """Hold the gather to its reference, bit for bit; what it writes into is poisoned."""
    for shape, dtype in itertools.product(((4, 64, 64), (4, 13, 9)), (torch.float16, torch.bfloat16, torch.float32)):
        latents = torch.randn(6, *shape, device=bench.device)
        table = torch.randn(6, 5, len(StepColumns), device=bench.device)
        slots = torch.tensor([3, -1, 0, 5, 3], device=bench.device)
        steps = torch.tensor([4, 0, 2, 1, 0], device=bench.device)
        for layout in (torch.contiguous_format, torch.channels_last):
            ours, expected = (
                torch.full((5, *shape), torch.nan, dtype=dtype, device=bench.device).contiguous(memory_format=layout)
                for _ in range(2)
            )
            gather_rows(latents, table, slots, steps, ours)
            gather_rows_reference(latents, table, slots, steps, expected)
            assert torch.equal(ours, expected), f"{shape} {dtype} {layout}"


def check_noise(bench: Bench) -> None:
    """Noise on the device is a CPU's, bit for bit: by PyTorch's operations, and out of the step's kernel."""
    seeds, shape = torch.tensor([0, 1, 2**40 + 7, 2**63 - 1]), (4, 17, 9)
    expected = philox_normal(seeds, 11, NoiseStream.SOLVER, shape)
    assert torch.equal(philox_normal(seeds.to(bench.device), 11, NoiseStream.SOLVER, shape).cpu(), expected)
    arguments = step_arguments(bench, shape, 4, torch.zeros(4, *shape, device=bench.device))
    table = torch.zeros(5, 12, len(StepColumns), device=bench.device)
    table[:, 11, StepColumns.D] = 1
    places = torch.arange(4, device=bench.device)
    arguments[3], arguments[6], arguments[7] = places, torch.full_like(places, 11), table
    arguments[9] = torch.cat((seeds, seeds[:1])).to(bench.device)
    arguments[12] = torch.zeros(4, device=bench.device)
    denoise_step(*arguments)
    assert torch.equal(arguments[0][:4].cpu(), expected), "out of the step"


def attention_rows() -> Iterator[Row]:
    """Microseconds of masked attention and of what PyTorch offers, at each layer of Stable Diffusion 1.5."""
    for shape, batch in itertools.product((s for s in ATTENTION_SHAPES if s.model == "sd15-512"), ROW_COUNTS):
        yield from _attention_rows(shape, batch)


def _attention_rows(shape: AttentionShape, batch: int) -> Iterator[Row]:
    inputs = attention_inputs(
        batch, shape.heads, (shape.side, shape.side), shape.length, shape.head_dim, torch.float16, "cuda", active=False
    )
    inputs["scalars"][:, 0] = 1
    inputs["tokens"][:, TokenRow.B] = torch.randn(batch, shape.length, device="cuda")
    calls = attention_calls(inputs)
    del calls["flex attention"]  # minutes of compiling, one for each shape
    timed = time_calls(calls, rounds=30, warm=5)
    for name, microseconds in timed.items():
        over = microseconds["p50"] / timed["plain sdpa"]["p50"]
        yield {
            "measure": "timed", "kernel": "masked_attention", **shape._asdict(), "batch": batch, "contender": name,
            **microseconds, "over_plain": over, **attention_cost(shape, batch),
        }  # fmt: skip
