"""The loop: schedule a batch, run it on its stage, move its jobs on."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence

from PIL import Image

from .api.event import State
from .batching.denoising import Bucket
from .batching.faults import device_failed
from .batching.job import DENOISING, IllegalMoveError, Job
from .batching.pacing import Pace
from .batching.scheduler import Batch, BatchKind, kind_of
from .batching.streams import Streams
from .lifecycle import Lifecycle, reason_of
from .stages.assembly import Stages
from .stats import StatsRecorder

_LOOK_UP = 0.01
"""Seconds for which at most, while all jobs wait for places, nobody looks who came, was cancelled or is late."""


class Loop:
    """Runs one batch a step; where there is none, but places are looked for, it waits for one of these.

    A failure in a batch ends the job that causes it, and nobody else feels it.
    """

    def __init__(
        self, stages: Stages, lifecycle: Lifecycle, recorder: StatsRecorder, streams: Streams, pace: Pace
    ) -> None:
        self.stages = stages
        self.lifecycle = lifecycle
        self.recorder = recorder
        self.streams = streams
        self.pace = pace
        self._taken: deque[tuple[Hashable, int, Bucket]] = deque()

    def step(self) -> None:
        """Stop what is due, let jobs in, and run the batch that comes next, if there is one."""
        began = time.perf_counter()
        self.lifecycle.stop_due()
        for job in self.stages.placing.ended():
            self._alone(self._placed, job)
        for job in self.lifecycle.admit():
            self._alone(self._enter, job)
        batch = self.lifecycle.next_batch()
        self.recorder.scheduling += time.perf_counter() - began
        if batch is not None:
            began = time.perf_counter()
            self._run(batch)
            spent = time.perf_counter() - began - self.streams.inside()
            self._count_steps()
            self.recorder.batch(batch.kind, spent)
        else:
            self.stages.placing.wait(_LOOK_UP)

    def _count_steps(self) -> None:
        """Count the steps that the device has done, with the time that it took."""
        for seconds in self.streams.finished():
            kind, rows, bucket = self._taken.popleft()
            self.recorder.step(rows, bucket.rows, bucket.control_rows, seconds)
            self.pace.stepped(kind, rows, bucket.rows, bucket.control_rows, seconds)

    def _run(self, batch: Batch) -> None:
        match batch.kind:
            case BatchKind.ENCODE:
                self._each(batch.jobs, self.stages.encoding.encode, self._encoded)
            case BatchKind.DENOISE:
                self._denoise(batch.jobs)
            case BatchKind.SEGMENT:
                self._each(batch.jobs, self.stages.segmenting.segment, self._segmented)
            case BatchKind.JUDGE:
                # One group at a time: what is judged already must not be judged again when another group fails.
                for jobs in self.stages.judging.apart(batch.jobs):
                    self._each(jobs, self.stages.judging.judge, self._judged)

    def _each(self, jobs: Sequence[Job], work: Callable[[Sequence[Job]], None], move_on: Callable[[Job], None]) -> None:
        """Do `work` on a batch, then move on each job that came through, by itself."""
        for job in self._survivors(work, jobs):
            self._alone(move_on, job)

    def _survivors(self, work: Callable[[Sequence[Job]], None], jobs: Sequence[Job]) -> list[Job]:
        """Do `work`; where it raises, halve the batch until the job that causes it stands alone, and fail that one."""
        try:
            work(jobs)
            return list(jobs)
        except IllegalMoveError:
            raise
        except Exception as error:
            if device_failed(error):
                raise
            reason = reason_of(error)
        # Only now is the traceback gone, and with it the tensors that a batch out of memory held.
        if len(jobs) == 1:
            self.lifecycle.fail(jobs[0], reason)
            return []
        half = len(jobs) // 2
        return self._survivors(work, jobs[:half]) + self._survivors(work, jobs[half:])

    def _alone(self, work: Callable[[Job], None], job: Job) -> None:
        """Do `work` on one job, and fail it where that raises."""
        self._survivors(lambda jobs: work(jobs[0]), [job])

    # --- into a slot ---

    def _enter(self, job: Job) -> None:
        """Start the run of a job that just got its slot."""
        if job.state is State.SEGMENTED:
            self._finalise(job)
        elif job.shared.source is not None:
            self.lifecycle.move(job, State.SEGMENTING)
        else:
            self.stages.starting.start_draft(job)
            self.lifecycle.move(job, State.DRAFTING)

    def _finalise(self, job: Job) -> None:
        """Begin the job's next attempt: with the search for its objects' places, where they are to move."""
        if self.stages.placing.begin(job):
            self.lifecycle.move(job, State.PLACING)
        else:
            self._start_final(job)

    def _placed(self, job: Job) -> None:
        self.stages.placing.place(job)
        self._start_final(job)

    def _start_final(self, job: Job) -> None:
        self.stages.starting.start_final(job)
        self.lifecycle.move(job, State.FINALISING)

    def _redraft(self, job: Job) -> None:
        self.stages.starting.start_redraft(job)
        self.lifecycle.move(job, State.DRAFTING)

    # --- on from a batch ---

    def _encoded(self, job: Job) -> None:
        self.lifecycle.move(job, State.ENCODED)

    def _denoise(self, jobs: Sequence[Job]) -> None:
        """Take a step, show what was to be shown of it, and move on who is due."""
        pictures: dict[int, Image.Image] = {}
        stepped = self._survivors(self._step, jobs)
        # The step is taken and must not be repeated, whatever becomes of its previews.
        if shown := [job for job in stepped if _wants_preview(job)]:
            self._survivors(lambda some: pictures.update(self.stages.denoising.previews(some)), shown)
        for job in [job for job in stepped if job.state in DENOISING]:
            self.lifecycle.progressed(job, pictures.get(job.id))
            self._alone(self._stepped, job)

    def _step(self, jobs: Sequence[Job]) -> None:
        rows, kind = sum(len(job.trajectory.rows) for job in jobs if job.trajectory is not None), kind_of(jobs)
        self._taken.append((kind, rows, self.stages.denoising.denoise(jobs, self._survivors)))

    def _stepped(self, job: Job) -> None:
        run = job.trajectory
        assert run is not None
        if run.done and job.state is State.DRAFTING:
            self.lifecycle.move(job, State.SEGMENTING)
        elif run.done and job.state is State.WITNESSING:
            self._witnessed(job)
        elif run.done or (job.state is State.FINALISING and run.step in _early_steps(job)):
            self.lifecycle.move(job, State.JUDGING)

    def _segmented(self, job: Job) -> None:
        if job.redrafted:
            self.lifecycle.move(job, State.SEGMENTED)
            self._finalise(job)
        elif self.stages.segmenting.wants_witnesses(job):
            self.stages.starting.start_witness(job)
            self.lifecycle.move(job, State.WITNESSING)
        else:
            self._gated(job)

    def _witnessed(self, job: Job) -> None:
        if self.stages.segmenting.hear_witness(job):
            self._gated(job)
        else:
            self.stages.starting.start_witness(job)

    def _gated(self, job: Job) -> None:
        """Go on to the finals of a draft that the gate has decided on."""
        job.gated = not job.shared.gate.opened
        self.lifecycle.move(job, State.SEGMENTED)
        self.lifecycle.fork(job)
        if _draft_is_final(job):
            self.stages.starting.deliver_draft(job)
            self.lifecycle.move(job, State.JUDGING)
        else:
            self._finalise(job)

    def _judged(self, job: Job) -> None:
        """Go on after an early verdict, try again under a stronger policy, or end."""
        if len(job.own.attempts) == job.attempt:
            self.lifecycle.move(job, State.FINALISING)
            return
        attempt = job.own.attempts[-1]
        self.recorder.attempt(attempt)
        if not attempt.passed and job.attempt < job.request.similarity.retries:
            wanting = self.stages.judging.wants_redraft(job)
            job.attempt += 1
            if wanting:
                self._redraft(job)
            else:
                self._finalise(job)
        else:
            self.lifecycle.end(job, self.stages.judging.ending(job))


def _draft_is_final(job: Job) -> bool:
    """Whether the draft is what a plain final would be, and may stand for it."""
    return job.gated and job.request.delivers_draft


def _wants_preview(job: Job) -> bool:
    every, run = job.request.preview, job.trajectory
    if run is None or job.state is State.WITNESSING:
        return False
    return bool(every) and run.step > 0 and run.step % every == 0


def _early_steps(job: Job) -> frozenset[int]:
    return job.request.similarity.early_steps(job.request.final.evaluations)
