"""Ctrl-C and SIGTERM: at once, or when a step has ended."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .status import INTERRUPTED, TERMINATED

_STATUSES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class Stop:
    """Whether a run was asked to stop, to be looked at between steps. status: the exit code of a run that stops so."""

    def __init__(self) -> None:
        self.status = INTERRUPTED
        self._came = False

    def is_set(self) -> bool:
        """Whether a signal came."""
        return self._came

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Keep the signal that came; raise KeyboardInterrupt at the second."""
        again, self._came = self._came, True
        self.status = _STATUSES[signal.Signals(number)]
        if again:
            raise KeyboardInterrupt


@contextmanager
def terminated_as_interrupted(stop: Stop) -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that what is open is closed and what is half written is removed.

    `stop` then has its status.
    """

    def end(number: int, frame: FrameType | None) -> None:
        stop.note(number, frame)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def interrupted_between_steps() -> Iterator[Stop]:
    """Make the first Ctrl-C or SIGTERM set the flag that is yielded; a second one stops at once."""
    stop = Stop()
    previous = {number: signal.signal(number, stop.note) for number in _STATUSES}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
