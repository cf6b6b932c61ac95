"""Plain calls whose key becomes a register while they run: what they are told is so."""

from __future__ import annotations

import asyncio
import time

import pytest
from raw_nodes import OPERATION, Nodes

import kvstore
from kvstore.core import record as records
from kvstore.core import ring
from kvstore.core import version as versions
from kvstore.node.operations import ReadOperation
from kvstore.node.waiting import Waiting
from kvstore.types import NodeId
from kvstore.wire.register_messages import GRANTED, PREPARE

pytestmark = pytest.mark.slow

PART = b"an adder"


@pytest.mark.patches
@pytest.mark.parametrize("verb", ["touch", "persist"])
async def test_a_key_that_a_cas_changes_meanwhile_is_touched_all_the_same(
    three: Nodes, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    honest = Waiting.read
    swapped: list[bool] = []

    async with (
        await kvstore.connect(three.local.urls) as kv,
        await kvstore.connect(three.local.urls) as other,
    ):

        async def read(self: Waiting) -> ReadOperation:
            found = await honest(self)
            if not swapped:
                swapped.append(bool(await other.cas("k", new=b"2", expected_value=b"1")))
            return found

        await kv.put("k", b"1", ttl=50)
        monkeypatch.setattr(Waiting, "read", read)
        told = await (kv.touch("k", ttl=1_000) if verb == "touch" else kv.persist("k"))
        assert swapped == [True]
        assert told is not None, "the key was there all the time"
        entry = await kv.get("k", consistency="linearizable")
        assert entry is not None
        assert entry.value == b"2"
        assert (entry.expires_at is None) == (verb == "persist")
        if entry.expires_at is not None:
            assert entry.expires_at > time.time() + 500


async def promised(three: Nodes, number: NodeId, key: bytes) -> None:
    """Somebody has begun a round, and this acceptor promised; no more was heard of it."""
    topology = three.local.topology
    skey = ring.storage_key(topology.partition(key), key)
    now_ms = int(time.time() * 1000)
    vote = asyncio.get_running_loop().create_future()
    ballot = int(versions.pack(now_ms, 5, NodeId(1)))
    acceptor = three.local.nodes[number]._peer_service._acceptor
    acceptor.vote([(PREPARE, skey, ballot)], now_ms=now_ms, done=vote.set_result)
    assert (await vote)[0] == GRANTED


async def test_an_addition_that_met_a_promise_is_not_told_as_refused(three: Nodes) -> None:
    first, second, third = three.local.topology.preference(b"c")
    raw = await three.connect(first)
    await raw.call("counter_add", b"c", OPERATION, PART, 0, 5, 0, {"c": "all"})
    for number in (second, third):
        await promised(three, number, b"c")
    name, _ = await raw.error("counter_add", b"c", OPERATION[::-1], PART, 0, 105, 0, {})
    assert name == "unresolved"
    skey = ring.storage_key(three.local.topology.partition(b"c"), b"c")
    async with asyncio.timeout(5):
        while records.readable_of(three.local.nodes[first]._store.get(skey) or b"") != b"105":
            await asyncio.sleep(0.01)
