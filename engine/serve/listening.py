"""A port or a socket that is listened to, and an end that clients are told of before it comes."""

import asyncio
import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from .config import ServeConfig
from .connections import BACKLOG, patient

_log = logging.getLogger(__name__)

_LAST_WORDS = 10
"""Seconds after the deadline for answers that say that their requests were cancelled."""


class Ending(Protocol):
    """What can be about to end, and then is not ready."""

    draining: bool


class Listener(uvicorn.Server):
    """A server that is unready for a while before it stops listening, and then lets what runs finish.

    served: what is told that it is about to end. socket: a Unix socket, in place of the operator's port.
    """

    def __init__(self, app: FastAPI, config: ServeConfig, served: Ending, socket: Path | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=config.listen.host,
                port=config.listen.port,
                uds=None if socket is None else str(socket),
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                http="h11" if socket is not None else patient(config.listen.patience, config.listen.connections),
                timeout_graceful_shutdown=round(config.drain.deadline) + _LAST_WORDS,
            )
        )
        self.served, self.grace = served, config.drain.grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Become unready at the first signal and stop listening after the grace; at once at a second one."""
        if self.served.draining or sig == signal.SIGINT:
            self.stop()
            return
        self.served.draining = True
        _log.info("asked to stop: unready now, listening for %g s more", self.grace)
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self.grace, self._end_grace)

    def _end_grace(self) -> None:
        if not self.should_exit:  # else a second signal ended it, and what runs is waited for
            self.stop()

    def stop(self) -> None:
        """Stop listening; when asked again, stop waiting too."""
        self.force_exit = self.should_exit
        self.should_exit = self.served.draining = True
