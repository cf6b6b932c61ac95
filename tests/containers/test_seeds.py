"""Asking seeds: names with many addresses or none, silent ones, strangers; and a newcomer that is full."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kvstore import errors
from kvstore.client import seeds
from kvstore.client.connection import Connection
from kvstore.client.seeds import ask_seeds
from kvstore.core.forming import Newcomer
from kvstore.core.topology import NodeInfo, Topology
from kvstore.io.clock import SystemClock
from kvstore.io.log import node_log
from kvstore.node.newcomer import NewcomerService
from kvstore.node.options import NodeOptions
from kvstore.types import NodeId
from kvstore.wire import results

Serve = Callable[..., Awaitable[tuple[NewcomerService, int]]]


def newcomer(name: str) -> Newcomer:
    return Newcomer(NodeInfo(NodeId(0), f"uuid-{name}", name, name, 7401, 7501))


@pytest.fixture
async def serve() -> Any:
    """Start newcomers on ports of their own."""
    started: list[tuple[asyncio.Server, NewcomerService]] = []

    async def start(name: str = "n1", **options: Any) -> tuple[NewcomerService, int]:
        loop = asyncio.get_running_loop()
        service = NewcomerService(
            me=newcomer(name),
            clock=SystemClock(),
            loop=loop,
            options=NodeOptions(**options),
            log=node_log(level="error"),
        )
        server = await loop.create_server(service.protocol, "127.0.0.1", 0)
        started.append((server, service))
        return service, server.sockets[0].getsockname()[1]

    yield start
    for server, service in started:
        server.close()
        service.close()


async def test_a_seed_without_a_port_takes_the_common_one_and_nobody_counts_twice(serve: Serve) -> None:
    _, port = await serve()
    names = ["127.0.0.1", f"127.0.0.1:{port}", "localhost", "no-such-host.invalid"]
    found = await ask_seeds(names, port=port, token="")
    assert found == [newcomer("n1")]


async def test_a_name_gives_all_its_addresses_in_order(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    _, port = await serve("n1")
    loop = asyncio.get_running_loop()

    async def resolved(host: str, number: int, **_: Any) -> list[Any]:
        assert (host, number) == ("kv", port)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [
            (*kind, ("127.0.0.1", number)),
            (socket.AF_INET6, *kind[1:], ("::1", number, 0, 0)),
            (*kind, ("127.0.0.1", number)),
        ]

    monkeypatch.setattr(loop, "getaddrinfo", resolved)
    assert await seeds._addresses("kv", port) == [f"127.0.0.1:{port}", f"[::1]:{port}", f"127.0.0.1:{port}"]


@pytest.mark.parametrize(
    ("seed", "addresses"),
    [("[::1]", ["[::1]:7"]), ("[::1]:9", ["[::1]:9"]), ("127.0.0.1:9", ["127.0.0.1:9"])],
)
async def test_addresses_are_written_with_brackets_where_they_need_them(
    seed: str, addresses: list[str]
) -> None:
    assert await seeds._addresses(seed, 7) == addresses


@pytest.mark.slow
async def test_silent_strange_and_absent_seeds_are_passed_over(
    serve: Serve, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "_ASK_S", 0.2)

    ended = asyncio.Semaphore(0)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.release()

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await silent(reader, writer)

    _, port = await serve()
    async with (
        await asyncio.start_server(silent, "127.0.0.1", 0) as one,
        await asyncio.start_server(stranger, "127.0.0.1", 0) as other,
    ):
        ports = [
            one.sockets[0].getsockname()[1],
            other.sockets[0].getsockname()[1],
            free_port(),
            port,
        ]
        found = await ask_seeds([f"127.0.0.1:{each}" for each in ports], port=7401, token="")
        async with asyncio.timeout(5):
            await ended.acquire()
            await ended.acquire()
    assert found == [newcomer("n1")]


async def test_a_seed_that_wants_another_token_is_passed_over(serve: Serve) -> None:
    _, port = await serve(client_token="s3cret")
    assert await ask_seeds([f"127.0.0.1:{port}"], port=port, token="other") == []
    assert await ask_seeds([f"127.0.0.1:{port}"], port=port, token="s3cret") == [newcomer("n1")]


async def test_a_member_answers_with_its_topology(free_port: Callable[[], int]) -> None:
    import kvstore

    async with kvstore.local_cluster(nodes=1) as kv:
        port = (await kv.topology()).nodes[0].client_port
        (found,) = await ask_seeds([f"127.0.0.1:{port}"], port=free_port(), token="")
        assert isinstance(found, Topology)
        assert [node.client_port for node in found.nodes] == [port]


async def test_a_newcomer_that_is_full_shows_the_next_one_out(serve: Serve) -> None:
    service, port = await serve(connections_max=1)
    kept = await Connection.open(f"127.0.0.1:{port}")
    with pytest.raises((errors.Overloaded, errors.CannotConnect, errors.ConnectionLost)):
        await Connection.open(f"127.0.0.1:{port}")
    assert results.clocks_of(await kept.call("ping", ())) is not None
    kept.close()
    async with asyncio.timeout(5):
        while service.streams:
            await asyncio.sleep(0.01)


async def test_a_mistake_of_ours_while_forming_is_logged_and_the_node_lives(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, port = await serve()
    told: list[tuple[str, Any]] = []

    class Log:
        def error(self, event: str, **fields: Any) -> None:
            told.append((event, fields["method"]))

    monkeypatch.setattr(service, "_log", Log())
    monkeypatch.setitem(service._answers, "ping", lambda _params: 1 // 0)
    connection = await Connection.open(f"127.0.0.1:{port}")
    with pytest.raises(errors.KVError):
        await connection.call("ping", ())
    assert told == [("bug", "ping")]
    assert (await connection.call("status", ()))["state"] == "forming"
    connection.close()
