"""Ask the addresses behind a seed list what they are: nodes without a cluster, or members of one.

A seed is `host` or `host:port`; a name may have several addresses, and each is asked. Who is not there, or
not yet, is passed over: the caller asks again.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from contextlib import suppress

from kvstore import errors
from kvstore.client.connection import Connection
from kvstore.core.forming import FORMING, Newcomer
from kvstore.core.topology import Topology

_ASK_S = 1.0
_WITH_PORT = re.compile(r"(.+):([0-9]+)")


async def ask_seeds(seeds: Sequence[str], *, port: int, token: str) -> list[Newcomer | Topology]:
    """What answers behind the seeds, in their order. `port` is for seeds that name none."""
    places: dict[str, None] = {}
    for seed in seeds:
        places |= dict.fromkeys(await _addresses(seed, port))
    answers: dict[str, Newcomer | Topology] = {}

    async def ask(place: str) -> None:
        with suppress(errors.KVError, TimeoutError):
            answers[place] = await _ask(place, token)

    async with asyncio.TaskGroup() as tasks:
        for place in places:
            tasks.create_task(ask(place))
    return [answers[place] for place in places if place in answers]


async def _addresses(seed: str, port: int) -> list[str]:
    """`address:port` of each address of a name; none when nobody knows the name."""
    found = _WITH_PORT.fullmatch(seed)
    host, number = (found[1], int(found[2])) if found and not seed.endswith("]") else (seed, port)
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), number, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):  # the second: a label that no name may have
        return []
    hosts = [str(info[4][0]) for info in infos]
    return [f"[{each}]:{number}" if ":" in each else f"{each}:{number}" for each in hosts]


async def _ask(place: str, token: str) -> Newcomer | Topology:
    async with asyncio.timeout(_ASK_S):
        connection = await Connection.open(place, token=token, timeout=_ASK_S)
        try:
            if not connection.hello["cluster"]:
                return Newcomer.from_plain(connection.hello.get(FORMING))
            return Topology.from_plain(await connection.call("topology", ()))
        finally:
            connection.close()
