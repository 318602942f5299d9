"""The routes by which a client asks after its jobs, and calls them off."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..service import Generating, service_of

router = APIRouter()


@router.get("/v1/twig/jobs/{id}")
async def look(request: Request, id: str, key: Generating) -> Response:
    """What is known of a job, with its answer when it is done."""
    return JSONResponse(await service_of(request).desk.look(id, key), headers={"cache-control": "no-store"})


@router.delete("/v1/twig/jobs/{id}")
async def drop(request: Request, id: str, key: Generating) -> Response:
    """Call a job off, or forget its answer where it has ended."""
    service = service_of(request)
    told, unbegun = await service.desk.drop(id, key)
    service.worker.call_off(id)
    if unbegun is not None:
        await service.of(unbegun.body).runner.admission.give_back(key, unbegun.request)
    return JSONResponse(told)
