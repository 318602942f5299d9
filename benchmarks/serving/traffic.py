"""Rows of traffic: capacity, random arrivals and bursts, for `twig serve` and for a queue around diffusers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..contenders import Disagreement, quality
from ..printing import Row
from ..rows import percentiles
from ..workloads import captions
from .load import NO_KEY, Answer, Call, drive
from .pictures import decoded
from .processes import Alone, Process, operator_file, queue_server, twig_server

TWIG, TWO_STEP, PLAIN = "twig serve", "diffusers' two pipelines in a queue", "diffusers' text to image in a queue"
_AT_ONCE = 8
_FULL = 32
_BURST = 16
_POINTS = (50, 95, 99)
_LEAST_SSIM = 0.999


@dataclass(frozen=True)
class Plan:
    """How much is measured. arrivals: requests of each run of traffic; loads: shares of Twig's capacity; requests: of
    whom limits send away; rounds: of closed batches; lasting: requests after which memory is looked at; jobs: of the
    drill with kills; leaves: of clients."""

    steps: int
    arrivals: int
    requests: int
    loads: tuple[float, ...]
    rounds: int
    lasting: int
    jobs: int
    leaves: int


@dataclass(frozen=True)
class Bench:
    """Where the benchmark runs, a folder of its own, and how much of it. found: rows of it that are there already."""

    folder: Path
    plan: Plan
    found: Sequence[Mapping[str, Any]] = ()

    def there(self, **wanted: object) -> Mapping[str, Any] | None:
        """The row that agrees with all that is wanted, None where it is still to be measured."""
        return next((row for row in self.found if wanted.items() <= row.items()), None)

    def config(self, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """An operator's file under which nobody is sent away unless it says so."""
        usual: dict[str, dict[str, Any]] = {"model": {"device": "cpu"}, "bounds": {"wait": 3600, "deadline": 3600}}
        return usual | sections

    def servers(self) -> dict[str, AbstractContextManager[Process]]:
        """Each contender's server by name, not yet started; in the order in which they take turns."""
        return {
            TWIG: twig_server(self.folder / "twig", **self.config()),
            PLAIN: queue_server(self.folder, two_step=False),
            TWO_STEP: queue_server(self.folder, two_step=True),
        }


def bodies(count: int, steps: int, seed: int = 0, **options: object) -> list[dict[str, Any]]:
    """Bodies that differ in prompt and seed."""
    return [
        {"prompt": caption, "twig": {"seed": 1000 * seed + i, "steps": steps, **options}}
        for i, caption in enumerate(captions(count, (5, seed)))
    ]


def at_once(bodies: Sequence[dict[str, Any]]) -> list[Call]:
    """All of them at the start."""
    return [Call(0.0, body) for body in bodies]


def overhead(bench: Bench) -> Iterator[Row]:
    """The same batches by the server and by its engine in a process of its own, in turns."""
    plan = bench.plan
    config = bench.config()
    alone = Alone(operator_file(bench.folder / "alone", **config))
    with twig_server(bench.folder / "overhead", **config) as server:
        walls, cpus = [], []
        for round in range(-1, plan.rounds):
            batch = bodies(_AT_ONCE, plan.steps, seed=100 + round)
            turns = [lambda b=batch: _served(server, b), lambda b=batch: alone.draw(b)]
            by_server, by_engine = [turn() for turn in (turns if round % 2 else turns[::-1])][:: 1 if round % 2 else -1]
            similarity = _same(by_server["pictures"], by_engine["pictures"])
            if round >= 0:
                walls.append((by_server["wall"], by_engine["wall"]))
                cpus.append((by_server["cpu"], by_engine["cpu"]))
    alone.close()
    yield {
        "measure": "overhead",
        "at_once": _AT_ONCE,
        "rounds": plan.rounds,
        "server_seconds": percentiles([wall for wall, _ in walls]),
        "engine_seconds": percentiles([wall for _, wall in walls]),
        "overhead": _ratio(walls) - 1,
        "overhead_cpu": _ratio(cpus) - 1,
        **similarity,
    }


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return float(np.median([a / b for a, b in pairs]))


