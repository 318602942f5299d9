"""Runs jobs beside what clients wait for, holds them by a lease that ends with the process, and forgets old answers."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, ParamSpec

from ...api.errors import EngineBusyError, EngineClosedError
from ...api.result import Verdict
from ..answers import Answer
from ..bodies import ImageBody
from ..errors import SERVER, ApiError, UnavailableError, told
from ..running import Told
from ..served import Served
from .desk import Desk, Ticket
from .store import Job

ATTEMPTS = 3
"""How often a job is begun that takes its server with it."""

_POLL, _SWEEP, _SWEPT = 1.0, 300.0, 500
_LAST = 10.0
"""Seconds for what jobs end with when the engines have ended."""

Given = ParamSpec("Given")

_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """A job was not drawn to its end, and is to be drawn again."""


class Worker:
    """Takes jobs from a desk while there are any.

    model: the one that a body is for. stopping: whether nothing more is begun.
    """

    def __init__(self, desk: Desk, model: Callable[[ImageBody], Served], stopping: Callable[[], bool]) -> None:
        self.desk, self._model, self._stopping = desk, model, stopping
        self.running: dict[str, asyncio.Task[None]] = {}
        self._strays = frozenset[str]()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, in the event loop that runs."""
        beat, sweep = self.desk.config.lease / 3, min(_SWEEP, 3600 * self.desk.config.keep)
        self._tasks = [
            asyncio.create_task(self._take_all()),
            asyncio.create_task(_again(beat, self._renew)),
            asyncio.create_task(_again(sweep, self._sweep)),
        ]

    async def stop(self) -> None:
        """Wait for the jobs that run, which the engine ends; those that were cut off are queued again."""
        taking, *others = self._tasks
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking
        await self._end_all()
        for task in others:
            task.cancel()

    async def _end_all(self) -> None:
        """Wait for the jobs that run, but not for a place that cannot be used: their leases run out."""
        tasks = list(self.running.values())
        late = (await asyncio.wait(tasks, timeout=0 if self.desk.places.why else _LAST))[1] if tasks else set()
        for task in late:
            task.cancel()
        if late:
            _log.error("%d jobs could not be brought to an end; whoever finds their leases over draws them", len(late))
            await asyncio.wait(late)

    def call_off(self, id: str) -> None:
        """Stop a job that its client called off, at once where it runs here."""
        if (task := self.running.get(id)) is not None:
            task.cancel()

    # --- taking ---

    async def _take_all(self) -> None:
        while True:
            self.desk.came.clear()
            with suppress(UnavailableError):
                while not self._stopping() and len(self.running) < self.desk.config.running and await self._take():
                    pass
            with suppress(TimeoutError):
                await asyncio.wait_for(self.desk.came.wait(), _POLL)

    async def _take(self) -> bool:
        now = time.time()
        job = await self.desk.places.run(self.desk.store.take, self.desk.owner, now, now + self.desk.config.lease)
        if job is None:
            return False
        task = self.running[job.id] = asyncio.create_task(self._run(job))
        task.add_done_callback(lambda _: self._ended(job.id))
        return True

    def _ended(self, id: str) -> None:
        del self.running[id]
        self.desk.came.set()

    # --- holding and forgetting ---

    async def _renew(self) -> None:
        """Keep what is held; what was called off elsewhere, or taken by another server, is stopped."""
        before, until = list(self.running), time.time() + self.desk.config.lease
        held = await self.desk.places.run(self.desk.store.renew, self.desk.owner, until, list(self.desk.keys))
        for id in before:
            if id not in held:
                self.call_off(id)
        await self._release_strays(held.difference(before, self.running))

    async def _release_strays(self, unknown: frozenset[str]) -> None:
        """Queue again what is held and runs nowhere: a database that was lost while it gave a job gave it to nobody."""
        for id in unknown & self._strays:
            await self.desk.places.run(self.desk.store.release, id, self.desk.owner, time.time())
        self._strays = unknown

    async def _sweep(self) -> None:
        before = time.time() - 3600 * self.desk.config.keep
        while old := await self.desk.places.run(self.desk.store.old, before, _SWEPT):
            await self.desk.places.run(self.desk.forget, old)

    # --- running ---

    async def _run(self, job: Job) -> None:
        try:
            code, body = await self._answered(job)
        except (StoppedError, EngineBusyError, EngineClosedError, UnavailableError):
            await self._settle(self.desk.store.release, job.id, self.desk.owner, time.time())
        else:
            await self._settle(self._finish, job, code, body)

    async def _settle(self, work: Callable[Given, object], *args: Given.args, **kwargs: Given.kwargs) -> None:
        """Do what a job ends with, again where it could not be done until it can: what is drawn is not drawn again."""
        while True:
            try:
                await self.desk.places.run(work, *args, **kwargs)
                return
            except UnavailableError:
                await self.desk.places.closed()

    async def _answered(self, job: Job) -> tuple[int, dict[str, Any]]:
        """Draw a job and word its answer: a status and a body.

        Raises StoppedError where it was cut off, and UnavailableError where it cannot be read or recorded now.
        """
        if job.attempts > ATTEMPTS:
            message = f"this was begun {ATTEMPTS} times, and the server ended before it did each time"
            return 500, ApiError(500, "gave_up", message, type=SERVER).body
        data = await self.desk.places.run(self.desk.artefacts.get, f"{job.id}-request")
        if data is None:
            return 500, ApiError(500, "request_lost", "what was asked for is not kept any more", type=SERVER).body
        try:
            ticket = await asyncio.to_thread(Ticket.from_bytes, data)
            served = self._model(ticket.body)
            answers = await self._drawn(served.runner.job(ticket.request, job.tenant))
            return 200, await asyncio.to_thread(served.answers(ticket.body, ticket.request).whole, answers)
        except (StoppedError, EngineBusyError, EngineClosedError, UnavailableError):
            raise
        except ApiError as error:
            return error.status, error.body
        except Exception as error:  # whatever it is, a plain request would be told the same
            return told(error).status, told(error).body

    async def _drawn(self, events: AsyncGenerator[Told]) -> list[Answer]:
        async with aclosing(events) as drawn:
            answers = [heard.answer async for heard in drawn if heard.answer is not None]
        if any(answer.result.verdict is Verdict.CANCELLED for answer in answers):
            raise StoppedError
        return answers

    def _finish(self, job: Job, code: int, body: dict[str, Any]) -> None:
        """Keep the answer, then say so: whoever finds an answer here finds the only one."""
        self.desk.artefacts.put(f"{job.id}-answer", json.dumps(body, allow_nan=False).encode())
        if self.desk.store.finish(job.id, self.desk.owner, code, time.time()):
            self.desk.artefacts.delete([f"{job.id}-request"])


async def _again(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do it at once and every so many seconds, whenever the places of jobs can be used."""
    while True:
        with suppress(UnavailableError):
            await work()
        await asyncio.sleep(seconds)
