"""Masked attention as a host launches it that passes pointers and integers alone: contiguous tensors, mask at the grid.

The arguments stand in the order of such hosts: inputs, integers, output. Strides follow from the shapes, and what a
compiled graph fixes (heads, head channels, tokens, the scale of the scores) is compiled in.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from ._triton import jit, tl
from .masked_attention_long import masked_attention_long_kernel
from .masked_attention_tile import masked_attention_kernel


@jit
def contiguous_attention_kernel(
    q,
    k,
    v,
    mask,
    tokens,
    scalars,
    height,
    width,
    out,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    T_MAIN: tl.constexpr,
    T_TAIL: tl.constexpr,
    D_CHUNK: tl.constexpr,
    D_CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`masked_attention_kernel` on a grid of (HEADS, ceil(height * width / BLOCK), samples) programs."""
    pixels = height * width
    masked_attention_kernel(
        q, k, v, mask, tokens, scalars, out, out,
        pixels * (HEADS * D), HEADS * D, T * (HEADS * D), HEADS * D, T * (HEADS * D), HEADS * D,
        pixels * (HEADS * D), HEADS * D, pixels, width, 1, 5 * T, T, 1, 3, 1,
        pixels, height, width, height, width, SCALE,
        T, D, T_MAIN, T_TAIL, D_CHUNK, D_CHUNKS, BLOCK, PRECISION, UPCAST, False,
    )  # fmt: skip


@jit
def contiguous_attention_long_kernel(
    q,
    k,
    v,
    mask,
    tokens,
    scalars,
    height,
    width,
    out,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    T_BLOCK: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`masked_attention_long_kernel` on the same grid."""
    pixels = height * width
    masked_attention_long_kernel(
        q, k, v, mask, tokens, scalars, out, out,
        pixels * (HEADS * D), HEADS * D, T * (HEADS * D), HEADS * D, T * (HEADS * D), HEADS * D,
        pixels * (HEADS * D), HEADS * D, pixels, width, 1, 5 * T, T, 1, 3, 1,
        pixels, height, width, height, width, SCALE,
        T, D, T_BLOCK, D_MAIN, D_TAIL, BLOCK, PRECISION, UPCAST, False,
    )  # fmt: skip
