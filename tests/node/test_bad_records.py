"""Records that are none, from a peer or on this node's own disk: others answer in their place, once."""

from __future__ import annotations

import asyncio

import pytest
from raw_nodes import OPERATION, Nodes

import kvstore
from kvstore import errors
from kvstore.core import record as records
from kvstore.core import ring
from kvstore.storage.store import Store
from kvstore.types import Kind, NodeId, Version

pytestmark = pytest.mark.slow

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def storage_key(three: Nodes, key: bytes) -> bytes:
    return ring.storage_key(three.local.topology.partition(key), key)


async def stored(three: Nodes, number: NodeId, key: bytes, record: bytes) -> None:
    """Put a record into one node's store, whatever it is."""
    store = three.local.nodes[number]._store
    durable = asyncio.get_running_loop().create_future()
    store.apply(storage_key(three, key), record, 0)
    store.commit(durable.set_result, sync=True)
    assert await durable is None


async def test_a_page_that_is_none_is_no_answer_and_ends_no_link(three: Nodes) -> None:
    bad = records.encode(Version(1), 0, Kind.TOMBSTONE, b"", flags=records.FLAG_COUNTER)
    assert not records.is_well_formed(bad)
    async with await kvstore.connect(three.local.urls[0], pinned=True) as kv:
        await kv.put_many({f"k{n}": b"v" for n in range(5)}, consistency="all")
        await stored(three, TWO, b"bad", bad)
        links = three.status(1)["peers"]
        began = asyncio.get_running_loop().time()
        assert len([entry async for entry in kv.scan(prefix="k")]) == 5
        assert len([entry async for entry in kv.scan()]) == 5
        assert asyncio.get_running_loop().time() - began < 1
        assert {name: peer["up"] for name, peer in three.status(1)["peers"].items()} == dict.fromkeys(
            links, True
        )


def damage(three: Nodes, number: NodeId, key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the checksum of one node's record of a key does not match."""
    store, skey, honest = three.local.nodes[number]._store, storage_key(three, key), Store.get

    def get(self: Store, asked: bytes) -> bytes | None:
        if self is store and asked == skey:
            raise errors.DamagedRecord(key=key)
        return honest(self, asked)

    monkeypatch.setattr(Store, "get", get)


@pytest.mark.patches
async def test_a_damaged_record_of_the_coordinator_is_one_answer_less(
    three: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = await three.connect(1)
    keys = (b"a", b"b", b"c")
    for key in keys:
        await raw.call("put", key, b"of " + key, OPERATION, {"c": "all"})
    damage(three, ONE, b"a", monkeypatch)
    assert (await raw.call("get", b"a", {}))[0] == b"of a"
    for _ in range(10):
        assert [row[0] for row in await raw.call("get_many", keys, {})] == [b"of a", b"of b", b"of c"]
    assert sorted((await raw.call("put", b"a", b"new", OPERATION[::-1], {}))[2]) == [2, 3]
    statuses = await raw.call("put_many", [(key, b"newer") for key in keys], OPERATION, {})
    assert [len(each[2]) >= 2 for each in statuses] == [True] * 3
    assert (await raw.call("get", b"a", {"c": "one"}))[0] == b"newer"
    assert (await raw.error("get", b"a", {"c": "all", "t": 300}))[0] == "quorum_timeout"
    assert raw.unasked == [], "each request is answered once"
    (stream,) = three.local.nodes[ONE]._service.streams.values()
    assert stream.in_flight == 0
    assert three.local.nodes[ONE]._coordinator.in_flight == 0
    assert three.status(1)["counters"]["damaged_records"] >= 15
