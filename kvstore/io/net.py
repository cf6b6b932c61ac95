"""Sockets: free ports for development clusters."""

from __future__ import annotations

import itertools
import random
import socket

_FROM, _TO = 20_000, 32_768
"""Below what kernels hand to outgoing connections: a port that was free stays free until it is bound."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports nobody listens on now, from a random start. Raises OSError when there are not enough."""
    start = random.SystemRandom().randrange(_FROM, _TO)
    found: list[int] = []
    for port in itertools.chain(range(start, _TO), range(_FROM, start)):
        if len(found) == count:
            break
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
        found.append(port)
    if len(found) < count:
        raise OSError(f"{count} free ports are not to be had on {host}")
    return found


def host_name() -> str:
    """What this machine calls itself, as its neighbours in a container network do."""
    return socket.gethostname()
