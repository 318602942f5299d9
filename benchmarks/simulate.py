"""What 1, 8 or 64 devices would hold, from the measured costs of batches: `python -m twig.benchmarks.simulate`.

The engine's own scheduler runs on a fake clock: every batch takes what `twig.benchmarks.throughput` measured for its
kind and size, nothing is computed. With `--predicted` batches take what a roofline expects of an H100 that serves
Stable Diffusion 1.5 in fp16: no device measured it, and rows and figure say so; with `--steps` beside it, denoising
steps take what `twig.benchmarks.gpu` measured. Requests arrive at random at a
dispatcher that hands each to the device with the fewest unfinished ones. The answer is the arrival rate at which the
95th percentile of latency meets a limit.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from ..engine.api.event import State
from ..engine.api.request import GenerationRequest, SimilarityPolicy
from ..engine.batching.job import Job
from ..engine.batching.pacing import Pace
from ..engine.batching.scheduler import (
    Batch,
    BatchKind,
    ContinuousPolicy,
    Limits,
    Policy,
    Scheduler,
    StaticPolicy,
    kind_of,
)
from ..engine.estimates import draft_run, final_run
from .costs import Costs
from .gpu.prediction import predicted_costs, with_measured_steps
from .gpu.roofline import Machine
from .options import OutOption, RowsOption, SlotsOption
from .plots import save_curves
from .printing import Row, line
from .rows import percentiles, write_rows
from .workloads import MIXED_RETRIES, Arrival, mixed, poisson


class CallPolicy(StaticPolicy):
    """A static gang whose pictures are handed out together when the last one is done, as one pipeline call does."""


POLICIES: dict[str, Callable[[], Policy]] = {
    "static-call": CallPolicy, "static": StaticPolicy, "continuous": ContinuousPolicy,
    "continuous, all rows that fit": partial(ContinuousPolicy, paced=False),
}  # fmt: skip
_WARM = 0.2
"""Share of the first arrivals whose latency is not counted: the fleet starts empty."""
_PRECISION = 0.02
"""Rates are found to within this share."""


class Outcome(NamedTuple):
    """Arrivals a second, and the latencies in seconds of those that count."""

    rate: float
    latencies: list[float]

    @property
    def p95(self) -> float:
        """95th percentile."""
        return float(np.percentile(self.latencies, 95))


class Device:
    """The engine's scheduler with costs in place of networks."""

    def __init__(self, costs: Costs, limits: Limits, policy: Policy, failing: float, seed: int) -> None:
        self.costs = costs
        self.now = 0.0
        self.pace = Pace([count for count in costs.buckets if count <= limits.rows], lambda: self.now)
        self.scheduler = Scheduler(limits, policy, self.pace)
        self.finished: dict[int, float] = {}
        self._held: list[int] = []
        self._failing = failing
        self._rng = np.random.default_rng(seed)

    @property
    def pending(self) -> int:
        """Unfinished requests."""
        return len(self.scheduler.jobs)

    def submit(self, id: int, arrival: Arrival) -> None:
        """Take a request in; an idle device's clock goes on to its arrival."""
        if not self.pending:
            self.now = max(self.now, arrival.at)
        self.scheduler.submit(Job(id, id, arrival.request, (0, 0), arrival.at))

    def run_until(self, moment: float) -> None:
        """Run batches that begin before `moment`."""
        while self.pending and self.now < moment:
            for job in self.scheduler.admit():
                _start(job, State.DRAFTING)
            batch = self.scheduler.next_batch()
            assert batch is not None
            self._pass(batch)
            for job in batch.jobs:
                self._move_on(job, batch.kind)

    def _pass(self, batch: Batch) -> None:
        """Let the time go by that a batch takes."""
        if batch.kind is not BatchKind.DENOISE:
            self.now += getattr(self.costs, batch.kind.value)(len(batch.jobs))
            return
        rows = [row for job in batch.jobs if job.trajectory is not None for row in job.trajectory.rows]
        padded, controlled = self.costs.padded(len(rows), sum(row.control > 0 for row in rows))
        seconds = self.costs.step(padded, controlled)
        self.now += seconds
        self.pace.stepped(kind_of(batch.jobs), len(rows), padded, controlled, seconds)

    def _move_on(self, job: Job, kind: BatchKind) -> None:
        match kind:
            case BatchKind.ENCODE:
                job.move(State.ENCODED)
            case BatchKind.DENOISE:
                assert job.trajectory is not None
                job.trajectory.advance()
                if job.trajectory.done:
                    job.move(State.SEGMENTING if job.state is State.DRAFTING else State.JUDGING)
            case BatchKind.SEGMENT:
                job.move(State.SEGMENTED)
                _start(job, State.FINALISING)
            case BatchKind.JUDGE:
                self._judge(job)

    def _judge(self, job: Job) -> None:
        if self._rng.random() >= self._failing:
            job.move(State.ACCEPTED)
        elif job.attempt < job.request.similarity.retries:
            job.attempt += 1
            _start(job, State.FINALISING)
            return
        else:
            job.move(State.REFUSED)
        self.scheduler.finish(job)
        self._held.append(job.id)
        if not (isinstance(self.scheduler.policy, CallPolicy) and self.scheduler.resident):
            self.finished |= dict.fromkeys(self._held, self.now)
            self._held.clear()


def _start(job: Job, state: State) -> None:
    """Begin a run, as the engine does when a job enters or is judged."""
    job.move(state)
    drafting = state is State.DRAFTING
    job.trajectory = draft_run(job.request) if drafting else final_run(job.request, job.avoidance)


