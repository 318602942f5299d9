"""The engine's loop: schedule a batch, run it, move its jobs on."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from .api.calibration import Calibration
from .api.errors import EngineBusyError, EngineClosedError
from .api.event import Event, State
from .api.request import GenerationRequest, Requests
from .api.result import GenerationResult, Verdict
from .api.rules import Decision
from .backends.networks import BackendChoice, BackendSettings
from .backends.options import TorchOptions
from .backends.protocol import ArtifactSource
from .batching.carried import Shared
from .batching.graphs import GraphPool
from .batching.job import DENOISING, TERMINAL, IllegalMoveError, Job
from .batching.scheduler import Batch, BatchKind, Limits, Policy, Scheduler
from .door import Admission, Door
from .judging.registry import Registry
from .judging.similarity import ExtraMetric
from .models.checkpoint import Components, load
from .models.layout import Source
from .sampling.buckets import ROW_BUCKETS
from .stages.runner import Runner, to_picture
from .stats import Stats, StatsRecorder

_ENDS = {Decision.ACCEPT: State.ACCEPTED, Decision.REVIEW: State.REVIEW, Decision.REFUSE: State.REFUSED}


class Engine:
    """Batched two-step generation on one device.

    Any thread may `submit`, `cancel` or ask for `stats` while one thread steps. A picture never depends on the
    company it was batched with: bit for bit at equal padded batch size, within float rounding otherwise.

    backend: what runs the networks: `torch`, `onnxruntime`, `openvino`, `tensorrt` or `auto`, for all or by network
    name. precision: what compiled networks compute in. artifacts: where their artifacts come from, the package's own
    store and builder if None. torch_options: how PyTorch runs the networks it runs. registry: protected works that
    drafts and finals are compared with.
    """

    def __init__(
        self,
        components: Components,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: BackendChoice = "torch",
        precision: str = "fp32",
        artifacts: ArtifactSource | None = None,
        torch_options: TorchOptions | None = None,
        limits: Limits | None = None,
        policy: Policy | None = None,
        max_steps: int = 150,
        max_pixels: int = 2**20,
        graph_reserve: int = 4 * 2**30,
        extra_metrics: Mapping[str, ExtraMetric] | None = None,
        registry: Registry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if registry is not None:
            registry.check(components)
        self.components = components
        self.registry = registry
        self.limits = limits or Limits()
        self.scheduler = Scheduler(self.limits, policy) if policy is not None else Scheduler(self.limits)
        self.torch_options = torch_options or TorchOptions()
        self.graphs = GraphPool(
            torch.device(device), reserve=graph_reserve, rehearse=self.torch_options.compile is not None
        )
        self.runner = Runner(
            components,
            num_slots=self.limits.slots,
            buckets=self._buckets(backend),
            max_steps=max_steps,
            device=torch.device(device),
            dtype=dtype,
            graphs=self.graphs,
            extra_metrics=extra_metrics or {},
            registry=registry,
            backends=BackendSettings(backend, precision, artifacts, self.torch_options),
        )
        self._door = Door(components, max_steps, max_pixels, self.runner.judging, self.runner.networks.check_size)
        self._clock = clock
        self._recorder = StatsRecorder(clock)
        self._lock = threading.RLock()
        self._ids = itertools.count()
        self._entered: dict[int, float] = {}
        self._cancelled: set[int] = set()
        self._events: list[Event] = []
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: Source | None = None,
        *,
        controlnet: Source | None = None,
        segmenter: Source | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        calibration: Calibration | Path | str | None = None,
        registry: Registry | Path | str | None = None,
        **options: Any,
    ) -> Self:
        """Load a diffusers folder or hub id, the embedded model if None; `options` as in the constructor.

        calibration: limits that take the place of the folder's own. registry: protected works to compare with, or their
        file. Raises CheckpointError for what cannot be loaded.
        """
        components = load(path_or_id, controlnet=controlnet, segmenter=segmenter, dtype=dtype, device=device)
        if calibration is not None:
            found = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
            components = replace(components, calibration=found)
        works = registry if isinstance(registry, Registry | None) else Registry.load(registry)
        return cls(components, device=device, dtype=dtype, registry=works, **options)

    def generate(self, requests: Requests, on_event: Callable[[Event], None] | None = None) -> list[GenerationResult]:
        """Run requests to their end; results image by image, in the order of the requests.

        Raises InvalidRequestError, before anything runs, for a request that this model cannot serve.
        """
        batch = [requests] if isinstance(requests, GenerationRequest) else list(requests)
        waiting = deque((request, self._door.admit(request)) for request in batch)
        results: dict[tuple[int, int], GenerationResult] = {}
        ids: list[int] = []
        try:
            while len(results) < sum(request.num_images for request in batch):
                while waiting and self._has_room():
                    ids.append(self._enqueue(*waiting.popleft()))
                for event in self.step():
                    if on_event is not None:
                        on_event(event)
                    if event.result is not None:
                        results[event.id, event.index] = event.result
        except BaseException:
            for id in ids:
                self.cancel(id)
            self.drain()
            raise
        return [results[id, i] for id, request in zip(ids, batch, strict=True) for i in range(request.num_images)]

    def submit(self, request: GenerationRequest) -> int:
        """Queue a request and return its id; its events come from `step`.

        Raises InvalidRequestError, EngineBusyError when the queue is full, EngineClosedError after `close`.
        """
        admission = self._door.admit(request)
        if not self._has_room():
            raise EngineBusyError(f"{self.limits.waiting} requests are waiting already; try again later")
        return self._enqueue(request, admission)

    def cancel(self, id: int) -> None:
        """Stop a request before its next step; what of it is finished stays finished."""
        with self._lock:
            # An id that nobody has any more would stay here for ever.
            if any(job.request_id == id for job in self.scheduler.jobs.values()):
                self._cancelled.add(id)

    def step(self) -> list[Event]:
        """Run one batch and return what happened. An exception in a batch fails only the request that causes it."""
        with self.torch_options.in_force():
            return self._step()

    def _step(self) -> list[Event]:
        began = time.perf_counter()
        with self._lock:
            self._stop_jobs()
            admitted = self.scheduler.admit()
        for job in admitted:
            self._isolated(self._enter, [job])
        with self._lock:
            batch = self.scheduler.next_batch()
        self._recorder.scheduling += time.perf_counter() - began
        if batch is not None:
            began = time.perf_counter()
            self._run(batch)
            self._recorder.batch(batch.kind, time.perf_counter() - began)
        events, self._events = self._events, []
        return events

    def drain(self) -> list[Event]:
        """Step until nothing is left."""
        events: list[Event] = []
        while self.pending:
            events += self.step()
        return events

    @property
    def pending(self) -> int:
        """Images that are not finished, a request that has not drafted yet counting as one."""
        return len(self.scheduler.jobs)

    def close(self) -> list[Event]:
        """Accept nothing more and run what is there to its end."""
        with self._lock:
            self._closed = True
        return self.drain()

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine; on an error cancel what is left first."""
        if kind is not None:
            for job in list(self.scheduler.jobs.values()):
                self.cancel(job.request_id)
        self.close()

    def warmup(self, sizes: Sequence[tuple[int, int]] | None = None) -> dict[str, object]:
        """Allocate arenas, capture graphs and compile networks for pictures of `sizes` (height, width).

        The model's own size if None. Return what was captured and how long it took.
        """
        began = time.perf_counter()
        factor = self.components.vae_scale_factor
        shapes = [(height // factor, width // factor) for height, width in sizes or [self.components.size]]
        with self.torch_options.in_force():
            for shape in shapes:
                self.runner.loop(shape).capture()
        stats = self.graphs.stats
        return {
            "shapes": shapes,
            "captured": stats.captured,
            "dropped": list(stats.dropped),
            "seconds": time.perf_counter() - began,
        }

    def stats(self) -> Stats:
        """Return a snapshot of what the engine did."""
        with self._lock:
            resident = len(self.scheduler.resident)
            waiting = len(self.scheduler.jobs) - resident
        memory = {}
        if self.graphs.enabled:
            device = self.graphs.device
            memory = {
                "allocated": torch.cuda.memory_allocated(device),
                "reserved": torch.cuda.memory_reserved(device),
            }
        return self._recorder.snapshot(
            waiting=waiting,
            resident=resident,
            graphs=self.graphs.stats,
            memory=memory,
            backends=self.runner.networks.report(),
        )

    def _buckets(self, backend: BackendChoice) -> list[int]:
        """Row counts to pad to: every one where padding saves nothing, for each row costs and none is prepared."""
        prepared = self.graphs.enabled or self.torch_options.compile is not None or backend != "torch"
        counts = ROW_BUCKETS if prepared else range(1, self.limits.rows)
        return [count for count in counts if count < self.limits.rows] + [self.limits.rows]

    # --- moving jobs ---

    def _has_room(self) -> bool:
        return len(self.scheduler.jobs) < self.limits.waiting

    def _enqueue(self, request: GenerationRequest, admission: Admission) -> int:
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            id = next(self._ids)
            job = Job(id, id, request, admission.shape, self._clock(), Shared(source=admission.source))
            self.scheduler.submit(job)
            self._entered[id] = job.arrival
            self._events.append(Event(id, 0, State.QUEUED))
            return id

    def _move(self, job: Job, state: State) -> None:
        now = self._clock()
        job.timings[job.state] = job.timings.get(job.state, 0.0) + now - self._entered[job.id]
        self._entered[job.id] = now
        job.move(state)
        if state in TERMINAL:
            self._finish(job)
        else:
            steps = len(job.trajectory.plan) if job.trajectory is not None and state in DENOISING else 0
            event = Event(job.request_id, job.index, state, 0, steps, job.attempt)
            if state is State.SEGMENTED:
                event = replace(event, picture=self._draft(job), mask=job.shared.mask)
            self._events.append(event)

    def _stop_jobs(self) -> None:
        """Cancel and expire, before anything more is spent."""
        for job in [j for j in self.scheduler.jobs.values() if j.request_id in self._cancelled]:
            self._move(job, State.CANCELLED)
        self._cancelled.clear()
        for job in self.scheduler.expired(self._clock()):
            job.error = f"not finished within {job.request.timeout} s"
            self._move(job, State.EXPIRED)

    def _enter(self, jobs: Sequence[Job]) -> None:
        """Start the run of a job that just got its slot."""
        (job,) = jobs
        if job.state is State.SEGMENTED:
            self.runner.start_final(job)
            self._move(job, State.FINALISING)
        elif job.shared.source is not None:
            self._move(job, State.SEGMENTING)
        else:
            self.runner.start_draft(job)
            self._move(job, State.DRAFTING)

    def _run(self, batch: Batch) -> None:
        match batch.kind:
            case BatchKind.ENCODE:
                self._isolated(self._encode, batch.jobs)
            case BatchKind.DENOISE:
                self._isolated(self._denoise, batch.jobs)
            case BatchKind.SEGMENT:
                self._isolated(self._segment, batch.jobs)
            case BatchKind.JUDGE:
                # Of one shape at a time: what is judged already must not be judged again when another shape fails.
                for shape in dict.fromkeys(job.shape for job in batch.jobs):
                    self._isolated(self._judge, [job for job in batch.jobs if job.shape == shape])

    def _isolated(self, work: Callable[[Sequence[Job]], None], jobs: Sequence[Job]) -> None:
        """Do `work`; where it raises, halve the batch until the job that causes it stands alone, and fail that one."""
        try:
            work(jobs)
            return
        except IllegalMoveError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        # Only now is the traceback gone, and with it the tensors that a batch out of memory held.
        if len(jobs) == 1:
            jobs[0].error = reason
            self._move(jobs[0], State.FAILED)
            return
        half = len(jobs) // 2
        self._isolated(work, jobs[:half])
        self._isolated(work, jobs[half:])

    def _encode(self, jobs: Sequence[Job]) -> None:
        self.runner.encode(jobs)
        for job in jobs:
            self._move(job, State.ENCODED)

    def _denoise(self, jobs: Sequence[Job]) -> None:
        rows = sum(len(job.trajectory.rows) for job in jobs if job.trajectory is not None)
        bucket = self.runner.denoise(jobs)
        self._recorder.step(rows, bucket.rows, bucket.control_rows)
        previews: dict[int, Image.Image] = {}
        # The step is done and must not be repeated, whatever becomes of its previews.
        if shown := [job for job in jobs if self._wants_preview(job)]:
            self._isolated(lambda some: previews.update(self.runner.previews(some)), shown)
        for job in [job for job in jobs if job.state in DENOISING]:
            run = job.trajectory
            assert run is not None
            event = Event(job.request_id, job.index, job.state, run.step, len(run.plan), job.attempt)
            self._events.append(replace(event, picture=previews.get(job.id)))
            if run.done and job.state is State.DRAFTING:
                self._move(job, State.SEGMENTING)
            elif run.done and job.state is State.WITNESSING:
                self._isolated(self._hear_witness, [job])
            elif run.done or (job.state is State.FINALISING and run.step in self._early_steps(job)):
                self._move(job, State.JUDGING)

    def _segment(self, jobs: Sequence[Job]) -> None:
        self.runner.segment(jobs)
        for job in jobs:
            if self.runner.wants_witnesses(job):
                self._isolated(self._call_witness, [job])
            else:
                self._segmented(job)

    def _call_witness(self, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        self.runner.start_witness(job)
        if job.state is State.SEGMENTING:
            self._move(job, State.WITNESSING)

    def _hear_witness(self, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        if self.runner.hear_witness(job):
            self._segmented(job)
        else:
            self._call_witness(jobs)

    def _segmented(self, job: Job) -> None:
        """Go on to the finals of a draft that the gate has decided on."""
        job.gated = not job.shared.gate.opened
        self._move(job, State.SEGMENTED)
        for index in range(1, job.request.num_images):
            fork = job.fork(next(self._ids), index)
            with self._lock:
                self.scheduler.submit(fork)
            self._entered[fork.id] = self._entered[job.id]
        self._isolated(self._deliver if self._draft_is_final(job) else self._enter, [job])

    def _draft_is_final(self, job: Job) -> bool:
        """Whether the draft is what a plain final would be, and may stand for it."""
        request = job.request
        return job.gated and request.gate is not None and request.gate.deliver_draft and request.draft == request.final

    def _deliver(self, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        self.runner.deliver_draft(job)
        self._move(job, State.JUDGING)

    def _judge(self, jobs: Sequence[Job]) -> None:
        self.runner.judge(jobs)
        for job in jobs:
            if len(job.own.attempts) == job.attempt:
                self._move(job, State.FINALISING)
                continue
            attempt = job.own.attempts[-1]
            self._recorder.attempt(attempt)
            if not attempt.passed and job.attempt < job.request.similarity.retries:
                self._isolated(self._retry, [job])
            else:
                decision = attempt.decision if attempt.passed else self.runner.judging.rule(job.request).then
                self._move(job, _ENDS[decision])

    def _wants_preview(self, job: Job) -> bool:
        every, run = job.request.preview, job.trajectory
        if run is None or job.state is State.WITNESSING:
            return False
        return bool(every) and run.step > 0 and run.step % every == 0

    def _early_steps(self, job: Job) -> frozenset[int]:
        return job.request.similarity.early_steps(job.request.final.steps)

    def _retry(self, jobs: Sequence[Job]) -> None:
        """Send a judged job back into the live batch, under a stronger policy."""
        (job,) = jobs
        job.attempt += 1
        self.runner.start_final(job)
        self._move(job, State.FINALISING)

    def _finish(self, job: Job) -> None:
        """Free the slot and hand out the result; a job that never forked answers for every image of its request."""
        result = self._result(job)
        with self._lock:
            self.scheduler.finish(job)
        del self._entered[job.id]
        forked = job.index > 0 or job.own is not None or State.SEGMENTED in job.timings
        indices = [job.index] if forked else range(job.request.num_images)
        for index in indices:
            self._recorder.finished(result.verdict, self._clock() - job.arrival)
            result = replace(result, index=index)
            self._events.append(Event(job.request_id, index, job.state, attempt=job.attempt, result=result))

    def _draft(self, job: Job) -> Image.Image | None:
        drafted = job.shared.reference is not None and job.shared.source is None
        return to_picture(job.shared.reference[0]) if drafted else None

    def _result(self, job: Job) -> GenerationResult:
        shared, own, verdict = job.shared, job.own, Verdict(job.state)
        judged = job.state in _ENDS.values()
        calibration = self.components.calibration
        return GenerationResult(
            request=job.request,
            index=job.index,
            verdict=verdict,
            image=to_picture(own.image) if judged else None,
            draft=self._draft(job),
            mask=shared.mask,
            label_map=None if shared.labels is None else shared.labels.astype(np.uint16),
            control_map=own.control_map if own is not None else None,
            gate=shared.gate,
            attempts=tuple(own.attempts) if own is not None else (),
            rule=str(self.runner.judging.rule(job.request)),
            calibration=calibration.version if calibration is not None else None,
            registry=self.registry.version if self.registry is not None else None,
            timings={state.value: seconds for state, seconds in job.timings.items()},
            draft_rows=shared.draft_rows,
            explanation=self.runner.explanation(job) if judged and job.request.explain else None,
            error=job.error,
        )
