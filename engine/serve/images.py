"""The routes of the OpenAI images API: generations and edits, each answered at once or as a stream."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..api.reading import shown
from .bodies import ImageBody, from_form, from_json
from .errors import ApiError
from .jobs.desk import Ticket
from .jobs.idempotency import HEADER, fingerprint, job_id, name_of, once
from .keys import Key
from .leaving import LEFT, ClientLeftError, while_there
from .served import Served
from .service import Generating, Service, note, service_of
from .streaming import Pictures, event_stream
from .uploads import Uploads, decoded

GENERATION, EDIT = "image_generation", "image_edit"
_MOST_FIELDS, _MOST_TEXT = 64, 2**17
_IMAGE_NAMES = ("image", "image[]")

router = APIRouter()


@router.post("/v1/images/generations")
async def generations(request: Request, key: Generating) -> Response:
    """Draw pictures of a prompt."""
    _check_kind(request, "application/json")
    body = from_json(await request.body(), ImageBody)
    return await _answered(Asked(request, key, body, GENERATION), {})


@router.post("/v1/images/edits")
async def edits(request: Request, key: Generating) -> Response:
    """Draw pictures of a prompt that keep away from the shape of a photo, or of a mask over it."""
    _check_kind(request, "multipart/form-data")
    fields, files = await _form(request)
    body = from_form(fields, ImageBody)
    uploads = await asyncio.to_thread(decoded, files, service_of(request).config.bounds.upload_pixels)
    return await _answered(Asked(request, key, body, EDIT, uploads), files)


@dataclass(frozen=True)
class Asked:
    """What one request brought. name: of its events in a stream."""

    request: Request
    key: Key
    body: ImageBody
    name: str
    brought: Uploads | None = None


async def _answered(asked: Asked, files: Mapping[str, bytes]) -> Response:
    """Answer a request, or give the answer that its key of idempotency was given before."""
    text = asked.request.headers.get(HEADER)
    if text is None:
        return await _drawn(asked, None)
    if asked.body.stream:
        raise ApiError(
            400, "unsupported_parameter", "a stream is not kept: leave out the Idempotency-Key", param=HEADER
        )
    name = name_of(text, asked.key)
    desk = service_of(asked.request).desk
    return await once(desk, name, fingerprint(asked.body, files), lambda: _drawn(asked, job_id(name)))


async def _drawn(asked: Asked, job: str | None) -> Response:
    """Draw what was asked for, now or as a job, whose id may be known already."""
    service, body = service_of(asked.request), asked.body
    served = service.of(body)
    wanted = served.asking.request(body, asked.key, asked.brought)
    if body.twig.background:
        by_name = body.model_copy(update={"model": served.name})  # whichever is the first when it is drawn
        return await _handed_in(service, served, asked, Ticket(by_name, wanted), job)
    heard = while_there(asked.request, served.runner.events(wanted, asked.key))
    answers = served.answers(body, wanted)
    try:
        if body.stream:
            first = await anext(heard)  # so that a full queue is a status and not a broken stream
            stream = event_stream(first, heard, Pictures(answers, asked.name), partial(note, asked.request))
            return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})
        async with aclosing(heard):
            finished = [each.answer async for each in heard if each.answer is not None]
    except ClientLeftError:
        return Response(status_code=LEFT)
    return JSONResponse(await asyncio.to_thread(answers.whole, finished))


async def _handed_in(service: Service, served: Served, asked: Asked, ticket: Ticket, job: str | None) -> Response:
    """Take a job in, its rows paid; those of one that cannot be kept are given back."""
    admission = served.runner.admission
    rows = await admission.charge(asked.key, ticket.request)
    try:
        told = await service.desk.submit(ticket, asked.key, job)
    except BaseException:
        admission.tenants.give_back(asked.key.id, rows)
        raise
    return JSONResponse(told, status_code=202, headers={"location": f"/v1/twig/jobs/{told['id']}"})


def _check_kind(request: Request, wanted: str) -> None:
    """A body of another kind is not read; a page of a browser cannot send JSON here without being asked first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise ApiError(415, "unsupported_media_type", f"send {wanted} here, got {kind or 'nothing that says its kind'}")
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise ApiError(
            415, "unsupported_media_type", f"send the body as it is, it came with the coding {shown(coding)}"
        )


async def _form(request: Request) -> tuple[list[tuple[str, str]], dict[str, bytes]]:
    """Fields and files of a form. Raises ApiError for one that is broken, or holds more than there is use for."""
    fields: list[tuple[str, str]] = []
    files: dict[str, bytes] = {}
    try:
        async with request.form(max_files=4, max_fields=_MOST_FIELDS, max_part_size=_MOST_TEXT) as form:
            for name, value in form.multi_items():
                known = "image" if name in _IMAGE_NAMES else name
                if not isinstance(value, UploadFile) or known not in ("image", "mask"):
                    fields.append((name, value if isinstance(value, str) else "a file"))
                elif known in files:
                    message = f"{known}: one picture takes the draft's place, and several came"
                    raise ApiError(400, "unsupported_parameter", message, param=known)
                else:
                    files[known] = await value.read()
    except HTTPException as error:  # what Starlette makes of a form that it cannot read
        raise ApiError(400, "invalid_form", f"the form cannot be read: {error.detail}") from error
    return fields, files
