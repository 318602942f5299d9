"""Server-sent events of a request: drafts and previews as partial images, then its pictures or an error."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

from ..api.event import Event, State
from .answers import UNJUDGED, Answer, Answers, mask_text
from .errors import ApiError, told
from .leaving import ClientLeftError
from .running import Told

_QUIET = 15.0
"""Seconds without an event after which a comment keeps proxies from closing the connection."""


class Pictures:
    """Turns what happens to one request into events of the API. name: "image_generation" or "image_edit".

    Of several pictures each has its own partial images, numbered from 0, the draft being the first one's, and its own
    completed event; `twig.index` says which is meant. whole: whether all of them have ended.
    """

    def __init__(self, answers: Answers, name: str) -> None:
        self.answers, self.name = answers, name
        self._sent = Counter[int]()
        self._ended: list[Answer] = []

    @property
    def whole(self) -> bool:
        """Whether nothing more comes."""
        return len(self._ended) == self.answers.request.num_images

    async def hear(self, heard: Told) -> list[dict[str, Any]]:
        """The API's events for what was heard. Raises ApiError where no picture ends otherwise than in an error."""
        if heard.answer is not None:
            self._ended.append(heard.answer)
            return await asyncio.to_thread(self._completed, heard.answer)
        event, number = heard.event, self._sent[heard.event.index]
        shown = event.state in (State.SEGMENTED, State.FINALISING) and number < (self.answers.body.partial_images or 0)
        if event.picture is None or not shown:
            return []
        self._sent[event.index] += 1
        said = _said(event, mask=self.answers.body.twig.mask)
        return [await asyncio.to_thread(self.answers.partial, event.picture, number, self.name, said)]

    def _completed(self, answer: Answer) -> list[dict[str, Any]]:
        """Events of pictures that have ended; those that were not judged wait until it is known whether any was."""
        if self.whole:
            self.answers.check(self._ended)
        judged = [each for each in self._ended if each.result.verdict not in UNJUDGED]
        waiting = [each for each in self._ended if each.result.verdict in UNJUDGED]
        due = ([answer] if answer in judged else []) + (waiting if self.whole else [])
        return [self.answers.completed(each, self.name, first=each is (judged or self._ended)[0]) for each in due]


async def event_stream(
    first: Told, rest: AsyncGenerator[Told], pictures: Pictures, note: Callable[[ApiError], None]
) -> AsyncIterator[bytes]:
    """Yield the bytes of a stream whose first event was heard already; errors are noted and become its last event."""
    upcoming: asyncio.Task[Told] | None = None
    try:
        heard = first
        while True:
            for event in await pictures.hear(heard):
                yield _written(event["type"], event)
            if pictures.whole:
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
        return {"stage": "draft", "index": event.index, **shape}
    told = {"stage": "final", "index": event.index, "attempt": event.attempt}
    return told | {"step": event.step, "steps": event.steps}


def _written(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n".encode()
