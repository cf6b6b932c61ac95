"""What every request passes: a size limit, headers, the access log, the meters; plain redirects end here.

Plain ASGI, no buffering.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvstore.apps.shortener.redirects import Redirect, follow
from kvstore.apps.shortener.service import Service

BODY_BYTES_MAX = 512 * 1024
"""A hundred links with long addresses."""
AccessLog = Callable[[dict[str, Any]], None]
"""Takes one line for each request, as fields."""


class Door:
    """Wraps the application. `service` is asked for late: it exists once the application runs."""

    def __init__(self, app: ASGIApp, *, service: Callable[[], Service | None], log: AccessLog | None) -> None:
        self._app = app
        self._service = service
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()  # a loop's clock may count whole milliseconds
        service = self._service()
        redirect = None if service is None else await follow(scope, service)
        if redirect is None:
            await self._pass(scope, receive, send, began)
        else:
            await self._redirect(scope, send, redirect, began)

    async def _redirect(self, scope: Scope, send: Send, redirect: Redirect, began: float) -> None:
        try:
            await send(
                {"type": "http.response.start", "status": redirect.status, "headers": redirect.headers}
            )
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._tell(scope, _VISIT, redirect.status, began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        status = taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_BYTES_MAX:
                # What reads the body lets this one pass, and it is answered like any other problem.
                raise HTTPException(413, "the body is too large")
            return message

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("x-robots-tag", "noindex, nofollow")
                headers.setdefault("x-content-type-options", "nosniff")
                headers.setdefault("referrer-policy", "no-referrer")
            await send(message)

        try:
            await self._app(scope, limited, marked)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._tell(scope, route, status or 500, began)

    def _tell(self, scope: Scope, route: str, status: int, began: float) -> None:
        seconds = perf_counter() - began
        method = scope["method"] if scope["method"] in _METHODS else "other"
        service = self._service()
        if service is not None:
            service.meters.request(route=route, method=method, status=status, seconds=seconds)
        if self._log is not None:
            client = scope.get("client")
            self._log(
                {
                    "event": "request",
                    "method": method,
                    "path": scope["path"][:256],
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 2),
                    "client": client[0] if client else None,
                }
            )


_VISIT = "/{name}"
_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"})
