"""The HTTP service.

    POST /v1/check    {"rule": "api", "key": "customer:42", "cost": 1}     200, 429, or 503 (failed closed)
    POST /v1/peek     {"rule", "key"}                                      200: what is left
    POST /v1/reset    {"rule", "key"}                                      204
    POST /v1/release  {"rule", "key", "lease"}                             204
    GET  /v1/rules    the rules, each limit with the bound of its over-admission
    GET  /healthz     200 while the process serves
    GET  /readyz      200 when the store answers, else 503
    GET  /metrics     Prometheus

Whoever reaches it may charge and reset any key: bind it to where only your services are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kvstore import Client, errors
from kvstore.apps.ratelimit import asgi, headers
from kvstore.apps.ratelimit.limiter import Limiter, Outcome
from kvstore.apps.ratelimit.metrics import Metrics
from kvstore.apps.ratelimit.rules import Rule

BODY_BYTES_MAX = 64 * 1024
_PING_S = 1.0


class Endpoints:
    """The routes; each parses, asks the limiter, and says what it said."""

    def __init__(self, kv: Client, limiter: Limiter, metrics: Metrics) -> None:
        self._kv = kv
        self._limiter = limiter
        self._metrics = metrics

    async def check(self, request: Request) -> Response:
        """Decide and charge."""
        asked = await _body(request, {"rule", "key", "cost", "lease"})
        outcome = await self._limiter.check(
            _text(asked, "rule"), _text(asked, "key"), asked.get("cost", 1), lease=_text(asked, "lease", "")
        )
        return _told(outcome, headers.status_of(outcome))

    async def peek(self, request: Request) -> Response:
        """What is left."""
        asked = await _body(request, {"rule", "key"})
        outcome = await self._limiter.peek(_text(asked, "rule"), _text(asked, "key"))
        return _told(outcome, 503 if outcome.failed else 200)

    async def reset(self, request: Request) -> Response:
        """Forget a key."""
        asked = await _body(request, {"rule", "key"})
        await self._limiter.reset(_text(asked, "rule"), _text(asked, "key"))
        return Response(status_code=204)

    async def release(self, request: Request) -> Response:
        """Give a lease back."""
        asked = await _body(request, {"rule", "key", "lease"})
        await self._limiter.release(_text(asked, "rule"), _text(asked, "key"), _text(asked, "lease"))
        return Response(status_code=204)

    async def rules(self, _request: Request) -> Response:
        """What is in force."""
        return JSONResponse({name: _shown(rule) for name, rule in sorted(self._limiter.rules.items())})

    async def healthz(self, _request: Request) -> Response:
        """The process serves."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _request: Request) -> Response:
        """The store answers."""
        try:
            await self._kv.ping(timeout=_PING_S)
        except errors.KVError as error:
            return PlainTextResponse(f"{error.message}\n", status_code=503)
        return PlainTextResponse("ready\n")

    async def metrics(self, _request: Request) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def routes(self) -> list[Route]:
        """All of them."""
        posts = {"check": self.check, "peek": self.peek, "reset": self.reset, "release": self.release}
        gets = {
            "/v1/rules": self.rules,
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
        }
        return [
            *(Route(f"/v1/{name}", act, methods=["POST"]) for name, act in posts.items()),
            *(Route(path, act, methods=["GET"]) for path, act in gets.items()),
        ]


async def _body(request: Request, known: set[str]) -> dict[str, Any]:
    """The JSON object of a request. Raises errors.BadOption."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > BODY_BYTES_MAX:
            raise errors.BadOption(option="body", given="more", allowed=f"{BODY_BYTES_MAX} bytes")
    try:
        asked = json.loads(bytes(data))
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict) or not asked.keys() <= known:
        allowed = f"a JSON object with {', '.join(sorted(known))}"
        raise errors.BadOption(option="body", given="something else", allowed=allowed)
    return asked


def _text(asked: dict[str, Any], name: str, default: str | None = None) -> str:
    given = asked.get(name, default)
    if not isinstance(given, str):
        raise errors.BadOption(option=name, given=repr(given)[:60], allowed="a string")
    return given


def _told(outcome: Outcome, status: int) -> Response:
    refused = status != 200
    return JSONResponse(
        headers.document_of(outcome),
        status_code=status,
        headers=dict(headers.headers_of(outcome)),
        media_type=headers.PROBLEM_TYPE if refused else None,
    )


def _shown(rule: Rule) -> dict[str, Any]:
    return {
        "mode": rule.mode.value,
        "on_failure": rule.on_failure.value,
        "overrides": len(rule.overrides),
        "limits": [
            {
                "algorithm": limit.algorithm.value,
                "limit": limit.amount,
                "per_ms": limit.period_us / 1000,
                "burst": limit.capacity,
                "over_admission_max": rule.over_admission_max(limit),
            }
            for limit in rule.limits
        ],
    }


async def _problem(_request: Request, error: Exception) -> Response:
    """Our errors as problems: the caller's mistakes, and the store's when a call has no policy for them."""
    assert isinstance(error, errors.KVError)
    status = error.http if isinstance(error, errors.BadRequest) else 503
    document = {"type": "about:blank", "title": error.message, "status": status, "code": error.code}
    fields = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse(document, status_code=status, headers=fields, media_type=headers.PROBLEM_TYPE)


class AccessLog:
    """One line and one count for each request."""

    def __init__(self, app: asgi.App, metrics: Metrics, paths: frozenset[str], *, log: Any) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._log = log

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Serve, and say so."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        clock, status, source = asyncio.get_running_loop().time, 500, None

        async def watched(message: asgi.Message) -> None:
            nonlocal status, source
            if message["type"] == "http.response.start":
                status = message["status"]
                found = [v for name, v in message["headers"] if name == b"x-ratelimit-source"]
                source = found[0].decode() if found else None
            await send(message)

        began = clock()
        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = clock() - began
            # Paths that are none of ours share a label, or a scanner would fill the memory with them.
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            self._log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1000, 3),
                source=source,
                peer=asgi.client_address(scope),
            )


def service(kv: Client, limiter: Limiter, metrics: Metrics, *, log: Any) -> asgi.App:
    """The application for an ASGI server."""
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {errors.KVError: _problem}
    routes = Endpoints(kv, limiter, metrics).routes()
    app = Starlette(routes=routes, exception_handlers=handlers)
    return AccessLog(app, metrics, frozenset(route.path for route in routes), log=log)
