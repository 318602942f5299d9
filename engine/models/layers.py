"""What attention layers are told, and where they stand: facts that a compiled network has too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


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


def latent_grids(shape: Sequence[int], num_levels: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of a latent (..., height, width) at each level of a network that halves it, rounding up."""
    return tuple((-(-shape[-2] // 2**level), -(-shape[-1] // 2**level)) for level in range(num_levels))


def text_kv(network: nn.Module, layers: tuple[CrossLayer, ...], text: Tensor) -> list[Tensor]:
    """Text (B, T, D) -> keys and values of each layer, (B, T, 2 * inner) each."""
    modules: list[Any] = [network.get_submodule(layer.name) for layer in layers]
    return [torch.cat([m.to_k(text), m.to_v(text)], dim=-1) for m in modules]
