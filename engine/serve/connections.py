"""Connections that give way to others: who does not send what he began, or does not read what he asked for, is cut off.

None of them holds a slot of an engine: a request is drawn when all of it has come, and what is drawn for a reader who
stands still waits in his connection alone.
"""

import asyncio
import resource
from functools import partial
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

BACKLOG = 256
"""Connections that the system holds for us, and that may come at once beyond the most that are kept."""

_FILES = 256
"""Files and sockets that a server opens besides: records, databases, those of its libraries."""

_COMING = (h11.IDLE, h11.SEND_BODY)


class Connection(H11Protocol):
    """A connection over which a request comes, head and body, within `patience` seconds, and of whose answer something
    is read in any as long. Beyond `most` of them, one over which nothing is asked is closed, or else the new one."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: float,
        most: int,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.patience, self.most = patience, most
        self.idle_since = self.loop.time()
        self._arriving: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is asked over it, or only half of a head."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._make_room()
        self._expect()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        for timer in (self._arriving, self._reading):
            if timer is not None:
                timer.cancel()

    def on_response_complete(self) -> None:
        """Note when it became idle, and go on as uvicorn does."""
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Close it, as uvicorn does; where somebody never reads the rest, that would last for ever."""
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def _expect(self) -> None:
        """Wait for the rest of a request that has begun, from its first byte on."""
        coming = self.conn.their_state in _COMING
        if coming and self._arriving is None:
            self._arriving = self.loop.call_later(self.patience, self._give_up)
        elif not coming and self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _give_up(self) -> None:
        self._arriving = None
        if self.conn.their_state in _COMING:
            self.transport.abort()

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(self.patience, self._look_at_reader, left)

    def _look_at_reader(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._watch_reader()
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        """Close the connection over which nothing is asked for longest, this one where there is no other."""
        idle = (each for each in self.connections if isinstance(each, Connection) and each.idle)
        others = (each for each in idle if each is not self and not each.transport.is_closing())
        min(others, key=lambda each: each.idle_since, default=self).transport.abort()


def patient(patience: float, most: int) -> Any:
    """What makes connections of a server, as uvicorn asks for it, and may open as many files as that takes.

    Where the system allows fewer, fewer connections are kept.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + BACKLOG + _FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        most = max(1, soft - BACKLOG - _FILES)
    return partial(Connection, patience=patience, most=most)
