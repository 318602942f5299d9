"""What a user gets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Protocol, TypeVar

import numpy as np
from pydantic import AfterValidator, Field

from .json_fields import Labels, Mask, Numbers, Pixels
from .mechanisms import Avoidance
from .metrics import Direction, direction_named
from .portable import Real, Value
from .request import GenerationRequest
from .rules import Decision

M_co = TypeVar("M_co", covariant=True)


class Accountant(Protocol[M_co]):
    """What accounts for results: an engine, which knows the model that made them."""

    def manifest(self, result: "GenerationResult") -> M_co:
        """Return the manifest of `result`."""


class Verdict(StrEnum):
    """How a request's image ended. REVIEW: the rule leaves the decision to a person.

    NOT_JUDGED: it was drawn, and neither its request nor its model says anything that it could be held against.
    """

    ACCEPTED = "accepted"
    REVIEW = "review"
    REFUSED = "refused"
    NOT_JUDGED = "not judged"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, eq=False)
class Score(Value):
    """One measure of a final against its draft or source; `limit` is None for a measure that only informs.

    passed: whether it keeps its limit. name: of the measure, by which results hold it. direction: whether what is too
    close scores high ("similarity") or low ("distance"); None where nothing is known of it.
    """

    value: Real
    limit: Real | None
    passed: bool
    name: Annotated[str, Field(exclude=True)] = field(default="", compare=False)
    direction: Direction | None = None

    @property
    def crossed(self) -> bool:
        """Whether it crosses its limit."""
        return not self.passed

    def __str__(self) -> str:
        """The measure beside its limit, as they stand to each other: "tile_l2 0.1 <= 0.161", crossed for a distance."""
        named = f"{self.name} {self.value:.3g}".lstrip()
        if self.limit is None:
            return named
        if math.isnan(self.value):
            return f"{named}, which cannot be held against {self.limit:.3g}"
        below = self.crossed if self.direction == "distance" else self.passed
        return f"{named} {'<=' if below else '>='} {self.limit:.3g}"


def named(scores: Mapping[str, Score], otherwise: Direction | None = None) -> dict[str, Score]:
    """Scores that know their names and directions: their own, else that of the built-in measure, else `otherwise`."""
    return {
        name: replace(score, name=name, direction=score.direction or direction_named(name) or otherwise)
        for name, score in scores.items()
    }


Scores = Annotated[dict[str, Score], AfterValidator(named)]
"""Scores by the name of the measure, each knowing its own."""


@dataclass(frozen=True, eq=False)
class Attempt(Value):
    """One final run: its noise seed, the policy it ran under, what it scored and the UNet rows it cost.

    steps: how many it ran; rows_saved: what an early verdict spared. early: (step, passed) of each early verdict.
    decision: what the rule made of it; reasons: the limits it crossed, in words. nearest: id of the registered work
    that it is most like. shapes: ids of the bank's shapes that its control map was composed of, none for another map.
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
    shapes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", named(self.scores))

    @property
    def passed(self) -> bool:
        """Whether the rule does not refuse it."""
        return self.decision is not Decision.REFUSE


@dataclass(frozen=True, eq=False)
class GateDecision(Value):
    """Whether avoidance was switched on, and by what: the draft's signals, with their limits where a gate asked.

    nearest: id of the registered work that the draft is most like. rows: UNet rows of the witnesses.
    """

    opened: bool
    signals: dict[str, Score]
    nearest: str | None = None
    rows: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "signals", named(self.signals, "similarity"))  # recalled drafts score high in each


@dataclass(frozen=True, eq=False)
class Explanation(Value):
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
    mass_inside: Numbers
    mass_outside: Numbers
    neutral_inside: Numbers
    neutral_outside: Numbers
    guidance: Numbers
    control: Numbers
    noise: Numbers
    negative: Numbers
    repulsion: Numbers
    rows: Numbers
    noise_moved: Real = 0.0
    similarity: Mapping[str, Numbers] = field(default_factory=dict)

    @property
    def moved(self) -> np.ndarray:
        """Attention mass each token lost inside the mask, (S, T)."""
        return self.neutral_inside - self.mass_inside


@dataclass(frozen=True, eq=False)
class GenerationResult(Value):
    """One final image with everything that led to it.

    index: which of the request's `num_images`. image: the last attempt's picture, None unless it was judged. draft: the
    draft, None where the user brought a source. mask (H, W) bool: the shape that was avoided. label_map, control_map
    (H, W) uint16: the draft's labels, and the moved labels that steered ControlNet (None if control was off). gate:
    what the draft looked like and whether avoidance was switched on, None before a draft. rule: what it was judged by,
    in numbers. calibration, bank, registry: versions of the model's limits, of its shapes and of the registered works.
    metrics: SHA-256 of the weights of further measures that were named, by what named them. backends: what ran the
    networks that PyTorch did not, by network, with what it computed in.
    timings: seconds by stage. rows: UNet rows spent, with the draft's own in `draft_rows` (shared by the request's
    images). chunks: of the prompts, as they were encoded. error: why it failed.
    """

    request: GenerationRequest
    index: int
    verdict: Verdict
    image: Pixels | None = None
    draft: Pixels | None = None
    mask: Mask | None = None
    label_map: Labels | None = None
    control_map: Labels | None = None
    gate: GateDecision | None = None
    attempts: tuple[Attempt, ...] = ()
    rule: str = ""
    calibration: str | None = None
    bank: str | None = None
    registry: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    timings: dict[str, Real] = field(default_factory=dict)
    draft_rows: int = 0
    chunks: int = 1
    explanation: Explanation | None = None
    error: str | None = None

    @property
    def scores(self) -> dict[str, Score]:
        """Scores of the last attempt."""
        return self.attempts[-1].scores if self.attempts else {}

    @property
    def reasons(self) -> tuple[str, ...]:
        """The limits that the last attempt crossed, in words."""
        return self.attempts[-1].reasons if self.attempts else ()

    @property
    def rows(self) -> int:
        """UNet rows of the draft, the gate's witnesses and every attempt."""
        witnessed = self.gate.rows if self.gate is not None else 0
        return self.draft_rows + witnessed + sum(attempt.rows for attempt in self.attempts)

    def manifest(self, engine: Accountant[M_co]) -> M_co:
        """Account for it: what `twig generate` writes beside the picture, and `replay` makes again.

        engine: the one that made it. Raises InvalidRequestError for a source that no longer lies where it lay.
        """
        return engine.manifest(self)
