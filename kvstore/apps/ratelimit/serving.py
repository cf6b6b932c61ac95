"""Run the service: a store, a limiter, the rules file, and uvicorn, until a signal says stop.

SIGTERM and SIGINT: no new connections, requests under way are finished; SIGHUP: the rules are read anew.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import uvicorn

import kvstore
from kvstore import errors
from kvstore.apps.ratelimit import asgi, rules
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.ratelimit.metrics import Metrics
from kvstore.apps.ratelimit.reloading import RulesFile
from kvstore.apps.ratelimit.service import service

_DRAIN_S = 10


class _Server(uvicorn.Server):
    """uvicorn would end the process by the signal it caught, and the store would never be closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to `serve`."""
        yield


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


@asynccontextmanager
async def store(url: str | None, *, token: str | None = None) -> AsyncIterator[kvstore.Client]:
    """A cluster that runs, or three nodes in this process whose data goes when it ends."""
    kept = kvstore.local_cluster(nodes=3) if url is None else await kvstore.connect(url, token=token)
    async with kept as kv:
        yield kv


def listening(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0: any. Raises errors.PortInUse, OSError."""
    try:
        return socket.create_server((host, port), backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise errors.PortInUse(address=f"{host}:{port}") from None
        raise


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
    server, loop = _server(service(kv, limiter, metrics, log=log)), asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    actions: dict[signal.Signals, Callable[[], object]] = {
        signal.SIGTERM: stop,
        signal.SIGINT: stop,
        signal.SIGHUP: file.reload,
    }
    sockets = [listening(places.host, places.port)]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(limiter.close)
        grpc_port = None
        if places.grpc_port is not None:
            grpc_port = await stack.enter_async_context(_envoy(limiter, metrics, places, log=log))
        for number, act in actions.items():
            loop.add_signal_handler(number, act)
            stack.callback(loop.remove_signal_handler, number)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(file.follow())
            port = sockets[0].getsockname()[1]
            log.info("serving", host=places.host, port=port, grpc_port=grpc_port, rules=sorted(limiter.rules))
            started(stop)
            await server.serve(sockets)
            following.cancel()
    log.info("stopped")


def _server(app: asgi.App) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_DRAIN_S,
        )
    )


def _envoy(
    limiter: Limiter, metrics: Metrics, places: Places, *, log: Any
) -> AbstractAsyncContextManager[int]:
    from kvstore.apps.ratelimit import envoy  # noqa: PLC0415  grpcio is large, and only this needs it

    assert places.grpc_port is not None
    answering = envoy.RateLimitService(limiter, metrics, log=log)
    return envoy.listening(answering, host=places.host, port=places.grpc_port, drain_s=_DRAIN_S)
