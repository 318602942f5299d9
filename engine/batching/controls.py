"""Further ControlNets: what each keeps for the slots of a latent shape, and for its rows of a step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.networks import Controller
from ..sampling.rows import Branch

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
    """What one ControlNet needs of every slot: text_kv per layer (S * 2, T, 2 * inner), hints (S, width, h, w)."""

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
            torch.zeros(contexts, num_tokens, 2 * layer.inner, device=device, dtype=dtype)
            for layer in controller.layers
        )
        width = controller.controlnet.config.block_out_channels[0]
        hints = torch.zeros(num_slots, width, *shape, device=device, dtype=dtype)
        self.hints = hints.contiguous(memory_format=order)

    def write(self, slot: int, hint: Tensor | None, texts: Sequence[tuple[Tensor, ...]]) -> None:
        """Start a run in `slot`: its hint (width, h, w), None where it follows none, and its texts by `Branch`."""
        self.hints[slot] = 0 if hint is None else hint
        for branch, layers in enumerate(texts):
            for kept, kv in zip(self.text_kv, layers, strict=True):
                kept[slot * len(Branch) + branch] = kv

    def tensors(self) -> list[Tensor]:
        """Every tensor."""
        return [*self.text_kv, self.hints]


class ControlPlaces(NamedTuple):
    """Where a ControlNet's inputs come from (kept, of every slot), and go to (of the rows of a step)."""

    kept_kv: tuple[Tensor, ...]
    kept_hints: Tensor
    sample: Tensor
    text_kv: tuple[Tensor, ...]
    added: tuple[Tensor, ...]
    hints: Tensor


class ControlBuffers:
    """What one ControlNet's call reads of the rows of a step: sample, text_kv, added and hints, at fixed addresses."""

    def __init__(
        self, slots: ControlSlots, sample: Tensor, added: Sequence[Tensor], order: torch.memory_format
    ) -> None:
        rows = len(sample)
        self.sample = torch.zeros_like(sample)
        self.text_kv = tuple(kv.new_zeros(rows, *kv.shape[1:]) for kv in slots.text_kv)
        self.added = tuple(torch.zeros_like(each) for each in added)
        self.hints = slots.hints.new_zeros(rows, *slots.hints.shape[1:]).contiguous(memory_format=order)

    def places(self, slots: ControlSlots) -> ControlPlaces:
        """Beside what is kept of the slots."""
        return ControlPlaces(slots.text_kv, slots.hints, self.sample, self.text_kv, self.added, self.hints)

    def tensors(self) -> list[Tensor]:
        """Every buffer."""
        return [self.sample, *self.text_kv, *self.added, self.hints]
