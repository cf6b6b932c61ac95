"""WSGI middleware: any application, limited by one rule.

    app = RateLimitMiddleware(app, limiter, rule="api", key=lambda environ: environ["HTTP_X_API_KEY"])

What a request holds is given back when its answer is closed, as PEP 3333 asks of a server.
"""

from __future__ import annotations

import http
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kvstore.apps.ratelimit import headers
from kvstore.apps.ratelimit.blocking import BlockingLimiter
from kvstore.apps.ratelimit.limiter import Outcome

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


def client_address(environ: Environ) -> str:
    """The peer's address."""
    return str(environ.get("REMOTE_ADDR", "unknown"))


class _Answer:
    """An application's answer, and what ends with it."""

    def __init__(self, parts: Iterable[bytes], end: Callable[[], object]) -> None:
        self._parts = parts
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        """Called by the server in any case."""
        try:
            close = getattr(self._parts, "close", None)
            if close is not None:
                close()
        finally:
            self._end()


class RateLimitMiddleware:
    """Asks before the application is called."""

    def __init__(
        self,
        app: App,
        limiter: BlockingLimiter,
        *,
        rule: str,
        key: Callable[[Environ], str | None] = client_address,
        cost: Callable[[Environ], int] = lambda _environ: 1,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._rule = rule
        self._key = key
        self._cost = cost
        self._sleep = sleep

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        key = self._key(environ)
        if key is None:
            return self._app(environ, start_response)
        outcome = self._limiter.check(self._rule, key, self._cost(environ))
        if not outcome.allowed:
            status, fields, body = headers.refusal_of(outcome)
            start_response(f"{status} {http.HTTPStatus(status).phrase}", fields)
            return [body]
        if outcome.delay_s:
            self._sleep(outcome.delay_s)
        return self._served(environ, start_response, outcome)

    def _served(self, environ: Environ, start_response: StartResponse, outcome: Outcome) -> Iterable[bytes]:
        extra = headers.headers_of(outcome)

        def with_headers(status: str, fields: headers.Headers, *rest: Any) -> Any:
            return start_response(status, [*fields, *extra], *rest)

        def end() -> None:
            if outcome.lease:
                self._limiter.let_go(outcome)

        try:
            return _Answer(self._app(environ, with_headers), end)
        except BaseException:
            end()
            raise
