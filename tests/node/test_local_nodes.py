"""Nodes inside the calling process: what they need of the machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvstore
from kvstore import errors, server
from kvstore.io.net import free_ports


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have so many looks for ports find one that somebody takes before it is used."""
    looks = 0

    def taking(times: int) -> None:
        def look(count: int) -> list[int]:
            nonlocal looks
            looks += 1
            found = free_ports(count)
            if looks <= times:
                found[-2] = other.getsockname()[1]  # of the last node, for clients
            return found

        monkeypatch.setattr(server, "free_ports", look)

    with socket.create_server(("127.0.0.1", 0)) as other:
        yield taking


@pytest.mark.e2e
async def test_a_port_that_was_taken_meanwhile_is_replaced(
    tmp_path: Path, take: Callable[[int], None]
) -> None:
    take(2)
    async with kvstore.local_cluster(nodes=3, directory=tmp_path) as kv:
        await kv.put("k", b"v")
        assert (await kv.get("k")) is not None


@pytest.mark.e2e
async def test_when_ports_are_taken_again_and_again_it_says_so(
    tmp_path: Path, take: Callable[[int], None]
) -> None:
    take(99)
    with pytest.raises(ExceptionGroup) as caught:
        async with kvstore.local_cluster(nodes=1, directory=tmp_path):
            pass
    assert caught.group_contains(errors.PortInUse)


@pytest.mark.e2e
@pytest.mark.slow
async def test_its_first_call_may_ask_for_every_node(tmp_path: Path) -> None:
    async with server.local_nodes(tmp_path, count=3, cluster_id="ab" * 16) as local:
        for node in local.nodes.values():
            assert all(peer["up"] for peer in node.status()["peers"].values())
        async with await kvstore.connect(local.urls[:1], pinned=True, retries=0) as kv:
            await kv.put("k", b"v", consistency="all")
