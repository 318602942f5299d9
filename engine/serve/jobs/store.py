"""What is known of jobs and of keys of idempotency, and the protocol of a place that keeps it."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Status(StrEnum):
    """Where a job stands. DONE: it has its answer, which may say that the picture was refused."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether it stays so."""
        return self in (Status.DONE, Status.CANCELLED)


@dataclass(frozen=True)
class Job:
    """A job as it is kept; its request and its answer are artefacts.

    tenant: id of the key that it belongs to. created, updated: seconds since the epoch. attempts: how often it was
    begun. code: status of its answer.
    """

    id: str
    tenant: str
    priority: int
    created: float
    updated: float
    status: Status = Status.QUEUED
    attempts: int = 0
    code: int | None = None


@dataclass(frozen=True)
class Claim:
    """A key of idempotency as it is kept. name: of the artefact that holds the answer. code: None while it is drawn."""

    name: str
    fingerprint: str
    code: int | None = None


class JobStore(Protocol):
    """Keeps jobs for any number of servers, of which one at a time holds a job, for as long as it renews its lease.

    Times are seconds since the epoch by the clocks of the servers, which may be put back: a lease that ends ten times
    its length from now or later is over. Every method raises UnreachableError where the place cannot be used.
    """

    def check(self) -> None:
        """Make what is missing; raise RecordError or OSError unless jobs can be kept."""

    def add(self, job: Job) -> bool:
        """Keep a new job; False where there is one of its id."""

    def find(self, id: str) -> Job | None:
        """The job of that id."""

    def waiting(self, tenant: str | None = None) -> int:
        """How many are queued, of one key where it is named."""

    def take(self, owner: str, now: float, until: float) -> Job | None:
        """Give the next job to `owner` until then: queued, or of another whose lease ran out; the highest priority."""

    def renew(self, owner: str, until: float, keys: Collection[str] = ()) -> frozenset[str]:
        """Lengthen the lease of all jobs that `owner` holds, and return their ids; and of those keys that it holds."""

    def finish(self, id: str, owner: str, code: int, now: float) -> bool:
        """Say that a job has its answer; False where `owner` holds it no more, and the answer is not its own."""

    def release(self, id: str, owner: str, now: float) -> None:
        """Queue a job again, as if it had not been begun."""

    def cancel(self, id: str, now: float) -> bool:
        """End a job that has not ended; False where it has."""

    def claim(self, name: str, fingerprint: str, owner: str, now: float, until: float) -> Claim | None:
        """Take a key of idempotency, also one that `owner` took and could not free; None where it is taken now.

        Else what is kept of it.
        """

    def answer(self, name: str, owner: str, code: int, now: float) -> None:
        """Say that the answer to a key is kept."""

    def unclaim(self, name: str, owner: str) -> None:
        """Free a key whose answer is not worth keeping."""

    def old(self, before: float, most: int) -> list[str]:
        """Ids of jobs and names of keys that ended before a time, the oldest first."""

    def delete(self, ids: Collection[str]) -> None:
        """Forget jobs and keys."""
