"""Keys' limits over all devices: the front counts, and devices ask it, by lines of JSON over a Unix socket.

A device holds one connection for as long as it lives. What it began and did not end is over when that breaks.
"""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections import Counter as Multiset
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ApiError, draining
from ..tenants import Limited, TenantCounts


class _Key(NamedTuple):
    """What a line says of a key."""

    id: str
    concurrent: int | None
    rows_per_minute: int | None

    @classmethod
    def of(cls, key: Limited) -> "_Key":
        return cls(key.id, key.concurrent, key.rows_per_minute)


class Counter:
    """The front's end, which listens at `place`."""

    def __init__(self, place: Path) -> None:
        self.place, self.counts = place, TenantCounts()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, in the event loop that runs."""
        self._server = await asyncio.start_unix_server(self._serve, self.place)

    def close(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Hear one device until it ends; what it had running then is given back, for nobody got anything of it."""
        running = Multiset[tuple[_Key, int]]()
        try:
            while line := await reader.readline():
                if answer := await self._heard(json.loads(line), running):
                    writer.write(_line(answer))
        except ConnectionError:
            pass
        finally:
            for key, rows in running.elements():
                self.counts.end(key, rows)
                self.counts.give_back(key.id, rows)
            writer.close()

    async def _heard(self, told: dict[str, Any], running: Multiset[tuple[_Key, int]]) -> dict[str, Any] | None:
        """Do what a line says; return what is to be answered."""
        key, rows, error = _Key(*told["key"]), told["rows"], None
        match told["do"]:
            case "end":
                running[key, rows] -= 1
                self.counts.end(key, rows)
                return None
            case "give back":
                self.counts.give_back(key.id, rows)
                return None
        try:
            if told["do"] == "begin":
                await self.counts.begin(key, rows, told["rate"])
                running[key, rows] += 1
            else:
                await self.counts.charge(key, rows)
        except ApiError as refused:
            names = ("status", "code", "message", "type", "retry_after")
            error = {name: getattr(refused, name) for name in names}
        return {"number": told["number"], "error": error}


class FrontTenants:
    """A device's end, `Tenants` that the front counts. place: where that listens.

    Keys without limits of their own are no matter of the front's.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._numbers, self._asked = count(), dict[int, asyncio.Future[ApiError | None]]()
        self._lines = asyncio.Queue[bytes]()
        self._talking: asyncio.Task[None] | None = None

    async def begin(self, key: Limited, rows: int, rate: float) -> None:
        """See `Tenants`."""

        def undo() -> None:
            self.end(key, rows)
            self.give_back(key.id, rows)

        await self._ask(key, undo, do="begin", rows=rows, rate=rate)

    def end(self, key: Limited, rows: int) -> None:
        """See `Tenants`."""
        if _limited(key):
            self._tell(do="end", key=_Key.of(key), rows=rows)

    async def charge(self, key: Limited, rows: int) -> None:
        """See `Tenants`."""
        await self._ask(key, lambda: self.give_back(key.id, rows), do="charge", rows=rows)

    def give_back(self, id: str, rows: int) -> None:
        """See `Tenants`."""
        if rows:
            self._tell(do="give back", key=_Key(id, None, None), rows=rows)

    async def _ask(self, key: Limited, undo: Callable[[], None], **told: Any) -> None:
        """Raise the ApiError that the front answers with; whoever is cancelled meanwhile has asked for nothing."""
        if not _limited(key):
            return
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._tell(number=number, key=_Key.of(key), **told)
        try:
            error = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda done: None if done.result() else undo())
            raise
        if error is not None:
            raise error

    def _tell(self, **told: Any) -> None:
        self._lines.put_nowait(_line(told))
        if self._talking is None:
            self._talking = asyncio.ensure_future(self._talk())

    async def _talk(self) -> None:
        """Send lines and hand answers to who asked; where the front ends, so does this process, and nothing enters."""
        reader, writer = await asyncio.open_unix_connection(self.place)
        sending = asyncio.ensure_future(self._send(writer))
        try:
            while line := await reader.readline():
                told = json.loads(line)
                self._asked.pop(told["number"]).set_result(told["error"] and ApiError(**told["error"]))
        finally:
            sending.cancel()
            writer.close()
            for answer in self._asked.values():
                answer.set_result(draining())
            self._asked.clear()

    async def _send(self, writer: StreamWriter) -> None:
        while True:
            writer.write(await self._lines.get())


def _limited(key: Limited) -> bool:
    return key.concurrent is not None or key.rows_per_minute is not None


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode() + b"\n"
