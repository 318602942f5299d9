"""A residual addition and the layer normalisation that reads it, in one pass over the tokens, in fp32:

    z = x + residual,    y = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias

with mean and variance of a token's channels (Ba et al., arXiv 1607.06450).
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._triton import jit, require_launchable, tl, triton
from .checks import FLOATS, check_contiguous, check_dtype, check_shape

_TILE = 4096
"""Values that a program holds, unless a single token has more channels."""


def add_layer_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x`, `residual` (..., C), `weight`, `bias` (C,) -> sum and its normalisation, (..., C) in x's dtype."""
    work = torch.promote_types(x.dtype, torch.float32)
    total = x.to(work) + residual.to(work)
    normed = F.layer_norm(total, total.shape[-1:], weight.to(work), bias.to(work), eps)
    return total.to(x.dtype), normed.to(x.dtype)


@jit
def add_layer_norm_kernel(
    x,
    residual,
    weight,
    bias,
    total,
    out,
    rows,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """One program: ROWS whole tokens."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, SPAN)
    used = channel < WIDTH
    valid = (first + row < rows) & used[None, :]
    where = row * WIDTH + channel[None, :]
    z = tl.load(x + first * WIDTH + where, mask=valid, other=0.0).to(tl.float32)
    z += tl.load(residual + first * WIDTH + where, mask=valid, other=0.0).to(tl.float32)
    tl.store(total + first * WIDTH + where, z, mask=valid)
    mean = tl.sum(z, axis=1) / WIDTH
    apart = tl.where(used[None, :], z - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(apart * apart, axis=1) / WIDTH + eps)
    scale = tl.load(weight + channel, mask=used, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=used, other=0.0).to(tl.float32)
    y = apart * inverse[:, None] * scale[None, :] + offset[None, :]
    tl.store(out + first * WIDTH + where, y, mask=valid)


def layer_norm_constants(width: int) -> dict[str, int]:
    """The kernel's compile-time sizes for tokens of `width` channels."""
    span = triton.next_power_of_2(width)
    return {"WIDTH": width, "ROWS": max(1, _TILE // span), "SPAN": span}


def layer_norm_warps(width: int) -> int:
    """Warps that share a program's tokens: at most 32 values a thread."""
    return 4 if width <= _TILE else 8


def launch_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the Triton kernel; arguments and results as in the reference. Raises ValueError or TypeError."""
    check_add_layer_norm(x, residual, weight, bias)
    require_launchable("add_layer_norm", x, residual, weight, bias)
    total, out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    if not out.numel():
        return total, out
    width = x.shape[-1]
    rows, constants = x.numel() // width, layer_norm_constants(width)
    with torch.cuda.device_of(x):
        add_layer_norm_kernel[(triton.cdiv(rows, constants["ROWS"]),)](
            x, residual, weight, bias, total, out, rows, eps, **constants, num_warps=layer_norm_warps(width)
        )
    return total, out


def check_add_layer_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse shapes, dtypes and layouts that the operator cannot take."""
    name = "add_layer_norm"
    if not x.ndim or not x.shape[-1]:
        raise ValueError(f"{name}: x must have channels last, got shape {tuple(x.shape)}")
    check_shape(name, "residual", residual, tuple(x.shape))
    check_dtype(name, "x", x, *FLOATS)
    check_dtype(name, "residual", residual, x.dtype)
    for label, tensor in (("weight", weight), ("bias", bias)):
        check_shape(name, label, tensor, x.shape[-1:])
        check_dtype(name, label, tensor, *FLOATS)
    for label, tensor in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        check_contiguous(name, label, tensor)
