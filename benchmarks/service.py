"""Open-loop service: requests arrive when they arrive, and the engine is stepped on a clock that skips idle waiting."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.api.result import GenerationResult
from ..engine.batching.scheduler import Limits, Policy
from .clocks import ClockKind, ServiceClock, Spent, stopwatch
from .contenders import Models
from .rows import percentiles
from .workloads import Arrival


@dataclass(frozen=True)
class Served:
    """What became of some traffic: results and seconds from arrival to result in order of completion, the clock time
    from the first arrival to the last result, and what scheduling took beside denoising, as a share of it."""

    results: list[GenerationResult]
    latencies: list[float]
    makespan: float
    spent: Spent
    scheduling: float

    @property
    def retries(self) -> int:
        """Attempts beyond the first."""
        return sum(len(result.attempts) - 1 for result in self.results if result.attempts)

    def as_row(self) -> dict[str, object]:
        """Columns of a row."""
        return {
            "requests": len(self.results),
            "latency": percentiles(self.latencies, (20, 50, 80, 95, 99)),
            "latency_mean": float(np.mean(self.latencies)),
            "pictures_per_second": len(self.results) / self.makespan,
            "rows_per_second": sum(result.rows for result in self.results) / self.makespan,
            "retries": self.retries,
            "failed": sum(result.image is None for result in self.results),
            "scheduling_share": self.scheduling,
            "busy_wall": self.spent.wall,
            "busy_cpu": self.spent.cpu,
        }


def serve(models: Models, policy: Policy, limits: Limits, arrivals: Sequence[Arrival], kind: ClockKind) -> Served:
    """Serve `arrivals` (in order of time) on a fresh engine; one image a request."""
    clock = ServiceClock(kind)
    engine = models.engine(policy, limits, clock=clock.now)
    waiting, came = deque(arrivals), {}
    results: list[GenerationResult] = []
    latencies: list[float] = []
    began = clock.now()
    with stopwatch() as spent:
        while waiting or engine.pending:
            while waiting and waiting[0].at <= clock.now() - began:
                arrival = waiting.popleft()
                came[engine.submit(arrival.request)] = began + arrival.at
            if not engine.pending:
                clock.skip_to(began + waiting[0].at)
                continue
            for event in engine.step():
                if event.result is not None:
                    results.append(event.result)
                    latencies.append(clock.now() - came[event.id])
    makespan, stats = clock.now() - began - arrivals[0].at, engine.stats()
    return Served(results, latencies, makespan, spent, stats.scheduling / stats.seconds["denoise"])
