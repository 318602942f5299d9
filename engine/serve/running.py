"""One request's way through the server: admitted, run, its spans and its record kept, left when its client leaves."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple, TypeVar

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
