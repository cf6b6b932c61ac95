"""ASGI middleware: any application, limited by one rule.

    app = RateLimitMiddleware(app, limiter, rule="api", key=header("x-api-key"))

HTTP requests are decided; websockets and lifespan pass. The default key is the peer's address, which behind
a proxy is the proxy's: take a header that your proxy sets, and only that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kvstore.apps.ratelimit import headers
from kvstore.apps.ratelimit.limiter import Limiter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
KeyOf = Callable[[Scope], str | None]
"""The key of a request; None: it is not limited."""


def client_address(scope: Scope) -> str:
    """The peer's address."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def header(name: str) -> KeyOf:
    """The value of a header, of several lines the last; requests without it share one key.

    A proxy that adds its line behind the client's is believed that way, and the client is not.
    """
    wanted = name.lower().encode("latin-1")

    def key_of(scope: Scope) -> str:
        found = [value for each, value in scope["headers"] if each.lower() == wanted]
        return found[-1].decode("latin-1") if found else ""

    return key_of


def _encoded(fields: headers.Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]


class RateLimitMiddleware:
    """Asks before the application is called, and gives back what the request held when it has ended."""

    def __init__(
        self,
        app: App,
        limiter: Limiter,
        *,
        rule: str,
        key: KeyOf = client_address,
        cost: Callable[[Scope], int] = lambda _scope: 1,
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._rule = rule
        self._key = key
        self._cost = cost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        key = self._key(scope) if scope["type"] == "http" else None
        if key is None:
            await self._app(scope, receive, send)
            return
        outcome = await self._limiter.check(self._rule, key, self._cost(scope))
        if not outcome.allowed:
            status, fields, body = headers.refusal_of(outcome)
            await send({"type": "http.response.start", "status": status, "headers": _encoded(fields)})
            await send({"type": "http.response.body", "body": body})
            return
        extra = _encoded(headers.headers_of(outcome))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        try:
            if outcome.delay_s:
                await asyncio.sleep(outcome.delay_s)
            await self._app(scope, receive, with_headers)
        finally:
            if outcome.lease:
                await self._limiter.let_go(outcome)
