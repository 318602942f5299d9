"""The engine for asyncio: a thread steps, every request has its own stream of events."""

import asyncio
import threading
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from .api.errors import EngineClosedError
from .api.event import Event
from .api.request import GenerationRequest
from .api.result import GenerationResult
from .engine import Engine

_IDLE_SECONDS = 0.2


class AsyncEngine:
    """Streams of events over an `Engine` that runs in a thread of its own.

    Use as `async with AsyncEngine(engine)`. Leaving the block finishes every request; leaving it by an exception
    cancels them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._streams: dict[int, asyncio.Queue[Event | BaseException]] = {}
        # No event may be dispatched between a request's submission and its stream's registration.
        self._registering = threading.Lock()
        self._work = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="twig-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish (or, on an error, cancel) every request, then stop the thread."""
        await self.close(cancel=kind is not None)

    async def close(self, *, cancel: bool = False) -> None:
        """Accept nothing more; finish what is there, or cancel it."""
        if cancel:
            for id in list(self._streams):
                self.engine.cancel(id)
        self._stop.set()
        self._work.set()
        await asyncio.to_thread(self._thread.join)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """Yield the events of `request` until its last image is finished; stopping early cancels it.

        Raises InvalidRequestError, EngineBusyError or EngineClosedError before the first event.
        """
        if self._loop is None or self._stop.is_set():
            raise EngineClosedError("the engine is not running: use it as `async with AsyncEngine(engine)`")
        queue: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        with self._registering:
            id = self.engine.submit(request)
            self._streams[id] = queue
        self._work.set()
        unfinished = request.num_images
        try:
            while unfinished:
                event = await queue.get()
                if isinstance(event, BaseException):
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

    def _serve(self) -> None:
        while not (self._stop.is_set() and not self.engine.pending):
            if not self.engine.pending:
                self._work.wait(_IDLE_SECONDS)
                self._work.clear()
                continue
            try:
                self._dispatch(self.engine.step())
            except BaseException as error:
                # The loop itself broke: nobody may wait for events that will never come.
                self._stop.set()
                self._broadcast(error)
                raise

    def _dispatch(self, events: list[Event]) -> None:
        assert self._loop is not None
        for event in events:
            with self._registering:
                queue = self._streams.get(event.id)
            if queue is not None:
                self._loop.call_soon_threadsafe(queue.put_nowait, event)

    def _broadcast(self, error: BaseException) -> None:
        assert self._loop is not None
        for queue in list(self._streams.values()):
            self._loop.call_soon_threadsafe(queue.put_nowait, error)
