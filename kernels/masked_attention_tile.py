"""Masked attention in Triton with a row of tokens in one tile.

Computes the equations of `masked_attention` in fp32 with base-2 exponentials, reads q, k and v in place of whatever
strides, samples the mask at its own resolution and writes nothing of size pixels x tokens.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from ._triton import jit, tl
from .masked_attention_parts import load_rows, masked_logits, store_mass, store_rows, token_vectors, wide_dot


@jit
def load_chunk(
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
):
    """Queries, and keys of both token tiles, of SIZE head channels from `start`; the main tile twice without a tail."""
    key = load_rows(k, columns, T, k_row, start, SIZE, D)
    return load_rows(q, rows, pixels, q_row, start, SIZE, D), key, _tail(k, k_row, tail, start, SIZE, T, D, T_TAIL, key)


@jit
def load_values(
    v,
    v_row,
    columns,
    tail,
    start,
    SIZE: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    T_TAIL: tl.constexpr,
):
    """Values of both token tiles, as `load_chunk`."""
    value = load_rows(v, columns, T, v_row, start, SIZE, D)
    return value, _tail(v, v_row, tail, start, SIZE, T, D, T_TAIL, value)


@jit
def _tail(
    pointer,
    row,
    tail,
    start,
    SIZE: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    T_TAIL: tl.constexpr,
    main,
):
    found = main
    if T_TAIL > 0:
        found = load_rows(pointer, tail, T, row, start, SIZE, D)
    return found


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

    q += sample * q_batch + head * D
    k += sample * k_batch + head * D
    v += sample * v_batch + head * D
    out += sample * out_batch + head * D
    tokens += sample * tokens_batch
    columns = tl.arange(0, T_MAIN)
    tail = T_MAIN + tl.arange(0, T_TAIL if T_TAIL > 0 else 16)
    scores = tl.zeros((BLOCK, T_MAIN), tl.float32)
    scores_t = tl.zeros((BLOCK, T_TAIL if T_TAIL > 0 else 16), tl.float32)
    # A tile is asked for before the one ahead of it is multiplied, so that the two do not wait for memory in turn.
    query, key, key_t = load_chunk(q, k, rows, pixels, q_row, k_row, columns, tail, 0, D_CHUNK, T, D, T_TAIL)
    value, value_t = load_values(v, v_row, columns, tail, 0, D_CHUNK, T, D, T_TAIL)
    for part in tl.static_range(D_CHUNKS):
        held, held_key, held_key_t = query, key, key_t
        if part + 1 < D_CHUNKS:
            start = (part + 1) * D_CHUNK
            query, key, key_t = load_chunk(
                q, k, rows, pixels, q_row, k_row, columns, tail, start, D_CHUNK, T, D, T_TAIL
            )
        scores += wide_dot(held, tl.trans(held_key), PRECISION, UPCAST)
        if T_TAIL > 0:
            scores_t += wide_dot(held, tl.trans(held_key_t), PRECISION, UPCAST)

    c, b, a, g = token_vectors(tokens, tokens_vector, tokens_token, columns, scale, eta, T)
    logits = masked_logits(scores, scale, c, b, a, m)
    highest = tl.max(logits, axis=1)
    if T_TAIL > 0:
        c, b, a, g_tail = token_vectors(tokens, tokens_vector, tokens_token, tail, scale, eta, T)
        logits_t = masked_logits(scores_t, scale, c, b, a, m)
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
    for part in tl.static_range(D_CHUNKS):
        held, held_t = value, value_t
        if part + 1 < D_CHUNKS:
            value, value_t = load_values(v, v_row, columns, tail, (part + 1) * D_CHUNK, D_CHUNK, T, D, T_TAIL)
        acc = wide_dot(narrow, held, PRECISION, UPCAST)
        if T_TAIL > 0:
            acc += wide_dot(narrow_t, held_t, PRECISION, UPCAST)
        store_rows(out, acc * keep[:, None], rows, pixels, out_row, part * D_CHUNK, D)
