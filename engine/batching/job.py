"""One image's way through the engine: its states, the legal moves between them, and what it carries."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..api.event import State
from ..api.mechanisms import Avoidance
from ..api.request import GenerationRequest
from ..api.settings import Stage
from ..sampling.rows import PROBE, Row

_STOPPED = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})
DRAWN = frozenset({State.ACCEPTED, State.REVIEW, State.REFUSED, State.NOT_JUDGED})
"""Ends of an image that has its picture."""
TERMINAL = DRAWN | _STOPPED
DENOISING = frozenset({State.DRAFTING, State.WITNESSING, State.FINALISING})

MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.ENCODED}) | _STOPPED,
    State.ENCODED: frozenset({State.DRAFTING, State.SEGMENTING}) | _STOPPED,
    State.DRAFTING: frozenset({State.SEGMENTING}) | _STOPPED,
    State.SEGMENTING: frozenset({State.SEGMENTED, State.WITNESSING}) | _STOPPED,
    State.WITNESSING: frozenset({State.SEGMENTED}) | _STOPPED,
    State.SEGMENTED: frozenset({State.PLACING, State.FINALISING, State.JUDGING}) | _STOPPED,
    State.PLACING: frozenset({State.FINALISING}) | _STOPPED,
    State.FINALISING: frozenset({State.JUDGING}) | _STOPPED,
    State.JUDGING: frozenset({State.PLACING, State.FINALISING, State.DRAFTING}) | DRAWN | _STOPPED,
    **{state: frozenset() for state in TERMINAL},
}
"""Legal moves. A segmented draft that other seeds are asked about goes through WITNESSING. Every attempt
whose policy moves objects begins in PLACING. A judged job that fails goes back to its next attempt, or once to DRAFTING
for a draft of more steps first, and after an early verdict on in FINALISING; a draft that is itself the picture goes
from SEGMENTED to JUDGING."""


_PLAIN = Avoidance.off()


class IllegalMoveError(RuntimeError):
    """A move that `MOVES` does not hold: a bug of the engine, never of a request."""


@dataclass(eq=False)
class Trajectory:
    """One denoising run in a slot: the rows and the timestep of each step, and the step it is at.

    probes: predictions of both branches at the first timestep that are still due before the first step; they move the
    initial noise. adapters: numbers and weights of those that all its rows have. rescale: `Stage.guidance_rescale`.
    shallow: steps that take the deep part over; `shallow_steps`.
    """

    plan: tuple[tuple[Row, ...], ...]
    timesteps: tuple[float, ...]
    probes: int = 0
    rescale: float = 0.0
    step: int = 0
    rows_spent: int = 0
    adapters: tuple[tuple[int, float], ...] = ()
    shallow: frozenset[int] = frozenset()

    @property
    def is_shallow(self) -> bool:
        """Whether the next probe or step takes the network's deep part over."""
        return not self.probes and self.step in self.shallow

    @property
    def done(self) -> bool:
        """Whether every step has run."""
        return self.step == len(self.plan)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Rows of the next probe or step."""
        return PROBE if self.probes else self.plan[self.step]

    @property
    def most_rows(self) -> int:
        """Rows of its widest probe or step."""
        return max([*map(len, self.plan), len(PROBE) if self.probes else 0])

    @property
    def rows_left(self) -> int:
        """Rows of every probe and step that is still due."""
        return self.probes * len(PROBE) + sum(map(len, self.plan[self.step :]))

    @property
    def shallow_rows_left(self) -> int:
        """Those of them that take the deep part over."""
        return sum(len(self.plan[step]) for step in self.shallow if step >= self.step)

    def advance(self) -> None:
        """Count the next probe or step as run."""
        self.rows_spent += len(self.rows)
        if self.probes:
            self.probes -= 1
        else:
            self.step += 1


@dataclass(eq=False)
class Job:
    """One image of a request.

    The first image's job also encodes, drafts and segments for the others, which `fork` from it afterwards. `shape`
    is the latent's (height, width): only jobs of one shape share a batch. `shared` is what the images have in
    common and `own` what only this one has; both belong to the stages and the scheduler never looks inside. `gated`:
    the draft did not look recalled, so avoidance is off until a picture is refused. `redrafted`: its draft is its own
    second one. `chunks`: of its prompts, as they are encoded. `embedded`: the network is told the guidance instead of
    being asked twice. `together`: it is waited for with others, so that its own time counts for nothing.
    `waiting_since`: the scheduler's iteration at which the request came in; `last_served`: that of its last step.
    """

    id: int
    request_id: int
    request: GenerationRequest
    shape: tuple[int, int]
    arrival: float
    shared: Any = None
    own: Any = None
    embedded: bool = False
    together: bool = False
    index: int = 0
    gated: bool = False
    redrafted: bool = False
    chunks: int = 1
    attempt: int = 0
    state: State = State.QUEUED
    slot: int | None = None
    trajectory: Trajectory | None = None
    waiting_since: int | None = None
    last_served: int = 0
    timings: dict[State, float] = field(default_factory=dict)
    error: str | None = None

    def move(self, state: State) -> None:
        """Go to `state`, or raise `IllegalMoveError`."""
        if state not in MOVES[self.state]:
            raise IllegalMoveError(f"job {self.id} cannot go from {self.state} to {state}")
        self.state = state

    @property
    def draft(self) -> Stage:
        """How the job's present draft runs."""
        first, steps = self.request.draft, self.request.redraft
        return first.model_copy(update={"steps": steps}) if self.redrafted else first

    @property
    def deadline(self) -> float:
        """Time after which the job may spend no more rows."""
        timeout = self.request.timeout
        return float("inf") if timeout is None else self.arrival + timeout

    @property
    def avoidance(self) -> Avoidance:
        """The policy in force, stronger with each attempt; a gated job's first attempt runs plain."""
        if self.gated and not self.attempt:
            return _PLAIN
        return self.request.avoidance.escalated(self.attempt - self.gated)

    def fork(self, id: int, index: int) -> "Job":
        """Return the job of another image of the same request, ready for its final stage."""
        assert self.state is State.SEGMENTED
        return Job(
            id, self.request_id, self.request, self.shape, self.arrival, self.shared, embedded=self.embedded,
            together=self.together, index=index, gated=self.gated, chunks=self.chunks, state=State.SEGMENTED,
            waiting_since=self.waiting_since, timings=dict(self.timings),
        )  # fmt: skip


def by_shape(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs in groups of one latent shape, in order of first appearance."""
    groups: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.shape, []).append(job)
    return list(groups.values())
