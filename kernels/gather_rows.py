"""Slots -> rows of the next network call: duplicated per guidance branch, scaled and cast, in one pass."""

# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch

from ._triton import jit, require_launchable, tl, triton
from .checks import FLOATS, check_contiguous, check_dtype, check_shape
from .denoise_step import StepColumns, pixel_strides

BLOCK = 1024
WARPS = 4


def gather_rows_reference(
    latents: torch.Tensor,
    coefficients: torch.Tensor,
    slots: torch.Tensor,
    steps: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """`out[i] = input_scale(slots[i], steps[i]) * latents[slots[i]]` in out's dtype; slot -1 gives zeros.

    `latents` (S, C, H, W) fp32; `coefficients` (S, max_steps, 12) fp32; `slots`, `steps` (R,) int64; `out`
    (R, C, H, W) of any float dtype.
    """
    active = slots >= 0
    slot, step = slots.clamp_min(0), torch.where(active, steps, 0)
    scale = coefficients[slot, step, StepColumns.INPUT_SCALE]
    rows = scale[:, None, None, None] * latents[slot]
    out.copy_(torch.where(active[:, None, None, None], rows, 0.0))


@jit
def gather_rows_kernel(
    latents,
    coefficients,
    slots,
    steps,
    out,
    size,
    pixels,
    max_steps,
    out_row,
    out_channel,
    out_pixel,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK neighbouring values of one row."""
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + row)
    active = slot >= 0
    step = tl.load(steps + row)
    scale = tl.load(coefficients + (slot * max_steps + step) * COLUMNS, mask=active, other=0.0)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = offsets < size
    channel = offsets // pixels
    pixel = offsets - channel * pixels
    x = tl.load(latents + slot * size + offsets, mask=offsets < tl.where(active, size, 0), other=0.0)
    where = channel.to(tl.int64) * out_channel + pixel.to(tl.int64) * out_pixel
    tl.store(out + row * out_row + where, scale * x, mask=valid)


def launch_gather_rows(
    latents: torch.Tensor,
    coefficients: torch.Tensor,
    slots: torch.Tensor,
    steps: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Run the Triton kernel; arguments as in the reference, `out` planar or channels-last."""
    check_gather_rows(latents, coefficients, slots, steps, out)
    require_launchable("gather_rows", latents, coefficients, slots, steps, out)
    size = math.prod(latents.shape[1:])
    if not len(slots) or not size:
        return
    with torch.cuda.device_of(latents):
        gather_rows_kernel[(triton.cdiv(size, BLOCK), len(slots))](
            latents, coefficients, slots, steps, out, size, latents.shape[2] * latents.shape[3],
            coefficients.shape[1], *pixel_strides("gather_rows", "out", out),
            COLUMNS=len(StepColumns), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def check_gather_rows(
    latents: torch.Tensor,
    coefficients: torch.Tensor,
    slots: torch.Tensor,
    steps: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Refuse shapes, dtypes and layouts that the gather cannot take."""
    name = "gather_rows"
    check_shape(name, "latents", latents, (None, None, None, None))
    check_shape(name, "coefficients", coefficients, (latents.shape[0], None, len(StepColumns)))
    check_shape(name, "slots", slots, (None,))
    check_shape(name, "steps", steps, (slots.shape[0],))
    check_shape(name, "out", out, (slots.shape[0], *latents.shape[1:]))
    check_dtype(name, "out", out, *FLOATS)
    for label, tensor in (("latents", latents), ("coefficients", coefficients)):
        check_dtype(name, label, tensor, torch.float32)
        check_contiguous(name, label, tensor)
    for label, tensor in (("slots", slots), ("steps", steps)):
        check_dtype(name, label, tensor, torch.int64)
        check_contiguous(name, label, tensor)
