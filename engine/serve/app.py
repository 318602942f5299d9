"""The application: routes, errors in one shape, and engines that start and end with it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from ..api.errors import TwigError
from ..engine import Engine
from . import auditing, health, images, offering, static
from .config import ServeConfig
from .errors import ApiError, told
from .jobs import routes
from .leaving import left
from .middleware import Around
from .service import Service, note
from .tenants import Tenants


def application(engines: Sequence[Engine], config: ServeConfig, tenants: Tenants | None = None) -> FastAPI:
    """The ASGI application that serves `engines`, those of `config.views`, one to a process.

    tenants: as of `Service.over`. Its `state.service` is what it is made of.
    """
    service = Service.over(engines, config, tenants)
    app = FastAPI(lifespan=_lifespan, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    app.state.studies = {view.model.name: offering.study_of(view) for view in config.views}
    for part in (images, routes, health, offering, auditing, *([static] if config.page.shown else [])):
        app.include_router(part.router)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(TwigError, _failed)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Around, metrics=service.metrics, bounds=config.bounds)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the engines and warm them up while liveness is told already; end them within the operator's deadline."""
    service: Service = app.state.service
    await asyncio.to_thread(service.prepare)
    await service.start()
    warming = asyncio.ensure_future(_warm(service))
    service.worker.start()
    try:
        yield
    finally:
        service.draining = True
        await warming
        await service.close(service.config.drain.deadline)
        await service.worker.stop()


async def _warm(service: Service) -> None:
    await asyncio.to_thread(service.warm_up)
    service.warm = True


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(request, error)


async def _failed(request: Request, error: Exception) -> Response:
    return _answer(request, told(error))


async def _unrouted(request: Request, error: Exception) -> Response:
    """What the framework refuses: no such route, no such method."""
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    answer = _answer(request, ApiError(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}"))
    answer.headers.update(error.headers or {})  # which methods there are instead
    return answer


def _answer(request: Request, error: ApiError) -> Response:
    note(request, error)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
