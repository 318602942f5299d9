"""Low-rank changes of a layer, each row's own, added to what the layer gave (LoRA, Hu et al., arXiv 2106.09685):

    y[i] += sum over j of weights[i, j] * (x[i] * down[a]) * up[a],    a = adapters[i, j]

`*` is the layer's own kind of product: of a linear layer x[i] @ down[a]^T, of a convolution the one of its size,
stride and padding; what comes of it is multiplied with up[a] pixel by pixel. The factors of all adapters lie under each
other, adapter a's from rank `starts[a]` on and `ranks[a]` of them: adapters of unequal rank take no more memory than
they have, and neither an adapter nor its rank is a constant of what is compiled or captured.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ._triton import INTERPRETED, jit, require_launchable, tl, triton
from .checks import FLOATS, check_contiguous, check_dtype, check_shape
from .masked_attention_parts import wide_dot

NONE = -1
"""Stands for no adapter."""

WARPS = 4
PIXELS = 64
"""Pixels or tokens of a row that a program holds."""

CHANNELS = 32
"""Channels that it multiplies at a time."""

_WIDEST = 64
_PROGRAMS = 256
"""As many keep a device busy: where rows and pixels make fewer, the channels of the result are shared out."""


class Window(NamedTuple):
    """A convolution's size, stride and padding, both ways the same; as it stands those of a linear layer."""

    size: int = 1
    stride: int = 1
    padding: int = 0


def low_rank_rows_reference(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    starts: torch.Tensor,
    ranks: torch.Tensor,
    adapters: torch.Tensor,
    weights: torch.Tensor,
    most: int,
    window: Window,
) -> None:
    """Add to `y` in place, in at least fp32, rounded once.

    `y` (R, M, h, w) and `x` (R, K, H, W) of a convolution, else (R, ..., M) and (R, ..., K) with at most one dimension
    between, in one dtype and any memory order; `down` (P, size * size, K) and `up` (P, M), P ranks in all, in that
    dtype; `starts`, `ranks` (A,) int64; `adapters` (R, J) int64, `NONE` for none; `weights` (R, J) fp32; `most`: the
    largest of `ranks`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    adapter, places = adapters.clamp_min(0), torch.arange(most, device=x.device)
    used = (adapters >= 0)[:, :, None] & (places < ranks[adapter][:, :, None])
    chosen = torch.where(used, starts[adapter][:, :, None] + places, 0).flatten(1)
    factors = torch.where(used, weights[:, :, None].to(wide), 0.0).flatten(1)
    hidden = _seen(x.to(wide), window) @ down.flatten(1).to(wide)[chosen].transpose(1, 2)
    added = (hidden * factors[:, None]) @ up.to(wide)[chosen]
    pixels = as_pixels(y)
    pixels.copy_(pixels.to(wide) + added.view(pixels.shape))


def as_pixels(x: torch.Tensor) -> torch.Tensor:
    """A view (R, H, W, C) of pictures (R, C, H, W), tokens (R, N, C) in one line, or single vectors (R, C)."""
    match x.ndim:
        case 4:
            return x.permute(0, 2, 3, 1)
        case 3:
            return x[:, None]
        case _:
            return x[:, None, None]


def _seen(x: torch.Tensor, window: Window) -> torch.Tensor:
    """What each pixel of the result reads: (R, N, size * size * K)."""
    if window == Window():
        return as_pixels(x).flatten(1, 2)
    patches = F.unfold(x, window.size, padding=window.padding, stride=window.stride)
    return patches.unflatten(1, (x.shape[1], -1)).permute(0, 3, 2, 1).flatten(2)


@jit
def low_rank_rows_kernel(
    y,
    x,
    down,
    up,
    starts,
    ranks,
    adapters,
    weights,
    pixels,
    width,
    x_height,
    x_width,
    y_row,
    y_line,
    y_pixel,
    y_channel,
    x_row,
    x_line,
    x_pixel,
    x_channel,
    share,
    PER_ROW: tl.constexpr,
    INPUTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    PIXELS: tl.constexpr,
    RANKS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: PIXELS neighbouring pixels of one row, and `share` channels of the result."""
    row = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    line, column = pixel // width, pixel % width
    first_output = tl.program_id(2) * share
    x += row * x_row
    y += row * y_row
    here = (line * y_line + column * y_pixel)[:, None]
    channel, place = tl.arange(0, CHANNELS), tl.arange(0, RANKS)
    for j in range(PER_ROW):
        adapter = tl.load(adapters + row * PER_ROW + j)
        weight = tl.load(weights + row * PER_ROW + j)
        rank = tl.where(adapter >= 0, tl.load(ranks + tl.maximum(adapter, 0)), 0).to(tl.int32)
        start = tl.load(starts + tl.maximum(adapter, 0))
        own_down = down + start * (SIZE * SIZE * INPUTS)
        own_up = up + start * OUTPUTS
        for first in range(0, rank, RANKS):
            factor = first + place
            there = factor < rank
            hidden = tl.zeros((PIXELS, RANKS), tl.float32)
            for step in range(SIZE * SIZE * BLOCKS):  # one loop: two within each other are unrolled until words spill
                tap = step // BLOCKS
                seen_line = line * STRIDE + tap // SIZE - PADDING
                seen_column = column * STRIDE + tap % SIZE - PADDING
                inside = (pixel < pixels) & (seen_line >= 0) & (seen_line < x_height)
                inside = inside & (seen_column >= 0) & (seen_column < x_width)
                input = step % BLOCKS * CHANNELS + channel
                valid = input < INPUTS
                seen = (seen_line * x_line + seen_column * x_pixel)[:, None] + input[None, :] * x_channel
                held = tl.load(x + seen, mask=inside[:, None] & valid[None, :], other=0.0)
                taps = (factor * (SIZE * SIZE * INPUTS))[None, :] + (tap * INPUTS + input)[:, None]
                part = tl.load(own_down + taps, mask=valid[:, None] & there[None, :], other=0.0)
                hidden += wide_dot(held, part, PRECISION, UPCAST)
            narrow = (hidden * weight).to(up.dtype.element_ty)
            for begin in range(first_output, tl.minimum(first_output + share, OUTPUTS), CHANNELS):
                output = begin + channel
                valid = output < OUTPUTS
                places = factor[:, None] * OUTPUTS + output[None, :]
                part = tl.load(own_up + places, mask=there[:, None] & valid[None, :], other=0.0)
                where = y + (here + output[None, :] * y_channel)
                written = (pixel < pixels)[:, None] & valid[None, :]
                total = tl.load(where, mask=written, other=0.0).to(tl.float32)
                total += wide_dot(narrow, part, PRECISION, UPCAST)
                tl.store(where, total, mask=written)


