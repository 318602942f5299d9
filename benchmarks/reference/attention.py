"""Masked cross-attention in plain PyTorch: the reference of the engine's processors and of the kernel under them.

With s the scaled scores and M = eta * mask at the query pixel:

    l    = (s + pad) * [1 + M (c - 1)] + M * b + (1 - M) * bbar
    p    = softmax(l)
    p'   = p * [1 + M (g - 1)]
    p''  = p' * [(1 - rho) + rho / max(sum p', 1e-6)]
    out  = (1 - gamma M) * sum p'' v

The rule speaks of the prompt's tokens, so only rows of the conditional branch obey it; a layer or row where it is
off (eta = 0) is plain attention.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ...engine.api.mechanisms import MaskedAttention
from ...engine.avoidance.conditioning import attention_scalars


class AttentionRule:
    """The rule of one denoising run: mask (H, W), tokens (5, T), and what is in force at its current step.

    masses: what each token (T,) drew of the last row's attention, at each call of a layer, before gains.
    """

    def __init__(self, policy: MaskedAttention, num_steps: int, mask: Tensor, tokens: Tensor) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.mask = mask
        self.tokens = self.now = tokens
        self.groups: list[str] = []
        self.masses: list[Tensor] = []
        self.scalars = torch.zeros(0, 3)
        self.obeys = torch.zeros(0)

    def at(self, i: int, branches: Sequence[str], tokens: Tensor | None = None) -> None:
        """Move to step `i`, whose rows are `branches`; tokens (5, T): of another text than the run's own."""
        self.now = self.tokens if tokens is None else tokens
        scalars = attention_scalars(self.policy, i, self.num_steps, self.groups)
        self.scalars = torch.as_tensor(scalars).to(self.mask)
        self.obeys = torch.tensor([float(branch == "conditional") for branch in branches]).to(self.mask)

    @contextmanager
    def installed(self, unet: UNet2DConditionModel, shape: Sequence[int]) -> Iterator[None]:
        """Let every cross-attention layer of `unet` read this rule, for latents of `shape` (h, w)."""
        before = dict(unet.attn_processors)
        layers = [name for name in before if ".attn2." in name]
        self.groups = [name.split("_")[0] for name in layers]  # of down_blocks, mid_block and up_blocks
        levels = range(len(unet.config.block_out_channels))
        grids = [(math.ceil(shape[0] / 2**level), math.ceil(shape[1] / 2**level)) for level in levels]
        masked = {name: MaskedCrossAttention(self, layer, grids) for layer, name in enumerate(layers)}
        unet.set_attn_processor(before | masked)
        try:
            yield
        finally:
            unet.set_attn_processor(before)


class MaskedCrossAttention:
    """Processor of one cross-attention layer, in fp32 from the scores to the output."""

    def __init__(self, rule: AttentionRule, layer: int, grids: Sequence[tuple[int, int]]) -> None:
        self.rule = rule
        self.layer = layer
        self.grids = {height * width: (height, width) for height, width in grids}

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        """Pixels (B, N, C) and text (B, T, D) -> (B, N, C)."""
        q, k, v = (
            features.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float()
            for features in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        b, bbar, c, g, pad = self.rule.now
        eta, rho, gamma = self.rule.scalars[self.layer]
        mask = F.adaptive_avg_pool2d(self.rule.mask[None, None], self.grids[q.shape[2]]).view(1, 1, -1, 1)
        on = (self.rule.obeys * (eta != 0)).view(-1, 1, 1, 1)
        m = on * eta * mask

        s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + pad
        p = (s * (1 + m * (c - 1)) + m * b + (on - m) * bbar).softmax(-1)
        self.rule.masses.append(p[-1].mean((0, 1)))
        p = p * (1 + m * (g - 1))
        p = p * ((1 - on * rho) + on * rho / p.sum(-1, keepdim=True).clamp_min(1e-6))
        out = (1 - gamma * m) * (p @ v)
        return attn.to_out[0](out.transpose(1, 2).flatten(2).to(hidden_states.dtype))
