"""What the two Triton kernels of masked attention have in common: loads, products, logits, stores."""

# mypy: allow-untyped-defs

from __future__ import annotations

from ._triton import jit, tl


@jit
def load_rows(pointer, rows, rows_end, row_stride, column_start, COLUMNS: tl.constexpr, COLUMNS_END: tl.constexpr):
    """Rows of one head; rows and columns past the end read as zero."""
    columns = column_start + tl.arange(0, COLUMNS)
    return tl.load(
        pointer + rows[:, None] * row_stride + columns[None, :],
        mask=(rows[:, None] < rows_end) & (columns[None, :] < COLUMNS_END),
        other=0.0,
    )


@jit
def wide_dot(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Product of two tiles with sums in fp32."""
    if UPCAST:  # the interpreter multiplies bf16 wrongly
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@jit
def token_vectors(pointer, vector_stride, token_stride, columns, scale, eta, T: tl.constexpr):
    """What a token adds to base-2 logits, as (c - 1) * scale, b', a and g - 1: logits = s * (scale + m c') + m b' + a.

    a is what it adds where the mask is 0, b' how much more it adds where the mask is 1. A column past the end can win
    no probability: it has a large negative pad and c = 1, which no M can turn off; it is finite, for infinity times
    M = 0 would be NaN. bbar is off where eta is 0.
    """
    log2e = 1.4426950408889634
    valid = columns < T
    offsets = columns * token_stride
    b = tl.load(pointer + offsets, mask=valid, other=0.0)
    bbar = tl.load(pointer + vector_stride + offsets, mask=valid, other=0.0)
    c = tl.load(pointer + 2 * vector_stride + offsets, mask=valid, other=1.0) - 1.0
    g = tl.load(pointer + 3 * vector_stride + offsets, mask=valid, other=1.0) - 1.0
    pad = tl.load(pointer + 4 * vector_stride + offsets, mask=valid, other=-1e30)
    bbar = tl.where(eta == 0.0, 0.0, bbar)
    return c * scale, (c * pad + b - bbar) * log2e, (pad + bbar) * log2e, g


@jit
def masked_logits(scores, scale, c, b, a, m):
    """Scores with what the mask and the tokens add, in base 2; `token_vectors`."""
    return scores * (scale + m[:, None] * c[None, :]) + (m[:, None] * b[None, :] + a[None, :])


@jit
def store_mass(pointer, weights, inside, outside, columns, T: tl.constexpr):
    """Sum this tile's probabilities over its pixels, weighted by the mask, then by one minus the mask."""
    tl.store(pointer + columns, tl.sum(weights * inside[:, None], axis=0), mask=columns < T)
    tl.store(pointer + T + columns, tl.sum(weights * outside[:, None], axis=0), mask=columns < T)


@jit
def store_rows(out, acc, rows, pixels, out_row, start, D: tl.constexpr):
    """Write head channels from `start` of one head's rows."""
    d = start + tl.arange(0, acc.shape[1])
    tl.store(out + rows[:, None] * out_row + d[None, :], acc, mask=(rows[:, None] < pixels) & (d[None, :] < D))
