"""What a running server is made of, and who may ask it for what."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request

from ..api.choices import Role
from ..engine import Engine
from .bodies import ImageBody
from .checking import is_loopback
from .config import ServeConfig
from .errors import KEY, ApiError
from .jobs.desk import Desk
from .jobs.worker import Worker
from .keeping import Keeper
from .keys import LOCAL, Key, Keys
from .observing import Metrics
from .served import Load, Served, load_of, names_of, picked
from .tenants import TenantCounts, Tenants

READY = "ready"
"""How a server stands that requests should be sent to."""


@dataclass
class Service:
    """The parts of one server. models: by every name, the first one's first; warm: whether they were all made ready.

    draining: whether it is about to end.
    """

    config: ServeConfig
    models: dict[str, Served]
    keeper: Keeper
    metrics: Metrics
    keys: Keys | None
    desk: Desk
    worker: Worker = field(init=False)
    warm: bool = False
    draining: bool = False
    started: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def over(cls, engines: Sequence[Engine], config: ServeConfig, tenants: Tenants | None = None) -> "Service":
        """Put the parts together around engines, those of `config.views` in their order.

        tenants: where keys' limits are counted, here unless it says elsewhere.
        """
        keeper, tenants = Keeper(config.records), tenants or TenantCounts()
        each = [Served.over(*pair, tenants, keeper) for pair in zip(engines, config.views, strict=True)]
        desk = Desk(config.jobs, config.records.folder)
        service = cls(
            config,
            {name: served for served in each for name in names_of(served.config)},
            keeper,
            Metrics({served.name: served.engine.engine for served in each}),
            None if config.listen.keys is None else Keys(config.listen.keys),
            desk,
        )
        service.worker = Worker(desk, service.of, lambda: not service.ready)
        service.metrics.watch("twig_jobs_waiting", "Jobs in the background that wait.", desk.waiting)
        service.metrics.watch("twig_jobs_running", "Jobs that this server draws.", lambda: len(service.worker.running))
        for place in (keeper.records, desk.places):
            name, help = f"twig_{place.name}_unavailable", f"Whether {place.name} cannot be kept now."
            service.metrics.watch(name, help, place.unavailable)
        return service

    @property
    def each(self) -> tuple[Served, ...]:
        """The models, each once."""
        return tuple(self.models[view.model.name] for view in self.config.views)

    @property
    def first(self) -> Served:
        """The model of those who name none."""
        return self.each[0]

    def of(self, body: ImageBody) -> Served:
        """The model that a body is for. Raises ApiError for one that there is not."""
        return picked(self.models, body.model)

    def prepare(self) -> None:
        """Raise RecordError or OSError unless records and jobs can be kept."""
        self.keeper.prepare()
        self.desk.check()

    async def start(self) -> None:
        """Let every engine run."""
        for served in self.each:
            await served.engine.__aenter__()

    def warm_up(self) -> None:
        """Make every engine ready, one after the other, unless all of it is to end."""
        for served in self.each:
            if self.draining:
                return
            served.warm_up()

    async def close(self, deadline: float) -> None:
        """Let every engine finish what it has, and cancel what it has not finished within `deadline` seconds."""
        await asyncio.gather(*(served.engine.close(deadline=deadline) for served in self.each))

    @property
    def load(self) -> Load:
        """What all engines have before them."""
        return load_of([served.engine.engine for served in self.each])

    @property
    def alive(self) -> bool:
        """Whether every engine runs."""
        return all(served.engine.alive for served in self.each)

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.standing == READY

    @property
    def standing(self) -> str:
        """Whether requests should be sent here, or why not, in words that anybody may read."""
        if self.draining:
            return "shutting down"
        if not self.warm:
            return "warming up"
        if not self.alive:
            return "the engine does not run"
        why = self.keeper.records.why
        return READY if why is None else f"records cannot be kept: {why}"


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
    host, origin = request.headers.get("host"), request.headers.get("origin")
    addresses = ([f"//{host}"] if host else []) + ([origin] if origin else [])
    if not all(_is_local(address) for address in addresses):
        message = "this server has no keys and answers its own machine alone, by its name localhost"
        raise ApiError(403, "not_local", message, type=KEY)


def _is_local(address: str) -> bool:
    """Whether an address names this machine; what is none names nothing."""
    try:
        host = urlsplit(address).hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)
