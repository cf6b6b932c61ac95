"""Many large values at once: answers and requests come in parts, and no connection is lost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from raw_nodes import OPERATION, Nodes

import kvstore
from kvstore import limits
from kvstore.core import ring
from kvstore.core import version as versions
from kvstore.node.waiting import NO_ROOM
from kvstore.types import NodeId
from kvstore.wire.register_messages import GRANTED, PREPARE

pytestmark = pytest.mark.slow
MEGABYTE = b"x" * 1_000_000
LARGE = {f"{{one}}{number}": MEGABYTE for number in range(14)}
"""All on one node first, and together more than a frame."""
FIT = limits.ANSWER_BYTES_MAX // len(MEGABYTE) + 1


def connections(nodes: Nodes) -> list[Any]:
    """Of all nodes to their peers, and how many they lost to clients."""
    numbers = sorted(nodes.local.nodes)
    links = [link for number in numbers for link in nodes.local.nodes[number]._links.values()]
    lost = [nodes.status(number)["counters"]["protocol_errors"] for number in numbers]
    return [*(link.transport for link in links), *lost]


async def test_values_beyond_a_frame_are_read_at_once_and_no_link_breaks(three: Nodes) -> None:
    before = connections(three)
    async with await kvstore.connect(three.local.urls, retries=0) as kv:
        await kv.put_many(LARGE)
        for consistency in ("one", "quorum", "linearizable"):
            found = await kv.get_many(LARGE, consistency=consistency)
            assert {key: entry and entry.value for key, entry in found.items()} == LARGE
        async with asyncio.TaskGroup() as tasks:
            gets = [tasks.create_task(kv.get(f"{{one}}{number % 14}")) for number in range(60)]
        assert all(entry is not None and entry.value == MEGABYTE for entry in map(asyncio.Task.result, gets))
    assert connections(three) == before


async def test_registers_beyond_a_frame_are_changed_at_once_and_no_link_breaks(three: Nodes) -> None:
    before = connections(three)
    items = {f"{{one}}{number}": b"x" * 14_000 for number in range(1_000)}
    async with await kvstore.connect(three.local.urls, retries=0) as kv:
        await kv.put_many(items, consistency="linearizable")
        swapped = await kv.change_many([kv.change.get_and_set(key, b"y") for key in items])
        assert all(isinstance(became, kvstore.Applied) for became in swapped)
        assert [became.value for became in swapped] == list(items.values())  # type: ignore[union-attr]
        assert len(await kv.delete_many(items, consistency="linearizable")) == 1_000
    assert connections(three) == before


async def test_a_node_answers_a_peer_with_what_fits_and_votes_on_no_more(one: Nodes) -> None:
    async with await kvstore.connect(one.local.urls) as kv:
        await kv.put_many(LARGE)
    partition = one.local.topology.partition
    skeys = [ring.storage_key(partition(key.encode()), key.encode()) for key in LARGE]
    service = one.local.nodes[NodeId(1)]._peer_service
    acceptor = service._acceptor
    found = service._replica.read_batch(skeys)
    assert len(found) == FIT
    assert acceptor.peek(skeys)[1::2] == found
    now_ms = int(time.time() * 1000)
    ballot = versions.pack(now_ms, 0, NodeId(1))
    answered: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    acceptor.vote([(PREPARE, skey, ballot) for skey in skeys], now_ms=now_ms, done=answered.set_result)
    assert (await answered)[::3] == [GRANTED] * FIT
    promised = [acceptor._store.promises.promised(skey) for skey in skeys]
    assert promised == [ballot] * FIT + [0] * (len(skeys) - FIT)


@pytest.mark.parametrize("consistency", ["one", "quorum", "linearizable"])
async def test_a_node_answers_a_client_with_what_fits(one: Nodes, consistency: str) -> None:
    raw = await one.connect(1)
    for key in LARGE:
        await raw.call("put", key.encode(), MEGABYTE, OPERATION)
    keys = [key.encode() for key in LARGE]
    answer = await raw.call("get_many", keys, {"c": consistency})
    assert [outcome[0] for outcome in answer[:FIT]] == [MEGABYTE] * FIT
    assert [outcome["error"][0] for outcome in answer[FIT:]] == ["overloaded"] * (len(keys) - FIT)
    assert answer[FIT]["error"][1] == NO_ROOM["error"][1]
    assert one.status(1)["in_flight"] == 0
