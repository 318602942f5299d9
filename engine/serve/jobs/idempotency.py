"""The same key, the same answer: a request that is sent again is not drawn again."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import JSONResponse, Response

from ..bodies import ImageBody
from ..errors import LIMIT, ApiError
from ..keys import Key
from .desk import PREFIX, Desk
from .store import Claim

HEADER = "idempotency-key"
_KEPT = ("moderation_blocked", "deadline_exceeded")
_TEXT = re.compile(r"[\x21-\x7e]{1,255}")


def name_of(text: str, key: Key) -> str:
    """Under which an answer is kept: nobody else's, whatever text others choose. Raises ApiError for what is no key."""
    if not _TEXT.fullmatch(text):
        message = "an Idempotency-Key has 1 to 255 characters, visible ones of ASCII"
        raise ApiError(400, "invalid_value", message, param=HEADER)
    return f"key-{hashlib.sha256(f'{key.id} {text}'.encode()).hexdigest()}"


def job_id(name: str) -> str:
    """Id of the job that was asked for under a key, so that it is one job however often it is."""
    return f"{PREFIX}{name.removeprefix('key-')[:32]}"


def fingerprint(body: ImageBody, files: Mapping[str, bytes]) -> str:
    """Digest of what was asked for: of one key it must be the same each time."""
    digest = hashlib.sha256(body.model_dump_json().encode())
    for name in sorted(files):
        digest.update(f"\n{name}\n{hashlib.sha256(files[name]).hexdigest()}".encode())
    return digest.hexdigest()


async def once(desk: Desk, name: str, asked: str, draw: Callable[[], Awaitable[Response]]) -> Response:
    """Answer as before where the key was answered, else by `draw`, whose answer is kept if it is a final one.

    asked: the fingerprint. Raises ApiError (409 while it is drawn elsewhere, 422 where something else was asked for).
    """
    now = time.time()
    found = await asyncio.to_thread(desk.store.claim, name, asked, desk.owner, now, now + desk.config.lease)
    if found is not None:
        return await asyncio.to_thread(_given_again, desk, found, asked)
    try:
        response = await draw()
    except ApiError as error:
        if error.code in _KEPT:
            await _keep(desk, name, error.status, json.dumps(error.body).encode())
        else:
            await _free(desk, name)
        raise
    except BaseException:
        await _free(desk, name)
        raise
    if response.status_code not in (200, 202):
        await _free(desk, name)
        return response
    await _keep(desk, name, response.status_code, bytes(response.body))
    return response


def _given_again(desk: Desk, found: Claim, asked: str) -> Response:
    if found.fingerprint != asked:
        message = "this Idempotency-Key was used for another request; choose a new one"
        raise ApiError(422, "idempotency_key_reused", message, param=HEADER)
    answer = None if found.code is None else desk.artefacts.get(f"{found.name}-answer")
    if found.code is None or answer is None:
        message = "a request with this Idempotency-Key is being answered"
        raise ApiError(409, "request_in_progress", message, type=LIMIT, param=HEADER, retry_after=1)
    headers = {"idempotent-replayed": "true"} | ({"x-should-retry": "false"} if found.code >= 400 else {})
    return JSONResponse(json.loads(answer), status_code=found.code, headers=headers)


async def _keep(desk: Desk, name: str, code: int, answer: bytes) -> None:
    def keep() -> None:
        desk.artefacts.put(f"{name}-answer", answer)
        desk.store.answer(name, desk.owner, code, time.time())

    await asyncio.shield(asyncio.to_thread(keep))


async def _free(desk: Desk, name: str) -> None:
    await asyncio.shield(asyncio.to_thread(desk.store.unclaim, name, desk.owner))
