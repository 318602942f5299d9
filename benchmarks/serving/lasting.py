"""Rows of what lasts: slots of clients that left, memory after many requests, jobs over kills."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from ...engine.records.audit import AuditLog
from ...engine.records.stores import Query
from ..printing import Row
from ..rows import percentiles
from .load import ROUTE, drive
from .processes import Process, twig_server
from .traffic import Bench, at_once, bodies

_SLOTS = 8
_SETTLED = 0.1
"""Share of the requests after which memory is held to have found its size."""
_KILLS = 2
_POLL = 0.01


def leaves(bench: Bench) -> Iterator[Row]:
    """Clients that leave full slots, one after another: seconds until another request has the slot."""
    sections = bench.config(model={"device": "cpu", "slots": _SLOTS})
    with twig_server(bench.folder / "leaves", **sections) as server:
        drive(server.url, at_once(bodies(_SLOTS, 2, seed=1)))
        taken = asyncio.run(_leave(server, bench.plan.leaves))
    yield {"measure": "cancel", "slots": _SLOTS, "times": len(taken), "seconds": percentiles(taken, (50, 95))}


async def _leave(server: Process, times: int) -> list[float]:
    long = bodies(2 * _SLOTS + times, 50, seed=7)
    async with httpx2.AsyncClient(base_url=server.url, timeout=None) as client:
        running = [asyncio.create_task(client.post(ROUTE, json=body)) for body in long[:_SLOTS]]
        await _until(client, "twig_resident_images", _SLOTS)
        taken = []
        for body in long[_SLOTS : _SLOTS + times]:
            running.append(asyncio.create_task(client.post(ROUTE, json=body)))
            await _until(client, "twig_waiting_images", 1)
            began = time.perf_counter()
            running.pop(0).cancel()
            await _until(client, "twig_waiting_images", 0)
            taken.append(time.perf_counter() - began)
        for each in running:
            each.cancel()
    return taken


async def _until(client: httpx2.AsyncClient, name: str, value: float) -> None:
    """Look at a gauge again until it has a value."""
    while f"\n{name} {float(value)}\n" not in (await client.get("/metrics")).text:
        await asyncio.sleep(_POLL)


def memory(bench: Bench) -> Iterator[Row]:
    """Resident memory once it has settled, and after all requests."""
    plan = bench.plan
    with twig_server(bench.folder / "memory", **bench.config()) as server:
        sizes = []
        for first in range(0, plan.lasting, _SLOTS):
            drive(server.url, at_once(bodies(_SLOTS, 2, seed=1000 + first)))
            sizes.append(server.resident)
    settled = sizes[int(_SETTLED * len(sizes))]
    yield {
        "measure": "memory",
        "requests": plan.lasting,
        "settled": settled,
        "ended": sizes[-1],
        "growth": sizes[-1] - settled,
        "memory": sizes[:: max(1, len(sizes) // 40)],
    }


def kills(bench: Bench) -> Iterator[Row]:
    """Jobs in the background over servers that are killed while they draw: which were lost, which answered twice."""
    folder, sections = bench.folder / "kills", bench.config(jobs={"lease": 1.0})
    ids: list[str] = []
    for _ in range(_KILLS):
        with twig_server(folder, **sections) as server:
            ids += [_handed_in(server, body) for body in bodies(bench.plan.jobs // _KILLS, 20, seed=len(ids) + 10)]
            while len(_done(server, ids)) < len(ids) // 4:
                time.sleep(_POLL)
    with twig_server(folder, **sections) as server:
        while len(found := _done(server, ids)) < len(ids):
            time.sleep(_POLL)
        again = _done(server, ids)
    records = [_record(answer) for answer in found.values()]
    lines = [line for line in _logged(folder / "records") if line in records]
    yield {
        "measure": "kill",
        "kills": _KILLS,
        "jobs": len(ids),
        "lost": len(ids) - len(found),
        "answers_that_changed": sum(found[id] != again[id] for id in ids),
        "records": len(set(records)),
        "lines_of_the_log": len(lines),
    }


def _handed_in(server: Process, body: dict[str, Any]) -> str:
    wanted = {**body, "twig": {**body["twig"], "background": True}}
    answer = httpx2.post(f"{server.url}{ROUTE}", json=wanted)
    assert answer.status_code == 202, answer.text
    id: str = answer.json()["id"]
    return id


def _done(server: Process, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Answers of the jobs that are done, by id."""
    told = {id: httpx2.get(f"{server.url}/v1/twig/jobs/{id}").json() for id in ids}
    return {id: each["response"] for id, each in told.items() if each["status"] == "done"}


def _record(answer: dict[str, Any]) -> str:
    body = answer["body"]
    told = body["error"]["twig"] if "error" in body else body["data"][0]["twig"]
    record: str = told["record"]
    return record


def _logged(folder: Path) -> list[str]:
    """Names of the records that the lines of a log are of."""
    return [Path(line.manifest or "").stem for line in AuditLog(folder / "audit.jsonl").search(Query())]
