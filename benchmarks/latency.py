"""Latency of single requests and under load: `python -m twig.benchmarks.latency`.

Single requests go to every contender of `throughput`. Then requests with mixed steps, guidance and retries arrive at
random, at shares of the capacity measured first, and the engine serves the same arrivals under the static and the
continuous policy. A row tells how many pictures a second either holds at the same 95th percentile.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..engine.api.choices import Precision
from ..engine.api.request import SimilarityPolicy
from ..engine.batching.scheduler import ContinuousPolicy, Limits
from .contenders import CONTINUOUS, POLICIES, REFERENCE, STATIC, contenders, gate
from .options import (
    ClockOption,
    DeviceOption,
    DtypeOption,
    MinutesOption,
    ModelOption,
    OutOption,
    QuickOption,
    RowsOption,
    Setup,
    SlotsOption,
    ThreadsOption,
    set_up,
)
from .plots import save_curves
from .printing import Row, line
from .rows import write_rows
from .service import Served, serve
from .throughput import closed_rows, race
from .workloads import MIXED_RETRIES, MIXED_STEPS, Arrival, closed, mixed, poisson

Curve = list[tuple[float, float]]
"""(requests a second, 95th percentile of latency)."""

_ACCEPT = SimilarityPolicy(limits={}, retries=0)
_RETRIED_SHARE = 0.25
"""Share of first attempts that the limit is set to fail."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: steps and rounds of single requests; steps, requests and loads of the traffic.

    minutes: machine time that the traffic may take, for which there are fewer requests; any if None.
    """

    steps: int
    rounds: int
    mixed_steps: tuple[int, int]
    requests: int
    loads: tuple[float, ...]
    minutes: float | None = None

    def affordable(self, seconds: float) -> int:
        """Requests of each run where a request takes `seconds`; never so few that they leave slots empty."""
        if self.minutes is None:
            return self.requests
        runs = len(POLICIES) * len(self.loads) + 0.5  # the half is where capacity is measured
        return min(self.requests, max(_LEAST_REQUESTS, int(60 * self.minutes / (seconds * runs))))


_LEAST_REQUESTS = 20
FULL = Plan(20, 12, MIXED_STEPS, 80, (0.35, 0.5, 0.65, 0.8, 0.95))
QUICK = Plan(10, 3, (4, 25), 20, (0.5, 0.8))


def main(
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Precision.FLOAT32,
    threads: ThreadsOption = 1,
    clock: ClockOption = None,
    slots: SlotsOption = Limits.slots,
    rows: RowsOption = Limits.rows,
    quick: QuickOption = False,
    minutes: MinutesOption = None,
    load: Annotated[list[float] | None, typer.Option(help="Share of capacity at which requests arrive.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests at each load; as many as planned.")] = None,
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Measure, print, write rows to OUT/latency.jsonl and a plot of latency against load beside it."""
    setup = set_up(model, device, dtype, threads, clock, slots, rows)
    written = []
    plan = replace(QUICK if quick else FULL, minutes=minutes)
    if load:
        plan = replace(plan, loads=tuple(load))
    if requests:
        plan = replace(plan, requests=requests)
    for row in write_rows(out / "latency.jsonl", measure(setup, plan)):
        print(line(row), flush=True)
        written.append(row)
    series = {f"{name}, {p}": curve(written, name, p) for name in POLICIES for p in ("p50", "p95")}
    save_curves(out / "latency.png", series, "Latency under load", "requests a second", "seconds")


def measure(setup: Setup, plan: Plan) -> Iterator[Row]:
    """Rows of everything. Raises Disagreement before any timing when pictures differ."""
    racers = contenders(setup.models, setup.limits)
    gate(racers, closed(2, plan.steps), setup.least_ssim)
    mixable = {name: racers[name] for name in (REFERENCE, *POLICIES)}
    for name, agreed in gate(mixable, mixed(3, _ACCEPT, plan.mixed_steps, seed=1), setup.least_ssim).items():
        yield {"measure": "gate", "contender": name, **agreed, **setup.describe()}
    records = race(racers, 1, plan.steps, plan.rounds)
    yield from (row | setup.describe() for row in closed_rows("single", records, plan.steps, setup.clock))
    yield from (row | setup.describe() for row in traffic(setup, plan))


