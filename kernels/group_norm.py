"""Group normalisation of pictures whose channels lie last, with the additions and the activation beside it, in fp32:

    z = x + shift
    y = act((z - mean(z)) / sqrt(var(z) + eps) * weight + bias),    act(y) = y or SiLU(y) = y / (1 + exp(-y))

Mean and variance are of a sample's group of channels (Wu and He, ECCV 2018, arXiv 1803.08494). `shift` is a number a
sample and channel: the projected timestep in a residual block, and the bias of the convolution before it.

PyTorch's own CUDA kernel asks for planes and turns the picture over twice. Here a first kernel reads the picture once
and leaves moments of each group over a chunk of pixels; a second merges them and writes the result. Chunks do not
depend on the batch, so neither does a sample's result, and their number grows as the root of that of the pixels: there
are programs enough for a device at 8x8 as at 64x64, and moments are few beside the pixels that they are of.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ._triton import jit, require_launchable, tl, triton
from .checks import FLOATS, check_dtype, check_shape

_TILE = 4096
"""Values that a program holds at a time."""

_WIDEST = 256
"""Channels of a tile, unless a single group has more."""


class GroupTile(NamedTuple):
    """groups: whole groups in a tile; span: its channels, a power of two; rows: its pixels; chunk: pixels a program."""

    groups: int
    span: int
    rows: int
    chunk: int


def group_norm_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shift: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    """The equations above in at least fp32: `x` (B, C, H, W) in any layout -> the same shape and dtype, channels last.

    `weight`, `bias` (C,); `shift` (B, C) or None.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    z = x.to(work)
    if shift is not None:
        z = z + shift.to(work)[:, :, None, None]
    y = F.group_norm(z, groups, weight.to(work), bias.to(work), eps)
    y = F.silu(y) if silu else y
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)


