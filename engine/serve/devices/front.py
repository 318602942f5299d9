"""The front: what clients talk to. It chooses a device for each request and passes bytes on, both ways."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

import httpx2
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from ...batching.scheduler import Limits
from ..config import ServeConfig
from ..errors import SERVER, ApiError, draining
from ..leaving import LEFT, ClientLeftError, left, while_there
from ..served import names_of
from .choosing import asked, chosen
from .fleet import Fleet, Worker
from .load import LOAD
from .merging import merged

_log = logging.getLogger(__name__)

_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-connection"}
"""Headers that are of one connection and not of the message (RFC 9110, section 7.6.1)."""


@dataclass
class Front:
    """The parts of a front."""

    config: ServeConfig
    fleet: Fleet
    draining: bool = False

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here: one device is enough."""
        return bool(self.fleet.ready) and not self.draining

    @cached_property
    def views(self) -> dict[str, ServeConfig]:
        """The operator's file as it would be for each model alone, by all of its names."""
        return {name: view for view in self.config.views for name in names_of(view)}

    def worker_for(self, body: bytes) -> Worker:
        """The worker that gets a request, which is counted there at once. Raises ApiError where none takes any."""
        if not self.fleet.ready:
            raise draining() if self.draining else _none_ready()
        wanted = asked(body, self.views)
        slack = (wanted.view.model.rows or Limits().rows) * wanted.view.drawing.steps
        worker = chosen(self.fleet.ready, wanted.prompt, slack)
        worker.expect(wanted.rows)
        return worker


def front_application(front: Front) -> FastAPI:
    """The ASGI application of a front; its lifespan starts the devices and ends them."""
    app = FastAPI(lifespan=_lifespan, openapi_url=None, redirect_slashes=False)
    app.state.front = front
    app.add_api_route("/livez", _livez, methods=["GET", "HEAD"])
    app.add_api_route("/readyz", _readyz, methods=["GET", "HEAD"])
    app.add_api_route("/metrics", _metrics)
    app.add_api_route("/{path:path}", _passed_on, methods=["GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"])
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(ClientDisconnect, left)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    front: Front = app.state.front
    await front.fleet.start()
    try:
        yield
    finally:
        front.draining = True
        await front.fleet.stop()


async def _livez() -> Response:
    return JSONResponse({"status": "alive"})


async def _readyz(request: Request) -> Response:
    front = _front(request)
    states = {worker.name: worker.standing for worker in front.fleet.workers}
    why = "ready" if front.ready else "shutting down" if front.draining else "no device is ready"
    return JSONResponse({"status": why, "devices": states}, status_code=200 if front.ready else 503)


async def _metrics(request: Request) -> Response:
    """Every device's page as one, for whom the devices let see theirs."""
    front, pages = _front(request), {}
    restarts = GaugeMetricFamily("twig_device_restarts", "Times a device was started again.", labels=["device"])
    ready = GaugeMetricFamily("twig_device_ready", "Whether a device takes requests.", labels=["device"])
    for worker in front.fleet.workers:
        restarts.add_metric([worker.name], worker.restarts)
        ready.add_metric([worker.name], worker.ready)
    for worker in front.fleet.ready:
        try:
            answer = await worker.client.get("/metrics", headers=_headers(request), timeout=10)
        except httpx2.TransportError:
            continue
        if answer.status_code != 200:
            return Response(answer.content, answer.status_code, _kept(answer.headers))
        pages[worker.name] = answer.text
    if not pages:
        raise draining() if front.draining else _none_ready()
    return Response(merged(pages, [restarts, ready]), media_type=CONTENT_TYPE_LATEST)


async def _passed_on(request: Request) -> Response:
    front = _front(request)
    if request.url.path.startswith(LOAD.rpartition("/")[0]):
        raise ApiError(404, "not_found", f"{request.method} {request.url.path}: Not Found")
    body = await _body(request, front.config)
    worker = front.worker_for(body)
    outgoing = worker.client.build_request(
        request.method, httpx2.URL(_target(request)), headers=_headers(request), content=body
    )
    told = while_there(request, _exchange(worker, outgoing))
    try:
        head = await anext(told)
    except ClientLeftError:
        return Response(status_code=LEFT)
    assert isinstance(head, httpx2.Response)
    return StreamingResponse(_rest(told, head), head.status_code, _kept(head.headers))


async def _exchange(worker: Worker, outgoing: httpx2.Request) -> AsyncGenerator[httpx2.Response | bytes]:
    """The head of a worker's answer, then its bytes; closed early, the worker sees that its client has left.

    Raises ApiError where the worker is lost.
    """
    try:
        response = await worker.client.send(outgoing, stream=True)
        try:
            yield response
            async for chunk in response.aiter_raw():
                yield chunk
        finally:
            await response.aclose()
    except httpx2.TransportError as error:
        _log.error("the engine on %s was lost under a request", worker.name)
        raise _lost() from error


async def _rest(told: AsyncGenerator[httpx2.Response | bytes], head: httpx2.Response) -> AsyncIterator[bytes]:
    """The bytes of an answer; a stream of events whose worker is lost ends with an event that says so."""
    try:
        async for chunk in told:
            assert isinstance(chunk, bytes)
            yield chunk
    except ClientLeftError:
        return
    except ApiError as error:
        if not head.headers.get("content-type", "").startswith("text/event-stream"):
            raise  # what is cut short must look so
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n".encode()
    finally:
        await told.aclose()


async def _body(request: Request, config: ServeConfig) -> bytes:
    """A request's body. Raises ApiError for one that no device would read, before all of it has come."""
    data, most = bytearray(), max(config.bounds.body, config.bounds.upload)
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise ApiError(413, "body_too_large", f"the body is larger than the {most} bytes that are read here")
    return bytes(data)


def _headers(request: Request) -> list[tuple[str, str]]:
    """What a client said, as the device is to hear it; the body's length is said anew."""
    return [(name, value) for name, value in request.headers.items() if name not in _HOP | {"content-length", "expect"}]


def _kept(headers: httpx2.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP | {"date", "server"}}


def _target(request: Request) -> str:
    path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope["query_string"]
    return (path + (b"?" + query if query else b"")).decode("ascii", "replace")


def _front(request: Request) -> Front:
    front: Front = request.app.state.front
    return front


def _lost() -> ApiError:
    message = "the device that drew this was lost, and is started again; try again"
    return ApiError(503, "device_lost", message, type=SERVER, retry_after=1)


def _none_ready() -> ApiError:
    return ApiError(503, "not_ready", "no device is ready; try again", type=SERVER, retry_after=5)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
