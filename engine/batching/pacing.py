"""How many rows a step is best given: as many as what waits, what comes and what steps cost ask for."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Sequence

import numpy as np

_WINDOW = 1000
"""Steps that tell how much work comes."""
_FEW = 20
"""Steps before which nothing is said of what comes or of what steps cost."""
_KEPT = 1 - 1 / 512
"""What remains of a step's weight after the next one."""
_RIDGE = np.diag((1e-9, 1e-3, 1e-3, 1e-3))
"""Until steps of several sizes have run rows are taken to cost nothing, and so are tried."""
_YOUNG, _EVERY = 64, 8
"""After so many steps one in so many is learned from, of sizes that are known."""
_OUTLIER, _BELIEVED = 3.0, 3
"""Times what is expected of a size that ran before, beyond which a step tells of something else, of a program that was
compiled, say, unless so many in a row do."""
_LEAST_IDLE = 0.02
"""Share of the time that is taken to be left over, however much comes."""


class Pace:
    """Chooses rows of steps, from what steps took and how many came.

    Where N rows wait and R share a step of c(R) seconds, jobs end after c(R) (N / R + 1) / 2 times their steps on
    average: those within a step wait for one another, the others for those before them. While they are worked off
    more come, so that N counts 1 / (1 - load) times, where load is the share of the time that what comes would keep
    the device busy at R, and steps of other kinds do. counts: padded sizes of steps, ascending. Steps are told apart by
    kind: what can share one.
    """

    def __init__(self, counts: Sequence[int], clock: Callable[[], float]) -> None:
        self._counts, self._clock = tuple(counts), clock
        self._costs: defaultdict[Hashable, _Cost] = defaultdict(_Cost)
        self._done: deque[tuple[float, Hashable, int, float]] = deque()
        self._rows: defaultdict[Hashable, int] = defaultdict(int)
        self._seconds: defaultdict[Hashable, float] = defaultdict(float)

    def stepped(self, kind: Hashable, rows: int, padded: int, controlled: int, seconds: float) -> None:
        """Count a step of `rows` rows, run as so many `padded` ones, and as so many `controlled` of the ControlNets."""
        self._costs[kind].add(padded, controlled, seconds)
        self._done.append((self._clock(), kind, rows, seconds))
        self._rows[kind] += rows
        self._seconds[kind] += seconds
        if len(self._done) > _WINDOW:
            _, gone, fewer, less = self._done.popleft()
            self._rows[gone] -= fewer
            self._seconds[gone] -= less

    def rows(self, kind: Hashable, waiting: float, least: int) -> int:
        """Rows for the next step of a kind, `least` or more, where so many rows are `waiting` in all."""
        counts = [count for count in self._counts if count >= least]
        cost = self._costs[kind]
        if cost.steps < _FEW:
            return counts[-1]
        coming, others = self._load(kind)
        best, shortest = counts[-1], float("inf")
        for count in counts:
            seconds = cost.base + cost.each * count
            idle = max(_LEAST_IDLE, 1 - others - coming * seconds / count)
            average = seconds * (max(waiting, count) / count / idle + 1)
            if average <= shortest:
                best, shortest = count, average
        return best

    def _load(self, kind: Hashable) -> tuple[float, float]:
        """Rows of a kind a second, and the share of the time that steps of other kinds take, of late."""
        passed = self._clock() - self._done[0][0]
        if passed <= 0:
            return 0.0, 0.0
        return self._rows[kind] / passed, (sum(self._seconds.values()) - self._seconds[kind]) / passed


class _Cost:
    """What a step costs: seconds beside its rows, and for each of them with the ControlNets' share of it.

    Least squares of seconds by rows, by whether ControlNets ran, and by their rows; the latest weigh most.
    """

    def __init__(self) -> None:
        self.steps, self.base, self.each = 0, 0.0, 0.0
        self._products, self._seconds = np.zeros((4, 4)), np.zeros(4)
        self._solved = np.zeros(4)
        self._ran: Counter[tuple[int, int]] = Counter()
        self._odd = 0

    def add(self, rows: int, controlled: int, seconds: float) -> None:
        """Learn from a step; the first of its sizes may have compiled or captured, and tells nothing."""
        ran = self._ran[rows, controlled]
        self._ran[rows, controlled] += 1
        if self.steps >= _YOUNG and ran > _BELIEVED and ran % _EVERY and not self._odd:
            return
        told = np.array((1.0, rows, controlled > 0, controlled))
        is_odd = ran >= _BELIEVED and self.steps >= _FEW and seconds > _OUTLIER * float(told @ self._solved)
        self._odd = self._odd + 1 if is_odd else 0
        if not ran or 0 < self._odd < _BELIEVED:
            return
        self.steps += 1
        self._products = _KEPT * self._products + np.outer(told, told)
        self._seconds = _KEPT * self._seconds + seconds * told
        self._solved = np.linalg.solve(self._products + _RIDGE, self._seconds).clip(0)
        base, row, control, control_row = self._solved
        total, rows, with_control, control_rows = self._products[0]
        self.base = float(base + control * with_control / total)
        self.each = float(row + control_row * control_rows / rows)
