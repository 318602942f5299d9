"""The device: runs operators on the CPU, refuses what a real one refuses, and counts what it costs."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .graphs import Graph
from .memory import Block, Memory, use
from .operators import EAGER, Operator, leaves, operator, replaced
from .rules import WAITING, CaptureError, Kind, traffic
from .streams import Clock, Event, Pending, Stream, arriving, merge, unchanged
from .tensors import OnDevice

_CPU = torch.device("cpu")
_PASSED_OVER = (str(Path(__file__).parent), "/torch/", "/contextlib.py")


@dataclass
class Counts:
    """What was counted, and where of all but launches: by kind, and line of the nearest caller."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    places: Counter[tuple[Kind, str]] = field(default_factory=Counter)

    @property
    def waits(self) -> int:
        """How often the host waited for everything that was launched."""
        return sum(self.kinds[kind] for kind in WAITING)

    @property
    def copies(self) -> int:
        """How often something was copied to or from the device."""
        return sum(number for kind, number in self.kinds.items() if kind.endswith("load"))


class _Mode(TorchDispatchMode):
    """Hands the device what has no tensor of it yet, such as what makes one."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.device.run(func, args, kwargs or {})


class Device:
    """One pretended device. `memory`: what lies on it; `capturing`: the graph that is being captured."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.mode = _Mode(self)
        self.capturing: Graph | None = None
        self.host_clock: Clock = {}
        for kind in (Stream, Event, Graph):
            kind.device = self
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.default = Stream()
        self.entered: list[Stream] = []
        self._pending: list[Pending] = []
        self._counting: list[Counts] = []

    @property
    def stream(self) -> Stream:
        """The current stream."""
        return self.entered[-1] if self.entered else self.default

    # --- counting ---

    @contextmanager
    def counted(self) -> Iterator[Counts]:
        """Count what happens meanwhile."""
        counts = Counts()
        self._counting.append(counts)
        try:
            yield counts
        finally:
            self._counting.remove(counts)

    def note(self, kind: Kind, detail: str = "") -> None:
        """Count something. Raises CaptureError for what a capture does not allow."""
        if self.capturing is not None and kind is not Kind.LAUNCH:
            raise CaptureError(f"{kind} in a capture ({detail}) at {_place()}")
        for counts in self._counting:
            counts.kinds[kind] += 1
            if kind is not Kind.LAUNCH:
                counts.places[kind, f"{detail} at {_place()}"] += 1

    # --- memory ---

    @staticmethod
    def divided(tensors: Iterable[torch.Tensor]) -> None:
        """Look for no races in `tensors` of the device: streams keep to parts of their own."""
        for tensor in tensors:
            if isinstance(tensor, OnDevice):
                tensor.block.divided = True

    # --- operators ---

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, wherever its tensors lie."""
        if not any(map(_concerns, leaves((args, kwargs)))):
            return self._on_host(func, args, kwargs)
        func = EAGER.get(func, func)
        if operator(func).composite:
            with self.mode:
                return func.decompose(*args, **kwargs)
        return self._on_device(func, args, kwargs)

    def _on_host(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run what does not concern the device, but for the memory that it may read from."""
        name = func._schema.name
        if name == "aten::is_pinned":
            return self.memory.is_pinned(args[0])
        if name in ("aten::pin_memory", "aten::_pin_memory"):
            return args[0] if self.memory.is_pinned(args[0]) else self._pinned(args[0].clone())
        if kwargs.get("pin_memory"):
            return self._pinned(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.capturing is not None:
            raise CaptureError(f"memory is pinned in a capture at {_place()}")
        return self.memory.pin(tensor)

    def _on_device(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.memory.broken:
            raise self.memory.broken.pop()
        known = operator(func)
        found = traffic(known.name, args, kwargs, self.memory.is_pinned)
        for kind in found:
            self.note(kind, known.name)
        if known.launches:
            self.note(Kind.LAUNCH)
            reads, writes = _blocks(known, args, kwargs)
            use(reads, writes, self.stream)
            if self.capturing is not None:
                self.capturing.use(reads, writes)
        bare = replaced(_bare, (args, kwargs))
        out = func(*bare[0], **bare[1])
        if self.capturing is not None:
            self.capturing.add(func, *bare, out)
        result = self._handed_back(known, (args, kwargs), bare, out)
        self._wait(found, args[1] if known.name == "aten::copy_" else args[0] if args else None, result)
        return result

    def _wait(self, found: Sequence[Kind], source: Any, result: Any) -> None:
        """Let the host wait where an operator makes it; what it does not wait for is not there before it does."""
        if WAITING & set(found):
            self.heard(self.stream.clock())
        elif Kind.UPLOAD in found:
            self._pending.append(Pending(self.stream, self.stream.ticks, unchanged(source)))
        elif Kind.DOWNLOAD in found:
            self._pending.append(Pending(self.stream, self.stream.ticks, arriving(self.memory.pin(result))))

    def _handed_back(self, known: Operator, given: Any, bare: Any, out: Any) -> Any:
        """Wrap results; what an operator changed in place is the very tensor it was given."""
        pairs = zip(leaves(given), leaves(bare), strict=True) if known.written else ()
        owners = {id(b): g for g, b in pairs}
        # A view is of the kind that its base is of, whatever mode it is taken in.
        outside = known.view and not given[0][0].is_inference()
        downloaded = _named_device(given[1]) == "cpu"

        def wrapped(result: Any) -> Any:
            if id(result) in owners:
                return owners[id(result)]
            if downloaded or not isinstance(result, torch.Tensor):
                return result
            with torch.inference_mode(False) if outside else nullcontext():
                return self._new(result)

        return replaced(wrapped, [out])[0]

    def _new(self, host: torch.Tensor) -> OnDevice:
        """A tensor of the device, which its current stream wrote if its memory is new."""
        block = self.memory.block(host, self.stream)
        if block.written is None:
            block.used(self.stream, writes=True)
        tensor = OnDevice(host, block)
        if self.capturing is not None:
            self.capturing.hand_out(tensor)
        return tensor

    # --- time ---

    def heard(self, clock: Clock) -> None:
        """Let the host know that everything up to `clock` is done, and see what is by then."""
        merge(self.host_clock, clock)
        done = [each for each in self._pending if self.host_clock.get(each.stream, 0) >= each.ticks]
        self._pending = [each for each in self._pending if each not in done]
        for each in done:
            each.done()

    def synchronize(self) -> None:
        """Let the host wait for everything."""
        self.note(Kind.SYNC, "device")
        self._heard_all()

    def _heard_all(self) -> None:
        for stream in [*self.streams]:
            self.heard(stream.clock())

    # --- graphs ---

    @contextmanager
    def capture(self, graph: Graph, stream: Stream | None = None) -> Iterator[None]:
        """Record what is launched meanwhile, which runs too: a real capture only records.

        As with a real one the host waits for the device first; nothing is left running after it.
        """
        assert self.capturing is None, "a capture is running already"
        self._heard_all()
        with stream or Stream():
            self.capturing = graph
            try:
                yield
            finally:
                self.capturing = None
                self._heard_all()
        graph.end()

    def replayed(self, reads: Iterable[Block], writes: Iterable[Block]) -> None:
        """Count a replay, one launch of the current stream."""
        self.note(Kind.REPLAY)
        use(reads, writes, self.stream)


def _concerns(leaf: Any) -> bool:
    """Whether an operator with this argument is the device's."""
    kind = type(leaf)
    return kind is OnDevice or (kind is torch.device and leaf.type == "cuda")


def _bare(leaf: Any) -> Any:
    """What an operator of the CPU takes in the place of what one of the device was given."""
    kind = type(leaf)
    return leaf.host if kind is OnDevice else _CPU if kind is torch.device else leaf


def _blocks(known: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Block], list[Block]]:
    """What an operator reads, and what it writes."""
    found: tuple[list[Block], list[Block]] = [], []
    for place, value in (*enumerate(args), *kwargs.items()):
        found[place in known.written].extend(leaf.block for leaf in leaves([value]) if isinstance(leaf, OnDevice))
    return found


def _named_device(kwargs: dict[str, Any]) -> str | None:
    device = kwargs.get("device")
    return device.type if device is not None else None


def _place() -> str:
    """The nearest line that is neither the device's nor PyTorch's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in _PASSED_OVER):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
