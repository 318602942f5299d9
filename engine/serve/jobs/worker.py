"""Runs jobs beside what clients wait for, holds them by a lease that ends with the process, and forgets old answers."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from ...api.errors import EngineBusyError, EngineClosedError, TwigError
from ...api.result import Verdict
from ..answers import Answer
from ..bodies import ImageBody
from ..errors import SERVER, ApiError, told
from ..running import Told
from ..served import Served
from .desk import Desk, Ticket
from .store import Job

ATTEMPTS = 3
"""How often a job is begun that takes its server with it."""

_POLL, _SWEEP, _SWEPT = 1.0, 300.0, 500
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
        await asyncio.gather(*self.running.values(), return_exceptions=True)
        for task in others:
            task.cancel()

    def call_off(self, id: str) -> None:
        """Stop a job that its client called off, at once where it runs here."""
        if (task := self.running.get(id)) is not None:
            task.cancel()

    # --- taking ---

    async def _take_all(self) -> None:
        while True:
            self.desk.came.clear()
            try:
                while not self._stopping() and len(self.running) < self.desk.config.running and await self._take():
                    pass
            except (TwigError, OSError) as error:
                _log.error("no job can be taken: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.desk.came.wait(), _POLL)

    async def _take(self) -> bool:
        now = time.time()
        taking = asyncio.to_thread(self.desk.store.take, self.desk.owner, now, now + self.desk.config.lease)
        job = await asyncio.shield(taking)
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
        before = list(self.running)
        until = time.time() + self.desk.config.lease
        held = await asyncio.to_thread(self.desk.store.renew, self.desk.owner, until)
        for id in before:
            if id not in held:
                self.call_off(id)

    async def _sweep(self) -> None:
        before = time.time() - 3600 * self.desk.config.keep
        while old := await asyncio.to_thread(self.desk.store.old, before, _SWEPT):
            await asyncio.to_thread(self.desk.forget, old)

    # --- running ---

    async def _run(self, job: Job) -> None:
        try:
            code, body = await self._answered(job)
            await asyncio.to_thread(self._finish, job, code, body)
        except (StoppedError, EngineBusyError, EngineClosedError):
            await asyncio.to_thread(self.desk.store.release, job.id, self.desk.owner, time.time())
        except Exception:
            _log.exception("job %s could not be brought to an end; its lease will run out", job.id)

    async def _answered(self, job: Job) -> tuple[int, dict[str, Any]]:
        """Draw a job and word its answer: a status and a body. Raises StoppedError where it was cut off."""
        if job.attempts > ATTEMPTS:
            message = f"this was begun {ATTEMPTS} times, and the server ended before it did each time"
            return 500, ApiError(500, "gave_up", message, type=SERVER).body
        data = await asyncio.to_thread(self.desk.artefacts.get, f"{job.id}-request")
        if data is None:
            return 500, ApiError(500, "request_lost", "what was asked for is not kept any more", type=SERVER).body
        try:
            ticket = await asyncio.to_thread(Ticket.from_bytes, data)
            served = self._model(ticket.body)
            answers = await self._drawn(served.runner.job(ticket.request, job.tenant))
            return 200, await asyncio.to_thread(served.answers(ticket.body, ticket.request).whole, answers)
        except ApiError as error:
            return error.status, error.body
        except (EngineBusyError, EngineClosedError):
            raise
        except TwigError as error:
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


async def _again(seconds: float, work: Callable[[], Any]) -> None:
    """Do it at once and every so many seconds; what it meets is logged, and does not end it."""
    while True:
        try:
            await work()
        except (TwigError, OSError) as error:
            _log.error("%s: %s", work.__name__.strip("_"), error)
        await asyncio.sleep(seconds)
