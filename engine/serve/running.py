"""One request's way through the server: admitted, run, its spans and its record kept, left when its client leaves."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple

from ..aio import AsyncEngine
from ..api.errors import EngineBusyError, EngineClosedError
from ..api.event import Event
from ..api.request import GenerationRequest
from ..door import Admission as Admitted
from .admission import Admission
from .answers import Answer
from .errors import UnavailableError
from .keeping import Keeper
from .keys import Key
from .observing import Spans, admission_span
from .spending import Spending


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

        What it does not use of its key's rows is given back. Raises ApiError and the engine's errors before the first
        event, UnavailableError also where the record of a picture cannot be written: then nobody is told of it.
        """
        self.keeper.records.check()
        async with AsyncExitStack() as stack:
            with admission_span() as span:
                place = await stack.enter_async_context(self.admission.place(key, request))
                span.set_attribute("twig.rows.estimated", place.rows)
            spending = Spending(place.admitted, place.rows)
            stack.callback(lambda: self.admission.tenants.give_back(key.id, spending.unspent))
            drawn = await stack.enter_async_context(aclosing(self._drawn(place.admitted, spending)))
            try:
                async for told in drawn:
                    place.entered()
                    yield told
            except UnavailableError:
                spending.forgive()
                raise

    async def job(self, request: GenerationRequest, tenant: str) -> AsyncGenerator[Told]:
        """Yield what happens to a request whose rows the key `tenant` paid when it handed the job in.

        What was not used is given back, unless it is drawn another time: the engine takes no more or stops it, or its
        record cannot be written.
        """
        self.keeper.records.check()
        engine = self.engine.engine
        admitted = await asyncio.to_thread(engine.admit, request)
        spending = Spending(admitted, engine.estimate(admitted))
        try:
            async with aclosing(self._drawn(admitted, spending)) as drawn:
                async for told in drawn:
                    yield told
        except (EngineBusyError, EngineClosedError, UnavailableError):
            spending.keep()
            raise
        finally:
            self.admission.tenants.give_back(tenant, spending.unspent)

    async def _drawn(self, admitted: Admitted, spending: Spending) -> AsyncGenerator[Told]:
        """Yield what happens to a request that is let in, but for steps that show nothing."""
        spans = Spans()
        try:
            async with aclosing(self.engine.stream(admitted, spending.hear)) as events:
                async for event in events:
                    spans.hear(event)
                    yield Told(event, await self._answer(event))
        finally:
            spans.close()

    async def _answer(self, event: Event) -> Answer | None:
        if event.result is None:
            return None
        return Answer(event.result, await self.keeper.keep(event.result, self.engine.engine))
