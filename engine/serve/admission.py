"""Who may come in now: work is counted in rows of the UNet, for the queue as for each key."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ..api.request import GenerationRequest
from ..engine import Engine
from .errors import LIMIT, ApiError
from .keys import Key


@dataclass
class _Tenant:
    """What a key's holder has running, in rows each, and how many rows a minute are left to it."""

    running: list[int] = field(default_factory=list)
    allowance: float = 0.0
    refilled: float = float("-inf")


@dataclass(eq=False)
class Place:
    """An admitted request's place in the queue. rows: what it is estimated to cost."""

    rows: int
    arriving: "set[Place]"

    def entered(self) -> None:
        """Say that the engine counts it from now on."""
        self.arriving.discard(self)


class Admission:
    """Admits while what is queued takes at most `wait` seconds, and while the key's own limits are kept."""

    def __init__(self, engine: Engine, wait: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine, self.wait = engine, wait
        self._clock = clock
        self._tenants: defaultdict[str, _Tenant] = defaultdict(_Tenant)
        self._arriving: set[Place] = set()
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def place(self, key: Key, request: GenerationRequest) -> AsyncIterator[Place]:
        """Hold a place for `request` until the block ends.

        Raises ApiError (429, with the time after which it may succeed) and what the engine's door raises.
        """
        rows = await asyncio.to_thread(self.engine.estimate, request)
        tenant = self._tenants[key.id]
        async with self._turn:
            await self._check_queue()
            self._check_tenant(key, tenant, rows)
            tenant.running.append(rows)
            place = Place(rows, self._arriving)
            self._arriving.add(place)
        try:
            yield place
        finally:
            place.entered()
            tenant.running.remove(rows)

    async def charge(self, key: Key, request: GenerationRequest) -> int:
        """Take what a request costs from its key's allowance, without a place in the queue; return it in rows.

        Raises ApiError, and what the engine's door raises.
        """
        rows = await asyncio.to_thread(self.engine.estimate, request)
        if key.rows_per_minute is not None:
            self._spend(self._tenants[key.id], rows, key.rows_per_minute)
        return rows

    async def expected_wait(self) -> float:
        """Seconds that what is queued will take; 0 before anything was measured."""
        rate = self.engine.rows_per_second
        queued = await asyncio.to_thread(lambda: self.engine.queued_rows) + sum(place.rows for place in self._arriving)
        return queued / rate if rate else 0.0

    async def _check_queue(self) -> None:
        expected = await self.expected_wait()
        if expected > self.wait:
            message = f"what is queued takes {expected:.0f} s, more than the {self.wait:g} s that anybody waits here"
            raise ApiError(429, "queue_full", message, type=LIMIT, retry_after=expected - self.wait)

    def _check_tenant(self, key: Key, tenant: _Tenant, rows: int) -> None:
        if key.concurrent is not None and len(tenant.running) >= key.concurrent:
            message = f"this key has {len(tenant.running)} requests running, as many as it may"
            rate = self.engine.rows_per_second
            soonest = min(tenant.running) / rate if rate else 1.0
            raise ApiError(429, "too_many_requests", message, type=LIMIT, retry_after=soonest)
        if key.rows_per_minute is not None:
            self._spend(tenant, rows, key.rows_per_minute)

    def _spend(self, tenant: _Tenant, rows: int, per_minute: int) -> None:
        """Take `rows` from a minute's allowance, which refills evenly."""
        if rows > per_minute:
            message = f"this costs {rows} rows and the key has {per_minute} a minute: ask for fewer steps or pictures"
            raise ApiError(403, "request_too_large", message)
        now = self._clock()
        refilled = (now - tenant.refilled) * per_minute / 60
        tenant.allowance, tenant.refilled = min(float(per_minute), tenant.allowance + refilled), now
        if rows > tenant.allowance:
            short = (rows - tenant.allowance) * 60 / per_minute
            message = f"this costs {rows} rows and the key's allowance is {tenant.allowance:.0f} now"
            raise ApiError(429, "rows_spent", message, type=LIMIT, retry_after=short)
        tenant.allowance -= rows
