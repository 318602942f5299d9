"""Pictures a second in closed batches, against the baselines: `python -m twig.benchmarks.throughput`.

The plain reference (one request at a time), diffusers' pipelines (one call a batch) and the engine (static and
continuous policy) draw the same pictures; a contender whose pictures differ stops the run before anything is timed.
Contenders take turns within each round, and a speedup is the median over rounds of ratios within a round. Then what
batches cost: seconds by size, a straight line through them, and the scheduler's share of a step.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..engine.api.choices import Precision
from ..engine.batching.scheduler import ContinuousPolicy, Limits
from ..engine.engine import Engine
from ..engine.estimates import rows_of
from .clocks import ClockKind, Spent, stopwatch
from .contenders import REFERENCE, Contender, EngineContender, contenders, gate, quality
from .costs import CostMeter, Costs
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
from .printing import Row, line
from .rows import percentiles, write_rows
from .workloads import CLOSED, closed

_GATE_ROUND = 999
_LEAST_ROUNDS = 2


@dataclass(frozen=True)
class Plan:
    """How much is measured: steps of each stage, rounds of each closed workload, repeats of each batch's cost.

    minutes: time that all rounds together may take, any if None; it is shared evenly, and each workload has two rounds
    at least.
    """

    steps: int
    rounds: dict[str, int]
    repeats: int
    minutes: float | None = None


FULL = Plan(steps=20, rounds={"single": 12, "batch-8": 7, "batch-32": 5}, repeats=15)
QUICK = Plan(steps=10, rounds={"single": 4, "batch-8": 3, "batch-32": 1}, repeats=4)


@dataclass
class Record:
    """What one contender did in the rounds of one workload."""

    spent: list[Spent] = field(default_factory=list)
    quality: list[dict[str, float]] = field(default_factory=list)


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
    only_costs: Annotated[bool, typer.Option("--only-costs", help="Measure what batches cost, no races.")] = False,
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Measure, print and write rows to OUT/throughput.jsonl."""
    setup = set_up(model, device, dtype, threads, clock, slots, rows)
    plan = replace(QUICK if quick else FULL, minutes=minutes)
    measured = batch_rows(setup, plan) if only_costs else measure(setup, plan)
    for row in write_rows(out / "throughput.jsonl", measured):
        print(line(row), flush=True)


def measure(setup: Setup, plan: Plan) -> Iterator[Row]:
    """Rows of everything. Raises Disagreement before any timing when pictures differ."""
    racers = contenders(setup.models, setup.limits)
    found = gate(racers, closed(4, plan.steps, _GATE_ROUND), setup.least_ssim)
    for name, agreed in found.items():
        yield {"measure": "gate", "contender": name, **agreed, **setup.describe()}
    for workload, rounds in plan.rounds.items():
        seconds = float("inf") if plan.minutes is None else 60 * plan.minutes / len(plan.rounds)
        records = race(racers, CLOSED[workload], plan.steps, rounds, seconds)
        yield from (row | setup.describe() for row in closed_rows(workload, records, plan.steps, setup.clock))
    engines = {name: racer.engine for name, racer in racers.items() if isinstance(racer, EngineContender)}
    yield from (overhead_row(name, engine) | setup.describe() for name, engine in engines.items())
    yield from batch_rows(setup, plan)


def batch_rows(setup: Setup, plan: Plan) -> Iterator[Row]:
    """Rows of what every kind of batch costs."""
    yield from (row | setup.describe() for row in cost_rows(setup, plan.repeats)[1])


def race(
    racers: Mapping[str, Contender], size: int, steps: int, rounds: int, seconds: float = float("inf")
) -> dict[str, Record]:
    """Run every contender on each round's requests, the first to run changing from round to round.

    Where `rounds` would take more than `seconds`, there are fewer, but two at least.
    """
    records = {name: Record() for name in racers}
    names = list(racers)
    began = time.monotonic()
    for round in range(rounds):
        if round >= _LEAST_ROUNDS and (time.monotonic() - began) * (round + 1) / round > seconds:
            break
        requests, pictures = closed(size, steps, round), {}
        first = round % len(names)
        for name in names[first:] + names[:first]:
            with stopwatch() as spent:
                pictures[name] = racers[name](requests)
            records[name].spent.append(spent)
        for name, drawn in pictures.items():
            records[name].quality.append(quality(drawn, pictures[REFERENCE]))
    return records


def closed_rows(workload: str, records: Mapping[str, Record], steps: int, clock: ClockKind) -> Iterator[Row]:
    """Turn one workload's records into rows."""
    size = CLOSED[workload]
    unet_rows = sum(map(rows_of, closed(size, steps)))
    baseline = np.array([spent.on(clock) for spent in records[REFERENCE].spent])
    for name, record in records.items():
        seconds = np.array([spent.on(clock) for spent in record.spent])
        yield {
            "measure": "closed",
            "workload": workload,
            "contender": name,
            "pictures": size,
            "steps": steps,
            "rounds": len(seconds),
            "wall_seconds": percentiles(spent.wall for spent in record.spent),
            "cpu_seconds": percentiles(spent.cpu for spent in record.spent),
            "pictures_per_second": float(size / np.median(seconds)),
            "rows_per_second": float(unet_rows / np.median(seconds)),
            "speedup": float(np.median(baseline / seconds)),
            "ssim_lowest": min(q["ssim_lowest"] for q in record.quality),
            "ssim_mean": float(np.mean([q["ssim_mean"] for q in record.quality])),
        }


def overhead_row(name: str, engine: Engine) -> Row:
    """The scheduler's share of the time that denoising steps took so far."""
    stats = engine.stats()
    denoising = stats.seconds["denoise"]
    return {
        "measure": "scheduling",
        "contender": name,
        "steps": stats.steps,
        "seconds_per_step": denoising / stats.steps,
        "scheduling_per_step": stats.scheduling / stats.steps,
        "share": stats.scheduling / denoising,
        "share_by_batch": {str(kind): spent / sum(stats.seconds.values()) for kind, spent in stats.seconds.items()},
        "occupancy": stats.occupancy,
    }


def cost_rows(setup: Setup, repeats: int) -> tuple[Costs, list[Row]]:
    """Costs of every kind of batch, and the rows that say so: points, lines, and operations a second."""
    meter = CostMeter(setup.models.engine(ContinuousPolicy(), setup.limits), setup.clock, repeats)
    costs, points = meter.measure()
    flops = meter.flops_per_row()
    speed: Row = {
        "measure": "flops",
        "per_row": flops,
        "per_second": {n: flops * n / costs.denoise(n) for n in costs.buckets if n <= setup.limits.slots},
    }
    return costs, [*points, *costs.as_rows(), speed]


if __name__ == "__main__":
    typer.run(main)
