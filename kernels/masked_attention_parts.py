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
def token_vectors(pointer, vector_stride, token_stride, columns, T: tl.constexpr):
    """b, bbar, c - 1, g - 1 and pad, in base-2 logits; a column past the end can win no probability.

    Such a column has a large negative pad and c = 1, which no M can turn off; it is finite, for infinity times
    M = 0 would be NaN.
    """
    log2e = 1.4426950408889634
    valid = columns < T
    offsets = columns * token_stride
    b = tl.load(pointer + offsets, mask=valid, other=0.0) * log2e
    bbar = tl.load(pointer + vector_stride + offsets, mask=valid, other=0.0) * log2e
    c = tl.load(pointer + 2 * vector_stride + offsets, mask=valid, other=1.0) - 1.0
    g = tl.load(pointer + 3 * vector_stride + offsets, mask=valid, other=1.0) - 1.0
    pad = tl.load(pointer + 4 * vector_stride + offsets, mask=valid, other=-1e30) * log2e
    return b, bbar, c, g, pad


@jit
def masked_logits(scores, scale, pad, c, b, bbar, m, outside):
    """Scores with what the mask and the tokens add, in base 2."""
    s = scores * scale + pad[None, :]
    return s * (1.0 + m[:, None] * c[None, :]) + (m[:, None] * b[None, :] + outside[:, None] * bbar[None, :])


@jit
def store_mass(pointer, weights, inside, outside, columns, T: tl.constexpr):
    """Sum this tile's probabilities over its pixels, weighted by the mask, then by one minus the mask."""
    tl.store(pointer + columns, tl.sum(weights * inside[:, None], axis=0), mask=columns < T)
    tl.store(pointer + T + columns, tl.sum(weights * outside[:, None], axis=0), mask=columns < T)


@jit
def add_scores(
    scores,
    scores_tail,
    q,
    k,
    rows,
    pixels,
    q_row,
    k_row,
    columns,
    tail,
    start,
    SIZE: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    T_TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Add the products over SIZE head channels from `start` to the scores of both token tiles."""
    query = load_rows(q, rows, pixels, q_row, start, SIZE, D)
    scores += wide_dot(query, tl.trans(load_rows(k, columns, T, k_row, start, SIZE, D)), PRECISION, UPCAST)
    if T_TAIL > 0:
        key = tl.trans(load_rows(k, tail, T, k_row, start, SIZE, D))
        scores_tail += wide_dot(query, key, PRECISION, UPCAST)
    return scores, scores_tail


@jit
def store_values(
    out,
    weights,
    weights_tail,
    keep,
    v,
    rows,
    pixels,
    out_row,
    v_row,
    columns,
    tail,
    start,
    SIZE: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    T_TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Weighted values of SIZE head channels from `start`, written at once: only one chunk is ever live."""
    acc = wide_dot(weights, load_rows(v, columns, T, v_row, start, SIZE, D), PRECISION, UPCAST)
    if T_TAIL > 0:
        acc += wide_dot(weights_tail, load_rows(v, tail, T, v_row, start, SIZE, D), PRECISION, UPCAST)
    d = start + tl.arange(0, SIZE)
    inside = (rows[:, None] < pixels) & (d[None, :] < D)
    tl.store(out + rows[:, None] * out_row + d[None, :], acc * keep[:, None], mask=inside)
