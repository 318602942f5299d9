"""The engine: one model on one device, shared by whoever asks it for pictures."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from .api.calibration import Calibration
from .api.event import Event
from .api.request import GenerationRequest, Requests, as_requests
from .api.result import GenerationResult
from .backends.networks import BackendChoice, BackendSettings, Networks
from .backends.options import TorchOptions
from .backends.protocol import ArtifactSource
from .batching.arenas import Arenas
from .batching.graphs import GraphPool
from .batching.scheduler import Limits, Policy, Scheduler
from .door import Admission, Door, check_dtypes
from .estimates import rows_due, rows_of
from .judging.judge import Judge
from .judging.registry import Registry
from .judging.similarity import ExtraMetric
from .lifecycle import Lifecycle
from .loop import Loop
from .models.checkpoint import Components, load
from .models.layout import Source
from .models.networks import Denoiser
from .records.manifest import Manifest, ModelRecord
from .results import Results
from .routing import Listener, Outbox, Turns
from .sampling.buckets import buckets_up_to
from .stages.assembly import assembled
from .stages.decoding import Decoder
from .stats import Stats, StatsRecorder


class Engine:
    """Batched two-step generation on one device.

    Any thread may call any method. One thread at a time steps, for all: whoever waits in `generate` or reads a stream
    gets its own events, whoever stepped. A picture never depends on the company it was batched with: bit for bit at
    equal padded batch size, within float rounding otherwise.

    backend: what runs the networks: `torch`, `onnxruntime`, `openvino`, `tensorrt` or `auto`, for all or by network
    name. precision: what compiled networks compute in. artifacts: where their artifacts come from, the package's own
    store and builder if None. torch_options: how PyTorch runs the networks it runs. arena_budget: bytes that what is
    kept on the device for each size of picture may take together; `Arenas`. graph_reserve: bytes of a GPU that graphs
    leave free. registry: protected works that drafts and finals are compared with.
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
        arena_budget: int = 2 * 2**30,
        graph_reserve: int = 4 * 2**30,
        extra_metrics: Mapping[str, ExtraMetric] | None = None,
        registry: Registry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if registry is not None:
            registry.check(components)
        check_dtypes(components, dtype)
        self.components = components
        self.registry = registry
        self.limits = limits or Limits()
        self.scheduler = Scheduler(self.limits, policy) if policy is not None else Scheduler(self.limits)
        self.torch_options = torch_options or TorchOptions()
        self.graphs = GraphPool(
            torch.device(device), reserve=graph_reserve, rehearse=self.torch_options.compile is not None
        )
        prepared = self.graphs.enabled or self.torch_options.compile is not None or backend != "torch"
        self.networks = Networks(
            components,
            Denoiser(components.unet, components.controlnet),
            BackendSettings(backend, precision, artifacts, self.torch_options),
            buckets=buckets_up_to(self.limits.rows, prepared),
            device=torch.device(device),
            dtype=dtype,
        )
        self.arenas = Arenas(
            self.networks,
            self.graphs,
            num_slots=self.limits.slots,
            max_steps=max_steps,
            num_tokens=components.max_tokens,
            budget=arena_budget,
            protected=registry.latents if registry is not None else None,
        )
        decoder = Decoder(components, self.networks)
        self.judge = Judge(components, extra_metrics or {}, registry, decoder.decode, decoder.labels)
        self.stages = assembled(components, self.arenas, decoder, self.judge)
        self._door = Door(components, max_steps, max_pixels, self.judge, self.networks.check_size)
        self._recorder = StatsRecorder(clock)
        self._turns, self._outbox = Turns(), Outbox()
        results = Results(components, registry, self.judge, self.stages.judging)
        self._lifecycle = Lifecycle(self.scheduler, self.arenas, results, self._outbox, self._recorder, clock)
        self._loop = Loop(self.stages, self._lifecycle, self._recorder)
        self._broken = False

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

    # --- what users call ---

    def generate(self, requests: Requests, on_event: Callable[[Event], None] | None = None) -> list[GenerationResult]:
        """Run requests to their end; results image by image, in the order of the requests.

        A plain prompt stands for a request of it. on_event: called in this thread, between steps. Raises
        InvalidRequestError, before anything runs, for a request that this model cannot serve.
        """
        batch = as_requests(requests)
        waiting = deque((request, self._door.admit(request)) for request in batch)
        heard: deque[Event] = deque()
        results: dict[tuple[int, int], GenerationResult] = {}
        ids: list[int] = []
        try:
            while len(results) < sum(request.num_images for request in batch):
                while waiting and self._lifecycle.has_room:
                    ids.append(self._lifecycle.enter(*waiting.popleft(), heard.append))
                self._await(lambda: bool(heard) or (bool(waiting) and self._lifecycle.has_room))
                while heard:
                    event = heard.popleft()
                    if on_event is not None:
                        on_event(event)
                    if event.result is not None:
                        results[event.id, event.index] = event.result
        except BaseException:
            for id in ids:
                self.cancel(id)
            with self._turns:
                self._lifecycle.stop_due()
            raise
        return [results[id, i] for id, request in zip(ids, batch, strict=True) for i in range(request.num_images)]

    def submit(self, request: GenerationRequest, listener: Listener | None = None) -> int:
        """Queue a request and return its id.

        Its events go to `listener`, in the thread that steps and before the step returns, or, without one, come from
        `step`. A listener that raises has its request cancelled.
        Raises InvalidRequestError, EngineBusyError when the queue is full, EngineClosedError after `close`.
        """
        return self.enter(request, self.admit(request), listener)

    def admit(self, request: GenerationRequest) -> Admission:
        """Check a request, decode and measure what it brings: the part of `submit` that takes its time.

        Raises InvalidRequestError.
        """
        return self._door.admit(request)

    def enter(self, request: GenerationRequest, admission: Admission, listener: Listener | None = None) -> int:
        """Queue an admitted request and return its id: the part of `submit` that takes none.

        Raises EngineBusyError or EngineClosedError.
        """
        return self._lifecycle.enter(request, admission, listener)

    def cancel(self, id: int) -> None:
        """Stop a request before its next step; what of it is finished stays finished."""
        self._lifecycle.cancel(id)

    def step(self) -> list[Event]:
        """Run one batch and return what happened to requests that nobody else listens to.

        An exception in a batch fails only the request that causes it.
        """
        self.advance()
        return self._outbox.collect()

    def advance(self) -> None:
        """Run one batch; leave the events that nobody listens to for the next `step`."""
        with self._turns:
            self._step()

    def drain(self) -> list[Event]:
        """Step until nothing is left."""
        while self.pending:
            self.advance()
        return self._outbox.collect()

    @property
    def pending(self) -> int:
        """Images that are not finished, a request that has not drafted yet counting as one."""
        return len(self.scheduler.jobs)

    @property
    def alive(self) -> bool:
        """Whether requests are taken and served: false after `close`, and once an error broke a step."""
        return not (self._lifecycle.closed or self._broken)

    def estimate(self, request: GenerationRequest | str) -> int:
        """Rows of the UNet that a request costs up to its first verdicts; `estimates.rows_of`.

        Raises InvalidRequestError for one that this model cannot serve.
        """
        (wanted,) = as_requests(request)
        self._door.admit(wanted)
        return rows_of(wanted, self.judge.most_witnesses(wanted))

    @property
    def queued_rows(self) -> int:
        """Rows of the UNet that everything unfinished will spend at least, what is cancelled left out."""
        live = self._lifecycle.live()
        return sum(rows_due(job, self.judge.most_witnesses(job.request)) for job in live)

    @property
    def rows_per_second(self) -> float:
        """Rows of the UNet a second of work, of the latest batches of every kind; 0 before the first."""
        return self._recorder.recent_rate()

    def close(self, deadline: float | None = None) -> list[Event]:
        """Accept nothing more and run what is there to its end; after `deadline` seconds, cancel the rest.

        Every request has its results when this returns.
        """
        self._lifecycle.close()
        end = float("inf") if deadline is None else time.monotonic() + deadline
        while self.pending:
            if time.monotonic() >= end:
                self._lifecycle.cancel_all()
            self.advance()
        return self._outbox.collect()

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine; on an error cancel what is left first."""
        if kind is not None:
            self._lifecycle.cancel_all()
        self.close()

    def warmup(self, sizes: Sequence[tuple[int, int]] | None = None) -> dict[str, object]:
        """Allocate arenas, capture graphs and compile networks for pictures of `sizes` (height, width).

        The model's own size if None. Return the latent shapes that are ready, those of `sizes` that fit the arena
        budget together, what was captured and how long it took.
        """
        began = time.perf_counter()
        factor = self.components.vae_scale_factor
        with self._turns, self.torch_options.in_force():
            for height, width in sizes or [self.components.size]:
                self.arenas.loop((height // factor, width // factor)).capture()
        stats = self.graphs.stats
        return {
            "shapes": self.arenas.shapes,
            "captured": stats.captured,
            "dropped": list(stats.dropped),
            "seconds": time.perf_counter() - began,
        }

    def manifest(self, result: GenerationResult) -> Manifest:
        """Account for a result that this engine made; `GenerationResult.manifest`."""
        return Manifest.of(result, ModelRecord.of(self.components))

    def stats(self) -> Stats:
        """Return a snapshot of what the engine did."""
        waiting, resident = self._lifecycle.counts()
        return self._recorder.snapshot(
            waiting=waiting,
            resident=resident,
            graphs=self.graphs.stats,
            memory=self.graphs.memory() | {"arenas": self.arenas.nbytes},
            backends=self.networks.report(),
        )

    def _await(self, done: Callable[[], bool]) -> None:
        """Step, or wait while another thread does, until `done()`."""
        while self._turns.take(needless=done):
            try:
                self._step()
            finally:
                self._turns.leave()

    def _step(self) -> None:
        try:
            with self.torch_options.in_force():
                self._loop.step()
        except Exception:
            self._broken = True
            raise
        self._broken = False
