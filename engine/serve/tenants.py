"""What the holders of keys spend: requests at a time, and rows of the UNet a minute, whichever model draws them."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .errors import LIMIT, ApiError


class Limited(Protocol):
    """What of a key is counted by: its id, and the limits of its own, None for none."""

    @property
    def id(self) -> str:
        """Whose it is."""

    @property
    def concurrent(self) -> int | None:
        """Requests at a time."""

    @property
    def rows_per_minute(self) -> int | None:
        """Rows of the UNet."""


class Tenants(Protocol):
    """Counts for each key what it may have no more of. Belongs to the event loop's thread."""

    async def begin(self, key: Limited, rows: int, rate: float) -> None:
        """Count a request of so many rows, which are taken from the key's allowance. rate: rows a second of its model.

        Raises ApiError (429, with the time after which it may succeed; 403 for one that never will).
        """

    def end(self, key: Limited, rows: int) -> None:
        """Count a request of so many rows no more."""

    async def charge(self, key: Limited, rows: int) -> None:
        """Take `rows` from a minute's allowance, which refills evenly. Raises ApiError as `begin`."""

    def give_back(self, id: str, rows: int) -> None:
        """Return to the key of this id what was taken from its allowance and not used, up to a minute's."""


@dataclass
class _Tenant:
    """What a key's holder has running, in rows each, and how many rows a minute are left to it."""

    running: list[int] = field(default_factory=list)
    allowance: float = 0.0
    refilled: float = float("-inf")


class TenantCounts:
    """`Tenants` that are counted in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._tenants: defaultdict[str, _Tenant] = defaultdict(_Tenant)

    async def begin(self, key: Limited, rows: int, rate: float) -> None:
        """See `Tenants`."""
        tenant = self._tenants[key.id]
        if key.concurrent is not None and len(tenant.running) >= key.concurrent:
            message = f"this key has {len(tenant.running)} requests running, as many as it may"
            soonest = min(tenant.running) / rate if rate else 1.0
            raise ApiError(429, "too_many_requests", message, type=LIMIT, retry_after=soonest)
        await self.charge(key, rows)
        tenant.running.append(rows)

    def end(self, key: Limited, rows: int) -> None:
        """See `Tenants`."""
        self._tenants[key.id].running.remove(rows)

    async def charge(self, key: Limited, rows: int) -> None:
        """See `Tenants`."""
        if (per_minute := key.rows_per_minute) is None:
            return
        if rows > per_minute:
            message = f"this costs {rows} rows and the key has {per_minute} a minute: ask for fewer steps or pictures"
            raise ApiError(403, "request_too_large", message)
        now, tenant = self.clock(), self._tenants[key.id]
        refilled = (now - tenant.refilled) * per_minute / 60
        tenant.allowance, tenant.refilled = min(float(per_minute), tenant.allowance + refilled), now
        if rows > tenant.allowance:
            short = (rows - tenant.allowance) * 60 / per_minute
            message = f"this costs {rows} rows and the key's allowance is {tenant.allowance:.0f} now"
            raise ApiError(429, "rows_spent", message, type=LIMIT, retry_after=short)
        tenant.allowance -= rows

    def give_back(self, id: str, rows: int) -> None:
        """See `Tenants`."""
        self._tenants[id].allowance += rows  # a minute's worth is the most of it when it is next refilled

    def allowance(self, id: str) -> float:
        """Rows that are left to the key of this id, as they were when it last asked for something."""
        return self._tenants[id].allowance
