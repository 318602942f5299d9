"""Open-loop load over HTTP: a request is sent when it is due, whether or not those before it were answered."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

ROUTE = "/v1/images/generations"
NO_KEY = "none"


@dataclass(frozen=True)
class Call:
    """A body that is due `at` seconds after the start. key: the API key that brings it."""

    at: float
    body: Mapping[str, Any]
    key: str = NO_KEY


@dataclass(frozen=True)
class Answer:
    """What became of a call.

    status: 0 where the connection broke. seconds: from when it was due to the last byte. first: to the first picture of
    a stream, None where there was none. retry_after: what a refusal names, in seconds. told: the answer's JSON.
    """

    call: Call
    status: int
    seconds: float
    first: float | None
    retry_after: float | None
    told: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """Whether it was judged: a picture, or the refusal of one."""
        return self.status == 200 or self.told.get("error", {}).get("code") == "moderation_blocked"


def drive(url: str, calls: Sequence[Call], *, again: bool = False, beside: Sequence[Call] = ()) -> list[Answer]:
    """Send `calls` and wait for all answers, in their order.

    again: what is told to come later comes once more, after just the seconds that it was told. beside: are sent as
    well, and left once `calls` are answered; the answers that they had by then come last.
    """
    return asyncio.run(_drive(url, calls, again, beside))


async def _drive(url: str, calls: Sequence[Call], again: bool, beside: Sequence[Call]) -> list[Answer]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        began = time.perf_counter()
        others = [asyncio.ensure_future(_answered(client, began, call, again)) for call in beside]
        answers = await asyncio.gather(*(_answered(client, began, call, again) for call in calls))
        answers += [other.result() for other in others if other.done()]
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return [answer for of_call in answers for answer in of_call]


async def _answered(client: httpx2.AsyncClient, began: float, call: Call, again: bool) -> list[Answer]:
    await asyncio.sleep(began + call.at - time.perf_counter())
    answer = await _send(client, began, call)
    if not again or answer.retry_after is None:
        return [answer]
    later = Call(call.at + answer.seconds + answer.retry_after, call.body, call.key)
    return [answer, *await _answered(client, began, later, again=False)]


async def _send(client: httpx2.AsyncClient, began: float, call: Call) -> Answer:
    headers = {"authorization": f"Bearer {call.key}"}
    due, first, told = began + call.at, None, {}
    try:
        async with client.stream("POST", ROUTE, json=dict(call.body), headers=headers) as response:
            if "event-stream" in response.headers.get("content-type", ""):
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        first = time.perf_counter() - due if first is None else first
                        told = json.loads(line.removeprefix("data: "))
            else:
                told = json.loads(await response.aread())
    except httpx2.TransportError:
        return Answer(call, 0, time.perf_counter() - due, first, None, told)
    retry = response.headers.get("retry-after") if response.status_code == 429 else None
    seconds = time.perf_counter() - due
    return Answer(call, response.status_code, seconds, first, None if retry is None else float(retry), told)
