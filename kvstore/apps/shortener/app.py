"""The ASGI application: parts put together, started and stopped in order.

Stopping: the server takes no more requests and lets those under way end; then the clicks in memory are
written; the client of the store belongs to whoever made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import kvstore
from kvstore import errors
from kvstore.apps.shortener import api, visits, web
from kvstore.apps.shortener.access import ApiKeys, Creations
from kvstore.apps.shortener.answers import on_error
from kvstore.apps.shortener.clicks import Clicks
from kvstore.apps.shortener.clock import wall_ms
from kvstore.apps.shortener.door import AccessLog, Door
from kvstore.apps.shortener.links import Links
from kvstore.apps.shortener.metering import CONTENT_TYPE, Meters
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.pages import STATIC
from kvstore.apps.shortener.problems import Problem
from kvstore.apps.shortener.service import InService, Service

_READY_S = 1.0


def create_app(
    kv: kvstore.Client,
    options: ShortenerOptions,
    *,
    keys: Mapping[str, str],
    log: AccessLog | None = None,
    now_ms: Callable[[], int] = wall_ms,
) -> Door:
    """An application over a client of the raw codec. `keys`: owners by API key. Raises errors.BadOption."""
    api_keys = ApiKeys(keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = _assembled(kv, options, api_keys, now_ms)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.clicks.run(stop))
            app.state.service = service
            try:
                yield
            finally:
                stop.set()
        await service.creations.close()

    app = FastAPI(
        title="kvstore shortener",
        version="1",
        lifespan=lifespan,
        docs_url="/api/docs",
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    for kind in (Problem, errors.KVError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, on_error)
    app.include_router(api.router)
    app.add_api_route("/healthz", healthz, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/readyz", readyz, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/robots.txt", robots, methods=["GET", "HEAD"], include_in_schema=False)
    if options.metrics:
        app.add_api_route("/metrics", metrics, methods=["GET"], include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    if options.web:
        app.include_router(web.router)
    app.include_router(visits.router)
    return Door(app, service=lambda: getattr(app.state, "service", None), log=log)


def _assembled(
    kv: kvstore.Client, options: ShortenerOptions, keys: ApiKeys, now_ms: Callable[[], int]
) -> Service:
    monotonic = asyncio.get_running_loop().time
    links = Links(kv, options, now_ms=now_ms, monotonic=monotonic)
    clicks = Clicks(kv, flush_s=options.flush_s, monotonic=monotonic, counters_per_s=options.counters_per_s)
    return Service(
        kv=kv,
        options=options,
        keys=keys,
        links=links,
        clicks=clicks,
        creations=Creations(kv, per_minute=options.creations_per_minute, burst=options.creations_burst),
        meters=Meters(links.cache, clicks),
        now_ms=now_ms,
    )


async def healthz() -> Response:
    """The process lives."""
    return PlainTextResponse("ok\n")


async def readyz(service: InService) -> Response:
    """A quorum of the store answers."""
    try:
        await service.kv.get("url/ready", timeout=_READY_S)
    except errors.KVError as error:
        return JSONResponse({"ready": False, "reason": error.code}, 503)
    return JSONResponse({"ready": True})


async def robots(request: Request) -> Response:
    """Short links are nobody's search result."""
    del request
    return PlainTextResponse("User-agent: *\nDisallow: /\n")


async def metrics(service: InService) -> Response:
    """For Prometheus."""
    return Response(service.meters.text(), media_type=CONTENT_TYPE)
