"""Run the service: a limiter, the rules file, and uvicorn, until a signal says stop.

SIGTERM and SIGINT: no new connections, requests under way are finished; SIGHUP: the rules are read anew.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

import kvstore
from kvstore.apps import serving
from kvstore.apps.ratelimit import rules
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.ratelimit.metrics import Metrics
from kvstore.apps.ratelimit.reloading import RulesFile
from kvstore.apps.ratelimit.service import service


def json_log() -> Any:
    """One JSON object a line, on standard output."""
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stdout),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where to listen; port 0: any that is free."""

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    """For Envoy; None: not at all."""


async def serve(
    kv: kvstore.Client,
    path: Path,
    places: Places,
    *,
    log: Any,
    started: Callable[[Callable[[], None]], None] = lambda _stop: None,
    look_s: float = 1.0,
) -> None:
    """Serve until told to stop; `started` is given what stops it.

    Raises errors.ConfigInvalid, errors.PortInUse, OSError.
    """
    limiter = Limiter(kv, rules.load(path))
    metrics = Metrics(limiter)
    file = RulesFile(path, limiter, metrics, log=log, look_s=look_s)
    server = serving.server(service(kv, limiter, metrics, log=log), lifespan="off")
    stop = server.stop
    sockets = [serving.listening(places.host, places.port)]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(limiter.close)
        grpc_port = None
        if places.grpc_port is not None:
            grpc_port = await stack.enter_async_context(_envoy(limiter, metrics, places, log=log))
        actions = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: file.reload}
        stack.enter_context(serving.acting_on(actions))
        stack.enter_context(serving.few_collections())
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(file.follow())
            port = sockets[0].getsockname()[1]
            log.info("serving", host=places.host, port=port, grpc_port=grpc_port, rules=sorted(limiter.rules))
            started(stop)
            await server.serve(sockets)
            following.cancel()
    log.info("stopped")


def _envoy(
    limiter: Limiter, metrics: Metrics, places: Places, *, log: Any
) -> AbstractAsyncContextManager[int]:
    from kvstore.apps.ratelimit import envoy  # noqa: PLC0415  grpcio is large, and only this needs it

    assert places.grpc_port is not None
    answering = envoy.RateLimitService(limiter, metrics, log=log)
    return envoy.listening(answering, host=places.host, port=places.grpc_port, drain_s=serving.GRACE_S)
