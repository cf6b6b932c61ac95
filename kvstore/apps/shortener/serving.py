"""Run the service until a signal says stop."""

from __future__ import annotations

import json
import signal
import socket
import sys
from typing import Any

from starlette.types import ASGIApp

from kvstore.apps import serving


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM: requests under way end, clicks are written, then it returns."""
    server = serving.server(app, lifespan="on")
    stop = server.stop
    with serving.acting_on({signal.SIGINT: stop, signal.SIGTERM: stop}), serving.few_collections():
        await server.serve(sockets=[listener])


def log_line(fields: dict[str, Any]) -> None:
    """One JSON line on standard error."""
    sys.stderr.write(json.dumps(fields, ensure_ascii=False) + "\n")