def traffic(setup: Setup, plan: Plan) -> Iterator[Row]:
    """Rows of both policies at every load, and of what they hold at the same latency."""
    similarity, seconds = retry_policy(setup, plan)
    requests = mixed(plan.affordable(seconds), similarity, plan.mixed_steps)
    at_once = [Arrival(0.0, request) for request in requests[: max(4 * setup.limits.slots, len(requests) // 2)]]
    full = serve(setup.models, ContinuousPolicy(), setup.limits, at_once, setup.clock)
    capacity = full_rate(full.latencies, setup.limits.slots)
    yield {"measure": "capacity", "contender": CONTINUOUS, "capacity": capacity, **full.as_row()}
    found: list[Row] = []
    for turn, load in enumerate(plan.loads):
        arrivals = poisson(requests, load * capacity)
        # Taking turns at going first, so that a machine which slows down slows both.
        for name in list(POLICIES)[:: -1 if turn % 2 else 1]:
            served = serve(setup.models, POLICIES[name](), setup.limits, arrivals, setup.clock)
            found.append(load_row(name, load, load * capacity, served))
            yield found[-1]
    yield from equal_latency_rows(found)


def full_rate(finished: Sequence[float], slots: int) -> float:
    """Requests a second that an engine finishes while it is full, from when it finished those that came at once.

    The first and the last `slots` are not counted, where there are others: the engine fills up and runs empty.
    """
    if len(finished) <= 2 * slots:
        return len(finished) / finished[-1]
    return (len(finished) - 2 * slots) / (finished[-slots - 1] - finished[slots - 1])


def retry_policy(setup: Setup, plan: Plan) -> tuple[SimilarityPolicy, float]:
    """Retries after finals above an SSIM that a quarter of first attempts exceed; seconds of a request with them."""
    probes = mixed(setup.limits.slots, _ACCEPT, plan.mixed_steps, seed=2)
    served = serve(
        setup.models, ContinuousPolicy(), setup.limits, [Arrival(0.0, probe) for probe in probes], setup.clock
    )
    limit = np.quantile([result.scores["ssim"].value for result in served.results], 1 - _RETRIED_SHARE)
    policy = SimilarityPolicy(limits={"ssim": float(limit)}, retries=MIXED_RETRIES)
    return policy, (1 + _RETRIED_SHARE) * served.makespan / len(probes)


def load_row(name: str, load: float, rate: float, served: Served) -> Row:
    """What `name` did at `rate` arrivals a second."""
    return {"measure": "poisson", "contender": name, "load": load, "rate": rate, **served.as_row()}


def curve(rows: Sequence[Row], name: str, percentile: str = "p95") -> Curve:
    """Latency of a contender by arrival rate."""
    found: Curve = []
    for row in rows:
        if row["measure"] == "poisson" and row["contender"] == name:
            latency, rate = row["latency"], row["rate"]
            assert isinstance(latency, Mapping)
            assert isinstance(rate, float)
            found.append((rate, latency[percentile]))
    return sorted(found)


def equal_latency_rows(rows: Sequence[Row]) -> Iterator[Row]:
    """Arrival rates that both policies hold at the 95th percentile that the continuous one has at each load."""
    curves = {name: curve(rows, name) for name in POLICIES}
    loads = sorted(float(str(row["load"])) for row in rows if row["contender"] == CONTINUOUS)
    for load, (rate, limit) in zip(loads, curves[CONTINUOUS], strict=True):
        held, exact = rate_at(curves[STATIC], limit)
        yield {
            "measure": "equal-p95", "load": load, "p95": limit, CONTINUOUS: rate, STATIC: held, "ratio": rate / held,
            "exact": exact,
        }  # fmt: skip


def rate_at(points: Curve, limit: float) -> tuple[float, bool]:
    """Largest rate whose latency keeps `limit`, between the points along straight lines.

    False beside it where the limit lies outside what was measured: the rate is then the nearest one measured.
    """
    for (low, fast), (high, slow) in reversed(list(pairwise(points))):
        if fast <= limit <= slow:
            return low + (high - low) * (limit - fast) / max(slow - fast, 1e-12), True
    return (points[-1] if points[-1][1] <= limit else points[0])[0], False


if __name__ == "__main__":
    typer.run(main)
