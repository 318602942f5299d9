"""What a running server is made of, and who may ask it for what."""

import time
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request

from ..aio import AsyncEngine
from ..api.choices import Role
from ..api.request import GenerationRequest
from ..engine import Engine
from .admission import Admission
from .answers import Answers
from .asking import Asking
from .bodies import ImageBody
from .checking import is_loopback
from .config import ServeConfig
from .errors import KEY, ApiError
from .jobs.desk import Desk
from .jobs.worker import Worker
from .keeping import Keeper
from .keys import LOCAL, Key, Keys
from .observing import Metrics
from .running import Runner


@dataclass
class Service:
    """The parts of one server. warm: whether the engine was made ready; draining: whether it is about to end."""

    config: ServeConfig
    engine: AsyncEngine
    asking: Asking
    runner: Runner
    keeper: Keeper
    metrics: Metrics
    keys: Keys | None
    desk: Desk
    worker: Worker = field(init=False)
    warm: bool = False
    draining: bool = False
    started: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def over(cls, engine: Engine, config: ServeConfig) -> "Service":
        """Put the parts together around an engine."""
        served, components = AsyncEngine(engine), engine.components
        calibrated = components.calibration is not None and bool(components.calibration.limits)
        keeper = Keeper(engine, config.records)
        desk = Desk(config.jobs, config.records.folder)
        service = cls(
            config,
            served,
            Asking(config, components.size, calibrated),
            Runner(served, Admission(engine, config.bounds.wait), keeper),
            keeper,
            Metrics(engine),
            None if config.listen.keys is None else Keys(config.listen.keys),
            desk,
        )
        service.worker = Worker(desk, service.runner.drawn, service.answers, lambda: not service.ready)
        service.metrics.watch("twig_jobs_waiting", "Jobs in the background that wait.", desk.store.waiting)
        service.metrics.watch("twig_jobs_running", "Jobs that this server draws.", lambda: len(service.worker.running))
        return service

    def prepare(self) -> None:
        """Raise RecordError or OSError unless records and jobs can be kept."""
        self.keeper.prepare()
        self.desk.check()

    def warm_up(self) -> None:
        """Make the engine ready, also for long prompts where the file says how long."""
        self.engine.engine.warmup(long_prompts=(self.config.model.prompt_chunks or 1) > 1)

    def answers(self, body: ImageBody, request: GenerationRequest) -> Answers:
        """What words the answer to a body, of which `request` was made."""
        tokens = self.engine.engine.prompt_tokens(request)
        return Answers(body, request, self.config.drawing.review == "deliver", tokens)

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.warm and self.engine.alive and not self.draining


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


def note(request: Request, error: ApiError) -> None:
    """Count an error that a request is answered with, and have it told in the request's line of the log."""
    request.state.code = error.code
    service_of(request).metrics.errors.labels(error.code).inc()


def holder(role: Role) -> object:
    """A dependency: the key that a request brings, which must open `role`. Raises ApiError."""

    async def check(request: Request) -> Key:
        key = _key(request)
        if role not in key.roles:
            message = f"this key opens {', '.join(key.roles)}, not {role}"
            raise ApiError(403, "insufficient_permissions", message, type=KEY)
        request.state.tenant = key.name
        return key

    return Depends(check)


Generating = Annotated[Key, holder(Role.GENERATE)]
Auditing = Annotated[Key, holder(Role.AUDIT)]
Watching = Annotated[Key, holder(Role.METRICS)]


def _key(request: Request) -> Key:
    service = service_of(request)
    if service.keys is None:
        _check_local(request)
        return LOCAL
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    key = service.keys.find(text.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        message = "a key of this server is needed, as 'Authorization: Bearer twig_...'"
        raise ApiError(401, "invalid_api_key", message, type=KEY)
    return key


def _check_local(request: Request) -> None:
    """Without keys, let no page of a browser in that another site made, whatever name it gave this machine."""
    origin = request.headers.get("origin")
    hosts = [request.url.hostname] + ([urlsplit(origin).hostname] if origin else [])
    if not all(host is not None and is_loopback(host) for host in hosts):
        message = "this server has no keys and answers its own machine alone, by its name localhost"
        raise ApiError(403, "not_local", message, type=KEY)
