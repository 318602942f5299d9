"""Server-sent events of one picture: drafts and previews as partial images, then the picture or an error."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

from ..api.event import Event, State
from .answers import Answers, mask_text
from .errors import ApiError, told
from .leaving import ClientLeftError
from .running import Told

_QUIET = 15.0
"""Seconds without an event after which a comment keeps proxies from closing the connection."""


class Pictures:
    """Turns what happens to one request into events of the API. name: "image_generation" or "image_edit"."""

    def __init__(self, answers: Answers, name: str) -> None:
        self.answers, self.name = answers, name
        self._left = answers.body.partial_images or 0
        self._sent = 0

    async def hear(self, heard: Told) -> dict[str, Any] | None:
        """The API's event for what was heard, None where there is none for it. Raises ApiError for a refusal."""
        if heard.answer is not None:
            return await asyncio.to_thread(self.answers.completed, heard.answer, self.name)
        event = heard.event
        if event.picture is None or not self._left or event.state not in (State.SEGMENTED, State.FINALISING):
            return None
        self._left -= 1
        self._sent += 1
        said = _said(event, mask=self.answers.body.twig.mask)
        return await asyncio.to_thread(self.answers.partial, event.picture, self._sent - 1, self.name, said)


async def event_stream(
    first: Told, rest: AsyncGenerator[Told], pictures: Pictures, note: Callable[[ApiError], None]
) -> AsyncIterator[bytes]:
    """Yield the bytes of a stream whose first event was heard already; errors are noted and become its last event."""
    upcoming: asyncio.Task[Told] | None = None
    try:
        heard = first
        while True:
            if (event := await pictures.hear(heard)) is not None:
                yield _written(event["type"], event)
            if heard.answer is not None:
                return
            upcoming = asyncio.ensure_future(anext(rest))
            while not (await asyncio.wait({upcoming}, timeout=_QUIET))[0]:
                yield b": still drawing\n\n"
            heard = upcoming.result()
    except ClientLeftError:
        return
    except Exception as error:  # the status is sent already, so that nobody else could tell the client
        answer = error if isinstance(error, ApiError) else told(error)
        note(answer)
        yield _written("error", answer.body)
    finally:
        await asyncio.shield(_apart(_left(upcoming, rest)))


async def _left(upcoming: "asyncio.Task[Told] | None", rest: AsyncGenerator[Told]) -> None:
    """Take back what was asked for last, and only then close: a generator that runs cannot be closed."""
    if upcoming is not None and not upcoming.done():
        upcoming.cancel()
        await asyncio.wait({upcoming})
    await rest.aclose()


def _apart(ending: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Run to its end what the framework, which cancels a stream's task again at each of its awaits, would cut off."""
    task = asyncio.ensure_future(ending)
    _endings.add(task)
    task.add_done_callback(_endings.discard)
    return task


_endings: "set[asyncio.Task[None]]" = set()
"""Held until they are done, for the event loop holds tasks weakly."""


def _said(event: Event, mask: bool) -> dict[str, Any]:
    """What Twig says of a draft, or of a preview."""
    if event.state is State.SEGMENTED:
        shape = {"mask": mask_text(event.mask)} if mask and event.mask is not None else {}
        return {"stage": "draft", **shape}
    return {"stage": "final", "step": event.step, "steps": event.steps, "attempt": event.attempt}


def _written(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n".encode()
