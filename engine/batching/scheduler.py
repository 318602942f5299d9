"""Queues to batches: which jobs run next, and as what. Plain Python, no tensors.

One call of `Scheduler.next_batch` picks one batch. Denoising is scheduled step by step: a job joins the running
batch as soon as a slot is free and leaves it when its last step is done. Encoding, segmenting and judging happen
between steps, in batches that may wait a few steps to grow but never hold denoising up for longer than one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from ..api.event import State
from .job import DENOISING, TERMINAL, Job


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

    slots: jobs that can denoise at a time. rows: rows of one UNet call. waiting: requests that may wait.
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
    """When waiting jobs get a slot."""

    def admits(self, resident: Sequence[Job]) -> bool:
        """Whether a waiting job may join the `resident` ones."""
        ...


class ContinuousPolicy:
    """A job joins as soon as a slot is free."""

    def admits(self, resident: Sequence[Job]) -> bool:
        """Return True: whoever is there never keeps others out."""
        return True


class StaticPolicy:
    """A gang of jobs runs to its end before the next one starts: what engines without step-level batching do."""

    def admits(self, resident: Sequence[Job]) -> bool:
        """Return True until the gang has begun to denoise, and again when it is done."""
        return not any(_has_begun(job) for job in resident)


def _has_begun(job: Job) -> bool:
    if job.state is State.DRAFTING and job.trajectory is not None:
        return job.trajectory.step > 0
    return job.state is not State.ENCODED


@dataclass
class Scheduler:
    """Holds every job that is not finished. `iteration` counts denoise batches."""

    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=ContinuousPolicy)
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
        """Fill the row budget with jobs of one shape, those that waited longest (weighed by priority) first.

        Of those that take the network's deep part over and those that compute it, the more rows go: the others wait for
        one batch at most, by when more of them have come together.
        """
        self.iteration += 1
        ordered = sorted(denoising, key=self._neglect)
        first = ordered[0]
        alike = [job for job in ordered if job.shape == first.shape]
        own = [job for job in alike if _is_shallow(job) == _is_shallow(first)]
        others = [job for job in alike if _is_shallow(job) != _is_shallow(first)]
        chosen, rivals = self._fitting(own), self._fitting(others)
        waited = self.iteration - first.last_served > _TURNS
        if not waited and _rows(rivals) > _rows(chosen) and rivals[0].request.priority >= first.request.priority:
            chosen = rivals
        for job in chosen:
            job.last_served = self.iteration
        return Batch(BatchKind.DENOISE, tuple(chosen))

    def _fitting(self, ordered: Sequence[Job]) -> list[Job]:
        """Those of `ordered` whose rows fit into one call, the first first; few of lower priority beside a higher."""
        left, chosen = self.limits.rows, []
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

    def _order(self, job: Job, since: int) -> tuple[float, float, int]:
        """The first goes first; `aging` steps since `since` weigh as much as a level of priority."""
        return -(job.request.priority * self.limits.aging + self.iteration - since), job.arrival, job.id


_TURNS = 1
"""Batches after which a job's turn has come: it was in the last one, or has waited for one already."""


def _is_shallow(job: Job) -> bool:
    assert job.trajectory is not None
    return job.trajectory.is_shallow


def _rows(jobs: Sequence[Job]) -> int:
    """Rows of the next step of `jobs`."""
    return sum(len(job.trajectory.rows) for job in jobs if job.trajectory is not None)


_BOUNDARIES = (
    (BatchKind.JUDGE, State.JUDGING),
    (BatchKind.SEGMENT, State.SEGMENTING),
    (BatchKind.ENCODE, State.QUEUED),
)