def _served(server: Process, batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    began, cpu = time.perf_counter(), server.cpu
    answers = drive(server.url, at_once(batch))
    wall = time.perf_counter() - began
    return {"wall": wall, "cpu": server.cpu - cpu, "pictures": [_picture(answer) for answer in answers]}


def _picture(answer: Answer) -> str | None:
    return answer.told["data"][0]["b64_json"] if answer.status == 200 else None


def _same(found: Sequence[str | None], wanted: Sequence[str | None]) -> dict[str, float]:
    """How close the pictures are. Raises Disagreement where they are others, or another was refused."""
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if a is not None and b is not None]
    if len(pairs) < sum(b is not None for b in wanted) or sum(a is not None for a in found) > len(pairs):
        raise Disagreement("nothing is timed: the server shows other pictures than its engine delivers")
    likeness = quality([decoded(a) for a, _ in pairs], [decoded(b) for _, b in pairs])
    if likeness["ssim_lowest"] < _LEAST_SSIM:
        raise Disagreement(f"nothing is timed: the server's pictures are not its engine's, {likeness}")
    return likeness


def traffic(bench: Bench) -> Iterator[Row]:
    """Capacity of each contender, then Poisson arrivals at shares of Twig's, then bursts."""
    for name, starting in bench.servers().items():
        loads = [{"measure": "poisson", "load": load} for load in bench.plan.loads]
        kinds: list[dict[str, Any]] = [{"measure": "capacity"}, *loads, {"measure": "burst"}]
        left = [kind for kind in kinds if bench.there(contender=name, **kind) is None]
        if not left:
            continue
        with starting as server:
            drive(server.url, at_once(bodies(_AT_ONCE, 2, seed=1)))
            for kind in left:
                row: Row = {"contender": name, **kind, **_measured(server, bench, kind)}
                bench = replace(bench, found=(*bench.found, row))
                yield row


def _measured(server: Process, bench: Bench, kind: Mapping[str, Any]) -> Row:
    if kind["measure"] == "capacity":
        return {"capacity": capacity(server, bench.plan), "at_once": _FULL}
    ours = bench.there(measure="capacity", contender=TWIG)
    assert ours is not None, "Twig's is the first"
    if kind["measure"] == "burst":
        return burst(server, bench.plan, ours["capacity"])
    return arrivals(server, bench.plan, kind["load"] * ours["capacity"])


def capacity(server: Process, plan: Plan, key: str = NO_KEY) -> float:
    """Requests a second that a server finishes of so many that come at once."""
    began = time.perf_counter()
    answers = drive(server.url, [Call(0.0, body, key) for body in bodies(_FULL, plan.steps, seed=2)])
    _check_done(answers)
    return len(answers) / (time.perf_counter() - began)


def arrivals(server: Process, plan: Plan, rate: float) -> Row:
    """Poisson arrivals, every fourth a stream that asks for a preview where there are such."""
    times = np.random.default_rng(6).exponential(1 / rate, plan.arrivals).cumsum()
    calls = [Call(float(at), body) for at, body in zip(times, bodies(plan.arrivals, plan.steps, seed=3), strict=True)]
    return {"rate": rate, **_told(_streamed(server, calls))}


def burst(server: Process, plan: Plan, rate: float) -> Row:
    """Bursts of equal size, at half of Twig's capacity on average."""
    waves = max(2, plan.arrivals // _BURST)
    asked = bodies(waves * _BURST, plan.steps, seed=4)
    calls = [Call((i // _BURST) * _BURST / (rate / 2), body) for i, body in enumerate(asked)]
    return {"rate": rate / 2, "burst": _BURST, **_told(_streamed(server, calls))}


def _streamed(server: Process, calls: Sequence[Call]) -> list[Answer]:
    """Let every fourth call be a stream."""
    streams = {"stream": True, "partial_images": 1}
    mixed = [Call(c.at, {**c.body, **streams} if i % 4 == 0 else c.body, c.key) for i, c in enumerate(calls)]
    answers = drive(server.url, mixed)
    _check_done(answers)
    return answers


def _told(answers: Sequence[Answer]) -> Row:
    ended = max(answer.call.at + answer.seconds for answer in answers)
    firsts = [answer.first for answer in answers if answer.first is not None]
    return {
        "requests": len(answers),
        "requests_per_second": len(answers) / (ended - answers[0].call.at),
        "seconds": percentiles([answer.seconds for answer in answers], _POINTS),
        "first_preview": percentiles(firsts, _POINTS) if firsts else None,
        "shown": sum(answer.status == 200 for answer in answers),
    }


def _check_done(answers: Sequence[Answer]) -> None:
    if failed := [answer for answer in answers if not answer.done]:
        raise RuntimeError(f"{len(failed)} of {len(answers)} requests failed, the first with {failed[0].told}")
