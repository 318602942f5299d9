"""Queues to batches: which jobs run next, and as what. Plain Python, no tensors.

One call of `Scheduler.next_batch` picks one batch. Denoising is scheduled step by step: a job joins the running
batch as soon as a slot is free and leaves it when its last step is done. Encoding, segmenting and judging happen
between steps, in batches that may wait a few steps to grow but never hold denoising up for longer than one batch.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from ..api.event import State
from .job import DENOISING, TERMINAL, Job, by_shape
from .pacing import Pace


class BatchKind(StrEnum):
    """What is done with a batch."""

    ENCODE = "encode"
    DENOISE = "denoise"
    SEGMENT = "segment"
    JUDGE = "judge"


@dataclass(frozen=True)
class Batch:
    """Jobs that run together; in a denoise batch they share one latent shape, and all of them take the network's deep
    part over or none does."""

    kind: BatchKind
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Limits:
    """Capacity of the engine.

    slots: jobs that can denoise at a time. rows: rows of one UNet call at most. waiting: requests that may wait.
    boundary: jobs in one encode, segment or judge batch. patience: denoise steps such a batch may wait to grow.
    aging: denoise steps of waiting that outweigh one level of priority, for a slot as for a place in a batch. company:
    rows that jobs of lower priority may take beside one of higher, as many as there are if None.
    """

    slots: int = 16
    rows: int = 16
    waiting: int = 1024
    boundary: int = 8
    patience: int = 2
    aging: int = 50
    company: int | None = None


class Policy(Protocol):
    """When waiting jobs get a slot. paced: whether a step's rows are as many as its pace chooses, or all that fit."""

    paced: bool

    def admits(self, resident: Sequence[Job]) -> bool:
        """Whether a waiting job may join the `resident` ones."""
        ...


@dataclass
class ContinuousPolicy:
    """A job joins as soon as a slot is free."""

    paced: bool = True

    def admits(self, resident: Sequence[Job]) -> bool:
        """Return True: whoever is there never keeps others out."""
        return True


class StaticPolicy:
    """A gang of jobs runs to its end before the next one starts: what engines without step-level batching do."""

    paced = False

    def admits(self, resident: Sequence[Job]) -> bool:
        """Return True until the gang has begun to denoise, and again when it is done."""
        return not any(_has_begun(job) for job in resident)


def _has_begun(job: Job) -> bool:
    if job.state is State.DRAFTING and job.trajectory is not None:
        return job.trajectory.step > 0
    return job.state is not State.ENCODED


