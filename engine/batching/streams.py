"""What a device does after what: denoising steps on one stream, all that comes between them on another.

A GPU does what it is asked for later than it is asked; here stands all that the engine knows of that. On a CPU
everything is done when it was called: nothing waits, and nothing is told apart.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

AHEAD = 2
"""Steps that may be asked for and not done. More would make cancelling, expiring and joining late by as many."""

Mark = torch.cuda.Event | None
"""A moment in a stream: all that was asked of it before. None where everything is done at once."""


class _Running(NamedTuple):
    """A step on its way, from its first kernel to its last."""

    begin: torch.cuda.Event
    end: torch.cuda.Event


class Streams:
    """The streams of an engine's device.

    A step waits for everything that was asked for before it. What comes between steps (encode, start, segment, judge)
    waits for no more than the last step of the slots that it touches, `after`, so that pictures are decoded and judged
    while the next steps run. Memory that both streams use is given back only when nothing runs, `settle`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gpu = device.type == "cuda"
        self._running: deque[_Running] = deque()
        self._seconds: list[float] = []
        self._inside = 0.0
        if self.gpu:
            self._between, self._stepping = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def between(self) -> AbstractContextManager[object]:
        """What the thread that steps asks for within, it asks of this device, on the stream between steps."""
        return torch.cuda.stream(self._between) if self.gpu else nullcontext()

    @contextmanager
    def step(self) -> Iterator[Mark]:
        """A step is asked for within; yield the mark of its end. Wait first while `AHEAD` steps are on their way."""
        began = time.perf_counter()
        if self.gpu:
            while len(self._running) >= AHEAD:
                self._finish()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._stepping.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stepping):
                begin.record()
                try:
                    yield end
                finally:
                    end.record()
            self._running.append(_Running(begin, end))
        else:
            yield None
            self._seconds.append(time.perf_counter() - began)
        self._inside += time.perf_counter() - began

    def after(self, mark: Mark) -> None:
        """Let what is asked for from now on wait for `mark`."""
        if mark is not None:
            torch.cuda.current_stream(self.device).wait_event(mark)

    def finished(self) -> list[float]:
        """Seconds that the device took for each step that was done since this was last called, in their order."""
        while self._running and self._running[0].end.query():
            self._finish()
        seconds, self._seconds = self._seconds, []
        return seconds

    def inside(self) -> float:
        """Seconds of this thread within `step` since this was last called."""
        seconds, self._inside = self._inside, 0.0
        return seconds

    def settle(self) -> None:
        """Wait until all that was asked of the device, on whatever stream, is done."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def _finish(self) -> None:
        begin, end = self._running.popleft()
        end.synchronize()
        self._seconds.append(begin.elapsed_time(end) / 1000)


class Staging:
    """Host memory that goes to a `block` (bytes,) of the device in one copy, while the next piece is being written.

    As many pieces as steps may be on their way, and one more; each is written again only when its copy is done. A block
    on the host is its own only piece.
    """

    def __init__(self, block: Tensor) -> None:
        self._block = block
        self._gpu = block.device.type == "cuda"
        self.pieces = [block]
        if self._gpu:
            self.pieces = [torch.empty(len(block), dtype=torch.uint8, pin_memory=True) for _ in range(AHEAD + 1)]
        self._turns = cycle(range(len(self.pieces)))
        self._number = 0
        self._copied: dict[int, torch.cuda.Event] = {}

    def turn(self) -> int:
        """Number of the next piece, which may be written now; `send` brings it over."""
        self._number = next(self._turns)
        copied = self._copied.get(self._number)
        if copied is not None and not copied.query():
            copied.synchronize()
        return self._number

    def send(self) -> None:
        """Copy the piece to the device, in the current stream."""
        if self._gpu:
            self._block.copy_(self.pieces[self._number], non_blocking=True)
            self._copied.setdefault(self._number, torch.cuda.Event()).record()