@dataclass(frozen=True)
class Fleet:
    """Devices of one kind under one policy. failing: share of attempts that fail their limit."""

    costs: Costs
    limits: Limits
    policy: Callable[[], Policy]
    devices: int
    failing: float

    def serve(self, requests: Sequence[GenerationRequest], rate: float) -> Outcome:
        """Latencies when `requests` arrive at `rate`."""
        fleet = [Device(self.costs, self.limits, self.policy(), self.failing, seed) for seed in range(self.devices)]
        arrivals = poisson(requests, rate)
        for id, arrival in enumerate(arrivals):
            for device in fleet:
                device.run_until(arrival.at)
            min(fleet, key=lambda device: device.pending).submit(id, arrival)
        finished: dict[int, float] = {}
        for device in fleet:
            device.run_until(float("inf"))
            finished |= device.finished
        counted = [finished[id] - arrival.at for id, arrival in enumerate(arrivals)]
        return Outcome(rate, counted[int(_WARM * len(counted)) :])

    def holds(self, requests: Sequence[GenerationRequest], limit: float) -> list[Outcome]:
        """Bisect for the largest rate whose 95th percentile is within `limit` seconds; return what was tried."""
        # No batch of a device's slots is finished sooner than one request alone would be.
        low, high = 0.0, self.devices * self.limits.slots / self.alone(requests)
        tried = []
        while high - low > _PRECISION * high:
            tried.append(self.serve(requests, (low + high) / 2))
            if tried[-1].p95 <= limit:
                low = tried[-1].rate
            else:
                high = tried[-1].rate
        return sorted(tried)

    def alone(self, requests: Sequence[GenerationRequest]) -> float:
        """Mean seconds of a request that has a device to itself."""
        single = Fleet(self.costs, self.limits, self.policy, 1, self.failing)
        return float(np.mean(single.serve(requests[:50], 1e-6).latencies))


def main(
    costs: Annotated[Path, typer.Option(help="Rows of twig.benchmarks.throughput.")] = Path(
        "out/benchmarks/throughput.jsonl"
    ),
    predicted: Annotated[
        bool, typer.Option("--predicted", help="A GPU's costs, expected by a roofline, in the place of measured ones.")
    ] = False,
    steps: Annotated[
        Path | None,
        typer.Option(
            help="With --predicted: rows of twig.benchmarks.gpu, whose steps count.", exists=True, dir_okay=False
        ),
    ] = None,
    limit: Annotated[float | None, typer.Option(help="Seconds at the 95th percentile; 3 times a lone one's.")] = None,
    devices: Annotated[list[int] | None, typer.Option(help="Sizes of the fleet; 1, 8 and 64.")] = None,
    requests: Annotated[int, typer.Option(min=10, help="Requests for each device.")] = 100,
    failing: Annotated[float, typer.Option(min=0, max=1, help="Share of attempts that fail their limit.")] = 0.25,
    slots: SlotsOption = Limits.slots,
    rows: RowsOption = Limits.rows,
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Simulate, print, write rows to OUT/simulate.jsonl and a plot of latency against load beside it.

    Predictions go to OUT/simulate_predicted.jsonl.
    """
    if steps is not None and not predicted:
        raise typer.BadParameter("--steps goes with --predicted, which says what lies between steps")
    machine, name_of_rows = Machine(), "simulate_predicted" if predicted else "simulate"
    told: Row = {"predicted_for": machine.name, "assumed": vars(machine)} if predicted else {}
    taken = predicted_costs(machine, rows) if predicted else _measured(costs)
    if steps is not None:
        taken = with_measured_steps(taken, _read(steps))
        told["steps"] = f"measured, {steps.name}"
    fleets = {
        (name, size): Fleet(taken, Limits(slots, rows, waiting=10**6), policy, size, failing)
        for size in devices or (1, 8, 64)
        for name, policy in POLICIES.items()
    }
    series: dict[str, list[tuple[float, float]]] = {}
    for (name, size), fleet in fleets.items():
        asked = mixed(requests * size, SimilarityPolicy(limits={}, retries=MIXED_RETRIES))
        within = limit or 3 * fleet.alone(asked)
        tried = fleet.holds(asked, within)
        series[f"{name}, {size}"] = [(outcome.rate / size, outcome.p95) for outcome in tried]
        for row in write_rows(out / f"{name_of_rows}.jsonl", [held_row(name, fleet, len(asked), within, tried) | told]):
            print(line(row))
    title = f"predicted for an {machine.name.split()[0]} by a roofline" if predicted else "simulated"
    save_curves(
        out / f"{name_of_rows}.png", series, f"Latency under load ({title})", "requests a second and device",
        "95th percentile, seconds", logarithmic=True,
    )  # fmt: skip


def _measured(file: Path) -> Costs:
    """Costs out of a file of rows."""
    return Costs.from_rows(_read(file))


def _read(file: Path) -> Iterator[Row]:
    return (json.loads(text) for text in file.read_text().splitlines())


def held_row(name: str, fleet: Fleet, requests: int, limit: float, tried: Sequence[Outcome]) -> Row:
    """Rows of what a fleet holds."""
    held = max((outcome for outcome in tried if outcome.p95 <= limit), default=None)
    return {
        "measure": "simulated",
        "contender": name,
        "devices": fleet.devices,
        "requests": requests,
        "failing": fleet.failing,
        "p95_limit": limit,
        "rate": held.rate if held else 0.0,
        "rate_per_device": held.rate / fleet.devices if held else 0.0,
        "latency": percentiles(held.latencies, (50, 80, 95, 99)) if held else {},
        "slots": fleet.limits.slots,
        "row_limit": fleet.limits.rows,
    }


if __name__ == "__main__":
    typer.run(main)
