"""Random arrivals with mixed steps under continuous and static batches, at equal 95th percentiles of latency."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ....engine.batching.scheduler import Limits, Policy
from ....engine.engine import Engine
from ...clocks import ClockKind
from ...contenders import Models
from ...latency import Plan, traffic
from ...options import Setup
from ...printing import Row
from ..bench import Bench
from ..models import random_models


@dataclass(frozen=True)
class OneEngine(Models):
    """Models that hand out the same idle engine each time, under another policy and clock: graphs are captured once."""

    kept: dict[str, Any] = field(default_factory=dict)

    def engine(self, policy: Policy, limits: Limits, **options: Any) -> Engine:
        """The engine, made when it is first asked for."""
        self.kept["clock"] = options["clock"]
        if "engine" not in self.kept:
            now: Callable[[], float] = lambda: self.kept["clock"]()  # noqa: E731
            self.kept["engine"] = super().engine(policy, limits, clock=now)
        made: Engine = self.kept["engine"]
        assert not made.pending
        made.scheduler.policy = policy
        return made


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of capacity, of each policy at each load, and of arrivals held at the same 95th percentile."""
    models = random_models(bench)
    limits = Limits(slots=16, rows=32) if not bench.quick else Limits(slots=2, rows=4)
    setup = Setup(
        OneEngine(models.plain, models.served, models.device, models.dtype), limits,
        ClockKind.WALL if bench.cuda else ClockKind.CPU,
    )  # fmt: skip
    plan = Plan(0, 0, (8, 50), 96, (0.5, 0.7, 0.9), minutes=bench.seconds / 60 * 0.6 if bench.cuda else 1)
    if bench.quick:
        plan = Plan(0, 0, (2, 4), 6, (0.5,))
    yield from traffic(setup, plan)
