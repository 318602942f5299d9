"""The engine for asyncio: a thread steps, every request has its own stream of events."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from .api.errors import EngineClosedError, TwigError
from .api.event import Event
from .api.request import GenerationRequest
from .api.result import GenerationResult
from .door import Admission
from .engine import Engine
from .routing import Listener

_IDLE_SECONDS = 0.2
_PASSING = 32
"""Steps and previews that wait for a slow reader of a stream, at most; older ones are stale and go."""

_log = logging.getLogger(__name__)


class AsyncEngine:
    """Streams of events over an `Engine`, which a thread steps.

    Use as `async with AsyncEngine(engine)`, once, in the event loop that its streams are read in. Leaving the block
    finishes every request; leaving it by an exception cancels them. The engine may be used by others beside it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._streams: dict[int, _Mailbox] = {}
        self._work = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="twig-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken: EngineClosedError | None = None
        self._entering = 0
        self._cancelling = False

    async def __aenter__(self) -> Self:
        """Start the thread. Raises TwigError if it was started before."""
        if self._loop is not None:
            raise TwigError("this AsyncEngine was entered before: make another one over the same engine")
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish (or, on an error, cancel) every request, then stop the thread."""
        await self.close(cancel=kind is not None)

    @property
    def alive(self) -> bool:
        """Whether requests are taken and served."""
        return self._thread.is_alive() and not self._stop.is_set() and self.engine.alive

    async def close(self, *, cancel: bool = False, deadline: float | None = None) -> None:
        """Accept nothing more; finish what is there, or cancel it, at once or after `deadline` seconds."""
        self.engine.stop_compiling()
        self._stop.set()
        self._work.set()
        if not cancel:
            await asyncio.to_thread(self._thread.join, deadline)
        self._cancelling = True
        for id in list(self._streams):
            self.engine.cancel(id)
        await asyncio.to_thread(self._thread.join)

    async def stream(
        self, request: GenerationRequest | Admission, heard: Listener | None = None
    ) -> AsyncGenerator[Event]:
        """Yield the events of `request` until its last image is finished; stopping early cancels it.

        To a reader who falls behind, steps and previews that newer ones have overtaken are not shown; moves and results
        always are. The request is checked in a thread, for a large photo takes its time, unless `Engine.admit` has
        checked it already. heard: is told every event at once, in the engine's thread, and steps that show no picture
        are then not yielded, for each takes the event loop's time.
        Raises InvalidRequestError or EngineBusyError before the first event, EngineClosedError where the engine does
        not run or its thread has died, and TwigError in another event loop than the one it was started in.
        """
        loop = self._running_loop()
        mailbox = _Mailbox()

        def listen(event: Event) -> None:
            if heard is not None:
                heard(event)
            if heard is None or not event.passing or event.picture is not None:
                _post(loop, mailbox, event)

        id = await self._entered(request, listen)
        self._streams[id] = mailbox
        self._work.set()
        unfinished = (request.request if isinstance(request, Admission) else request).num_images
        try:
            self._check_alive()  # it may have died before it could know of this stream
            while unfinished:
                event = await mailbox.get()
                if isinstance(event, TwigError):
                    raise event
                unfinished -= event.result is not None
                yield event
        finally:
            del self._streams[id]
            if unfinished:
                self.engine.cancel(id)
                self._work.set()

    async def generate(self, request: GenerationRequest) -> list[GenerationResult]:
        """Run a request to its end; results image by image."""
        events = [event async for event in self.stream(request)]
        results = [event.result for event in events if event.result is not None]
        return sorted(results, key=lambda result: result.index)

    async def _entered(self, request: GenerationRequest | Admission, listener: Listener) -> int:
        """Check a request in a thread and queue it; who closes the engine meanwhile waits for it."""
        self._entering += 1
        try:
            if not isinstance(request, Admission):
                request = await asyncio.to_thread(self.engine.admit, request)
            id = self.engine.enter(request, listener)
        finally:
            self._entering -= 1
        if self._cancelling:
            self.engine.cancel(id)
        return id

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, which must be the one that the thread was started from."""
        self._check_alive()
        if self._loop is None or self._stop.is_set():
            raise EngineClosedError("the engine is not running: use it as `async with AsyncEngine(engine)`")
        if asyncio.get_running_loop() is not self._loop:
            raise TwigError("this AsyncEngine runs in another event loop: make one for this loop over the same engine")
        return self._loop

    def _check_alive(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _serve(self) -> None:
        try:
            while self.engine.pending or self._entering or not self._stop.is_set():
                if self.engine.pending:
                    self.engine.advance()
                else:
                    self._work.wait(_IDLE_SECONDS)
                    self._work.clear()
        except BaseException as error:
            self._die(error)

    def _die(self, error: BaseException) -> None:
        """Tell everybody who waits: events will never come."""
        _log.critical("the engine's thread died", exc_info=error)
        broken = EngineClosedError(f"the engine's thread died of {type(error).__name__}: {error}")
        broken.__cause__ = error
        self._broken = broken
        self._stop.set()
        assert self._loop is not None
        for mailbox in list(self._streams.values()):
            _post(self._loop, mailbox, broken)


class _Mailbox:
    """What waits for the reader of one stream; belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._waiting: deque[Event | TwigError] = deque()
        self._arrived = asyncio.Event()

    def put(self, message: Event | TwigError) -> None:
        """Add a message; where too many passing ones wait, the oldest of them goes."""
        self._waiting.append(message)
        passing = [one for one in self._waiting if isinstance(one, Event) and one.passing]
        if len(passing) > _PASSING:
            self._waiting.remove(passing[0])
        self._arrived.set()

    async def get(self) -> Event | TwigError:
        """Wait for the next message."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()


def _post(loop: asyncio.AbstractEventLoop, mailbox: _Mailbox, message: Event | TwigError) -> None:
    """Put a message into a mailbox from another thread. Raises RuntimeError where the loop is closed."""
    loop.call_soon_threadsafe(mailbox.put, message)
