"""What a user gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from PIL import Image

from .mechanisms import Avoidance
from .request import GenerationRequest
from .rules import Decision


class Verdict(StrEnum):
    """How a request's image ended. REVIEW: the rule leaves the decision to a person."""

    ACCEPTED = "accepted"
    REVIEW = "review"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Score:
    """One measure of a final against its draft or source; `limit` is None for a measure that only informs."""

    value: float
    limit: float | None
    passed: bool


@dataclass(frozen=True)
class Attempt:
    """One final run: its noise seed, the policy it ran under, what it scored and the UNet rows it cost.

    steps: how many it ran; rows_saved: what an early verdict spared. early: (step, passed) of each early verdict.
    decision: what the rule made of it; reasons: the limits it crossed, in words. nearest: id of the registered work
    that it is most like.
    """

    seed: int
    avoidance: Avoidance
    scores: dict[str, Score]
    rows: int
    steps: int
    rows_saved: int = 0
    early: tuple[tuple[int, bool], ...] = ()
    decision: Decision = Decision.ACCEPT
    reasons: tuple[str, ...] = ()
    nearest: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the rule does not refuse it."""
        return self.decision is not Decision.REFUSE


@dataclass(frozen=True)
class GateDecision:
    """Whether avoidance was switched on, and by what: the draft's signals, with their limits where a gate asked.

    nearest: id of the registered work that the draft is most like. rows: UNet rows of the witnesses.
    """

    opened: bool
    signals: dict[str, Score]
    nearest: str | None = None
    rows: int = 0


@dataclass(frozen=True)
class Explanation:
    """What each mechanism did to the last attempt, one entry a step of the final stage (S steps, T tokens).

    tokens: the T token strings. mass_inside, mass_outside (S, T): mean attention probability a token received
    inside and outside the mask; neutral_inside, neutral_outside (S, T): the same had the rule been off.
    guidance (S,): guidance scale in force. control (S,): control strength in force. noise (S,): strength of
    masked noise. negative (S,): weight of what the draft's own shape would have made. rows (S,): UNet rows spent.
    noise_moved: how far the initial noise was moved before the first step, as a share of its norm. repulsion (S,): how
    far registered works pushed the predicted latent, root mean square. similarity: maps (H, W) of structural
    similarity to the draft or source ("reference") and to the nearest registered work ("work"), each also as it lies
    best over the final ("reference_aligned", "work_aligned"), NaN beyond its edge.
    """

    tokens: tuple[str, ...]
    mass_inside: np.ndarray
    mass_outside: np.ndarray
    neutral_inside: np.ndarray
    neutral_outside: np.ndarray
    guidance: np.ndarray
    control: np.ndarray
    noise: np.ndarray
    negative: np.ndarray
    repulsion: np.ndarray
    rows: np.ndarray
    noise_moved: float = 0.0
    similarity: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def moved(self) -> np.ndarray:
        """Attention mass each token lost inside the mask, (S, T)."""
        return self.neutral_inside - self.mass_inside


@dataclass(frozen=True)
class GenerationResult:
    """One final image with everything that led to it.

    index: which of the request's `num_images`. image: the last attempt's picture, None unless it was judged.
    draft: the draft, None where the user brought a source. mask (H, W) bool: the shape that was avoided.
    label_map, control_map (H, W) uint16: the draft's labels, and the moved labels that steered ControlNet (None if
    control was off). gate: what the draft looked like and whether avoidance was switched on, None before a draft.
    rule: what it was judged by, in numbers. calibration, registry: versions of the model's limits and of the registered
    works. timings: seconds by stage. rows: UNet rows spent, with the draft's own in `draft_rows` (shared by the
    request's images). error: why it failed.
    """

    request: GenerationRequest
    index: int
    verdict: Verdict
    image: Image.Image | None = None
    draft: Image.Image | None = None
    mask: np.ndarray | None = None
    label_map: np.ndarray | None = None
    control_map: np.ndarray | None = None
    gate: GateDecision | None = None
    attempts: tuple[Attempt, ...] = ()
    rule: str = ""
    calibration: str | None = None
    registry: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    draft_rows: int = 0
    explanation: Explanation | None = None
    error: str | None = None

    @property
    def scores(self) -> dict[str, Score]:
        """Scores of the last attempt."""
        return self.attempts[-1].scores if self.attempts else {}

    @property
    def rows(self) -> int:
        """UNet rows of the draft, the gate's witnesses and every attempt."""
        witnessed = self.gate.rows if self.gate is not None else 0
        return self.draft_rows + witnessed + sum(attempt.rows for attempt in self.attempts)
