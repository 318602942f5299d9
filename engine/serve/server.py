"""The process: an engine loaded, a port listened to, and an end that loses nothing."""

import asyncio
import logging
import signal
from socket import socket
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from ..api.errors import InvalidRequestError
from ..batching.scheduler import Limits
from ..engine import Engine
from .app import application
from .bodies import ImageBody
from .config import ServeConfig
from .keys import LOCAL, Keys
from .logs import log_as_json
from .service import Service, is_loopback

_log = logging.getLogger(__name__)

_LAST_WORDS = 10
"""Seconds after the deadline for answers that say that their requests were cancelled."""


def check(config: ServeConfig) -> None:
    """Find what is wrong with a configuration before a model is loaded.

    Raises InvalidRequestError for a port that the world could reach without keys, and what reading the keys raises.
    """
    if config.listen.keys is None:
        if not is_loopback(config.listen.host):
            raise InvalidRequestError(
                f"listen.host: {config.listen.host} can be reached by others, which takes keys: make one with "
                "`twig keys add` and name their file as listen.keys, or listen to 127.0.0.1"
            )
        return
    if not Keys(config.listen.keys).all():
        raise InvalidRequestError(f"listen.keys: {config.listen.keys} holds no key; make one with `twig keys add`")


def load(config: ServeConfig) -> Engine:
    """The engine that a configuration names, on a GPU if there is one and nothing else is said."""
    model, bounds = config.model, config.bounds
    parts = {name: getattr(model, name) for name in ("controlnet", "segmenter", "calibration", "registry")}
    return Engine.from_pretrained(
        model.path,
        **parts,
        device=model.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=getattr(torch, model.dtype),
        limits=Limits(slots=model.slots, rows=model.rows, waiting=model.waiting),
        max_steps=bounds.steps,
        max_pixels=bounds.pixels,
    )


def serve(config: ServeConfig, *, only_check: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; with `only_check`, load everything, say so and return.

    Raises what `check`, `load` and the keeping of records raise, before anything is listened to.
    """
    check(config)
    engine = load(config)
    app = application(engine, config)
    service: Service = app.state.service
    _check_drawing(service)
    service.prepare()
    if only_check:
        return
    log_as_json()
    Server(app, config).run()


def _check_drawing(service: Service) -> None:
    """What clients get who say nothing must be something that this model draws, and its rule one that it measures."""
    service.engine.engine.admit(service.asking.request(ImageBody(prompt=""), LOCAL))


class Server(uvicorn.Server):
    """A server that is unready for a while before it stops listening, and then lets what runs finish."""

    def __init__(self, app: FastAPI, config: ServeConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=config.listen.host,
                port=config.listen.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(config.drain.deadline) + _LAST_WORDS,
            )
        )
        self.service: Service = app.state.service
        self.grace, self.deadline = config.drain.grace, config.drain.deadline

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Become unready at the first signal and stop listening after the grace; at once at a second one."""
        if self.service.draining or sig == signal.SIGINT:
            self.stop()
            return
        self.service.draining = True
        _log.info("asked to stop: unready now, listening for %g s more", self.grace)
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self.grace, self.stop)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop listening and let what runs finish; what has not within the deadline is cancelled, and answered so."""
        ending = asyncio.ensure_future(self.service.engine.close(deadline=self.deadline))
        await super().shutdown(sockets)
        await ending

    def stop(self) -> None:
        """Stop listening; when asked again, stop waiting too."""
        self.force_exit = self.should_exit
        self.should_exit = self.service.draining = True
