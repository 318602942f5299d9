"""Rows of what an operator's limits do: who is sent away, and what a heavy tenant takes from a light one."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...engine.serve.keys import Keys
from ..printing import Row
from ..rows import percentiles
from .load import Answer, Call, drive
from .processes import twig_server
from .traffic import Bench, at_once, bodies, capacity

_POINTS = (50, 95)
_WAIT = 5.0
_CROWD = 3.0
_LIGHT = 0.2
"""Share of capacity that the light tenant asks for; the heavy one asks for all of it, and half as much again."""
_HEAVY = 1.5

HEAVY_KEYS: Mapping[str, Mapping[str, Any]] = {
    "no limits": {},
    "four at a time": {"concurrent": 4},
    "one at a time": {"concurrent": 1},
}
"""What an operator may have written on the heavy tenant's key."""


def overload(bench: Bench) -> Iterator[Row]:
    """Three times what can be held, under a limit of the queue; who is sent away comes again when told."""
    plan = bench.plan
    config = bench.config(bounds={"wait": _WAIT, "deadline": 3600})
    with twig_server(bench.folder / "overload", **config) as server:
        drive(server.url, at_once(bodies(8, 2, seed=1)))
        rate = _CROWD * capacity_within(server.url, plan.steps)
        times = np.random.default_rng(7).exponential(1 / rate, plan.requests).cumsum()
        calls = [Call(float(at), body) for at, body in zip(times, bodies(plan.requests, plan.steps, 5), strict=True)]
        answers = drive(server.url, calls, again=True)
    yield {"measure": "overload", "wait": _WAIT, "rate": rate, **_told(answers, plan.requests)}


def capacity_within(url: str, steps: int) -> float:
    """Requests a second, from eight that come at once, which no queue refuses."""
    answers = drive(url, at_once(bodies(8, steps, seed=2)))
    return len(answers) / max(answer.seconds for answer in answers)


def _told(answers: Sequence[Answer], asked: int) -> Row:
    first = [answer for answer in answers if answer.retry_after is not None]
    second = answers_again(answers)
    done = [answer for answer in answers if answer.done]
    return {
        "requests": asked,
        "sent_away": sum(answer.status == 429 for answer in answers) - sum(answer.status == 429 for answer in second),
        "came_again": len(second),
        "let_in_when_told": sum(answer.done for answer in second),
        "retry_after": percentiles([float(answer.retry_after or 0) for answer in first], _POINTS) if first else None,
        "seconds": percentiles([answer.seconds for answer in done], _POINTS),
        "failed": sum(not answer.done and answer.status != 429 for answer in answers),
    }


def answers_again(answers: Sequence[Answer]) -> list[Answer]:
    """Answers of calls that came a second time: each follows the one that sent it away."""
    pairs = itertools.pairwise(answers)
    return [after for before, after in pairs if before.status == 429 and after.call.body is before.call.body]


def fairness(bench: Bench) -> Iterator[Row]:
    """A light tenant's waits alone, and beside a heavy one under different keys; the light one's priority is higher.

    What the heavy one still waits for when the light one has everything is left.
    """
    plan = bench.plan
    ours, alone, rate = list[Call](), list[Answer](), 0.0
    for name, limits in HEAVY_KEYS.items():
        if bench.there(measure="fairness", heavy_key=name) is not None:
            continue
        folder = bench.folder / f"fairness-{len(limits) and limits['concurrent']}"
        folder.mkdir(parents=True, exist_ok=True)
        keys = Keys(folder / "keys.json")
        light, heavy = keys.add("light", priority=10), keys.add("heavy", **limits)
        with twig_server(folder, **bench.config(listen={"keys": str(keys.path)})) as server:
            drive(server.url, [Call(0.0, body, light) for body in bodies(8, 2, seed=1)])
            if not alone:
                rate = capacity(server, plan, light)
                ours = _tenant(max(6, plan.requests // 8), rate * _LIGHT, light, plan.steps, priority=10)
                alone = drive(server.url, ours)
            theirs = _tenant(int(ours[-1].at * rate * _HEAVY), rate * _HEAVY, heavy, plan.steps)
            both = drive(server.url, [replace(call, key=light) for call in ours], beside=theirs)
        waited = percentiles([answer.seconds for answer in both[: len(ours)]], _POINTS)
        by_itself = percentiles([answer.seconds for answer in alone], _POINTS)
        yield {
            "measure": "fairness",
            "heavy_key": name,
            "light_requests": len(ours),
            "heavy_requests": len(theirs),
            "heavy_finished": sum(answer.done for answer in both[len(ours) :]),
            "heavy_sent_away": sum(answer.status == 429 for answer in both[len(ours) :]),
            "light_alone": by_itself,
            "light_beside": waited,
            "ratio_p95": waited["p95"] / by_itself["p95"],
        }


def _tenant(count: int, rate: float, key: str, steps: int, **options: object) -> list[Call]:
    times = np.random.default_rng(8).exponential(1 / rate, count).cumsum()
    return [Call(float(at), body, key) for at, body in zip(times, bodies(count, steps, 6, **options), strict=True)]
