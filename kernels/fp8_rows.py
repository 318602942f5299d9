"""Tokens in eight bits, each with a scale of its own, as tensor cores of compute capability 8.9 and later take them:

    scale = max(|x|) / 448,    q = round(x / scale) in e4m3

(Micikevicius et al., arXiv 2209.05433; 448 is the largest number of e4m3.) A scale of the whole batch would let a
picture depend on its company.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch

from ._triton import jit, require_launchable, tl, triton
from .checks import FLOATS, check_contiguous, check_dtype, check_shape

LARGEST = 448.0
"""The largest number of e4m3, which has no infinity."""

_SMALLEST = 1e-12
_TILE = 4096


def fp8_rows_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` (M, K) -> (M, K) float8_e4m3fn and (M, 1) float32, whose product is about x."""
    wide = x.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(_SMALLEST) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


@jit
def fp8_rows_kernel(x, out, scales, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr):
    """One program: ROWS whole tokens."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, SPAN)
    valid = (first + row < rows)[:, None] & (channel < WIDTH)[None, :]
    where = row[:, None] * WIDTH + channel[None, :]
    value = tl.load(x + first * WIDTH + where, mask=valid, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-12) / 448.0
    scaled = tl.minimum(tl.maximum(value / scale[:, None], -448.0), 448.0)
    tl.store(out + first * WIDTH + where, scaled.to(tl.float8e4nv), mask=valid)
    tl.store(scales + first + row, scale, mask=first + row < rows)


def fp8_constants(width: int) -> dict[str, int]:
    """The kernel's compile-time sizes for tokens of `width` channels."""
    span = triton.next_power_of_2(width)
    return {"WIDTH": width, "ROWS": max(1, _TILE // span), "SPAN": span}


def fp8_warps(width: int) -> int:
    """Warps that share a program's tokens: at most 32 values a thread."""
    return 4 if width <= _TILE else 8


def launch_fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the Triton kernel; argument and results as in the reference. Raises ValueError or TypeError."""
    check_fp8_rows(x)
    require_launchable("fp8_rows", x)
    rows, width = x.shape
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    if rows:
        constants = fp8_constants(width)
        grid = (triton.cdiv(rows, constants["ROWS"]),)
        with torch.cuda.device_of(x):
            fp8_rows_kernel[grid](x, out, scales, rows, **constants, num_warps=fp8_warps(width))
    return out, scales


def check_fp8_rows(x: torch.Tensor) -> None:
    """Refuse shapes, dtypes and layouts that the operator cannot take."""
    check_shape("fp8_rows", "x", x, (None, None))
    check_dtype("fp8_rows", "x", x, *FLOATS)
    check_contiguous("fp8_rows", "x", x)
    if not x.shape[1]:
        raise ValueError(f"fp8_rows: x must have channels, got shape {tuple(x.shape)}")
