"""Cross-attention whose logits, probabilities and output are reweighted per token, inside and outside a mask.

With s the scaled scores and M = eta * mask at the query pixel, in fp32:

    l    = (s + pad) * [1 + M (c - 1)] + M * b + (1 - M) * bbar
    p    = softmax(l)
    p'   = p * [1 + M (g - 1)]
    p''  = p' * [(1 - rho) + rho / max(sum p', 1e-6)]
    out  = (1 - gamma M) * sum p'' v

A sample with eta = 0 is switched off exactly: it is plain attention with the bias `pad`, and `bbar` is off too.
The mass of a token is the mean of p'' over the query pixels, weighted by the raw mask (inside) and by one minus
the raw mask (outside), whatever eta is: sum(w p'') / max(sum w, 1e-6).

Prompt-to-prompt, Ren et al. (ECCV 2024), GUARD, paint-with-words, regional prompting and IP-Adapter masks are
settings of b, bbar, c, g, rho and gamma.
"""

from __future__ import annotations

import math

import torch

from ._triton import INTERPRETED, require_launchable, triton
from .checks import FLOATS, check_dtype, check_shape
from .conditioning import ScalarColumn, TokenRow, sample_mask
from .masked_attention_long import masked_attention_long_kernel
from .masked_attention_tile import masked_attention_kernel
from .tiles import AttentionTile, attention_constants, attention_options, attention_tile

_SMALLEST_SUM = 1e-6


def split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, L, H*d) -> (B, H, L, d), a view."""
    return tensor.unflatten(-1, (heads, tensor.shape[-1] // heads)).transpose(1, 2)


def masked_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    *,
    heads: int,
    grid: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, mass inside and mass outside by the equations above, every intermediate at least fp32.

    Branches on no value, so it can be traced. `q` (B, N, H*d); `k`, `v` (B, T, H*d); `mask` (B, h, w);
    `tokens` (B, 5, T); `scalars` (B, 3); returns (B, N, H*d) in q's dtype and twice (B, H, T) fp32.
    """
    work = torch.promote_types(q.dtype, torch.float32)
    weight = sample_mask(mask, grid).to(work)[:, None, :, None]
    b, bbar, c, g, pad = tokens.to(work)[:, :, None, None, :].unbind(1)
    eta, rho, gamma = scalars.to(work)[:, :, None, None, None].unbind(1)
    query, key, value = (split_heads(tensor, heads).to(work) for tensor in (q, k, v))

    m = eta * weight
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + pad
    logits = scores * (1 + m * (c - 1)) + m * b + torch.where(eta == 0, torch.zeros_like(m), 1 - m) * bbar
    probability = logits.softmax(-1) * (1 + m * (g - 1))
    total = probability.sum(-1, keepdim=True).clamp_min(_SMALLEST_SUM)
    probability = probability * ((1 - rho) + rho / total)
    out = (1 - gamma * m) * (probability @ value)

    inside, outside = (
        ((w * probability).sum(2) / w.sum(2).clamp_min(_SMALLEST_SUM)).float() for w in (weight, 1 - weight)
    )
    return out.transpose(1, 2).flatten(2).to(q.dtype), inside, outside


def check_masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    heads: int,
    grid: tuple[int, int],
) -> None:
    """Refuse shapes, dtypes and sizes that the operator cannot take."""
    name = "masked_attention"
    check_shape(name, "q", q, (None, None, None))
    batch, pixels, channels = q.shape
    if heads < 1 or channels % heads:
        raise ValueError(f"{name}: heads must divide q's {channels} channels, got {heads}")
    if len(grid) != 2 or grid[0] * grid[1] != pixels:
        raise ValueError(f"{name}: grid must multiply to q's {pixels} pixels, got {tuple(grid)}")
    check_shape(name, "k", k, (batch, None, channels))
    check_shape(name, "v", v, (batch, k.shape[1], channels))
    check_shape(name, "mask", mask, (batch, None, None))
    check_shape(name, "tokens", tokens, (batch, len(TokenRow), k.shape[1]))
    check_shape(name, "scalars", scalars, (batch, len(ScalarColumn)))
    check_dtype(name, "q", q, *FLOATS)
    for label, tensor in (("k", k), ("v", v)):
        check_dtype(name, label, tensor, q.dtype)
    for label, tensor in (("mask", mask), ("tokens", tokens), ("scalars", scalars)):
        check_dtype(name, label, tensor, torch.float32)
    if k.shape[1] == 0 or mask.shape[1] == 0 or mask.shape[2] == 0:
        raise ValueError(f"{name}: no tokens or an empty mask: k {tuple(k.shape)}, mask {tuple(mask.shape)}")


def kernel_takes(head_dim: int) -> bool:
    """Whether the Triton kernel is built for heads of this many channels: a multiple of 8 up to 256."""
    return head_dim % 8 == 0 and 0 < head_dim <= 256


def _check_layout(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> None:
    name = "masked_attention"
    head_dim = q.shape[-1] // heads
    if not kernel_takes(head_dim):
        raise ValueError(f"{name}: the head dimension must be a multiple of 8 up to 256, got {head_dim}")
    for label, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name}: {label}'s channels must be adjacent, got strides {tensor.stride()}")


def launch_masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    *,
    heads: int,
    grid: tuple[int, int],
    with_mass: bool = False,
    tile: AttentionTile | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Run the Triton kernel: output, and with `with_mass` the masses inside and outside (else None).

    Shapes and dtypes as in the reference; q, k and v may be strided views with adjacent channels. Up to
    `tiles.LONGEST_TILE` tokens run in one tile (in fp32 only where heads have at most 128 channels), more in a loop of
    tiles. Raises ValueError or TypeError naming the offending value.
    """
    check_masked_attention(q, k, v, mask, tokens, scalars, heads, grid)
    require_launchable("masked_attention", q, k, v, mask, tokens, scalars)
    _check_layout(q, k, v, heads)
    batch, pixels, channels = q.shape
    length, head_dim = k.shape[1], channels // heads
    tile = tile or attention_tile(head_dim, length, q.dtype, with_mass)
    tiles = triton.cdiv(pixels, tile.block)
    out = torch.empty((batch, pixels, channels), dtype=q.dtype, device=q.device)
    partial = torch.empty((batch, heads, tiles, 2, length) if with_mass else (1,), device=q.device)
    kernel = masked_attention_long_kernel if tile.looped else masked_attention_kernel
    if batch and pixels:
        with torch.cuda.device_of(q):
            kernel[(heads, tiles, batch)](
                q, k, v, mask, tokens, scalars, out, partial,
                q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
                out.stride(0), out.stride(1), *mask.stride(), *tokens.stride(), *scalars.stride(),
                pixels, grid[0], grid[1], mask.shape[1], mask.shape[2],
                math.log2(math.e) / math.sqrt(head_dim),
                **attention_constants(head_dim, length, tile),
                PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
                UPCAST=INTERPRETED and q.dtype == torch.bfloat16,
                WITH_MASS=with_mass, **attention_options(head_dim, tile),
            )  # fmt: skip
    if not with_mass:
        return out, None, None
    weight = sample_mask(mask, grid)
    total = torch.stack((weight.sum(1), (1 - weight).sum(1)), 1).clamp_min(_SMALLEST_SUM)
    # Each in memory of its own: an operator's results may share none.
    inside, outside = (each.clone() for each in (partial.sum(2) / total[:, None, :, None]).unbind(2))
    return out, inside, outside
