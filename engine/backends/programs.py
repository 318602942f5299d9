"""Programs of compiled networks, one for each size of call: kept under a budget, and made ahead of need."""

import logging
import os
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from ..models.tensors import Sizes
from ..sampling.buckets import split_over

_log = logging.getLogger(__name__)

P = TypeVar("P")
_PATIENCE = 64
"""Calls for a size without a program, after which it takes the place of one that was not used meanwhile."""

_LOWEST = 19
"""Niceness of the thread that compiles: what serves goes first."""


@dataclass(frozen=True)
class Due(Generic[P]):
    """A program that can be made. make: returns it, and the bytes of its file; it takes seconds and more."""

    network: str
    sizes: Sizes
    make: Callable[[], tuple[P, int]]

    @property
    def key(self) -> tuple[str, Sizes]:
        """What it is known by."""
        return self.network, self.sizes

    def __str__(self) -> str:
        """Return network and sizes, as they are told."""
        return f"{self.network} {self.sizes.rows}x{self.sizes.height}x{self.sizes.width}"


@runtime_checkable
class BySize(Protocol):
    """A network that runs in programs for sizes of calls."""

    def row_counts(self, sizes: Sizes) -> tuple[int, ...]:
        """Row counts that calls for pictures of those sizes are run in."""
        ...

    def due(self, sizes: Sizes) -> Due[Any]:
        """The program for `sizes`."""
        ...


@dataclass
class _Held(Generic[P]):
    program: P
    nbytes: int
    used: int


class Programs(Generic[P]):
    """Programs by network and sizes. Any thread may ask.

    budget: bytes that their files may have together, any if None. A call whose program does not fit, or is on its way
    in the background, is run in programs for other row counts. Where there is none for its picture size one is made all
    the same, and the least recently used go until it fits.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.failed: dict[str, str] = {}
        self._held: OrderedDict[tuple[str, Sizes], _Held[P]] = OrderedDict()
        self._due: deque[Due[P]] = deque()
        self._missed: dict[tuple[str, Sizes], tuple[int, int]] = {}
        self._calls = 0
        self._lock = threading.RLock()
        self._making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def nbytes(self) -> int:
        """Bytes of the files of what is held."""
        with self._lock:
            return sum(held.nbytes for held in self._held.values())

    @property
    def held(self) -> list[tuple[str, Sizes]]:
        """Network and sizes of what is held, the one used last at the end."""
        with self._lock:
            return list(self._held)

    def report(self) -> dict[str, Any]:
        """What is held, what is still to come, and what failed, with its reason."""
        with self._lock:
            held: dict[str, list[str]] = {}
            for network, sizes in sorted(self._held, key=lambda key: (key[0], key[1].rows)):
                held.setdefault(network, []).append(f"{sizes.rows}x{sizes.height}x{sizes.width}")
            coming = [str(due) for due in self._due]
            return {"held": held, "coming": coming, "failed": dict(self.failed), "budget": self.budget}

    def running(self, wanted: Due[P], rows: int) -> list[tuple[P, int]]:
        """Programs to run a call of `rows` rows in, one after the other, each with its row count.

        `wanted` is the one for such a call, which is made now where there is no other way. Raises what making raises.
        """
        with self._lock:
            self._calls += 1
            if wanted.key in self._held:
                return [self._used(wanted.key)]
            counts = self._counts(wanted)
            if counts and (self._stopped or self._is_coming(wanted) or self._waits(wanted)):
                calls = split_over(rows, counts)
                return [self._used((wanted.network, replace(wanted.sizes, rows=count))) for count in calls]
            self._make_room(wanted)
        return [(self._made(wanted).program, wanted.sizes.rows)]

    def prepare(self, due: Iterable[Due[P]]) -> None:
        """Make what of `due` is not there in a thread of low priority, in its order, as far as it fits the budget."""
        with self._lock:
            if self._stopped:
                return
            known = {*self._held, *(each.key for each in self._due)}
            self._due.extend(each for each in due if each.key not in known)
            if self._due and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="twig-compiling")
                self._thread.start()

    def stop(self) -> None:
        """Prepare nothing more; what is being made at the moment comes to its end, which nobody waits for."""
        with self._lock:
            self._stopped = True
            self._due.clear()

    def _used(self, key: tuple[str, Sizes]) -> tuple[P, int]:
        held = self._held[key]
        held.used = self._calls
        self._held.move_to_end(key)
        return held.program, key[1].rows

    def _counts(self, wanted: Due[P]) -> list[int]:
        """Row counts of the network's programs for pictures of that size."""
        alike = [sizes for network, sizes in self._held if network == wanted.network]
        return [sizes.rows for sizes in alike if replace(sizes, rows=wanted.sizes.rows) == wanted.sizes]

    def _is_coming(self, wanted: Due[P]) -> bool:
        """Whether it is prepared, or cannot be; one that is asked for is the next to be prepared."""
        if str(wanted) in self.failed:
            return True
        found = next((due for due in self._due if due.key == wanted.key), None)
        if found is not None and found is not self._due[0]:
            self._due.remove(found)
            self._due.insert(1, found)  # the first is being made
        return found is not None

    def _waits(self, wanted: Due[P]) -> bool:
        """Whether there is no room, and none that one who was not used as long would leave."""
        if self._fits(wanted.network):
            return False
        since, times = self._missed.get(wanted.key, (self._calls, 0))
        self._missed[wanted.key] = since, times + 1
        return times < _PATIENCE or next(iter(self._held.values())).used >= since

    def _fits(self, network: str) -> bool:
        """Whether one more program of a network does, which is as large as the largest of it that there is."""
        if self.budget is None:
            return True
        largest = max((held.nbytes for (name, _), held in self._held.items() if name == network), default=0)
        return self.nbytes + largest <= self.budget

    def _make_room(self, wanted: Due[P]) -> None:
        """Let go the least recently used until `wanted` fits."""
        self._missed.pop(wanted.key, None)
        while self._held and not self._fits(wanted.network):
            self._held.popitem(last=False)

    def _made(self, due: Due[P]) -> _Held[P]:
        """Make one, unless another thread has made it meanwhile; where it is larger than was thought, others go."""
        with self._lock:
            making = self._making[due.network]
        with making:
            if (there := self._held.get(due.key)) is not None:
                return there
            held = _Held(*due.make(), self._calls)
            with self._lock:
                self._held[due.key] = held
                while self.budget is not None and self.nbytes > self.budget and len(self._held) > 1:
                    self._held.popitem(last=False)
            return held

    def _work(self) -> None:
        """Make what is due until nothing is left, or the process ends."""
        if sys.platform == "linux":  # where threads have a priority of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
        while threading.main_thread().is_alive():
            with self._lock:
                while self._due and not self._fits(self._due[0].network):
                    self._due.popleft()
                if not self._due:
                    self._thread = None
                    return
                due = self._due[0]
            self._try(due)

    def _try(self, due: Due[P]) -> None:
        """Make one; where that fails it is told, and calls of its size go on in others."""
        try:
            self._made(due)
        except Exception as error:
            _log.warning("%s could not be compiled ahead, so that its calls are run in other sizes: %s", due, error)
            self.failed[str(due)] = f"{type(error).__name__}: {error}"
        with self._lock:
            self._due = deque(each for each in self._due if each is not due)
