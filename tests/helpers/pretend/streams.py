"""Streams and events that know what comes after what, so that a race is an error rather than a matter of luck.

Each stream counts its launches. What a stream, an event or the host has waited for is kept as how far each stream had
come by then (vector clocks: Fidge, 1988; Mattern, 1989).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .rules import Kind, RaceError

if TYPE_CHECKING:
    from .device import Device

Clock = dict["Stream", int]

_NONSENSE = 113
_numbers = itertools.count()


class Stream:
    """A queue of launches. `behind`: how far other streams had come that it waited for."""

    device: Device

    def __init__(self, device: object = None, priority: int = 0, **_: Any) -> None:
        self.number = next(_numbers)
        self.cuda_stream = self.number
        self.ticks = 0
        self.behind: Clock = {}
        self.device.streams.add(self)

    def tick(self) -> None:
        """Launch something: whatever the host had waited for is done by then."""
        self.ticks += 1
        merge(self.behind, self.device.host_clock)

    def knows(self, stream: Stream, ticks: int) -> bool:
        """Whether launch `ticks` of `stream` is done before what comes next here."""
        return stream is self or max(self.behind.get(stream, 0), self.device.host_clock.get(stream, 0)) >= ticks

    def clock(self) -> Clock:
        """How far everything has come once what was launched here is done."""
        return {**self.behind, self: self.ticks}

    def wait_stream(self, other: Stream) -> None:
        """Let what comes next here wait for what was launched there."""
        merge(self.behind, other.clock())

    def wait_event(self, event: Event) -> None:
        """Let what comes next here wait for an event; one that was never recorded is waited for by nobody."""
        merge(self.behind, event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        """Mark what was launched here so far."""
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        """Whether all is done: the device runs at once what it is given, and the host has heard of it now."""
        self.device.heard(self.clock())
        return True

    def synchronize(self) -> None:
        """Let the host wait for everything here."""
        self.device.note(Kind.SYNC, "stream")
        self.device.heard(self.clock())

    def __enter__(self) -> Stream:
        self.device.entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.device.entered.pop()


class Event:
    """A mark in a stream."""

    device: Device

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        self.timed = enable_timing
        self.clock: Clock = {}
        self.time: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Mark what was launched in a stream so far."""
        self.clock = (stream or self.device.stream).clock()
        self.time = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        """Let a stream wait for the mark."""
        (stream or self.device.stream).wait_event(self)

    def query(self) -> bool:
        """Whether the mark is reached; it always is, and the host has heard of it now."""
        self.device.heard(self.clock)
        return True

    def synchronize(self) -> None:
        """Let the host wait for the mark."""
        self.device.note(Kind.WAIT, "event")
        self.device.heard(self.clock)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds to another mark. Raises RuntimeError unless both keep time and were recorded."""
        if not (self.timed and end.timed):
            raise RuntimeError("both events must be created with argument 'enable_timing=True'")
        if self.time is None or end.time is None:
            raise RuntimeError("both events must be recorded before calculating elapsed time")
        return (end.time - self.time) * 1000


class Pending(NamedTuple):
    """What happens on the host once it has waited for a launch."""

    stream: Stream
    ticks: int
    done: Callable[[], None]


def unchanged(source: torch.Tensor) -> Callable[[], None]:
    """What raises RaceError if pinned memory is not what it was when its copy was asked for."""
    before = _bytes(source)

    def check() -> None:
        if _bytes(source) != before:
            raise RaceError(f"pinned memory {tuple(source.shape)} was written to before its copy was done")

    return check


def arriving(target: torch.Tensor) -> Callable[[], None]:
    """What brings the values of a download, in whose place there is nonsense until then."""
    values = target.clone()
    target.fill_(float("nan") if target.is_floating_point() else True if target.dtype is torch.bool else _NONSENSE)

    def arrive() -> None:
        target.copy_(values)

    return arrive


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def merge(clock: Clock, other: Clock) -> None:
    """Let `clock` have come as far as both."""
    for stream, ticks in other.items():
        clock[stream] = max(clock.get(stream, 0), ticks)
