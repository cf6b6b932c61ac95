"""What both services do around uvicorn: a socket, a loop, signals, and a collector that seldom stops them."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn

from kvstore import errors

GRACE_S = 10
"""For requests under way when the service is told to stop."""
_GC_THRESHOLDS = (50_000, 50, 100)
"""Requests free what they made by reference counts; a look for cycles through all that a service remembers
holds everybody up for some 15 to 50 ms."""
_BACKLOG = 2048


class Server(uvicorn.Server):
    """Leaves signals alone: uvicorn's own way ends the process before the store is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: see `acting_on`."""
        yield

    def stop(self) -> None:
        """No new connections; `serve` returns when the requests under way have ended."""
        self.should_exit = True


def server(app: Any, *, lifespan: Literal["on", "off"]) -> Server:
    """A server of an ASGI application; `lifespan`: whether it wants to hear of start and stop."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan=lifespan,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop that serves fastest here."""
    try:
        import uvloop  # noqa: PLC0415  not on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def listening(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0: any. Raises errors.PortInUse, OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise errors.PortInUse(address=f"{host}:{port}") from None
        raise


@contextmanager
def acting_on(actions: Mapping[signal.Signals, Callable[[], object]]) -> Iterator[None]:
    """Signals of this process, as long as the block runs; on the loop that runs it."""
    loop = asyncio.get_running_loop()
    for number, act in actions.items():
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in actions:
            loop.remove_signal_handler(number)


@contextmanager
def few_collections() -> Iterator[None]:
    """What is there now is never looked through again, and what comes later seldom, until the block ends."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
