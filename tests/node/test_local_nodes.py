"""Nodes inside the calling process: what they need of the machine."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import kvstore
from kvstore import errors, server
from kvstore.io.net import free_ports


def ports_with_a_taken_one(taken: int, times: int) -> Callable[[int], list[int]]:
    """The first looks find a port that somebody takes before it is used."""
    looks = 0

    def look(count: int) -> list[int]:
        nonlocal looks
        looks += 1
        found = free_ports(count)
        if looks <= times:
            found[-2] = taken  # of the last node, for clients
        return found

    return look


@pytest.mark.e2e
async def test_a_port_that_was_taken_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        look = ports_with_a_taken_one(other.getsockname()[1], times=2)
        monkeypatch.setattr(server, "free_ports", look)
        async with kvstore.local_cluster(nodes=3, directory=tmp_path) as kv:
            await kv.put("k", b"v")
            assert (await kv.get("k")) is not None


@pytest.mark.e2e
async def test_when_ports_are_taken_again_and_again_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        look = ports_with_a_taken_one(other.getsockname()[1], times=99)
        monkeypatch.setattr(server, "free_ports", look)
        with pytest.raises(ExceptionGroup) as caught:
            async with kvstore.local_cluster(nodes=1, directory=tmp_path):
                pass
        assert caught.group_contains(errors.PortInUse)
