"""The engine: one model on one device, shared by whoever asks it for pictures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from .api.event import Event
from .api.request import GenerationRequest, Requests, as_requests
from .api.result import GenerationResult
from .core import Core
from .door import Admission
from .judging.registry import Registry
from .loading import Limited, Shaped, check_options, measures, of_pipeline, opened, registered, warn_of_slow_dtype
from .records.manifest import Manifest
from .records.model_record import ModelRecord
from .routing import Listener

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, DiffusionPipeline, SchedulerMixin

    from .models.controls import Chosen
    from .models.layout import Source
    from .models.lora import Fused
    from .models.parts import Vae
    from .models.textual_inversion import Inversions


class Engine(Core):
    """Batched two-step generation on one device.

    Any thread may call any method. One thread at a time steps, for all: whoever waits in `generate` or reads a stream
    gets its own events, whoever stepped. A picture never depends on the company it was batched with: bit for bit at
    equal padded batch size, within float rounding otherwise.

    Its options are those of `Core`.
    """

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: Source | None = None,
        *,
        controlnet: Chosen | None = None,
        segmenter: Source | None = None,
        vae: Source | Vae | None = None,
        preview_vae: Source | AutoencoderTiny | None = None,
        scheduler: SchedulerMixin | None = None,
        embeddings: Inversions = (),
        lora: Fused = (),
        adapters: Mapping[str, Source] | None = None,
        variant: str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        prediction_type: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        calibration: Limited = None,
        bank: Shaped = None,
        registry: Registry | Path | str | None = None,
        metrics: Sequence[str] = (),
        requests: Requests = (),
        **options: Any,
    ) -> Self:
        """Load a diffusers folder, single file or hub id, the embedded model if None; `options` as in the constructor.

        controlnet, segmenter, vae: folders or hub ids in the place of the model's own, controlnet and vae single files
        too; vae may be an autoencoder that is loaded already, and controlnet several, the first to follow moved maps
        and further ones as "NAME=PATH", which follow `GenerationRequest.controls`. preview_vae: of TAESD's layout, to
        show drafts and previews. embeddings: files of textual inversions, FILE or FILE:TOKEN. lora: files of adapters
        that become a part of the weights, FILE or FILE:WEIGHT; adapters: files of those that a request's stages may
        name, `Stage.lora`, rows with different ones sharing every batch. scheduler: of diffusers, whose configuration
        takes the place of the model's. variant: of weights ("fp16"), where a part has it; "ema": a single file's
        averages. revision: of the hub id; subfolder: in it or in the folder. prediction_type: what the UNet predicts,
        whatever the model's files say of it. torch_dtype: `dtype` by the name that diffusers has for it. calibration,
        bank: limits and shapes in the place of the folder's own. registry: protected works to compare with, or their
        file. metrics: further measures, which need weights, by name: "lpips", "lpips=FILE", "clip=FOLDER". requests:
        checked before weights are read.

        Raises TypeError for an unknown option before anything is loaded, CheckpointError for what cannot be loaded,
        InvalidRequestError for one of `requests` that cannot be served.
        """
        dtype = options.pop("torch_dtype", dtype)
        check_options(cls, options, cls.from_pretrained)
        warn_of_slow_dtype(dtype, device)
        options["extra_metrics"] = measures(metrics, options.get("extra_metrics"), device)
        named = {
            "controlnet": controlnet, "segmenter": segmenter, "vae": vae, "preview_vae": preview_vae,
            "scheduler": scheduler, "embeddings": embeddings, "lora": lora, "adapters": adapters, "variant": variant,
            "revision": revision, "subfolder": subfolder, "prediction_type": prediction_type,
        }  # fmt: skip
        options["registry"] = registered(registry)
        components = opened(path_or_id, named, dtype, device, calibration, bank, requests, options)
        return cls(components, device=device, dtype=dtype, **options)

    @classmethod
    def from_pipeline(
        cls,
        pipeline: DiffusionPipeline,
        *,
        controlnet: Chosen | None = None,
        segmenter: Source | None = None,
        preview_vae: Source | None = None,
        calibration: Limited = None,
        bank: Shaped = None,
        registry: Registry | Path | str | None = None,
        metrics: Sequence[str] = (),
        **options: Any,
    ) -> Self:
        """Take a StableDiffusion(XL)(ControlNet)Pipeline of diffusers as it is in memory; it stays as it is.

        Weights are shared, not copied, in the pipeline's number type and on its device. controlnet, segmenter,
        preview_vae: folders or hub ids; a pipeline has no segmenter, and without one nothing but plain pictures is
        drawn. The rest is as in `from_pretrained`.
        """
        check_options(cls, options, cls.from_pipeline)
        options["registry"] = registered(registry)
        components = of_pipeline(pipeline, controlnet, segmenter, calibration, bank, preview_vae)
        device = next(components.unet.parameters()).device
        options["extra_metrics"] = measures(metrics, options.get("extra_metrics"), device)
        return cls(components, **options)

    def generate(self, requests: Requests, on_event: Callable[[Event], None] | None = None) -> list[GenerationResult]:
        """Run requests to their end; results image by image, in the order of the requests.

        A plain prompt stands for a request of it. on_event: called in this thread, between steps. Raises
        InvalidRequestError, before anything runs, for a request that this model cannot serve.
        """
        batch = as_requests(requests)
        waiting = deque(self._door.admit(request) for request in batch)
        heard: deque[Event] = deque()
        results: dict[tuple[int, int], GenerationResult] = {}
        ids: list[int] = []
        images = sum(request.num_images for request in batch)
        try:
            while len(results) < images:
                while waiting and self._lifecycle.has_room:
                    ids.append(self._lifecycle.enter(waiting.popleft(), heard.append, together=images > 1))
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
            with self._turns, self._running():
                self._lifecycle.stop_due()
            raise
        return [results[id, i] for id, request in zip(ids, batch, strict=True) for i in range(request.num_images)]

    def submit(self, request: GenerationRequest, listener: Listener | None = None, *, together: bool = False) -> int:
        """Queue a request and return its id.

        Its events go to `listener`, in the thread that steps and before the step returns, or, without one, come from
        `step`. A listener that raises has its request cancelled. together: it is one of many that are waited for as a
        whole, so that all rows that fit share a step; else as many do as let each be done soonest on average.
        Raises InvalidRequestError, EngineBusyError when the queue is full, EngineClosedError after `close`.
        """
        return self._lifecycle.enter(self.admit(request), listener, together=together)

    def admit(self, request: GenerationRequest) -> Admission:
        """Check a request, decode and measure what it brings: the part of `submit` that takes its time.

        Raises InvalidRequestError.
        """
        return self._door.admit(request)

    def enter(self, admission: Admission, listener: Listener | None = None) -> int:
        """Queue an admitted request and return its id: the part of `submit` that takes none.

        Raises EngineBusyError or EngineClosedError.
        """
        return self._lifecycle.enter(admission, listener)

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

    def close(self, deadline: float | None = None) -> list[Event]:
        """Accept nothing more and run what is there to its end; after `deadline` seconds, cancel the rest.

        Every request has its results when this returns.
        """
        self.stop_compiling()
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

    def manifest(self, result: GenerationResult) -> Manifest:
        """Account for a result that this engine made; `GenerationResult.manifest`."""
        return Manifest.of(result, ModelRecord.of(self.components))
