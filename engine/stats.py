"""What an engine did so far: counts, occupancy, rates and latencies."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .api.portable import Real, Value
from .api.result import Attempt, Verdict
from .batching.graphs import GraphStats
from .batching.scheduler import BatchKind
from .exposition import exposition

_WINDOW = 4096
_RECENT = 256
_DRAWN = (Verdict.ACCEPTED, Verdict.REVIEW, Verdict.REFUSED, Verdict.NOT_JUDGED)
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, eq=False)
class Stats(Value):
    """A snapshot. Counts are since the engine was made, times are seconds, sizes bytes.

    waiting, resident: images without and with a slot, a request that has not drafted yet counting as one. verdicts:
    ended images by verdict. steps: denoise batches; rows: UNet rows run; padded_rows: rows run to fill buckets;
    control_rows: rows of ControlNets. occupancy: rows over rows and padding, 0 to 1. rows_per_second,
    images_per_second: UNet rows and ended images a second since the first batch. latency: seconds from arrival to
    verdict of the latest 4096 images that were drawn to the end (those that failed, expired or were cancelled tell
    nothing of it), the 50th, 90th, 95th and 99th percentile as "p50" to "p99", 0 before the first; judged, latency_sum:
    how many they were ever, and the sum of the seconds that they took. early: early verdicts given ("verdicts"), those
    that the final verdict contradicted ("contradicted"), and UNet rows that they saved ("rows_saved"). seconds: spent
    by kind of batch; scheduling: seconds between batches. graphs: captured CUDA graphs and their hits and misses.
    memory: bytes that arenas and buffers take ("arenas"), those of OpenVINO's programs, one for each row count and
    size that came, as their files have them ("programs"; in memory each is three times as large), and those allocated
    and reserved on a GPU ("allocated", "reserved"). backends: what runs each network that was called, why, and seconds
    a call where candidates were measured. programs: of networks that compile for sizes of calls, rows by height by
    width, what is held ("held", by network), still to come in the background ("coming") and could not be compiled there
    ("failed", with its reason), and the "budget". placing: resident images whose objects' places are being looked for.
    """

    waiting: int
    resident: int
    verdicts: dict[str, int]
    steps: int
    rows: int
    padded_rows: int
    control_rows: int
    occupancy: Real
    rows_per_second: Real
    images_per_second: Real
    latency: dict[str, Real]
    early: dict[str, int]
    seconds: dict[str, Real]
    scheduling: Real
    graphs: GraphStats
    memory: dict[str, int]
    backends: Mapping[str, Any] = field(default_factory=dict)
    programs: Mapping[str, Any] = field(default_factory=dict)
    judged: int = 0
    latency_sum: Real = 0.0
    placing: int = 0

    def as_dict(self) -> dict[str, object]:
        """Return the snapshot as plain values."""
        return asdict(self)

    def prometheus(self) -> str:
        """Return the snapshot in the text format that Prometheus scrapes; the names are those of `exposition.families`.

        Needs the extra `serve`; raises TwigError without it.
        """
        return exposition(self)


class StatsRecorder:
    """Counts while the engine runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None
        self.verdicts: Counter[Verdict] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = self.rows = self.padded_rows = self.control_rows = 0
        self._counted = 0
        self._stepping = 0.0
        self.scheduling = self.latency_sum = 0.0
        self.early = {"verdicts": 0, "contradicted": 0, "rows_saved": 0}
        self._latencies: deque[float] = deque(maxlen=_WINDOW)
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)

    def batch(self, kind: str, seconds: float) -> None:
        """Count a batch that took `seconds`, those of steps left out."""
        if self._began is None:
            self._began = self._clock() - seconds - self._stepping
        self.seconds[kind] += seconds
        self._recent.append((self.rows - self._counted, seconds + self._stepping))
        self._counted, self._stepping = self.rows, 0.0

    def step(self, rows: int, padded: int, control_rows: int, seconds: float) -> None:
        """Count a step of `rows` rows that was padded to `padded` and took the device `seconds`."""
        self.steps += 1
        self.rows += rows
        self.padded_rows += padded - rows
        self.control_rows += control_rows
        self.seconds[BatchKind.DENOISE] += seconds
        self._stepping += seconds

    def recent_rate(self) -> float:
        """Rows a second over the latest batches of every kind, the time between batches left out."""
        recent = tuple(self._recent)
        seconds = sum(spent for _, spent in recent)
        return sum(rows for rows, _ in recent) / seconds if seconds else 0.0

    def attempt(self, attempt: Attempt) -> None:
        """Count an attempt's early verdicts; one that was not acted on can be held against the final one."""
        self.early["verdicts"] += len(attempt.early)
        self.early["rows_saved"] += attempt.rows_saved
        if not attempt.rows_saved:
            self.early["contradicted"] += sum(passed != attempt.passed for _, passed in attempt.early)

    def finished(self, verdict: Verdict, latency: float) -> None:
        """Count an image; `latency` in seconds counts where it was drawn to the end."""
        self.verdicts[verdict] += 1
        if verdict in _DRAWN:
            self._latencies.append(latency)
            self.latency_sum += latency

    def snapshot(
        self,
        *,
        waiting: int,
        resident: int,
        graphs: GraphStats,
        memory: dict[str, int],
        backends: Mapping[str, Any] | None = None,
        programs: Mapping[str, Any] | None = None,
        placing: int = 0,
    ) -> Stats:
        """Return the counts so far."""
        elapsed = max(1e-9, self._clock() - self._began) if self._began is not None else float("inf")
        latencies = tuple(self._latencies) or (0.0,)
        return Stats(
            waiting=waiting,
            resident=resident,
            verdicts={verdict.value: count for verdict, count in self.verdicts.items()},
            steps=self.steps,
            rows=self.rows,
            padded_rows=self.padded_rows,
            control_rows=self.control_rows,
            occupancy=self.rows / max(1, self.rows + self.padded_rows),
            rows_per_second=self.rows / elapsed,
            images_per_second=sum(self.verdicts.values()) / elapsed,
            latency={f"p{p}": float(np.percentile(latencies, p)) for p in PERCENTILES},
            early=dict(self.early),
            seconds=dict(self.seconds),
            scheduling=self.scheduling,
            graphs=replace(graphs, dropped=list(graphs.dropped)),
            memory=memory,
            backends=backends or {},
            programs=programs or {},
            judged=sum(self.verdicts[verdict] for verdict in _DRAWN),
            latency_sum=self.latency_sum,
            placing=placing,
        )
