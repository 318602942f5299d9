"""Masked attention on a CPU: the same operator as fast as PyTorch's own kernels allow.

An operator's body may look at values, so it takes the cheapest exact form for the settings at hand:

- only biases (b, bbar, pad): `scaled_dot_product_attention` with one bias for all heads, or none at all;
- factors on logits or probabilities (c, g), or the masses asked for: batched products with the elementwise part
  in place on one score tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .conditioning import HIDDEN, ScalarColumn, TokenRow, sample_mask
from .masked_attention import split_heads

_SMALLEST_SUM = 1e-6


def masked_attention_cpu(
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
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Output as `masked_attention_reference`, and with `with_mass` the masses inside and outside (else None).

    Each sample takes the form that its own settings ask for, and reads its own tokens, without those that are hidden at
    its end, so that company in a batch never changes its rounding.
    """
    if not with_mass and not bool(scalars[:, ScalarColumn.ETA].any()) and not bool(tokens[:, TokenRow.PAD].any()):
        plain, _ = _plain(*(split_heads(tensor, heads) for tensor in (q, k, v)))
        return plain.flatten(2), None, None
    lengths = _lengths(tokens)
    if lengths is None:
        return _in_forms(q, k, v, mask, tokens, scalars, heads, grid, with_mass=with_mass)
    out = torch.empty_like(q)
    masses = [torch.zeros(len(q), heads, k.shape[1], device=q.device) for _ in range(2 if with_mass else 0)]
    for length in lengths.unique().tolist():
        some = lengths == length
        read = (k[some, :length], v[some, :length], mask[some], tokens[some, :, :length], scalars[some])
        found = _in_forms(q[some], *read, heads, grid, with_mass=with_mass)
        out[some] = found[0]
        for mass, own in zip(masses, found[1:], strict=False):
            assert own is not None
            mass[some, :, :length] = own
    return (out, masses[0], masses[1]) if with_mass else (out, None, None)


def _lengths(tokens: torch.Tensor) -> torch.Tensor | None:
    """How many tokens each sample reads (B,), up to the last that is not hidden; None where all read all."""
    hidden = tokens[:, TokenRow.PAD] <= HIDDEN
    if not bool(hidden[:, -1].any()):
        return None
    places = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device)
    last = torch.where(hidden, 0, places).amax(1)
    return torch.where(last == 0, tokens.shape[-1], last)  # where all are hidden, all are as likely


def _in_forms(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
    heads: int,
    grid: tuple[int, int],
    *,
    with_mass: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """As `masked_attention_cpu`, of samples that read every token."""
    query, key, value = (split_heads(tensor, heads) for tensor in (q, k, v))
    weight = sample_mask(mask, grid)[:, :, None]
    if with_mass:
        out, probability = _batched(query, key, value, weight, tokens, scalars)
        inside, outside = (_mass(w, probability) for w in (weight, 1 - weight))
        return _damped(out, weight, scalars).flatten(2).to(q.dtype), inside, outside
    ruled = scalars[:, ScalarColumn.ETA] != 0
    factored = ruled & (tokens[:, [TokenRow.C, TokenRow.G]] != 1).flatten(1).any(1)
    biased = (ruled | (tokens[:, TokenRow.PAD] != 0).any(1)) & ~factored
    out = torch.empty(q.shape[0], q.shape[1], heads, v.shape[2] // heads, dtype=q.dtype, device=q.device)
    for form, chosen in ((_plain, ~(factored | biased)), (_biased, biased), (_batched, factored)):
        if bool(chosen.all()):
            out = form(query, key, value, weight, tokens, scalars)[0]
        elif bool(chosen.any()):
            parts = (tensor[chosen] for tensor in (query, key, value, weight, tokens, scalars))
            out[chosen] = form(*parts)[0].to(q.dtype)
    return _damped(out, weight, scalars).flatten(2).to(q.dtype), None, None


def _damped(out: torch.Tensor, weight: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
    """Withdraw gamma of the output (B, N, H, d) inside the mask; multiplying by 1 changes nothing elsewhere."""
    damping = scalars[:, ScalarColumn.ETA] * scalars[:, ScalarColumn.GAMMA]
    if not bool(damping.any()):
        return out
    return out * (1 - damping[:, None, None] * weight)[..., None].to(out.dtype)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output (B, N, H, d) without any rule."""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None


def _biased(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output (B, N, H, d) where logits change by addition only: one bias for all heads."""
    bias = tokens[:, TokenRow.PAD, None] + _bias(weight, tokens, scalars[:, ScalarColumn.ETA])
    # The bias stays fp32 beside half-precision queries: bf16 would keep three digits of it.
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None]).transpose(1, 2), None


def _bias(weight: torch.Tensor, tokens: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
    """M b + (1 - M) bbar (B, N, T): the same for every head, and zero where eta is."""
    m = eta[:, None, None] * weight
    on = (eta != 0).to(tokens.dtype)[:, None, None]
    return m * tokens[:, TokenRow.B, None] + (on - m) * tokens[:, TokenRow.BBAR, None]


def _batched(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor,
    tokens: torch.Tensor,
    scalars: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, N, H, d) before gamma, and p'' (B, H, N, T) fp32."""
    eta, rho, _ = scalars[:, :, None, None].unbind(1)
    _, _, c, g, pad = tokens[:, :, None].unbind(1)
    m = eta * weight
    factor = 1 + m * (c - 1)
    bias = pad * factor + _bias(weight, tokens, eta[:, 0, 0])
    scores = torch.matmul(query.float() * query.shape[-1] ** -0.5, key.float().transpose(-1, -2))
    probability = scores.mul_(factor[:, None]).add_(bias[:, None]).softmax(-1)
    probability.mul_((1 + m * (g - 1))[:, None])
    total = probability.sum(-1, keepdim=True).clamp_min_(_SMALLEST_SUM)
    probability.mul_(1 + rho[:, None] * (1 / total - 1))
    return torch.matmul(probability.to(value.dtype), value).transpose(1, 2), probability


def _mass(weight: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    summed = torch.matmul(weight.transpose(1, 2)[:, None], probability)[:, :, 0]
    return summed / weight.sum(1)[:, None].clamp_min(_SMALLEST_SUM)
