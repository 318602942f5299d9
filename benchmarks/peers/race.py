"""Rows of a race: pictures compared first, then rounds in turn; first pictures of new processes; who cannot race."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..contenders import quality
from ..printing import Row
from ..rows import percentiles
from ..workloads import captions
from .contestants import CANNOT, CONTESTANTS, OURS, Contestant
from .ours import PLAIN
from .processes import Drawn, Process, asked
from .theirs import Asked

LEAST_SSIM = 0.995
"""From which on pictures count as the same; what falls below is named and not timed."""

GUIDANCE = 5.0
_SIDE = 16


@dataclass(frozen=True)
class Plan:
    """How much is measured. rounds: by batch size; starts: of new processes with warm caches."""

    rounds: Mapping[int, int]
    starts: int
    steps: int


FULL = Plan({1: 7, 8: 3, 32: 2}, starts=2, steps=20)
QUICK = Plan({1: 2}, starts=1, steps=4)


@dataclass(frozen=True)
class Track:
    """Where contestants run: `out` holds environments, models and caches."""

    out: Path
    plan: Plan

    def start(self, name: str, job: str, cache: Path) -> Process:
        """Start a contestant."""
        log = self.out / "logs" / f"{job}-{name}.log".replace(" ", "-")
        log.parent.mkdir(parents=True, exist_ok=True)
        return Process(CONTESTANTS[job][name].command(job, self.out, cache), log)

    def cache(self, name: str) -> Path:
        """Where a contestant keeps what it compiled."""
        found = self.out / "caches" / name.replace(" ", "-")
        found.mkdir(parents=True, exist_ok=True)
        return found

    def asked(self, batch: int, turn: int) -> Asked:
        """Pictures of one prompt, another in each round: a batch of OpenVINO GenAI has no more than one."""
        (prompt,) = captions(1, (5, batch, turn))
        return asked(prompt, range(1000 * turn, 1000 * turn + batch), self.plan.steps, GUIDANCE, _SIDE)


def measure(track: Track, done: Sequence[Row], only: Sequence[str]) -> Iterator[Row]:
    """Rows that `done` lacks. only: names of contestants, all if empty."""
    have = {(row["measure"], row["job"], row.get("batch"), row["contender"]) for row in done}
    for job, who in CANNOT.items():
        for name, reason in who.items():
            if ("cannot", job, None, name) not in have:
                yield {"measure": "cannot", "job": job, "contender": name, "reason": reason}
    for batch in track.plan.rounds:
        for job, contestants in CONTESTANTS.items():
            names = [name for name in contestants if not only or name in only or name == next(iter(contestants))]
            if not all(("race", job, batch, name) in have for name in names):
                yield from race(track, job, batch, names)
    for name, contestant in CONTESTANTS[PLAIN].items():
        if (not only or name in only) and ("first picture", PLAIN, None, name) not in have:
            yield first_picture(track, name, contestant)


def race(track: Track, job: str, batch: int, names: Sequence[str]) -> Iterator[Row]:
    """Rounds of one batch size. Everyone draws once before, and who draws something else does not race."""
    drawn: dict[str, list[Drawn]] = {}
    with ExitStack() as running:
        racers = {name: running.enter_context(track.start(name, job, track.cache(name))) for name in names}
        first = {name: racer.draw(track.asked(batch, 0)) for name, racer in racers.items()}
        for turn in range(1, track.plan.rounds[batch] + 1):
            order = list(racers)[turn % len(racers) :] + list(racers)[: turn % len(racers)]
            for name in order:
                drawn.setdefault(name, []).append(racers[name].draw(track.asked(batch, turn)))
    expected = [first[names[0]], *drawn[names[0]]]
    for name in names:
        agreed = _agreement([first[name], *drawn[name]], expected)
        row: Row = {"measure": "race", "job": job, "batch": batch, "contender": name, **agreed}
        row |= {"compared_with": names[0], "versions": CONTESTANTS[job][name].versions(track.out)}
        same = agreed["ssim_lowest"] >= LEAST_SSIM
        yield row | (_times(drawn[name], drawn.get(OURS), batch) if same else {"cpu_seconds": None})


def _agreement(drawn: Sequence[Drawn], expected: Sequence[Drawn]) -> dict[str, float]:
    """How close pictures are to those expected."""
    pictures, wanted = ([picture for each in found for picture in each.pictures] for found in (drawn, expected))
    return quality(pictures, wanted)


def _times(drawn: Sequence[Drawn], ours: Sequence[Drawn] | None, batch: int) -> Row:
    """Columns of speed. over_ours: the median of ratios within a round; above one where Twig is faster."""
    cpu = np.array([each.cpu for each in drawn])
    row: Row = {
        "rounds": len(drawn),
        "cpu_seconds": percentiles(cpu),
        "wall_seconds": percentiles(each.wall for each in drawn),
        "cpu_ms_per_picture": 1000 * float(np.median(cpu)) / batch,
        "peak_mib": drawn[-1].peak_mib,
    }
    if ours is not None:
        row["over_ours"] = float(np.median(cpu / np.array([each.cpu for each in ours])))
    return row


def first_picture(track: Track, name: str, contestant: Contestant) -> Row:
    """Processor seconds and memory of a new process up to its first picture: caches empty, then as that left them.

    conversion_seconds: what writing the format that it reads takes before, once.
    """
    fresh = track.out / "caches" / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    found = []
    for _ in range(1 + track.plan.starts):
        with track.start(name, PLAIN, fresh) as started:
            found.append(started.draw(track.asked(1, 0)))
    return {
        "measure": "first picture",
        "job": PLAIN,
        "contender": name,
        "conversion_seconds": contestant.conversion.seconds(track.out / "models") if contestant.conversion else 0.0,
        "cold_cpu_seconds": found[0].cpu_since_start,
        "cold_peak_mib": found[0].peak_mib,
        "warm_cpu_seconds": float(np.median([each.cpu_since_start for each in found[1:]])),
        "warm_peak_mib": float(np.median([each.peak_mib for each in found[1:]])),
        "versions": contestant.versions(track.out),
    }
