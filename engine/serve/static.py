"""The page at `/`: files of this package, sent as they lie here, under headers that let nothing else in."""

import hashlib
from importlib.resources import files
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from .errors import ApiError

_KINDS = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Nothing is loaded from elsewhere, sent elsewhere, run that is no file of the page, or shown in another's frame."""


class _File(NamedTuple):
    content: bytes
    kind: str
    tag: str


def _read() -> dict[str, _File]:
    found = {}
    for path in files(__package__).joinpath("page").iterdir():
        content = path.read_bytes()
        found[path.name] = _File(
            content, _KINDS[path.name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        )
    return found


_FILES = _read()

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page itself."""
    return _sent(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def file(request: Request, name: str) -> Response:
    """What it is made of."""
    if name not in _FILES:
        raise ApiError(404, "not_found", "the page has no such file")
    return _sent(request, name)


def _sent(request: Request, name: str) -> Response:
    content, kind, tag = _FILES[name]
    headers = HEADERS | {"etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)
