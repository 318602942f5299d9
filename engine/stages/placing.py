"""Where a final's objects go: searches on the processor, in threads of their own, while the device steps other jobs."""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ..api.choices import Warp
from ..api.event import State
from ..api.mechanisms import MovedControl
from ..api.request import GenerationRequest
from ..avoidance.composing import Composer, Wanted
from ..avoidance.conditioning import avoidance_mask, moved_labels
from ..batching.carried import Own, Shared, attempt_seed
from ..batching.job import Job
from ..models.components import Components

_THREADS = 2


@dataclass(frozen=True, eq=False)
class Placement:
    """The map (H, W) that a final follows, and what of it came out of the bank.

    shapes: of the bank, by id. inherits: whether its objects are the draft's rather than those that the prompt names.
    """

    labels: np.ndarray
    shapes: tuple[str, ...] = ()
    inherits: bool = True


class Placing:
    """Finds the maps of one model's finals.

    threads: how many search at a time; with 0 a search is done when it is begun, by who begins it; as suits the device,
    if None. Which search ends first decides nothing but when its job goes on: what it finds depends on its request, its
    attempt and its draft alone.
    """

    def __init__(self, components: Components, device: torch.device, threads: int | None = None) -> None:
        self.components = components
        self.composer = _composer(components)
        threads = _suited(device) if threads is None else threads
        self._executor = ThreadPoolExecutor(threads, "twig-placing") if threads else _AtOnce()
        self._begun: dict[int, tuple[Job, Future[Placement]]] = {}

    def __len__(self) -> int:
        """Jobs whose places are being looked for."""
        return len(self._begun)

    def begin(self, job: Job) -> bool:
        """Begin to search for the map of a job's next attempt; False where its policy moves nothing."""
        control = job.avoidance.moved_control
        if control is None:
            return False
        seed = attempt_seed(job.request.seed, job.index, job.attempt)
        search = partial(self._search, job.request, job.shared, control, seed)
        self._begun[job.id] = job, self._executor.submit(search)
        return True

    def ended(self) -> list[Job]:
        """Jobs whose search is done, in the order it was begun; what was stopped meanwhile is forgotten."""
        for job, future in list(self._begun.values()):
            if job.state is not State.PLACING:
                future.cancel()
                del self._begun[job.id]
        return [job for job, future in self._begun.values() if future.done()]

    def place(self, job: Job) -> None:
        """Give a job what its search found, waiting for it. Raises what the search did."""
        _, future = self._begun.pop(job.id)
        found = future.result()
        own = job.own = job.own or Own()
        own.control_map, own.shapes, own.inherits = found.labels.astype(np.uint16), found.shapes, found.inherits

    def wait(self, seconds: float) -> None:
        """Return when a search is done, after `seconds` at most, at once where there is none."""
        wait([future for _, future in self._begun.values()], seconds, "FIRST_COMPLETED")

    def _search(self, request: GenerationRequest, shared: Shared, control: MovedControl, seed: int) -> Placement:
        """Compose a map out of the bank's shapes where that is asked for and can be, else move the draft's objects."""
        segmenter, labels, avoided = self.components.segmenter, shared.labels, request.mask
        assert segmenter is not None
        assert labels is not None
        if control.warp == Warp.BANK and self.composer is not None:
            shape = shared.mask if avoided is None else avoidance_mask(labels, segmenter.background)
            assert shape is not None
            named = self.composer.named(request.words)
            wanted = Wanted(named or self.composer.shown(labels), labels, shape, avoided)
            found = self.composer.compose(wanted, control.max_iou, seed)
            if found is not None:
                return Placement(found.labels, found.shapes, inherits=not named)
        return Placement(moved_labels(labels, segmenter.background, control, seed, avoided))


class _AtOnce(Executor):
    """Runs what is submitted before it returns."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Return what came of it."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def _composer(components: Components) -> Composer | None:
    """What composes maps out of the model's bank; None without a bank or a segmenter."""
    bank, segmenter = components.bank, components.segmenter
    return None if bank is None or segmenter is None else Composer(bank, segmenter.labels, segmenter.background)


def _suited(device: torch.device) -> int:
    """No threads where the processor is the device: its cores are the networks' already.

    A search costs little beside a step there, and done at once it leaves batches, so every last bit, as they were.
    """
    return 0 if device.type == "cpu" else _THREADS
