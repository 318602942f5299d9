"""Clients that leave: what is done for nobody is stopped."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

Item = TypeVar("Item")

LEFT = 499
"""Status in logs of a request whose client did not wait for it."""


async def left(request: Request, error: Exception) -> Response:
    """What a client is answered that left before all of its body had come: nobody reads it, and it is no error."""
    return Response(status_code=LEFT)


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


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
