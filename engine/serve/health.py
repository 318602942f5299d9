"""Whether the server lives and is ready, what it serves, and what it counts."""

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from .served import picked
from .service import READY, Auditing, Generating, Watching, service_of

router = APIRouter()


@router.api_route("/livez", methods=["GET", "HEAD"])
async def livez(request: Request) -> Response:
    """200 unless an engine's thread died, in which case nothing helps but a new process."""
    service = service_of(request)
    well = service.alive or service.draining
    return JSONResponse({"status": "alive" if well else "the engine does not run any more"}, 200 if well else 503)


@router.api_route("/readyz", methods=["GET", "HEAD"])
async def readyz(request: Request) -> Response:
    """200 while requests should be sent here: engines are warm and run, records can be kept, and no end is near.

    Where jobs cannot be kept, that is said beside it: pictures are drawn all the same.
    """
    service = service_of(request)
    answer = {"status": service.standing}
    if (why := service.desk.places.why) is not None:
        answer["jobs"] = f"cannot be kept: {why}"
    return JSONResponse(answer, status_code=200 if service.standing == READY else 503)


@router.get("/v1/models")
async def models(request: Request, key: Generating) -> Response:
    """Every model under its name and its aliases."""
    return JSONResponse({"object": "list", "data": [_model(name, request) for name in service_of(request).models]})


@router.get("/v1/models/{name}")
async def model(request: Request, name: str, key: Generating) -> Response:
    """One of them."""
    picked(service_of(request).models, name)
    return JSONResponse(_model(name, request))


@router.get("/metrics")
async def metrics(request: Request, key: Watching) -> Response:
    """What Prometheus scrapes."""
    return Response(await asyncio.to_thread(service_of(request).metrics.page), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/twig/records/{id}")
async def record(request: Request, id: str, key: Auditing) -> Response:
    """A picture's manifest, with its prompt, and the lines of the audit log that name it."""
    return JSONResponse(await service_of(request).keeper.find(id))


def _model(name: str, request: Request) -> dict[str, object]:
    return {"id": name, "object": "model", "created": service_of(request).started, "owned_by": "twig"}
