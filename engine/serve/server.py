"""The process: engines loaded, a port listened to, and an end that loses nothing."""

import asyncio
from pathlib import Path
from socket import socket as Socket

import torch
from fastapi import FastAPI

from ..api.errors import InvalidRequestError
from ..api.reading import shown
from ..batching.capacity import usual_budget, usual_limits
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


def load_all(config: ServeConfig) -> list[Engine]:
    """The engines of a configuration, one for each of its models, in the order of `views`."""
    devices = [view.model.device for view in config.views]
    return [load(view, share=devices.count(view.model.device)) for view in config.views]


def load(config: ServeConfig, share: int = 1) -> Engine:
    """The engine that a view of one model names, on a GPU if there is one and nothing else is said.

    share: how many engines have the device together, each taking as small a part of it for sizes of pictures.
    """
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
        backend=model.backend,
        precision=model.precision,
        limits=Limits(
            slots=model.slots or usual.slots,
            rows=model.rows or usual.rows,
            waiting=model.waiting,
            company=usual.company if model.company is None else model.company,
        ),
        max_steps=bounds.steps,
        max_pixels=bounds.pixels,
        max_prompt_chunks=model.prompt_chunks,
        arena_budget=usual_budget(device) // share,
        program_budget=model.program_budget,
    )


def on_cpu(config: ServeConfig) -> bool:
    """Whether all engines of a configuration run on CPUs, as without a GPU where nothing is said."""
    devices = {view.model.device for view in config.views}
    return devices <= ({"cpu"} if torch.cuda.is_available() else {"cpu", None})


def serve(config: ServeConfig, *, only_check: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; with `only_check`, load everything, say so and return.

    Raises what `check`, `load` and the keeping of records raise, before anything is listened to.
    """
    check(config)
    app = application(load_all(config), config)
    service: Service = app.state.service
    check_drawing(service)
    service.prepare()
    if only_check:
        return
    log_as_json()
    Server(app, config).run()


def check_drawing(service: Service) -> None:
    """What clients get who say nothing must be something that each model draws, and its rule one that it measures."""
    for served in service.each:
        try:
            served.engine.engine.admit(served.asking.request(ImageBody(prompt=""), LOCAL))
        except InvalidRequestError as error:
            if len(service.each) == 1:
                raise
            raise InvalidRequestError(f"model {shown(repr(served.name))}: {error}") from error


class Server(Listener):
    """The server of one process."""

    def __init__(self, app: FastAPI, config: ServeConfig, socket: Path | None = None) -> None:
        self.service: Service = app.state.service
        super().__init__(app, config, self.service, socket)
        self.deadline = config.drain.deadline

    async def shutdown(self, sockets: list[Socket] | None = None) -> None:
        """Stop listening and let what runs finish; what has not within the deadline is cancelled, and answered so."""
        ending = asyncio.ensure_future(self.service.close(self.deadline))
        await super().shutdown(sockets)
        await ending
