"""What every request passes: a size limit, headers, the access log, the meters. Plain ASGI, no buffering."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvstore.apps.shortener.metering import Meters

BODY_BYTES_MAX = 512 * 1024
"""A hundred links with long addresses."""
AccessLog = Callable[[dict[str, Any]], None]
"""Takes one line for each request, as fields."""


class Door:
    """Wraps the application. `meters` is asked for late: the service exists once the application runs."""

    def __init__(self, app: ASGIApp, *, meters: Callable[[], Meters | None], log: AccessLog | None) -> None:
        self._app = app
        self._meters = meters
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        began, status, taken = loop.time(), 0, 0

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
            self._tell(scope, status or 500, loop.time() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        meters = self._meters()
        if meters is not None:
            meters.request(route=route, method=method, status=status, seconds=seconds)
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


_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"})
