"""Who may come in now: work is counted in rows of the UNet, for the queue as for each key."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..api.request import GenerationRequest
from ..door import Admission as Admitted
from ..engine import Engine
from .errors import LIMIT, ApiError
from .keys import Key
from .tenants import Tenants

_FARTHEST = 60.0
"""Seconds after which those who are sent away are told to come at most, unless there is no room before: many of
OpenAI's clients wait no longer."""


@dataclass(eq=False)
class Place:
    """An admitted request's place in the queue. rows: what it is estimated to cost. admitted: by the engine's door."""

    admitted: Admitted
    rows: int
    arriving: "set[Place]"

    def entered(self) -> None:
        """Say that the engine counts it from now on."""
        self.arriving.discard(self)


class Admission:
    """Admits while what is queued takes at most `wait` seconds, and while the key's own limits are kept.

    Who is sent away is told when there is room for it behind those who were told before, so that a crowd does not come
    back all at once.
    """

    def __init__(self, engine: Engine, wait: float, tenants: Tenants) -> None:
        self.engine, self.wait, self.tenants = engine, wait, tenants
        self._arriving: set[Place] = set()
        self._turn = asyncio.Lock()
        self._told = 0.0  # until when, by the monotonic clock, room is taken by those who were told to come then

    @asynccontextmanager
    async def place(self, key: Key, request: GenerationRequest) -> AsyncIterator[Place]:
        """Hold a place for `request` until the block ends.

        Raises ApiError (429, with the time after which it may succeed) and what the engine's door raises.
        """
        admitted, rows = await asyncio.to_thread(self._at_the_door, request)
        async with self._turn:
            await self._check_queue(rows)
            await self.tenants.begin(key, rows, self.engine.rows_per_second)
            place = Place(admitted, rows, self._arriving)
            self._arriving.add(place)
        try:
            yield place
        finally:
            place.entered()
            self.tenants.end(key, rows)

    async def charge(self, key: Key, request: GenerationRequest) -> int:
        """Take what a request costs from its key's allowance, without a place in the queue; return it in rows.

        Raises ApiError, and what the engine's door raises.
        """
        _, rows = await asyncio.to_thread(self._at_the_door, request)
        await self.tenants.charge(key, rows)
        return rows

    async def give_back(self, key: Key, request: GenerationRequest) -> None:
        """Return what `charge` took for a request of which nothing was drawn."""
        _, rows = await asyncio.to_thread(self._at_the_door, request)
        self.tenants.give_back(key.id, rows)

    async def expected_wait(self) -> float:
        """Seconds that what is queued will take; 0 before anything was measured."""
        rate = self.engine.rows_per_second
        queued = await asyncio.to_thread(lambda: self.engine.queued_rows) + sum(place.rows for place in self._arriving)
        return queued / rate if rate else 0.0

    def _at_the_door(self, request: GenerationRequest) -> tuple[Admitted, int]:
        """What the door finds, once for the estimate and for the drawing, and the rows that it is estimated at."""
        admitted = self.engine.admit(request)
        return admitted, self.engine.estimate(admitted)

    async def _check_queue(self, rows: int) -> None:
        expected = await self.expected_wait()
        if expected > self.wait:
            message = f"what is queued takes {expected:.0f} s, more than the {self.wait:g} s that anybody waits here"
            raise ApiError(429, "queue_full", message, type=LIMIT, retry_after=self._room(expected, rows))

    def _room(self, expected: float, rows: int) -> float:
        """Seconds until there is room for so many rows behind those who were told before; at most `_FARTHEST`, or what
        all that is queued takes and a wait.

        Those who do not come back, or ask again and again, would else put others off for ever.
        """
        now, rate = time.monotonic(), self.engine.rows_per_second
        assert rate, "nothing waits before anything was measured"
        room = min(max(now + expected - self.wait, self._told), now + max(expected + self.wait, _FARTHEST))
        self._told = room + rows / rate
        return room - now
