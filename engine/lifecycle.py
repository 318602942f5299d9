"""A job's moves and its end, each made whole or not at all: what may fail is made before the state changes."""

import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from .api.errors import EngineBusyError, EngineClosedError
from .api.event import Event, State
from .api.reading import shown
from .api.result import GenerationResult
from .batching.arenas import Arenas
from .batching.carried import Shared
from .batching.job import DENOISING, Job
from .batching.scheduler import Batch, Scheduler
from .door import Admission
from .results import Results, draft_of
from .routing import Listener, Outbox
from .stats import StatsRecorder

_LONGEST_ERROR = 2000  # characters; compilers of kernels say more

_log = logging.getLogger(__name__)


class Lifecycle:
    """Brings jobs in, moves them and ends them, and tells of it.

    Any thread may `enter` and `cancel`; the rest belongs to the thread that steps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        arenas: Arenas,
        results: Results,
        outbox: Outbox,
        recorder: StatsRecorder,
        clock: Callable[[], float],
    ) -> None:
        self.scheduler = scheduler
        self.arenas = arenas
        self.results = results
        self.outbox = outbox
        self.recorder = recorder
        self.closed = False
        self._why_closed = "the engine is closed"
        self._clock = clock
        self._lock = threading.RLock()
        self._ids = itertools.count()
        self._since: dict[int, float] = {}
        self._cancelled: set[int] = set()

    # --- from any thread ---

    @property
    def has_room(self) -> bool:
        """Whether one more request may wait; those that are cancelled leave their place at once."""
        return sum(self.counts()) < self.scheduler.limits.waiting

    def counts(self) -> tuple[int, int]:
        """Jobs without and with a slot; what is cancelled counts no more."""
        live = self.live()
        resident = sum(job.slot is not None for job in live)
        return len(live) - resident, resident

    def live(self) -> list[Job]:
        """Jobs that are not finished and not cancelled."""
        with self._lock:
            return [job for job in self.scheduler.jobs.values() if job.request_id not in self._cancelled]

    def enter(self, admission: Admission, listener: Listener | None = None, *, together: bool = False) -> int:
        """Queue an admitted request and return its id; its events go to `listener` if there is one. together: `Job`.

        Raises EngineBusyError when the queue is full, EngineClosedError after the end.
        """
        with self._lock:
            if self.closed:
                raise EngineClosedError(self._why_closed)
            if not self.has_room:
                raise EngineBusyError(f"{self.scheduler.limits.waiting} requests are waiting already; try again later")
            id = next(self._ids)
            shared = Shared(source=admission.source, pictures=admission.controls)
            job = Job(
                id, id, admission.request, admission.shape, self._clock(), shared, embedded=admission.embedded,
                together=together,
            )  # fmt: skip
            if listener is not None:
                self.outbox.listen(id, listener)
            self.scheduler.submit(job)
            self._since[id] = job.arrival
            self._tell(Event(id, 0, State.QUEUED))
            return id

    def cancel(self, id: int) -> None:
        """Stop a request before its next step; what of it is finished stays finished."""
        with self._lock:
            # An id that nobody has any more would stay here for ever.
            if any(job.request_id == id for job in self.scheduler.jobs.values()):
                self._cancelled.add(id)

    def cancel_all(self) -> None:
        """Stop every request before its next step."""
        with self._lock:
            self._cancelled.update(job.request_id for job in self.scheduler.jobs.values())

    def close(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self.closed = True

    # --- from the thread that steps ---

    def stop_due(self) -> None:
        """End what was cancelled or has expired, before anything more is spent."""
        with self._lock:
            cancelled = [job for job in self.scheduler.jobs.values() if job.request_id in self._cancelled]
            expired = self.scheduler.expired(self._clock())
        for job in cancelled:
            self.end(job, State.CANCELLED)
        for job in expired:
            if job not in cancelled:
                job.error = f"not finished within {job.request.timeout} s"
                self.end(job, State.EXPIRED)

    def admit(self) -> list[Job]:
        """Give free slots to waiting jobs whose arenas fit; return those that got one."""
        with self._lock:
            return self.scheduler.admit(self.arenas.claim)

    def next_batch(self) -> Batch | None:
        """Return what runs next, None when nothing can."""
        with self._lock:
            return self.scheduler.next_batch()

    def move(self, job: Job, state: State) -> None:
        """Go to a state that is not an end, and tell of it."""
        run = job.trajectory
        steps = len(run.plan) if run is not None and state in DENOISING else 0
        event = Event(job.request_id, job.index, state, 0, steps, job.attempt)
        if state is State.SEGMENTED:
            event = replace(event, picture=draft_of(job), mask=job.shared.mask)
        self._count_time(job)
        job.move(state)
        self._tell(event)

    def progressed(self, job: Job, picture: Image.Image | None) -> None:
        """Tell of a step that was taken, with the predicted picture where there is one."""
        run = job.trajectory
        assert run is not None
        self._tell(Event(job.request_id, job.index, job.state, run.step, len(run.plan), job.attempt, picture))

    def fork(self, job: Job) -> None:
        """Bring in the other images of a segmented job's request."""
        with self._lock:
            for index in range(1, job.request.num_images):
                fork = job.fork(next(self._ids), index)
                self.scheduler.submit(fork)
                self._since[fork.id] = self._since[job.id]

    def fail(self, job: Job, reason: str) -> None:
        """End a job that broke."""
        job.error = reason
        self.end(job, State.FAILED)

    def end(self, job: Job, state: State) -> None:
        """End a job in `state`, free what it held and hand out its result.

        Where its result cannot be made, it ends FAILED with a small one. A job that never forked answers for every
        image of its request.
        """
        self._count_time(job)
        try:
            result = self.results.whole(job, state)
        except Exception as error:
            state, result = State.FAILED, self.results.small(job, reason_of(error))
        self._hand_out(job, state, result)

    def collapse(self, reason: str) -> None:
        """End every job FAILED for `reason`, without a look at the device, and let nobody in any more for the same."""
        _log.critical("%s", reason)
        with self._lock:
            self.closed, self._why_closed = True, reason
            jobs = [*self.scheduler.jobs.values()]
        for job in jobs:
            self._count_time(job)
            self._hand_out(job, State.FAILED, self.results.small(job, reason))

    def _hand_out(self, job: Job, state: State, result: GenerationResult) -> None:
        """Move a job to its end, and free what it held."""
        job.move(state)
        forked = job.index > 0 or job.own is not None or State.SEGMENTED in job.timings
        with self._lock:
            self.scheduler.finish(job)
            self.arenas.release(job)
            del self._since[job.id]
            last = not any(other.request_id == job.request_id for other in self.scheduler.jobs.values())
            for index in [job.index] if forked else range(job.request.num_images):
                self.recorder.finished(result.verdict, self._clock() - job.arrival)
                told = replace(result, index=index)
                self._tell(Event(job.request_id, index, state, attempt=job.attempt, result=told))
            if last:
                self._cancelled.discard(job.request_id)
                self.outbox.close(job.request_id)

    def _count_time(self, job: Job) -> None:
        """Add the time since the last move to the state that the job is in."""
        now = self._clock()
        job.timings[job.state] = job.timings.get(job.state, 0.0) + now - self._since[job.id]
        self._since[job.id] = now

    def _tell(self, event: Event) -> None:
        """Hand out an event; a listener that raises has its request cancelled, and nobody else feels it."""
        try:
            self.outbox.put(event)
        except Exception:
            _log.exception("the listener of request %d raised; the request is cancelled", event.id)
            self.cancel(event.id)


def reason_of(error: Exception) -> str:
    """Why something failed, in a line."""
    return f"{type(error).__name__}: {shown(error, _LONGEST_ERROR)}"
