"""The gated linear unit of a transformer block, on both halves of one product as they lie (Shazeer, arXiv 2002.05202):

    y = value * gelu(gate),    gelu(g) = g * (1 + erf(g / sqrt(2))) / 2,    value, gate = x.chunk(2)

in fp32, rounded once.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._triton import jit, require_launchable, tl, triton
from .checks import FLOATS, check_contiguous, check_dtype

TILE = 2048
"""Values of the result that a program computes."""

WARPS = 4
_COLUMNS = 256


def geglu_reference(x: torch.Tensor) -> torch.Tensor:
    """`x` (..., 2 C) -> (..., C) in its dtype, computed in at least fp32."""
    value, gate = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, -1)
    return (value * F.gelu(gate)).to(x.dtype)


@jit
def geglu_kernel(x, out, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program: COLUMNS neighbouring values of ROWS rows."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    valid = (first + row < rows) & (column < WIDTH)
    x += first * 2 * WIDTH
    value = tl.load(x + row * 2 * WIDTH + column, mask=valid, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * WIDTH + WIDTH + column, mask=valid, other=0.0).to(tl.float32)
    gelu = 0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    tl.store(out + first * WIDTH + row * WIDTH + column, value * gelu, mask=valid)


def geglu_constants(width: int) -> dict[str, int]:
    """The kernel's compile-time sizes, for results of `width` channels."""
    columns = min(_COLUMNS, triton.next_power_of_2(width))
    return {"WIDTH": width, "ROWS": TILE // columns, "COLUMNS": columns}


def launch_geglu(x: torch.Tensor) -> torch.Tensor:
    """Run the Triton kernel; argument and result as in the reference. Raises ValueError or TypeError."""
    check_geglu(x)
    require_launchable("geglu", x)
    width = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    rows, constants = out.numel() // width, geglu_constants(width)
    grid = triton.cdiv(rows, constants["ROWS"]), triton.cdiv(width, constants["COLUMNS"])
    with torch.cuda.device_of(x):
        geglu_kernel[grid](x, out, rows, **constants, num_warps=WARPS)
    return out


def check_geglu(x: torch.Tensor) -> None:
    """Refuse shapes, dtypes and layouts that the operator cannot take."""
    if not x.ndim or x.shape[-1] % 2:
        raise ValueError(f"geglu: x must have an even number of channels last, got shape {tuple(x.shape)}")
    check_dtype("geglu", "x", x, *FLOATS)
    check_contiguous("geglu", "x", x)
