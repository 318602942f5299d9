"""The process: an engine loaded, a port listened to, and an end that loses nothing."""

import asyncio
from pathlib import Path
from socket import socket as Socket

import torch
from fastapi import FastAPI

from ..batching.capacity import usual_limits
from ..batching.scheduler import Limits
from ..engine import Engine
from ..loading import served_device
from .app import application
from .bodies import ImageBody
from .checking import check
from .config import PARTS, ServeConfig
from .keys import LOCAL
from .listening import Listener
from .logs import log_as_json
from .service import Service


def load(config: ServeConfig) -> Engine:
    """The engine that a configuration names, on a GPU if there is one and nothing else is said."""
    model, bounds = config.model, config.bounds
    parts = {name: getattr(model, name) for name in PARTS}
    if model.controlnets:
        first = [] if model.controlnet is None else [model.controlnet]
        parts["controlnet"] = [*first, *(f"{name}={place}" for name, place in model.controlnets.items())]
    device = served_device(model.device)
    usual = usual_limits(device)
    return Engine.from_pretrained(
        model.path,
        **parts,
        device=device,
        dtype=getattr(torch, model.dtype),
        limits=Limits(slots=model.slots or usual.slots, rows=model.rows or usual.rows, waiting=model.waiting),
        max_steps=bounds.steps,
        max_pixels=bounds.pixels,
        max_prompt_chunks=model.prompt_chunks,
    )


def on_cpu(config: ServeConfig) -> bool:
    """Whether a configuration's engines run on CPUs, as without a GPU where nothing is said."""
    return config.model.device == "cpu" or (config.model.device is None and not torch.cuda.is_available())


def serve(config: ServeConfig, *, only_check: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; with `only_check`, load everything, say so and return.

    Raises what `check`, `load` and the keeping of records raise, before anything is listened to.
    """
    check(config)
    engine = load(config)
    app = application(engine, config)
    service: Service = app.state.service
    check_drawing(service)
    service.prepare()
    if only_check:
        return
    log_as_json()
    Server(app, config).run()


def check_drawing(service: Service) -> None:
    """What clients get who say nothing must be something that this model draws, and its rule one that it measures."""
    service.engine.engine.admit(service.asking.request(ImageBody(prompt=""), LOCAL))


class Server(Listener):
    """The server of one engine."""

    def __init__(self, app: FastAPI, config: ServeConfig, socket: Path | None = None) -> None:
        self.service: Service = app.state.service
        super().__init__(app, config, self.service, socket)
        self.deadline = config.drain.deadline

    async def shutdown(self, sockets: list[Socket] | None = None) -> None:
        """Stop listening and let what runs finish; what has not within the deadline is cancelled, and answered so."""
        ending = asyncio.ensure_future(self.service.engine.close(deadline=self.deadline))
        await super().shutdown(sockets)
        await ending
