"""What an auditor looks for: lines of the log, whether its chain is whole, manifests as they lie."""

import asyncio
import json
from collections import deque
from typing import Any

from fastapi import APIRouter, Request
from pydantic import AwareDatetime, Field
from starlette.responses import JSONResponse, Response

from ..api.reading import MAX_JSON
from ..api.result import Verdict
from ..api.settings import Settings
from ..api.writing import read_regular
from ..records.audit import AuditLog, AuditRecord
from ..records.stores import Query
from .bodies import from_json
from .service import Auditing, service_of

_PRIVATE = {"cache-control": "no-store"}

router = APIRouter()


class AuditSearch(Settings):
    """Which lines are wanted: those that agree with all that is said, the latest first.

    prompt: exactly this one. model: first digits of its SHA-256. nearest: id of a registered work. since, until: times
    with their zone, `until` itself left out. before: lines of smaller numbers, to read on. limit: most lines.
    """

    prompt: str | None = Field(default=None, max_length=32_000)
    verdict: Verdict | None = None
    model: str | None = Field(default=None, pattern=r"^[0-9a-f]{1,64}$")
    nearest: str | None = Field(default=None, max_length=512)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    before: int | None = Field(default=None, ge=1)
    limit: int = Field(default=50, ge=1, le=500)

    def query(self, log: AuditLog) -> Query:
        """The same as the log keeps it."""
        return Query(
            prompt_hmac=None if self.prompt is None else log.prompt_hmac(self.prompt),
            model=self.model,
            verdict=self.verdict,
            nearest=self.nearest,
            since=self.since,
            until=self.until,
        )


@router.post("/v1/twig/audit/search")
async def search(request: Request, key: Auditing) -> Response:
    """Lines of the log. Asked for in a body, since no prompt belongs into an address."""
    wanted = from_json(await request.body(), AuditSearch)
    lines, more = await asyncio.to_thread(_found, service_of(request).keeper.log, wanted)
    told = {
        "object": "list",
        "data": [json.loads(line.model_dump_json(exclude_none=True)) for line in lines],
        "has_more": more,
        "next_before": lines[-1].number if more else None,
    }
    return JSONResponse(told, headers=_PRIVATE)


@router.get("/v1/twig/audit/verification")
async def verification(request: Request, key: Auditing) -> Response:
    """Whether the chain is whole and its manifests are as it names them, line by line where not."""
    return JSONResponse(await asyncio.to_thread(_verified, service_of(request).keeper.log), headers=_PRIVATE)


@router.get("/v1/twig/records/{id}/manifest")
async def manifest(request: Request, id: str, key: Auditing) -> Response:
    """A manifest byte for byte, so that its digest is the one that the log names."""
    keeper = service_of(request).keeper
    content = await asyncio.to_thread(lambda: read_regular(keeper.place(id), MAX_JSON))
    return Response(content, media_type="application/json", headers=_PRIVATE)


def _found(log: AuditLog, wanted: AuditSearch) -> tuple[list[AuditRecord], bool]:
    """The latest lines that are wanted, the last first, and whether there are more before them."""
    kept: deque[AuditRecord] = deque(maxlen=wanted.limit + 1)
    try:
        for line in log.search(wanted.query(log)):
            assert line.number is not None
            if wanted.before is None or line.number < wanted.before:
                kept.append(line)
    except FileNotFoundError:  # nothing was drawn yet
        return [], False
    lines = list(reversed(kept))
    return lines[: wanted.limit], len(lines) > wanted.limit


def _verified(log: AuditLog) -> dict[str, Any]:
    try:
        found = log.verify()
    except FileNotFoundError:
        return {"whole": True, "lines": 0, "before": 0, "erased": [], "head": None, "findings": []}
    return {
        "whole": not found.findings,
        "lines": found.lines,
        "before": found.before,
        "erased": list(found.erased),
        "head": str(log.head() or "") or None,
        "findings": [str(finding) for finding in found.findings],
    }