@dataclass
class Scheduler:
    """Holds every job that is not finished. `iteration` counts denoise batches.

    pace: what rows of a step a policy that is `paced` goes by; without it they are as many as fit.
    """

    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=ContinuousPolicy)
    pace: Pace | None = None
    iteration: int = 0

    def __post_init__(self) -> None:
        """Start empty."""
        self.jobs: dict[int, Job] = {}
        self._free = list(range(self.limits.slots))[::-1]
        self._boundary_since: dict[State, int] = {}

    def submit(self, job: Job) -> None:
        """Take a job in."""
        assert job.id not in self.jobs, f"job {job.id} was submitted twice"
        if job.waiting_since is None:
            job.waiting_since = self.iteration
        self.jobs[job.id] = job

    def finish(self, job: Job) -> None:
        """Let a job in a terminal state go and free its slot."""
        assert job.state in TERMINAL
        del self.jobs[job.id]
        self.release(job)

    def release(self, job: Job) -> None:
        """Take a job's slot back."""
        if job.slot is not None:
            self._free.append(job.slot)
            job.slot = None

    def expired(self, now: float) -> list[Job]:
        """Jobs whose deadline has passed."""
        return [job for job in self.jobs.values() if job.deadline < now]

    @property
    def resident(self) -> list[Job]:
        """Jobs that hold a slot."""
        return [job for job in self.jobs.values() if job.slot is not None]

    @property
    def free_slots(self) -> int:
        """Slots nobody holds."""
        return len(self._free)

    def admit(self, claim: Callable[[Job], bool] = lambda job: True) -> list[Job]:
        """Give free slots to waiting jobs, the most urgent first; return those that got one.

        claim: takes what else a job needs while it has a slot, and says whether there is enough. Where there is not,
        nobody overtakes: what others give back goes to the job that was next.
        """
        waiting = [j for j in self.jobs.values() if j.slot is None and j.state in (State.ENCODED, State.SEGMENTED)]
        admitted = []
        for job in sorted(waiting, key=self._urgency):
            if not self._free or not self.policy.admits(self.resident) or not claim(job):
                break
            job.slot = self._free.pop()
            job.last_served = self.iteration
            admitted.append(job)
        return admitted

    def next_batch(self) -> Batch | None:
        """Pick what runs next, or None when nothing can."""
        denoising = [j for j in self.jobs.values() if j.state in DENOISING]
        for kind, state in _BOUNDARIES:
            queue = [j for j in self.jobs.values() if j.state is state]
            if state is State.QUEUED and self._enough_encoded():
                continue
            if self._ripe(state, queue, starving=not denoising):
                return Batch(kind, tuple(sorted(queue, key=self._urgency)[: self.limits.boundary]))
        return self._denoise_batch(denoising) if denoising else None

    def _enough_encoded(self) -> bool:
        """Encoding needs no slot, but more encoded jobs than slots would only fill memory."""
        return sum(job.state is State.ENCODED for job in self.jobs.values()) >= self.limits.slots

    def _ripe(self, state: State, queue: Sequence[Job], *, starving: bool) -> bool:
        if not queue:
            self._boundary_since.pop(state, None)
            return False
        since = self._boundary_since.setdefault(state, self.iteration)
        ripe = starving or len(queue) >= self.limits.boundary or self.iteration - since >= self.limits.patience
        if ripe:
            del self._boundary_since[state]
        return ripe

    def _denoise_batch(self, denoising: Sequence[Job]) -> Batch:
        """Fill the rows of a step with jobs of one shape, whose turn it is.

        Of those that take the network's deep part over and those that compute it, the more rows go: the others wait for
        one batch at most, by when more of them have come together.
        """
        self.iteration += 1
        alike, rows = self._next(denoising)
        first = alike[0]
        own = [job for job in alike if _is_shallow(job) == _is_shallow(first)]
        others = [job for job in alike if _is_shallow(job) != _is_shallow(first)]
        chosen, rivals = self._fitting(own, rows), self._fitting(others, rows)
        waited = self.iteration - first.last_served > _TURNS
        if not waited and _rows(rivals) > _rows(chosen) and rivals[0].request.priority >= first.request.priority:
            chosen = rivals
        for job in chosen:
            job.last_served = self.iteration
        return Batch(BatchKind.DENOISE, tuple(chosen))

    def _next(self, denoising: Sequence[Job]) -> tuple[list[Job], int]:
        """Jobs of the shape that goes next, in their order, and how many rows they may have together.

        Where all that fit take part those that were not served longest are first (weighed by priority); where a pace
        chooses how many, those that came early and have little left (behind a higher priority, unless they were put
        aside too long). Shapes take turns. Beside a batch that is waited for as a whole all take part that fit.
        """
        if self.pace is None or not self.policy.paced or any(job.together for job in denoising):
            ordered = sorted(denoising, key=self._neglect)
            return [job for job in ordered if job.shape == ordered[0].shape], self.limits.rows
        highest = max(job.request.priority for job in denoising)
        ordered = sorted(denoising, key=lambda job: self._due(job, highest))
        alike = min(by_shape(ordered), key=lambda jobs: self._neglect(jobs[0]))
        waiting = len(self.jobs) * _rows(alike) / len(alike)
        return alike, self.pace.rows(kind_of(alike[:1]), waiting, _rows(alike[:1]))

    def _fitting(self, ordered: Sequence[Job], rows: int) -> list[Job]:
        """Those of `ordered` that fit into so many rows, the first first; few of lower priority beside a higher."""
        left, chosen = rows, []
        outranked = False
        for job in ordered:
            if not outranked and self.limits.company is not None and self._outranks(ordered[0], job):
                left, outranked = min(left, self.limits.company), True
            if _rows([job]) <= left:
                left -= _rows([job])
                chosen.append(job)
        return chosen

    def _outranks(self, first: Job, other: Job) -> bool:
        """Whether a job has a priority that another has not made up for by waiting."""
        return self._neglect(other)[0] - self._neglect(first)[0] >= self.limits.aging

    def _urgency(self, job: Job) -> tuple[float, float, int]:
        """Order among jobs that wait for a slot or a batch between steps: by priority and how long they are here."""
        assert job.waiting_since is not None
        return self._order(job, job.waiting_since)

    def _neglect(self, job: Job) -> tuple[float, float, int]:
        """Order among jobs that denoise: by priority and how long they have not been served."""
        return self._order(job, job.last_served)

    def _due(self, job: Job, highest: int) -> tuple[float, float, float, int]:
        """Order among jobs of which some are put aside: by priority, which `aging` steps aside make up for a level of,
        up to the `highest`; then by the step at which each would be done, had it been served since it came."""
        assert job.waiting_since is not None
        weight = min(-self._neglect(job)[0], highest * self.limits.aging)
        return -weight, job.waiting_since + _steps_left(job), job.arrival, job.id

    def _order(self, job: Job, since: int) -> tuple[float, float, int]:
        """The first goes first; `aging` steps since `since` weigh as much as a level of priority."""
        return -(job.request.priority * self.limits.aging + self.iteration - since), job.arrival, job.id


_TURNS = 1
"""Batches after which a job's turn has come: it was in the last one, or has waited for one already."""


def kind_of(jobs: Sequence[Job]) -> Hashable:
    """What a denoise batch is paced by: its latent shape, and whether it takes the network's deep part over."""
    return jobs[0].shape, _is_shallow(jobs[0])


def _is_shallow(job: Job) -> bool:
    assert job.trajectory is not None
    return job.trajectory.is_shallow


def _rows(jobs: Sequence[Job]) -> int:
    """Rows of the next step of `jobs`."""
    return sum(len(job.trajectory.rows) for job in jobs if job.trajectory is not None)


def _steps_left(job: Job) -> int:
    """Steps of a job that denoises up to its next verdict, as far as they are known."""
    assert job.trajectory is not None
    left = len(job.trajectory.plan) - job.trajectory.step
    return left if job.state is State.FINALISING else left + job.request.final.evaluations


_BOUNDARIES = (
    (BatchKind.JUDGE, State.JUDGING),
    (BatchKind.SEGMENT, State.SEGMENTING),
    (BatchKind.ENCODE, State.QUEUED),
)
