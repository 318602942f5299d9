"""Ctrl-C and SIGTERM: at once, or when a step has ended."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .status import INTERRUPTED, TERMINATED

_STATUSES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class Terminated(KeyboardInterrupt):
    """SIGTERM came: as Ctrl-C, with a status of its own."""


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, so that what is open is closed and what is half written is removed."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


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
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


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
