"""Around every request: its id, a cap on its body, its span, its counts and its line in the log. Plain ASGI."""

import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import Bounds
from .errors import ApiError
from .logs import answered
from .observing import Metrics, request_span


class Around:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, bounds: Bounds) -> None:
        self.app, self.metrics, self.bounds = app, metrics, bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, id = time.perf_counter(), 0, uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = id

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        self.metrics.open.inc()
        try:
            with request_span(scope["method"], id, Headers(scope=scope)) as span:
                await self.app(scope, self._capped(scope, receive), tell)
                span.set_attributes({"http.route": _route(scope), "http.response.status_code": status})
        finally:
            self._count(scope, status or 500, time.perf_counter() - began)

    def _capped(self, scope: Scope, receive: Receive) -> Receive:
        """Receive a body of at most as many bytes as the operator allows of its kind."""
        headers = Headers(scope=scope)
        form = headers.get("content-type", "").lower().startswith("multipart/")
        most = self.bounds.upload if form else self.bounds.body
        return _Counted(receive, most, headers.get("content-length", "")).receive

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        self.metrics.open.dec()
        route, method = _route(scope), scope["method"] if scope["method"] in _METHODS else "other"
        self.metrics.requests.labels(route, method, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        state = scope["state"]
        answered(
            method=method,
            route=route,
            status=status,
            seconds=round(seconds, 4),
            request_id=state["request_id"],
            tenant=state.get("tenant"),
            code=state.get("code"),
        )


_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")


class _Counted:
    """Counts the bytes of a body as they come."""

    def __init__(self, receive: Receive, most: int, declared: str) -> None:
        self._receive, self._most, self._came = receive, most, 0
        self._declared = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0

    async def receive(self) -> Message:
        """The next message. Raises ApiError for a body that is too large, before it is read if it says so."""
        if self._declared > self._most:
            raise self._too_large()
        message = await self._receive()
        self._came += len(message.get("body", b""))
        if self._came > self._most:
            raise self._too_large()
        return message

    def _too_large(self) -> ApiError:
        return ApiError(413, "body_too_large", f"the body is larger than the {self._most} bytes that are read here")


def _route(scope: Scope) -> str:
    """The route as it is declared, so that labels are few; "none" for what is no route."""
    route = scope.get("route")
    return str(getattr(route, "path", "none"))