def low_rank_constants(
    per_row: int, inputs: int, outputs: int, most: int, window: Window, dtype: torch.dtype
) -> dict[str, object]:
    """The kernel's compile-time values; arguments as of the reference."""
    return {
        "PER_ROW": per_row, "INPUTS": inputs, "BLOCKS": triton.cdiv(inputs, CHANNELS), "OUTPUTS": outputs,
        "SIZE": window.size, "STRIDE": window.stride, "PADDING": window.padding,
        "PIXELS": PIXELS, "RANKS": min(_WIDEST, max(16, triton.next_power_of_2(most))), "CHANNELS": CHANNELS,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
    }  # fmt: skip


def launch_low_rank_rows(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    starts: torch.Tensor,
    ranks: torch.Tensor,
    adapters: torch.Tensor,
    weights: torch.Tensor,
    most: int,
    window: Window,
) -> None:
    """Run the Triton kernel; arguments as in the reference. A second adapter of a row rounds y once more."""
    check_low_rank_rows(y, x, down, up, starts, ranks, adapters, weights, window)
    require_launchable("low_rank_rows", y, x, down, up, starts, ranks, adapters, weights)
    (rows, height, width, outputs), seen = as_pixels(y).shape, as_pixels(x)
    if not y.numel() or not most:
        return
    tiles = triton.cdiv(height * width, PIXELS)
    blocks = triton.cdiv(outputs, CHANNELS)
    shares = min(blocks, triton.cdiv(_PROGRAMS, tiles * rows))
    share = triton.cdiv(blocks, shares) * CHANNELS
    constants = low_rank_constants(adapters.shape[1], x_channels(x), outputs, most, window, x.dtype)
    with torch.cuda.device_of(y):
        low_rank_rows_kernel[tiles, rows, triton.cdiv(outputs, share)](
            y, x, down, up, starts, ranks, adapters, weights, height * width, width, seen.shape[1], seen.shape[2],
            *as_pixels(y).stride(), *seen.stride(), share, **constants, num_warps=WARPS,
        )  # fmt: skip


def x_channels(x: torch.Tensor) -> int:
    """Channels of pictures, tokens or vectors."""
    return as_pixels(x).shape[-1]


def check_low_rank_rows(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    starts: torch.Tensor,
    ranks: torch.Tensor,
    adapters: torch.Tensor,
    weights: torch.Tensor,
    window: Window,
) -> None:
    """Refuse shapes, dtypes and layouts that the operator cannot take."""
    name = "low_rank_rows"
    if x.ndim not in (2, 3, 4) or (x.ndim != 4 and window != Window()):
        raise ValueError(f"{name}: x must be vectors, tokens, or of a convolution pictures, got {tuple(x.shape)}")
    inputs, outputs = x_channels(x), up.shape[-1]
    if x.ndim == 4:
        sides = [(side + 2 * window.padding - window.size) // window.stride + 1 for side in x.shape[2:]]
        check_shape(name, "y", y, (len(x), outputs, *sides))
    else:
        check_shape(name, "y", y, (*x.shape[:-1], outputs))
    check_shape(name, "down", down, (len(up), window.size**2, inputs))
    check_shape(name, "up", up, (None, None))
    check_shape(name, "ranks", ranks, tuple(starts.shape))
    check_shape(name, "adapters", adapters, (len(x), None))
    check_shape(name, "weights", weights, tuple(adapters.shape))
    check_dtype(name, "x", x, *FLOATS)
    for label, tensor in (("y", y), ("down", down), ("up", up)):
        check_dtype(name, label, tensor, x.dtype)
    check_dtype(name, "weights", weights, torch.float32)
    for label, tensor in (("starts", starts), ("ranks", ranks), ("adapters", adapters)):
        check_dtype(name, label, tensor, torch.int64)
    own = {"down": down, "up": up, "starts": starts, "ranks": ranks, "adapters": adapters, "weights": weights}
    for label, tensor in own.items():
        check_contiguous(name, label, tensor)
