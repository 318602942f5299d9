"""Masked attention in Triton with a row of tokens in a loop of tiles; otherwise as `masked_attention_tile`."""

# mypy: allow-untyped-defs

from __future__ import annotations

from ._triton import jit, tl
from .masked_attention_parts import load_rows, masked_logits, store_mass, store_rows, token_vectors, wide_dot


@jit
def _scaled_scores(
    q_main,
    q_tail,
    k,
    k_row,
    columns,
    T: tl.constexpr,
    D: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    scores = wide_dot(q_main, tl.trans(load_rows(k, columns, T, k_row, 0, D_MAIN, D)), PRECISION, UPCAST)
    if D_TAIL > 0:
        key = tl.trans(load_rows(k, columns, T, k_row, D_MAIN, D_TAIL, D))
        scores += wide_dot(q_tail, key, PRECISION, UPCAST)
    return scores


@jit
def masked_attention_long_kernel(
    q,
    k,
    v,
    mask,
    tokens,
    scalars,
    out,
    mass,
    q_batch,
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    out_batch,
    out_row,
    mask_batch,
    mask_row,
    mask_column,
    tokens_batch,
    tokens_vector,
    tokens_token,
    scalars_batch,
    scalars_column,
    pixels,
    grid_height,
    grid_width,
    mask_height,
    mask_width,
    scale,
    T: tl.constexpr,
    D: tl.constexpr,
    T_BLOCK: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    WITH_MASS: tl.constexpr,
):
    """As `masked_attention_kernel` for any T: T_BLOCK tokens at a time, in two sweeps.

    The first sweep finds each row's maximum and sums, the second recomputes the scores and applies them. That
    costs one more q k product than an online softmax, and in return the probabilities that meet v, and whose
    mass is summed, are final and at most as large as the rule makes them.
    """
    head = tl.program_id(0)
    tile = tl.program_id(1)
    sample = tl.program_id(2).to(tl.int64)

    rows = tile * BLOCK + tl.arange(0, BLOCK)
    y = (rows // grid_width) * mask_height // grid_height
    x = (rows % grid_width) * mask_width // grid_width
    raw_mask = tl.load(mask + sample * mask_batch + y * mask_row + x * mask_column, mask=rows < pixels, other=0.0)
    scalars += sample * scalars_batch
    eta = tl.load(scalars)
    rho = tl.load(scalars + scalars_column)
    gamma = tl.load(scalars + 2 * scalars_column)
    m = eta * raw_mask
    q += sample * q_batch + head * D
    k += sample * k_batch + head * D
    v += sample * v_batch + head * D
    out += sample * out_batch + head * D
    tokens += sample * tokens_batch
    q_main = load_rows(q, rows, pixels, q_row, 0, D_MAIN, D)
    q_tail = q_main
    if D_TAIL > 0:
        q_tail = load_rows(q, rows, pixels, q_row, D_MAIN, D_TAIL, D)

    highest = tl.full((BLOCK,), -3e38, tl.float32)
    partition = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, T, T_BLOCK):
        columns = start + tl.arange(0, T_BLOCK)
        scores = _scaled_scores(q_main, q_tail, k, k_row, columns, T, D, D_MAIN, D_TAIL, PRECISION, UPCAST)
        c, b, a, g = token_vectors(tokens, tokens_vector, tokens_token, columns, scale, eta, T)
        logits = masked_logits(scores, scale, c, b, a, m)
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        shrink = tl.exp2(highest - higher)
        weights = tl.exp2(logits - higher[:, None])
        partition = partition * shrink + tl.sum(weights, axis=1)
        total = total * shrink + tl.sum(weights * (1.0 + m[:, None] * g[None, :]), axis=1)
        highest = higher

    row_scale = ((1.0 - rho) + rho / tl.maximum(total / partition, 1e-6)) / partition
    complement = tl.where(rows < pixels, 1.0 - raw_mask, 0.0)
    if WITH_MASS:
        program = (sample * tl.num_programs(0) + head) * tl.num_programs(1) + tile
        mass += program * 2 * T
    acc = tl.zeros((BLOCK, D_MAIN), tl.float32)
    acc_tail = tl.zeros((BLOCK, D_TAIL if D_TAIL > 0 else 16), tl.float32)
    for start in range(0, T, T_BLOCK):
        columns = start + tl.arange(0, T_BLOCK)
        scores = _scaled_scores(q_main, q_tail, k, k_row, columns, T, D, D_MAIN, D_TAIL, PRECISION, UPCAST)
        c, b, a, g = token_vectors(tokens, tokens_vector, tokens_token, columns, scale, eta, T)
        logits = masked_logits(scores, scale, c, b, a, m)
        factor = (1.0 + m[:, None] * g[None, :]) * row_scale[:, None]
        weights = tl.exp2(logits - highest[:, None]) * factor
        if WITH_MASS:
            store_mass(mass, weights, raw_mask, complement, columns, T)
        narrow = weights.to(v.dtype.element_ty)
        acc += wide_dot(narrow, load_rows(v, columns, T, v_row, 0, D_MAIN, D), PRECISION, UPCAST)
        if D_TAIL > 0:
            acc_tail += wide_dot(narrow, load_rows(v, columns, T, v_row, D_MAIN, D_TAIL, D), PRECISION, UPCAST)

    keep = 1.0 - gamma * m
    store_rows(out, acc * keep[:, None], rows, pixels, out_row, 0, D)
    if D_TAIL > 0:
        store_rows(out, acc_tail * keep[:, None], rows, pixels, out_row, D_MAIN, D)
