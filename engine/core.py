"""The parts of an engine on one device, put together; what they tell of themselves, and whose turn it is to step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from .api.request import GenerationRequest, as_requests
from .backends.networks import BackendChoice, BackendSettings, Networks
from .backends.options import TorchOptions
from .backends.protocol import ArtifactSource
from .batching.arenas import Arenas, Room
from .batching.capacity import usual_budget, usual_limits
from .batching.faults import device_failed, memory_ran_out
from .batching.graphs import GraphPool
from .batching.pacing import Pace
from .batching.scheduler import ContinuousPolicy, Limits, Policy, Scheduler
from .batching.streams import Streams
from .door import MAX_PIXELS, MAX_STEPS, Admission, Door
from .estimates import rows_due, rows_of
from .judging.judge import Judge
from .judging.registry import Registry
from .judging.similarity import ExtraMetric
from .lifecycle import Lifecycle
from .loading import of_pipeline
from .loop import Loop
from .models.components import Components
from .models.fitting import check_dtypes
from .models.kept import denoiser_of
from .results import Results
from .routing import Outbox, Turns
from .sampling.buckets import buckets_up_to
from .stages.assembly import assembled
from .stages.decoding import Decoder
from .stats import Stats, StatsRecorder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_MARGIN = 1.25
"""What is measured on pictures takes memory too, and memory goes to pieces."""


class Core:
    """Networks, arenas, stages and loop of one model.

    components: of a model, or a StableDiffusion(XL)(ControlNet)Pipeline of diffusers, which stays as it is. device,
    dtype: those that its weights are on and in, if None. backend: what runs the networks: `torch`, `onnxruntime`,
    `openvino`, `tensorrt` or `auto`, for all or by network name. precision: what compiled networks compute in.
    artifacts: where their artifacts come from, the package's own store and builder if None. torch_options: how PyTorch
    runs the networks it runs. limits: by the device's memory if None; `usual_limits`. max_prompt_chunks: a prompt takes
    at most so many times the tokens that the text encoder reads; 3 if None, 1 where UNet or ControlNet are compiled,
    for such a network reads as many tokens in every call. arena_budget: bytes that what is kept on the device for each
    size of picture may take together; `Arenas`, by the device's memory if None.
    program_budget: bytes of files that OpenVINO's programs may have together, any if None; what does not fit is run in
    programs for other row counts.
    graph_reserve: bytes of a GPU that graphs leave free; if None, what decoding and segmenting the largest batch is
    measured to need. registry: protected works that drafts and finals are compared with. placers: threads that look for
    where finals' objects go while the device steps; `Placing`.
    """

    def __init__(
        self,
        components: Components | DiffusionPipeline,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: BackendChoice = "torch",
        precision: str = "fp32",
        artifacts: ArtifactSource | None = None,
        torch_options: TorchOptions | None = None,
        limits: Limits | None = None,
        policy: Policy | None = None,
        max_steps: int = MAX_STEPS,
        max_pixels: int = MAX_PIXELS,
        max_prompt_chunks: int | None = None,
        arena_budget: int | None = None,
        program_budget: int | None = None,
        graph_reserve: int | None = None,
        extra_metrics: Mapping[str, ExtraMetric] | None = None,
        registry: Registry | None = None,
        placers: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        components = components if isinstance(components, Components) else of_pipeline(components)
        weight = next(components.unet.parameters())
        device, dtype = torch.device(device or weight.device), dtype or weight.dtype
        if registry is not None:
            registry.check(components)
        check_dtypes(components, dtype)
        self.components = components
        self.registry = registry
        self.limits = limits or usual_limits(device)
        self.torch_options = (torch_options or TorchOptions()).on(device)
        self.graphs = GraphPool(device, reserve=graph_reserve or 0, rehearse=self.torch_options.compile is not None)
        self._measure_reserve = graph_reserve is None
        prepared = self.graphs.enabled or self.torch_options.compile is not None or backend != "torch"
        self.networks = Networks(
            components,
            denoiser_of(components),
            BackendSettings(backend, precision, artifacts, self.torch_options),
            buckets=buckets_up_to(self.limits.rows, prepared),
            device=device,
            dtype=dtype,
            max_chunks=max_prompt_chunks,
            program_budget=program_budget,
        )
        pace = Pace(self.networks.buckets, clock)
        self.scheduler = Scheduler(self.limits, policy or ContinuousPolicy(), pace)
        self._shallow = self.networks.denoiser.shallow_share  # of the work of a whole step
        self.streams = Streams(device)
        self.arenas = Arenas(
            self.networks,
            self.graphs,
            self.streams,
            num_slots=self.limits.slots,
            max_steps=max_steps,
            num_tokens=self.networks.num_tokens,
            max_tokens=self.networks.max_chunks * components.max_tokens,
            budget=usual_budget(device) if arena_budget is None else arena_budget,
            protected=registry.latents if registry is not None else None,
        )
        self._decoder = decoder = Decoder(components, self.networks)
        self.judge = Judge(components, extra_metrics or {}, registry, decoder.decode, decoder.labels)
        self.stages = assembled(components, self.arenas, decoder, self.judge, placers)
        sizes, chunks = self.networks.check_size, self.networks.max_chunks
        self._door = Door(components, max_steps, max_pixels, self.limits.rows, self.judge, sizes, chunks)
        self._recorder = StatsRecorder(clock)
        self._turns, self._outbox = Turns(), Outbox()
        results = Results(self.networks, registry, self.judge, self.stages.judging)
        self._lifecycle = Lifecycle(self.scheduler, self.arenas, results, self._outbox, self._recorder, clock)
        self._loop = Loop(self.stages, self._lifecycle, self._recorder, self.streams, pace)
        self._broken = False
        self.streams.settle()  # what was loaded and made is there, on whatever stream that was

    @property
    def alive(self) -> bool:
        """Whether requests are taken and served: false after `close`, and once an error broke a step or the device."""
        return not (self._lifecycle.closed or self._broken)

    def estimate(self, request: GenerationRequest | Admission | str) -> int:
        """Rows of the UNet that a request costs up to its first verdicts, in whole ones; `estimates.rows_of`.

        Raises InvalidRequestError for one that this model cannot serve; what `Engine.admit` found is taken as it is.
        """
        if not isinstance(request, Admission):
            (wanted,) = as_requests(request)
            request = self._door.admit(wanted)
        witnesses = self.judge.most_witnesses(request.request)
        return rows_of(request.request, witnesses, request.embedded, self._shallow)

    def prompt_tokens(self, request: GenerationRequest) -> int:
        """Tokens that a request's prompt has, start and end of each chunk included."""
        return self._door.prompt_tokens(request.prompt, request.prompt_syntax)

    def settled(self, request: GenerationRequest) -> GenerationRequest:
        """Return what results name as their request: with the solver and noise levels that it leaves to the model."""
        return self._door.settle(request)

    @property
    def queued_rows(self) -> int:
        """Rows of the UNet that everything unfinished will spend at least, what is cancelled left out."""
        live = self._lifecycle.live()
        return sum(rows_due(job, self.judge.most_witnesses(job.request), self._shallow) for job in live)

    @property
    def rows_per_second(self) -> float:
        """Rows of the UNet a second of work, of the latest batches of every kind; 0 before the first."""
        return self._recorder.recent_rate()

    @property
    def pending(self) -> int:
        """Images that are not finished, a request that has not drafted yet counting as one."""
        return len(self.scheduler.jobs)

    def warmup(
        self,
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        long_prompts: bool = False,
        cached_steps: bool = False,
        background: bool = False,
    ) -> dict[str, object]:
        """Allocate arenas, capture graphs and compile networks for pictures of `sizes` (height, width).

        The model's own size if None. long_prompts: also for prompts of more than one chunk, which otherwise take their
        memory when the first of them comes, and run without graphs; cached_steps: the same for stages with a
        `cache_interval`. background: of networks that compile for row counts, as OpenVINO's, make ready what one
        request needs alone, decoder, segmenter and text encoders too, and compile the rest in a thread of low priority
        while serving; until then calls are run in what there is. Return the latent shapes that are ready, those of
        `sizes` that fit the arena budget together, what was captured and how long it took.
        """
        background = background and self.networks.has_programs
        began = time.perf_counter()
        factor = self.components.vae_scale_factor
        with self._turns, self._running(), self.torch_options.warming():
            shapes = [(height // factor, width // factor) for height, width in sizes or [self.components.size]]
            room = Room(long_prompts, cached_steps and self.networks.denoiser.splits)
            if self._measure_reserve:
                self.graphs.reserve = max(self.graphs.reserve, *map(self._need, shapes))
            for shape in shapes:
                loop = self.arenas.prepare(shape, room)
                loop.capture(least=background)
                if background:
                    self._decoder.rehearse(shape, 1)
                    self.stages.encoding.rehearse()
                    self.networks.compile_rest(loop.first, self.limits.boundary)
        stats = self.graphs.stats
        return {
            "shapes": self.arenas.shapes,
            "captured": stats.captured,
            "dropped": list(stats.dropped),
            "seconds": time.perf_counter() - began,
        }

    def stop_compiling(self) -> None:
        """Compile nothing more in the background; what is being compiled comes to its end, which nobody waits for."""
        self.networks.programs.stop()

    def stats(self) -> Stats:
        """Return a snapshot of what the engine did."""
        waiting, resident = self._lifecycle.counts()
        return self._recorder.snapshot(
            waiting=waiting,
            resident=resident,
            placing=len(self.stages.placing),
            graphs=self.graphs.stats,
            memory=self.graphs.memory() | {"arenas": self.arenas.nbytes, "programs": self.networks.nbytes},
            backends=self.networks.report(),
            programs=self.networks.programs.report(),
        )

    def _await(self, done: Callable[[], bool]) -> None:
        """Step, or wait while another thread does, until `done()`."""
        while self._turns.take(needless=done):
            try:
                self._step()
            finally:
                self._turns.leave()

    def _need(self, shape: tuple[int, int]) -> int:
        """Bytes of the device that the largest batch between steps takes, of those that fit; 0 off a GPU."""
        pictures = self.limits.boundary
        while True:
            try:
                need = self.graphs.need(partial(self._decoder.rehearse, shape, pictures))
                return int(need * _MARGIN)
            except RuntimeError as error:
                if pictures == 1 or device_failed(error) or not memory_ran_out(error):
                    raise
            pictures //= 2  # as a batch that does not fit is halved

    @contextmanager
    def _running(self) -> Iterator[None]:
        """What is asked of the device within is asked of the engine's own, on its own stream, as its options say."""
        with self.torch_options.in_force(), self.streams.between():
            yield

    def _step(self) -> None:
        try:
            with self._running():
                self._loop.step()
        except Exception as error:
            if failure := device_failed(error):
                self._lifecycle.collapse(f"the device failed, and the engine with it, for good: {failure}")
                return
            self._broken = True
            raise
        self._broken = False
