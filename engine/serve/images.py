"""The routes of the OpenAI images API: generations and edits, each answered at once or as a stream."""

import asyncio
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..api.request import GenerationRequest
from .answers import Answers
from .bodies import ImageBody, from_form, from_json
from .errors import ApiError
from .keys import Key
from .leaving import LEFT, ClientLeftError, while_there
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
    return await _answered(request, key, body, None, GENERATION)


@router.post("/v1/images/edits")
async def edits(request: Request, key: Generating) -> Response:
    """Draw pictures of a prompt that keep away from the shape of a photo, or of a mask over it."""
    _check_kind(request, "multipart/form-data")
    fields, files = await _form(request)
    body = from_form(fields, ImageBody)
    service = service_of(request)
    uploads = await asyncio.to_thread(decoded, files, service.config.bounds.upload_pixels)
    return await _answered(request, key, body, uploads, EDIT)


async def _answered(request: Request, key: Key, body: ImageBody, brought: Uploads | None, name: str) -> Response:
    service = service_of(request)
    wanted = service.asking.request(body, key, brought)
    told = while_there(request, service.runner.events(wanted, key))
    answers = answers_of(service, body, wanted)
    try:
        if body.stream:
            first = await anext(told)  # so that a full queue is a status and not a broken stream
            stream = event_stream(first, told, Pictures(answers, name), partial(note, request))
            return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})
        async with aclosing(told):
            finished = [heard.answer async for heard in told if heard.answer is not None]
    except ClientLeftError:
        return Response(status_code=LEFT)
    return JSONResponse(await asyncio.to_thread(answers.whole, finished))


def answers_of(service: Service, body: ImageBody, wanted: GenerationRequest) -> Answers:
    """What words the answers to a request that a body stands for."""
    tokens = service.engine.engine.components.tokenizer(wanted.prompt, truncation=True, verbose=False).input_ids
    return Answers(body, wanted, service.config.drawing.review == "deliver", len(tokens))


def _check_kind(request: Request, wanted: str) -> None:
    """A body of another kind is not read; a page of a browser cannot send JSON here without being asked first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise ApiError(415, "unsupported_media_type", f"send {wanted} here, got {kind or 'nothing that says its kind'}")


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
