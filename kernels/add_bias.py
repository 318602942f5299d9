"""What ends a residual block, a convolution's bias and the block's input added to its product in one pass:

    y = x + residual + bias

in fp32, on pictures whose channels lie last. PyTorch passes over a convolution's product once for its bias, and again.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch

from ._triton import jit, require_launchable, tl, triton
from .checks import FLOATS, check_contiguous, check_dtype, check_shape

BLOCK = 2048
WARPS = 4


def add_bias_reference(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`x`, `residual` (B, C, H, W) in any layout, `bias` (C,) -> the same shape, in x's dtype, channels last."""
    work = torch.promote_types(x.dtype, torch.float32)
    total = x.to(work) + residual.to(work) + bias.to(work)[:, None, None]
    return total.to(x.dtype).contiguous(memory_format=torch.channels_last)


@jit
def add_bias_kernel(x, residual, bias, out, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK neighbouring values, a pixel's channels side by side."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    valid = first + lane < size
    channel = ((first % CHANNELS).to(tl.int32) + lane) % CHANNELS
    y = tl.load(x + first + lane, mask=valid, other=0.0).to(tl.float32)
    y += tl.load(residual + first + lane, mask=valid, other=0.0).to(tl.float32)
    y += tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + first + lane, y, mask=valid)


def launch_add_bias(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Run the Triton kernel; arguments and result as in the reference. Pictures in planes are turned over first.

    Raises ValueError or TypeError naming the offending value.
    """
    check_add_bias(x, residual, bias)
    require_launchable("add_bias", x, residual, bias)
    x, residual = (picture.contiguous(memory_format=torch.channels_last) for picture in (x, residual))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel():
        grid = (triton.cdiv(out.numel(), BLOCK),)
        constants = {"CHANNELS": x.shape[1], "BLOCK": BLOCK}
        with torch.cuda.device_of(x):
            add_bias_kernel[grid](x, residual, bias, out, out.numel(), **constants, num_warps=WARPS)
    return out


def check_add_bias(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse shapes and dtypes that the operator cannot take."""
    name = "add_bias"
    check_shape(name, "x", x, (None, None, None, None))
    check_shape(name, "residual", residual, tuple(x.shape))
    check_shape(name, "bias", bias, (x.shape[1],))
    check_dtype(name, "x", x, *FLOATS)
    check_dtype(name, "residual", residual, x.dtype)
    check_dtype(name, "bias", bias, *FLOATS)
    check_contiguous(name, "bias", bias)
