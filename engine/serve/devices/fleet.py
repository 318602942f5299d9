"""The workers, a process for each device: started, watched, started again where one is lost."""

import asyncio
import logging
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

from ..config import ServeConfig
from ..service import READY
from .counting import Counter
from .load import LOAD

_log = logging.getLogger(__name__)

_PROCESSOR, _THREADS = "cpu", "OMP_NUM_THREADS"

_AWAY = "not ready"
"""How a worker stands that says nothing."""

_LOOK = 0.25
"""Seconds between two looks at a worker's load."""

_PAUSES = (0.5, 2.0, 10.0, 30.0)
"""Seconds before a lost worker is started again, longer each time until it was ready once more."""


class Worker:
    """One device's process. standing: how its server stands, as that says itself. rows: of the UNet, due there: what it
    last told, and what was sent to it since.

    socket: where it listens. counter: the socket of the front's counts. environment: of the process.
    """

    def __init__(
        self, name: str, config: ServeConfig, socket: Path, counter: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self.config, self.socket, self.counter = name, config, socket, counter
        self._environment = environment
        transport = httpx2.AsyncHTTPTransport(uds=str(socket), limits=httpx2.Limits(max_connections=None))
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)
        self.standing, self.was_ready, self.restarts = _AWAY, False, 0
        self.rate = 0.0
        self._told, self._sent = 0, 0
        self._process: Process | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self.standing == READY

    @property
    def rows(self) -> int:
        """What is due on it."""
        return self._told + self._sent

    @property
    def pid(self) -> int | None:
        """Its process, None before it was started."""
        return None if self._process is None else self._process.pid

    def expect(self, rows: int) -> None:
        """Count rows that are on their way to it."""
        self._sent += rows

    async def start(self) -> None:
        """Start the process and hand it its configuration."""
        self.socket.unlink(missing_ok=True)
        words = ["-P", "-m", __package__ + ".worker", str(self.socket), str(self.counter)]
        # A session of its own: Ctrl-C is for the front, which lets it finish.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *words, stdin=PIPE, start_new_session=True, env=self._environment
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self.config.model_dump_json().encode() + b"\n")
        await self._process.stdin.drain()

    async def ended(self) -> int:
        """Wait for the process to end; return its exit code."""
        assert self._process is not None
        code = await self._process.wait()
        self.standing = _AWAY
        return code

    async def look(self) -> None:
        """Ask for its load; one that does not answer is not ready."""
        sent = self._sent
        try:
            answer = await self.client.get(LOAD, timeout=10)
            told = answer.raise_for_status().json()
        except (httpx2.HTTPError, ValueError):
            self.standing = _AWAY
            return
        self.standing, self.rate = told["standing"], told["rate"]
        self.was_ready |= self.ready
        self._told, self._sent = told["rows"], self._sent - sent

    def terminate(self) -> None:
        """Ask the process to finish and end."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)


def environment_of(device: str, devices: Sequence[str]) -> dict[str, str]:
    """What the process of one of `devices` finds in its environment: several on the processor share its cores evenly,
    unless `OMP_NUM_THREADS` is set."""
    sharing = devices.count(_PROCESSOR)
    if device != _PROCESSOR or sharing == 1 or _THREADS in os.environ:
        return dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return os.environ | {_THREADS: str(max(1, cores // sharing))}


class Fleet:
    """A worker for each of `devices`. failed: which did not start, and so the fleet does not either."""

    def __init__(self, config: ServeConfig, devices: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="twig-")
        self.failed, self._counter = asyncio.Event(), Counter(Path(self._folder.name) / "tenants")
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []
        self.workers = [
            Worker(
                f"{number}:{device}",
                config.on(device).with_("drain", grace=0),
                Path(self._folder.name) / f"{number}.sock",
                self._counter.place,
                environment_of(device, devices),
            )
            for number, device in enumerate(devices)
        ]

    @property
    def ready(self) -> list[Worker]:
        """Workers that take requests."""
        return [worker for worker in self.workers if worker.ready]

    async def start(self) -> None:
        """Start all of them, and begin to watch."""
        await self._counter.start()
        for worker in self.workers:
            await worker.start()
            self._tasks.append(asyncio.ensure_future(self._keep(worker)))
            self._tasks.append(asyncio.ensure_future(self._watch(worker)))

    async def stop(self) -> None:
        """Let every worker finish what it has, and end."""
        self._ending = True
        for worker in self.workers:
            worker.terminate()
        await asyncio.gather(*(worker.ended() for worker in self.workers))
        for task in self._tasks:
            task.cancel()
        for worker in self.workers:
            await worker.client.aclose()
        self._counter.close()
        self._folder.cleanup()

    async def _keep(self, worker: Worker) -> None:
        """Start a lost worker again, ever later while it does not become ready."""
        lost = 0
        while True:
            code = await worker.ended()
            if self._ending:
                return
            if not worker.was_ready:
                _log.critical("the engine on %s did not start", worker.name)
                self.failed.set()
                return
            _log.error("the engine on %s was lost, status %d; starting it again", worker.name, code)
            await asyncio.sleep(_PAUSES[min(lost, len(_PAUSES) - 1)])
            started = worker.restarts = worker.restarts + 1
            await worker.start()
            lost = 0 if await self._recovered(worker, started) else lost + 1

    async def _recovered(self, worker: Worker, started: int) -> bool:
        """Whether a worker that was started again became ready before it ended."""
        ending = asyncio.ensure_future(worker.ended())
        while not (worker.ready or ending.done()):
            await asyncio.wait({ending}, timeout=_LOOK)
        return worker.ready and worker.restarts == started

    async def _watch(self, worker: Worker) -> None:
        while True:
            await worker.look()
            await asyncio.sleep(_LOOK)
