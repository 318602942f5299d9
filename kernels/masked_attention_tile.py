"""Masked attention in Triton with a row of tokens in one tile.

Computes the equations of `masked_attention` in fp32 with base-2 exponentials, reads q, k and v in place of whatever
strides, samples the mask at its own resolution and writes nothing of size pixels x tokens.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from ._triton import jit, tl
from .masked_attention_parts import add_scores, masked_logits, store_mass, store_values, token_vectors


@jit
def masked_attention_kernel(
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
    T_MAIN: tl.constexpr,
    T_TAIL: tl.constexpr,
    D_CHUNK: tl.constexpr,
    D_CHUNKS: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    WITH_MASS: tl.constexpr,
):
    """One program: BLOCK query pixels of one head of one sample, against all T tokens at once.

    Tokens are a main tile and an optional tail, so that 77 of them cost 80 columns and not 128; head channels
    come in chunks, so that the score row is the only large thing in registers. Heads are the fastest grid axis:
    neighbours share the cache lines of q and out.
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
    outside = tl.where(eta == 0.0, 0.0, 1.0 - m)

    q += sample * q_batch + head * D
    k += sample * k_batch + head * D
    v += sample * v_batch + head * D
    out += sample * out_batch + head * D
    tokens += sample * tokens_batch
    columns = tl.arange(0, T_MAIN)
    tail = T_MAIN + tl.arange(0, T_TAIL if T_TAIL > 0 else 16)
    scores = tl.zeros((BLOCK, T_MAIN), tl.float32)
    scores_t = tl.zeros((BLOCK, T_TAIL if T_TAIL > 0 else 16), tl.float32)
    for chunk in tl.static_range(D_CHUNKS):
        scores, scores_t = add_scores(
            scores, scores_t, q, k, rows, pixels, q_row, k_row, columns, tail, chunk * D_CHUNK, D_CHUNK,
            T, D, T_TAIL, PRECISION, UPCAST,
        )  # fmt: skip
    if D_TAIL > 0:
        scores, scores_t = add_scores(
            scores, scores_t, q, k, rows, pixels, q_row, k_row, columns, tail, D_CHUNKS * D_CHUNK, D_TAIL,
            T, D, T_TAIL, PRECISION, UPCAST,
        )  # fmt: skip

    b, bbar, c, g, pad = token_vectors(tokens, tokens_vector, tokens_token, columns, T)
    logits = masked_logits(scores, scale, pad, c, b, bbar, m, outside)
    highest = tl.max(logits, axis=1)
    if T_TAIL > 0:
        b, bbar, c, g_tail, pad = token_vectors(tokens, tokens_vector, tokens_token, tail, T)
        logits_t = masked_logits(scores_t, scale, pad, c, b, bbar, m, outside)
        highest = tl.maximum(highest, tl.max(logits_t, axis=1))
    weights = tl.exp2(logits - highest[:, None])
    partition = tl.sum(weights, axis=1)
    weights *= 1.0 + m[:, None] * g[None, :]
    total = tl.sum(weights, axis=1)
    if T_TAIL > 0:
        weights_t = tl.exp2(logits_t - highest[:, None])
        partition += tl.sum(weights_t, axis=1)
        weights_t *= 1.0 + m[:, None] * g_tail[None, :]
        total += tl.sum(weights_t, axis=1)
    row_scale = ((1.0 - rho) + rho / tl.maximum(total / partition, 1e-6)) / partition
    weights *= row_scale[:, None]
    if T_TAIL > 0:
        weights_t *= row_scale[:, None]
    else:
        weights_t = scores_t

    if WITH_MASS:
        complement = tl.where(rows < pixels, 1.0 - raw_mask, 0.0)
        program = (sample * tl.num_programs(0) + head) * tl.num_programs(1) + tile
        mass += program * 2 * T
        store_mass(mass, weights, raw_mask, complement, columns, T)
        if T_TAIL > 0:
            store_mass(mass, weights_t, raw_mask, complement, tail, T)

    keep = 1.0 - gamma * m
    narrow = weights.to(v.dtype.element_ty)
    narrow_t = weights_t.to(v.dtype.element_ty)
    for chunk in tl.static_range(D_CHUNKS):
        store_values(
            out, narrow, narrow_t, keep, v, rows, pixels, out_row, v_row, columns, tail, chunk * D_CHUNK,
            D_CHUNK, T, D, T_TAIL, PRECISION, UPCAST,
        )  # fmt: skip
    if D_TAIL > 0:
        store_values(
            out, narrow, narrow_t, keep, v, rows, pixels, out_row, v_row, columns, tail, D_CHUNKS * D_CHUNK,
            D_TAIL, T, D, T_TAIL, PRECISION, UPCAST,
        )  # fmt: skip
