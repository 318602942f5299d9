"""The same key, the same answer: a request that is sent again is not drawn again."""

import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from starlette.responses import JSONResponse, Response

from ..bodies import ImageBody
from ..errors import LIMIT, ApiError, UnavailableError
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

    asked: the fingerprint. Raises ApiError (409 while it is drawn, 422 where something else was asked for, 503
    where that cannot be told, or the answer could not be kept).
    """
    if (open := desk.keys.get(name)) is not None:  # whatever the clock says of its lease
        return _given_again(desk, Claim(name, open), asked)
    desk.keys[name] = asked
    try:
        now = time.time()
        found = await desk.places.run(desk.store.claim, name, asked, desk.owner, now, now + desk.config.lease)
        if found is not None:
            return await desk.places.run(_given_again, desk, found, asked)
        return await _drawn(desk, name, draw)
    finally:
        del desk.keys[name]


async def _drawn(desk: Desk, name: str, draw: Callable[[], Awaitable[Response]]) -> Response:
    """The answer to a key that was claimed; it is kept, or the key is free again, at the latest when its lease ends."""
    try:
        response = await draw()
        if response.status_code in (200, 202):
            await _keep(desk, name, response.status_code, bytes(response.body))
            return response
    except ApiError as error:
        if error.code in _KEPT:
            await _keep(desk, name, error.status, json.dumps(error.body).encode())
        else:
            await _free(desk, name)
        raise
    except BaseException:
        await _free(desk, name)
        raise
    await _free(desk, name)
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
        if not desk.artefacts.put(f"{name}-answer", answer):  # what is there was never said to be the answer
            desk.artefacts.delete([f"{name}-answer"])
            desk.artefacts.put(f"{name}-answer", answer)
        desk.store.answer(name, desk.owner, code, time.time())

    await desk.places.run(keep)


async def _free(desk: Desk, name: str) -> None:
    with suppress(UnavailableError):
        await desk.places.run(desk.store.unclaim, name, desk.owner)
