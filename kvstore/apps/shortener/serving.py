"""Run the service until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

_GRACE_S = 10
_GC_THRESHOLDS = (50_000, 50, 100)
"""Requests free what they made by reference counts; a look for cycles through a full cache of links holds all
visitors up for some 50 ms."""
_BACKLOG = 2048


class _Server(uvicorn.Server):
    """Leaves signals alone: uvicorn's own way ends the process before the store is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop that serves fastest here."""
    try:
        import uvloop  # noqa: PLC0415  not on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 is any. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM: requests under way end, clicks are written, then it returns."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        await server.serve(sockets=[listener])
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def log_line(fields: dict[str, Any]) -> None:
    """One JSON line on standard error."""
    sys.stderr.write(json.dumps(fields, ensure_ascii=False) + "\n")