@jit
def group_moments_kernel(
    x,
    shift,
    moments,
    pixels,
    chunk,
    shift_batch,
    shift_channel,
    CHANNELS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """One program: mean and sum of squared differences of GROUPS groups over `chunk` pixels of a sample.

    Sums are of differences to the chunk's first pixel, channel by channel, so that a large mean cancels nothing.
    """
    WIDTH: tl.constexpr = CHANNELS // NUM_GROUPS
    part = tl.program_id(1)
    sample = tl.program_id(2).to(tl.int64)
    lane = tl.arange(0, SPAN)
    channel = tl.program_id(0) * (GROUPS * WIDTH) + lane
    used = (lane < GROUPS * WIDTH) & (channel < CHANNELS)
    first = part * chunk
    count = tl.minimum(pixels - first, chunk)
    x += (sample * pixels + first) * CHANNELS + channel

    origin = tl.load(x, mask=used, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, SPAN), tl.float32)
    squares = tl.zeros((ROWS, SPAN), tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        valid = (row < count)[:, None] & used[None, :]
        value = tl.load(x[None, :] + row[:, None] * CHANNELS, mask=valid, other=0.0).to(tl.float32)
        difference = tl.where(valid, value - origin[None, :], 0.0)
        total += difference
        squares += difference * difference

    n = count.to(tl.float32)
    offset = tl.sum(total, axis=0) / n
    spread = tl.sum(squares, axis=0) - n * offset * offset
    mean = origin + offset
    if SHIFTED:
        mean += tl.load(shift + sample * shift_batch + channel * shift_channel, mask=used, other=0.0).to(tl.float32)
    group = tl.arange(0, GROUP_ROWS)
    member = ((lane // WIDTH)[None, :] == group[:, None]) & used[None, :]
    group_mean = tl.sum(tl.where(member, mean[None, :], 0.0), axis=1) / WIDTH
    apart = mean[None, :] - group_mean[:, None]
    group_spread = tl.sum(tl.where(member, spread[None, :] + n * apart * apart, 0.0), axis=1)
    index = tl.program_id(0) * GROUPS + group
    stored = (group < GROUPS) & (index < NUM_GROUPS)
    moments += (sample * tl.num_programs(1) + part) * 2 * NUM_GROUPS + index
    tl.store(moments, group_mean, mask=stored)
    tl.store(moments + NUM_GROUPS, group_spread, mask=stored)


@jit
def group_norm_kernel(
    x,
    weight,
    bias,
    shift,
    moments,
    out,
    pixels,
    chunk,
    shift_batch,
    shift_channel,
    eps,
    CHANNELS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    SHIFTED: tl.constexpr,
    SILU: tl.constexpr,
):
    """One program: `chunk` pixels of GROUPS groups of a sample, normalised by the moments of all its chunks."""
    WIDTH: tl.constexpr = CHANNELS // NUM_GROUPS
    parts = tl.num_programs(1)
    sample = tl.program_id(2).to(tl.int64)
    group = tl.arange(0, GROUP_ROWS)
    index = tl.program_id(0) * GROUPS + group
    part = tl.arange(0, PARTS)
    known = (part < parts)[:, None] & ((group < GROUPS) & (index < NUM_GROUPS))[None, :]
    moments += ((sample * parts + part) * 2 * NUM_GROUPS)[:, None] + index[None, :]
    means = tl.load(moments, mask=known, other=0.0)
    spreads = tl.load(moments + NUM_GROUPS, mask=known, other=0.0)
    n = tl.maximum(tl.minimum(pixels - part * chunk, chunk), 0).to(tl.float32)
    mean = tl.sum(means * n[:, None], axis=0) / pixels
    apart = means - mean[None, :]
    variance = tl.sum(spreads + n[:, None] * WIDTH * apart * apart, axis=0) / (pixels * WIDTH)
    inverse = 1.0 / tl.sqrt(variance + eps)

    lane = tl.arange(0, SPAN)
    channel = tl.program_id(0) * (GROUPS * WIDTH) + lane
    used = (lane < GROUPS * WIDTH) & (channel < CHANNELS)
    member = (lane // WIDTH)[None, :] == group[:, None]
    scale = tl.sum(tl.where(member, inverse[:, None], 0.0), axis=0)
    offset = -tl.sum(tl.where(member, mean[:, None], 0.0), axis=0)
    if SHIFTED:
        offset += tl.load(shift + sample * shift_batch + channel * shift_channel, mask=used, other=0.0).to(tl.float32)
    scale *= tl.load(weight + channel, mask=used, other=0.0).to(tl.float32)
    offset = offset * scale + tl.load(bias + channel, mask=used, other=0.0).to(tl.float32)

    first = tl.program_id(1) * chunk
    count = tl.minimum(pixels - first, chunk)
    x += (sample * pixels + first) * CHANNELS
    out += (sample * pixels + first) * CHANNELS
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        valid = (row < count)[:, None] & used[None, :]
        where = row[:, None] * CHANNELS + channel[None, :]
        y = tl.load(x + where, mask=valid, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        tl.store(out + where, y, mask=valid)


@functools.cache
def group_tile(channels: int, groups: int, pixels: int) -> GroupTile:
    """The tile whose lanes are used best, of whole groups, and a chunk of about two lines of a square picture."""
    width = channels // groups
    widest = max(_WIDEST, triton.next_power_of_2(width))

    def waste(count: int) -> tuple[int, int]:
        span = max(16, triton.next_power_of_2(count * width))
        # Vectors of eight values need tiles that begin at multiples of eight.
        return triton.cdiv(groups, count) * span * (1 if count * width % 8 == 0 else 4), span

    fitting = [count for count in range(1, groups + 1) if count * width <= widest]
    chosen = min(fitting, key=waste)
    span = waste(chosen)[1]
    chunk = triton.next_power_of_2(max(16, 2 * math.isqrt(pixels)))
    return GroupTile(chosen, span, max(1, min(chunk, _TILE // span)), chunk)


def group_constants(channels: int, groups: int, tile: GroupTile) -> dict[str, int]:
    """The kernels' compile-time sizes that both share."""
    return {
        "CHANNELS": channels, "NUM_GROUPS": groups, "GROUPS": tile.groups,
        "GROUP_ROWS": triton.next_power_of_2(tile.groups), "SPAN": tile.span, "ROWS": tile.rows,
    }  # fmt: skip


def group_warps(tile: GroupTile) -> int:
    """Warps for a tile: sixteen to thirty-two values a thread."""
    return 4 if tile.rows * tile.span > 1024 else 2


def launch_group_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shift: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    """Run the Triton kernels; arguments and result as in the reference. A picture in planes is turned over first.

    Raises ValueError or TypeError naming the offending value.
    """
    check_group_norm(x, weight, bias, shift, groups)
    shifts = x if shift is None else shift
    require_launchable("group_norm", x, weight, bias, shifts)
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    pixels = height * width
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not out.numel():
        return out
    tile = group_tile(channels, groups, pixels)
    parts = triton.cdiv(pixels, tile.chunk)
    grid = triton.cdiv(groups, tile.groups), parts, batch
    moments = torch.empty((batch, parts, 2, groups), dtype=torch.float32, device=x.device)
    strides = shifts.stride()[:2]
    constants = group_constants(channels, groups, tile) | {"SHIFTED": shift is not None}
    with torch.cuda.device_of(x):
        group_moments_kernel[grid](
            x, shifts, moments, pixels, tile.chunk, *strides, **constants, num_warps=group_warps(tile)
        )
        group_norm_kernel[grid](
            x, weight, bias, shifts, moments, out, pixels, tile.chunk, *strides, eps, **constants,
            PARTS=triton.next_power_of_2(parts), SILU=silu, num_warps=group_warps(tile),
        )  # fmt: skip
    return out


def check_group_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shift: torch.Tensor | None, groups: int
) -> None:
    """Refuse shapes and dtypes that the operator cannot take."""
    name = "group_norm"
    check_shape(name, "x", x, (None, None, None, None))
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"{name}: groups must divide x's {channels} channels, got {groups}")
    check_dtype(name, "x", x, *FLOATS)
    for label, tensor in (("weight", weight), ("bias", bias)):
        check_shape(name, label, tensor, (channels,))
        check_dtype(name, label, tensor, *FLOATS)
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: {label} must be contiguous, got strides {tensor.stride()}")
    if shift is not None:
        check_shape(name, "shift", shift, (x.shape[0], channels))
        check_dtype(name, "shift", shift, *FLOATS)
