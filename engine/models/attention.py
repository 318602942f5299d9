"""Diffusers' attention layers with everything per row: cached text keys/values and the masked reweighting.

`install` replaces the processors of a UNet or ControlNet. What a row needs reaches them as one `RowConditions`
through diffusers' `cross_attention_kwargs`, so the networks themselves stay diffusers' own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from ...kernels import masked_attention, masked_attention_with_mass, neutral_scalars


@dataclass(frozen=True)
class CrossLayer:
    """A cross-attention layer: where it stands, how far the latent is shrunk there, and its width."""

    name: str
    group: str
    level: int
    heads: int
    inner: int


class MassRecord:
    """Attention mass each token received, summed over layers and heads while it is installed in `RowConditions`.

    ruled, neutral (R, 2, T): inside and outside the mask, with the rule and had it been off; layers: how many
    layers were summed.
    """

    def __init__(self) -> None:
        self.ruled: Tensor | float = 0.0
        self.neutral: Tensor | float = 0.0
        self.layers = 0

    def add(self, ruled: Tensor, neutral: Tensor) -> None:
        """Add one layer's mass, each (R, 2, T)."""
        self.ruled = self.ruled + ruled
        self.neutral = self.neutral + neutral
        self.layers += 1


class RowConditions(NamedTuple):
    """What the rows of one call bring to attention (R rows, T tokens, L cross layers).

    text_kv: per layer (R, T, 2 * inner), keys then values. grids: (height, width) of the latent at each level.
    The reweighting is off where mask_pyramid (R, sum of grid areas from level 0 on) and scalars (R, L, 3) are None, as
    in a ControlNet; tokens (R, 5, T) then say no more than which are hidden, and are None where none is.
    deep: what the shallow part of a UNet takes over; `shallow.Taken`.
    """

    text_kv: tuple[Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    mask_pyramid: Tensor | None = None
    tokens: Tensor | None = None
    scalars: Tensor | None = None
    record: MassRecord | None = None
    deep: Tensor | None = None


class SelfAttention(AttnProcessor2_0):
    """Diffusers' own, which lets `conditions` pass."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        conditions: RowConditions | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class CrossAttention:
    """Attention to a row's cached text keys/values, under the masked reweighting rule."""

    def __init__(self, index: int, level: int) -> None:
        self.index = index
        self.level = level

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        conditions: RowConditions | None = None,
    ) -> Tensor:
        """(R, N, C) -> (R, N, C)."""
        assert conditions is not None, "a network with these processors needs cross_attention_kwargs['conditions']"
        query = attn.to_q(hidden_states)
        key, value = conditions.text_kv[self.index].chunk(2, dim=-1)
        if conditions.tokens is None:
            attended = _plain_attention(query, key, value, attn.heads)
        elif conditions.scalars is None:
            attended = _attention_to_seen(query, key, value, attn.heads, conditions.tokens)
        else:
            attended = self._reweighted(query, key, value, attn.heads, conditions)
        return attn.to_out[0](attended)

    def narrowed(self, conditions: RowConditions) -> RowConditions:
        """What this layer reads of `conditions`, as a network's only layer at its only level would read it."""
        mask, scalars = conditions.mask_pyramid, conditions.scalars
        grid = conditions.grids[self.level]
        start = sum(h * w for h, w in conditions.grids[: self.level])
        return conditions._replace(
            text_kv=(conditions.text_kv[self.index],),
            grids=(grid,),
            mask_pyramid=None if mask is None else mask[:, start : start + grid[0] * grid[1]],
            scalars=None if scalars is None else scalars[:, self.index, None],
        )

    def _reweighted(self, query: Tensor, key: Tensor, value: Tensor, heads: int, conditions: RowConditions) -> Tensor:
        assert conditions.mask_pyramid is not None
        assert conditions.tokens is not None
        assert conditions.scalars is not None
        grid = conditions.grids[self.level]
        start = sum(h * w for h, w in conditions.grids[: self.level])
        mask = conditions.mask_pyramid[:, start : start + grid[0] * grid[1]].unflatten(1, grid)
        scalars = conditions.scalars[:, self.index]
        attended = masked_attention(query, key, value, mask, conditions.tokens, scalars, heads=heads, grid=grid)
        if conditions.record is not None:
            masses = [
                masked_attention_with_mass(query, key, value, mask, conditions.tokens, s, heads=heads, grid=grid)[1:]
                for s in (scalars, neutral_scalars(len(scalars), scalars.device))
            ]
            conditions.record.add(*(torch.stack(mass, dim=1).mean(dim=2) for mass in masses))
        return attended


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _attention_to_seen(query: Tensor, key: Tensor, value: Tensor, heads: int, tokens: Tensor) -> Tensor:
    """Plain attention to the tokens that are not hidden: the rule is off, whatever the mask."""
    nothing = torch.zeros_like(query[..., :1], dtype=torch.float32)
    off = neutral_scalars(len(query), query.device)
    return masked_attention(query, key, value, nothing, tokens, off, heads=heads, grid=(query.shape[1], 1))


def install(network: UNet2DConditionModel | ControlNetModel) -> tuple[CrossLayer, ...]:
    """Replace every attention processor of `network`; return its cross-attention layers in order of `text_kv`."""
    layers: list[CrossLayer] = []
    processors: dict[str, SelfAttention | CrossAttention] = {}
    num_levels = len(network.config.block_out_channels)
    for name, module in network.named_modules():
        if not isinstance(module, Attention):
            continue
        if name.endswith("attn2"):
            group, level = _place(name, num_levels)
            processors[f"{name}.processor"] = CrossAttention(len(layers), level)
            layers.append(CrossLayer(name, group, level, module.heads, module.to_k.out_features))
        else:
            processors[f"{name}.processor"] = SelfAttention()
    network.set_attn_processor(processors)
    return tuple(layers)


def _place(name: str, num_levels: int) -> tuple[str, int]:
    """Block group of a layer, and how many times the latent was halved there."""
    block, _, rest = name.partition(".")
    index = int(rest.split(".")[0]) if block != "mid_block" else 0
    match block:
        case "down_blocks":
            return "down", index
        case "mid_block":
            return "mid", num_levels - 1
        case "up_blocks":
            return "up", num_levels - 1 - index
    raise AssertionError(f"cross-attention layer {name} in no known block")


def text_kv(
    network: UNet2DConditionModel | ControlNetModel, layers: tuple[CrossLayer, ...], text: Tensor
) -> list[Tensor]:
    """Text (B, T, D) -> keys and values of each layer, (B, T, 2 * inner) each."""
    modules = [network.get_submodule(layer.name) for layer in layers]
    return [torch.cat([m.to_k(text), m.to_v(text)], dim=-1) for m in modules]


def latent_grids(shape: Sequence[int], num_levels: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of a latent (..., height, width) at each level of a network that halves it, rounding up."""
    return tuple((-(-shape[-2] // 2**level), -(-shape[-1] // 2**level)) for level in range(num_levels))
