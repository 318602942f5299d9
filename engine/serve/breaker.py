"""A circuit breaker before a place that answers depend on: a disk, a database or a storage, which may be gone."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from ..api.errors import RecordError
from .errors import UnavailableError

Result = TypeVar("Result")
Given = ParamSpec("Given")

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds between two looks at a place that cannot be used."""


class Breaker:
    """Runs what touches a place, in threads of its own, so that one that hangs keeps nobody else waiting.

    Once something failed there, everybody is refused at once, until `probe`, which raises where the place cannot be
    used, finds that it can. name: of what is kept there, in the plural. why: it cannot be, None while it can; without
    names of files and hosts.
    """

    def __init__(self, name: str, probe: Callable[[], None], threads: int) -> None:
        self.name, self._probe = name, probe
        self.why: str | None = None
        self._failing = False  # the same for its threads, at once
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"twig-{name}")
        self._closed = asyncio.Event()
        self._closed.set()
        self._looking: asyncio.Task[None] | None = None

    def unavailable(self) -> bool:
        """Whether the place cannot be used."""
        return self.why is not None

    def check(self) -> None:
        """Raise UnavailableError while the place cannot be used."""
        if self.why is not None:
            raise UnavailableError(self.name)

    async def run(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Do `work` to its end, whether or not somebody waits for it. Raises UnavailableError, and what `work` does."""
        self.check()
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._threads, self._tried, loop, partial(work, *args, **kwargs))
        return await asyncio.shield(working)

    async def closed(self) -> None:
        """Return as soon as the place can be used."""
        await self._closed.wait()

    def _tried(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Result]) -> Result:
        if self._failing:  # while this waited for its thread
            raise UnavailableError(self.name)
        try:
            return work()
        except (RecordError, OSError) as error:
            self._failing = True
            loop.call_soon_threadsafe(self._open, error)
            raise UnavailableError(self.name) from error

    def _open(self, error: Exception) -> None:
        self.why = _reason(error)
        if self._looking is None:
            _log.error("%s cannot be kept: %s", self.name, error)
            self._closed.clear()
            self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        """Look until the place can be used, at once and then again and again."""
        while not await self._found():
            await asyncio.sleep(_PAUSE)
        self._failing, self.why, self._looking = False, None, None
        self._closed.set()
        _log.info("%s can be kept again", self.name)

    async def _found(self) -> bool:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._probe)
        except Exception as error:  # whatever it is, nothing is kept there
            self.why = _reason(error)
            return False
        return True


def _reason(error: BaseException) -> str:
    """What the system said of it; what else an error says may name places, and is in the log alone."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__
    return "the server's log says why"
