"""One request's way through the server: admitted, run, its spans and its record kept, left when its client leaves."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple, TypeVar

from starlette.requests import Request

from ..aio import AsyncEngine
from ..api.event import Event
from ..api.request import GenerationRequest
from .admission import Admission
from .answers import Answer
from .keeping import Keeper
from .keys import Key
from .observing import Spans, admission_span

Item = TypeVar("Item")


class Told(NamedTuple):
    """An event, and where it ends an image the answer with its record, which is on the disk by then."""

    event: Event
    answer: Answer | None


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class Runner:
    """Runs requests on `engine`."""

    def __init__(self, engine: AsyncEngine, admission: Admission, keeper: Keeper) -> None:
        self.engine, self.admission, self.keeper = engine, admission, keeper

    async def events(self, request: GenerationRequest, key: Key) -> AsyncGenerator[Told]:
        """Admit a request and yield what happens to it until its last image is finished; closing early cancels it.

        Raises ApiError and the engine's errors before the first event.
        """
        async with AsyncExitStack() as stack:
            with admission_span() as span:
                place = await stack.enter_async_context(self.admission.place(key, request))
                span.set_attribute("twig.rows.estimated", place.rows)
            drawn = await stack.enter_async_context(aclosing(self.drawn(request)))
            async for told in drawn:
                place.entered()
                yield told

    async def drawn(self, request: GenerationRequest) -> AsyncGenerator[Told]:
        """Yield what happens to a request that is let in."""
        spans = Spans()
        try:
            async with aclosing(self.engine.stream(request)) as events:
                async for event in events:
                    spans.hear(event)
                    yield Told(event, await self._answer(event))
        finally:
            spans.close()

    async def _answer(self, event: Event) -> Answer | None:
        return None if event.result is None else Answer(event.result, await self.keeper.keep(event.result))


async def while_there(request: Request, items: AsyncGenerator[Item]) -> AsyncGenerator[Item]:
    """Yield `items` as long as the client of `request`, whose body was read, is connected.

    Raises ClientLeftError, and closes `items`, as soon as it is not.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    upcoming: asyncio.Task[Item] | None = None
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(items))
            await asyncio.wait({upcoming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not upcoming.done():
                raise ClientLeftError
            try:
                item = upcoming.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        gone.cancel()
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            await asyncio.wait({upcoming})
        await items.aclose()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
