"""What a batch costs: measured on an engine, and fitted as straight lines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, Self

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from ..engine.api.event import State
from ..engine.api.mechanisms import Avoidance, MovedControl
from ..engine.api.settings import Stage
from ..engine.batching.carried import Shared
from ..engine.batching.job import Job
from ..engine.engine import Engine
from ..engine.sampling.buckets import bucket_of
from .clocks import ClockKind, stopwatch
from .workloads import closed

_ONE_ROW = Stage(steps=1, guidance_scale=1)
_CONTROLLED = Avoidance(delayed_guidance=None, moved_control=MovedControl(rows="both"))

Point = dict[str, object]


class Line(NamedTuple):
    """Seconds of a batch of n, `base + each * n`.

    r2: how much of what was measured that explains. worst: how far off it is at worst, as a share of what was measured.
    """

    base: float
    each: float
    r2: float = 1.0
    worst: float = 0.0

    def __call__(self, n: int) -> float:
        """Seconds for `n`, none for nothing."""
        return self.base + self.each * n if n else 0.0

    @classmethod
    def fit(cls, seconds: dict[int, float]) -> Self:
        """Least squares through seconds by size."""
        sizes, values = np.array(list(seconds)), np.array(list(seconds.values()))
        each, base = np.polyfit(sizes, values, 1)
        residuals = values - base - each * sizes
        r2 = 1 - np.square(residuals).sum() / np.square(values - values.mean()).sum()
        return cls(float(base), float(each), float(r2), float(np.abs(residuals / values).max()))


@dataclass(frozen=True)
class Costs:
    """Seconds of every kind of batch.

    denoise: by UNet rows; control: what ControlNet adds, by its rows; both padded to `buckets`. encode, segment, judge:
    by jobs, with the start of the run that follows.
    """

    denoise: Line
    control: Line
    encode: Line
    segment: Line
    judge: Line
    buckets: tuple[int, ...]

    def padded(self, rows: int, control_rows: int) -> tuple[int, int]:
        """What a denoising step is padded to."""
        padded, controlled = (bucket_of(n, self.buckets) if n else 0 for n in (rows, control_rows))
        return padded, controlled

    def step(self, rows: int, control_rows: int) -> float:
        """Seconds of a denoising step."""
        padded, controlled = self.padded(rows, control_rows)
        return self.denoise(padded) + self.control(controlled)

    def as_rows(self) -> list[Point]:
        """One row a line."""
        return [
            {"measure": "cost", "batch": name, **line._asdict(), "buckets": self.buckets}
            for name, line in vars(self).items()
            if isinstance(line, Line)
        ]

    @classmethod
    def from_rows(cls, rows: Iterable[Point]) -> Self:
        """Read back what `as_rows` wrote; the last row of each batch kind counts. Raises ValueError if one lacks."""
        found = {row["batch"]: row for row in rows if row.get("measure") == "cost"}
        wanted = [name for name in cls.__annotations__ if name != "buckets"]
        if missing := [name for name in wanted if name not in found]:
            raise ValueError(f"no cost of {', '.join(missing)}: the file must come from twig.benchmarks.throughput")
        lines = {name: Line(*(float(str(found[name][key])) for key in Line._fields)) for name in wanted}
        buckets = found["denoise"]["buckets"]
        assert isinstance(buckets, Sequence)
        return cls(**lines, buckets=tuple(buckets))


class CostMeter:
    """Times batches of chosen sizes on an engine's stages, with jobs of one UNet row each."""

    def __init__(self, engine: Engine, clock: ClockKind, repeats: int) -> None:
        self.stages = engine.stages
        self.components = engine.components
        self.buckets = tuple(engine.arenas.buckets)
        self.clock = clock
        self.repeats = repeats
        self._slots, self._boundary = engine.limits.slots, min(engine.limits.slots, engine.limits.boundary)
        self._rounds = count(1000)

    def measure(self) -> tuple[Costs, list[Point]]:
        """Fit every kind of batch; return the fits, and each measured point as a row."""
        sizes = [b for b in self.buckets if b <= self._slots]
        some = sorted({1, min(4, self._boundary), self._boundary})
        jobs = self._drafting(self._slots)
        points = {"denoise": self._rotate(sizes, lambda n: self._step(jobs[:n]))}
        self._finalise(jobs)
        both = self._rotate(sizes, lambda n: self._step(jobs[:n]))
        points["control"] = {n: both[n] - points["denoise"][n] for n in sizes}
        points["encode"] = self._rotate(some, self._encode)
        points["segment"] = self._rotate(some, self._segment)
        points["judge"] = self._rotate(some, lambda n: lambda: self.stages.judging.judge(jobs[:n]))
        rows: list[Point] = [
            {"measure": "batch", "batch": name, "size": n, "seconds": seconds}
            for name, found in points.items()
            for n, seconds in found.items()
        ]
        lines = {name: Line.fit(found) for name, found in points.items()}
        return Costs(**lines, buckets=self.buckets), rows

    def flops_per_row(self) -> int:
        """Floating-point operations of one UNet row, counted."""
        jobs = self._drafting(1)
        with FlopCounterMode(display=False) as counter:
            self.stages.denoising.denoise(jobs)
        return counter.get_total_flops()

    def _rotate(self, sizes: Sequence[int], prepare: Callable[[int], Callable[[], object]]) -> dict[int, float]:
        """Median seconds by size. Every round runs every size, so that a slow moment of the machine hits all alike."""
        seconds: dict[int, list[float]] = {n: [] for n in sizes}
        for round in range(self.repeats + 1):
            for n in sizes:
                run = prepare(n)
                with stopwatch() as spent:
                    run()
                if round:  # the first one warms up
                    seconds[n].append(spent.on(self.clock))
        return {n: float(np.median(values)) for n, values in seconds.items()}

    def _queued(self, n: int) -> list[Job]:
        """Jobs with slots, whose prompts were never encoded before."""
        factor = self.components.vae_scale_factor
        height, width = (side // factor for side in self.components.size)
        changes = {"draft": _ONE_ROW, "final": _ONE_ROW, "avoidance": _CONTROLLED}
        requests = [r.model_copy(update=changes) for r in closed(n, 1, round=next(self._rounds))]
        return [Job(i, i, r, (height, width), 0.0, Shared(), slot=i) for i, r in enumerate(requests)]

    def _drafting(self, n: int) -> list[Job]:
        jobs = self._queued(n)
        self.stages.encoding.encode(jobs)
        for job in jobs:
            job.state = State.DRAFTING
            self.stages.starting.start_draft(job)
        return jobs

    def _finalise(self, jobs: Sequence[Job]) -> None:
        self.stages.segmenting.segment(jobs)
        for job in jobs:
            job.state = State.FINALISING
            if self.stages.placing.begin(job):
                self.stages.placing.place(job)
            self.stages.starting.start_final(job)

    def _step(self, jobs: Sequence[Job]) -> Callable[[], object]:
        for job in jobs:
            assert job.trajectory is not None
            job.trajectory.step = 0
        return lambda: self.stages.denoising.denoise(jobs)

    def _encode(self, n: int) -> Callable[[], object]:
        jobs = self._queued(n)
        return lambda: self.stages.encoding.encode(jobs)

    def _segment(self, n: int) -> Callable[[], object]:
        jobs = self._drafting(n)
        self._step(jobs)()
        return lambda: self._finalise(jobs)
