"""Ctrl-C and SIGTERM that wait for a step to end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .status import DONE, INTERRUPTED, TERMINATED

_STATUSES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class Stop:
    """Whether a run was asked to stop, to be looked at between steps. status: the exit code that follows from it."""

    status = DONE

    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.status != DONE


@contextmanager
def interrupted_between_steps() -> Iterator[Stop]:
    """Make the first Ctrl-C or SIGTERM set the flag that is yielded; a second one stops at once."""
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        again, stop.status = stop.is_set(), _STATUSES[signal.Signals(number)]
        if again:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, note) for number in _STATUSES}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
