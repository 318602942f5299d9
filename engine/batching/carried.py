"""What a job carries from batch to batch, and the seeds that its runs derive from its request's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..api.mechanisms import Avoidance
from ..api.result import Attempt, GateDecision
from ..models.networks import EncodedText
from .job import Trajectory


class Said(NamedTuple):
    """A text, and what belongs to its tokens: their ids (T,), or their vectors (5, T) once a run is to read them."""

    text: EncodedText
    tokens: Tensor


@dataclass
class Shared:
    """What a request's images have in common.

    source: the picture that takes the draft's place, (1, 3, H, W) in [0, 1]. texts by `Branch`; final_texts: those of
    the finals, where they have other adapters than the draft. restated: the prompt said in another order, for finals,
    where that is asked for and can be. pictures: control images of further ControlNets by name,
    (1, 3, H, W) in [0, 1]; hints (width, h, w): these embedded. reference: draft or source, (1, 3, H, W), where the
    networks are; drawn (H, W, 3) uint8: a draft as a picture; previewed: latent (C, h, w) of a draft of which both are
    a preview, until something is measured by it. labels, mask (H, W): what
    was found in it, None where nothing looks. magnitudes (S,) float64: size of the draft's guidance at each step,
    `guidance_magnitudes`; None without a guided draft. masses: attention of each step of a draft in which spikes are to
    be found. gate: what was made of it. drafted: latent (C, h, w) and run of a draft that witnesses are heard on,
    agreements: of those that are done.
    """

    source: Tensor | None = None
    input_ids: Tensor | None = None
    texts: tuple[EncodedText, ...] = ()
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    hints: Mapping[str, Tensor] = field(default_factory=dict)
    final_texts: tuple[EncodedText, ...] | None = None
    restated: Said | None = None
    reference: Tensor | None = None
    drawn: np.ndarray | None = None
    previewed: Tensor | None = None
    labels: np.ndarray | None = None
    mask: np.ndarray | None = None
    magnitudes: np.ndarray | None = None
    masses: list[Tensor] = field(default_factory=list)
    gate: GateDecision | None = None
    draft_rows: int = 0
    drafted: tuple[Tensor, Trajectory] | None = None
    agreements: list[float] = field(default_factory=list)

    @property
    def shape(self) -> Tensor:
        """The mask (H, W) bool; empty where nothing is known of the reference's shape."""
        assert self.reference is not None
        if self.mask is None:
            return torch.zeros(self.reference.shape[2:], dtype=torch.bool)
        return torch.from_numpy(self.mask)


@dataclass
class Own:
    """What one image has for itself: seed and control of the running attempt, past attempts, and its picture.

    policy: in force. control_map (H, W): that ControlNet follows; shapes: of the bank in it, by id; inherits: whether
    its objects are those of the draft rather than those that the prompt names. drawn (H, W, 3) uint8: the last
    attempt's picture; image (3, H, W): its pixels, where it is explained. noise (C, h, w): what the running attempt
    starts from; moved (C, h, w): what sharpness steps made of it, where it is explained. masses: attention of each
    step. turns: what the conditional text becomes at some steps of the running attempt, by step.
    """

    seed: int = 0
    policy: Avoidance = field(default_factory=Avoidance.off)
    delivered: bool = False
    early: list[tuple[int, bool]] = field(default_factory=list)
    control_map: np.ndarray | None = None
    shapes: tuple[str, ...] = ()
    inherits: bool = True
    attempts: list[Attempt] = field(default_factory=list)
    drawn: np.ndarray | None = None
    image: Tensor | None = None
    masses: list[Tensor] = field(default_factory=list)
    noise: Tensor | None = None
    moved: Tensor | None = None
    turns: dict[int, Said] = field(default_factory=dict)


def attempt_seed(seed: int, index: int, attempt: int) -> int:
    """Seed of the noise of attempt `attempt` at image `index` of a request with `seed`."""
    return _derived(seed, index, attempt)


def witness_seed(seed: int, number: int) -> int:
    """Seed of the noise of the gate's witness `number` at a request with `seed`."""
    return _derived(seed, 0, 0, 1 + number)


def _derived(*parts: int) -> int:
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)
    return int(state[0]) & (2**63 - 1)
