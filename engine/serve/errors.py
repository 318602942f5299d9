"""Errors as clients of the OpenAI API know them: a status, a body of one shape, headers that say whether to retry."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..api.errors import EngineBusyError, EngineClosedError, InvalidRequestError, UnreachableError
from ..api.reading import shown

REQUEST, SERVER, KEY, LIMIT = "invalid_request_error", "server_error", "authentication_error", "rate_limit_error"
"""Values of an error's `type`."""

_LATER = 5.0
"""Seconds after which what cannot be reached is worth another try."""

_log = logging.getLogger(__name__)

_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "unsupported": "unsupported_parameter",
}


class ApiError(Exception):
    """What a request is answered with instead of pictures.

    retry_after: seconds after which the same request may succeed; None where it would fail again, and clients are told
    not to try. more: further members of the body's `error`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = REQUEST,
        param: str | None = None,
        retry_after: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.type, self.param = status, code, message, type, param
        self.retry_after, self.more = retry_after, more or {}

    @property
    def body(self) -> dict[str, Any]:
        """The body, which an `error` event of a stream carries as well."""
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": told | dict(self.more)}

    @property
    def headers(self) -> dict[str, str]:
        """Whether to retry, and when: in whole seconds, rounded up, so that nobody comes too early."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"x-should-retry": "true", "retry-after": str(max(1, math.ceil(self.retry_after)))}


class UnavailableError(ApiError):
    """What an answer takes cannot be kept or read now, and can be later. name: of that, in the plural."""

    def __init__(self, name: str) -> None:
        message = f"the server cannot reach its {name} now, and answers nothing that takes them; try again"
        super().__init__(503, f"{name}_unavailable", message, type=SERVER, retry_after=_LATER)


def wrong_field(error: ValidationError, within: str = "") -> ApiError:
    """The error for the first field of a body that is wrong; what was in it is not repeated."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(filter(None, [within, *map(str, first["loc"])]))
    code = _CODES.get(first["type"], "invalid_value")
    said = "there is no such field" if code == "unknown_parameter" else first["msg"].removeprefix("Value error, ")
    return ApiError(400, code, f"{shown(place or 'the body')}: {shown(said, 600)}", param=place or None)


def told(error: Exception) -> ApiError:
    """What a client is told of an error of the engine, or of one that nobody thought of, which goes to the log."""
    if isinstance(error, InvalidRequestError):
        return ApiError(400, "invalid_value", shown(error, 1000))
    if isinstance(error, EngineBusyError):
        return ApiError(429, "engine_busy", str(error), type=LIMIT, retry_after=1)
    if isinstance(error, EngineClosedError):
        return draining()
    _log.error("a request failed", exc_info=error)
    if isinstance(error, UnreachableError | OSError):
        message = "the server cannot reach what this takes now; try again"
        return ApiError(503, "unavailable", message, type=SERVER, retry_after=_LATER)
    return ApiError(500, "internal_error", "the server could not do this; its log says why", type=SERVER)


def draining() -> ApiError:
    """What a server says that takes nothing more."""
    return ApiError(503, "shutting_down", "this server takes nothing more; try again", type=SERVER, retry_after=5)
