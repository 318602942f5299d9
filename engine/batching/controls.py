"""Further ControlNets: what each keeps for the slots of a latent shape, and for its rows of a step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import TokenRow
from ..models.networks import Controller
from ..sampling.rows import Branch
from .zeros import zeros

KINDS = (
    "control_rows",
    "control_scales",
    "control_hints",
    "control_slots",
    "control_contexts",
    "control_steps",
    "control_timesteps",
)
"""Columns of a step's plan that each ControlNet has of its own."""


def column_of(kind: str, name: str | None) -> str:
    """The column `kind` of the further ControlNet `name`, of the first where None."""
    return kind if name is None else f"{kind}/{name}"


class ControlSlots:
    """What one ControlNet needs of every slot: hints (S, width, h, w), text_kv per layer (S * 2, T, 2 * inner).

    more_kv (S * 2, more, 2 * inner): of the tokens behind the first T, once some prompt has any.
    """

    def __init__(
        self,
        controller: Controller,
        num_slots: int,
        num_tokens: int,
        shape: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
        order: torch.memory_format,
    ) -> None:
        contexts = num_slots * len(Branch)
        self.text_kv = tuple(
            zeros(contexts, num_tokens, 2 * layer.inner, device=device, dtype=dtype) for layer in controller.layers
        )
        self.more_kv: tuple[Tensor, ...] = ()
        width = controller.controlnet.config.block_out_channels[0]
        self.hints = zeros(num_slots, width, *shape, dtype=dtype, device=device, order=order)

    def lengthen(self, more: int) -> None:
        """Make room for so many tokens behind the first T."""
        self.more_kv = behind(self.text_kv, more)

    def write(self, slot: int, hint: Tensor | None, texts: Sequence[tuple[Tensor, ...]]) -> None:
        """Start a run in `slot`: its hint (width, h, w), None where it follows none, and its texts by `Branch`."""
        self.hints[slot] = 0 if hint is None else hint
        for branch, layers in enumerate(texts):
            write_text(slot * len(Branch) + branch, self.text_kv, self.more_kv, layers)

    def tensors(self) -> list[Tensor]:
        """Every tensor."""
        return [*self.text_kv, *self.more_kv, self.hints]


class ControlPlaces(NamedTuple):
    """Where a ControlNet's inputs come from (kept, of every slot), and go to (of the rows of a step)."""

    kept_kv: tuple[Tensor, ...]
    more_kv: tuple[Tensor, ...]
    kept_hints: Tensor
    sample: Tensor
    text_kv: tuple[Tensor, ...]
    tokens: Tensor
    added: tuple[Tensor, ...]
    hints: Tensor


class ControlBuffers:
    """What one ControlNet's call reads of the rows of a step: sample, added and hints, at fixed addresses.

    texts: by number of tokens, keys and values with token vectors.
    """

    def __init__(
        self, slots: ControlSlots, sample: Tensor, added: Sequence[Tensor], order: torch.memory_format
    ) -> None:
        rows = len(sample)
        self.sample = torch.zeros_like(sample)
        self.added = tuple(torch.zeros_like(each) for each in added)
        kept = slots.hints
        self.hints = zeros(rows, *kept.shape[1:], dtype=kept.dtype, device=kept.device, order=order)
        self.texts: dict[int, tuple[tuple[Tensor, ...], Tensor]] = {}
        self.lengthen(slots, slots.text_kv[0].shape[1])

    def lengthen(self, slots: ControlSlots, num_tokens: int) -> None:
        """Make buffers for texts of so many tokens too."""
        rows, device = len(self.sample), self.sample.device
        kv = tuple(each.new_zeros(rows, num_tokens, each.shape[2]) for each in slots.text_kv)
        self.texts[num_tokens] = kv, torch.zeros(rows, len(TokenRow), num_tokens, device=device)

    def places(self, slots: ControlSlots, num_tokens: int) -> ControlPlaces:
        """Beside what is kept of the slots."""
        kept = slots.text_kv, slots.more_kv, slots.hints
        return ControlPlaces(*kept, self.sample, *self.texts[num_tokens], self.added, self.hints)

    def tensors(self) -> list[Tensor]:
        """Every buffer."""
        texts = (tensor for kv, tokens in self.texts.values() for tensor in (*kv, tokens))
        return [self.sample, *self.added, self.hints, *texts]


def behind(first: Sequence[Tensor], more: int) -> tuple[Tensor, ...]:
    """Room for so many tokens behind keys and values (contexts, T, 2 * inner) of each layer."""
    return tuple(each.new_zeros(len(each), more, each.shape[2]) for each in first)


def write_text(context: int, kv: Sequence[Tensor], more: Sequence[Tensor], text: Sequence[Tensor]) -> None:
    """Keys and values of a text, and zeros behind it: what is hidden must be finite."""
    for kept, values in zip(kv, text, strict=True):
        _fill(kept[context], values[: kept.shape[1]])
    if more:
        for kept, first, values in zip(more, kv, text, strict=True):
            _fill(kept[context], values[first.shape[1] :])


def _fill(row: Tensor, values: Tensor) -> None:
    row[: len(values)] = values
    row[len(values) :] = 0
