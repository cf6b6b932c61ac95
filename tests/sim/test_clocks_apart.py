"""What one node's clock does to the others' through what is read, mended and written at other nodes."""

from __future__ import annotations

import asyncio

import pytest
from sim_play import played

from kvstore import errors
from kvstore.core import record as records
from kvstore.core import version as versions
from kvstore.core.ring import storage_key
from kvstore.sim.cluster import Cluster
from kvstore.types import NodeId

pytestmark = pytest.mark.sim
DAY_MS = 86_400_000


def ahead_ms(cluster: Cluster, number: NodeId, key: bytes) -> float:
    """How far what a node holds under a key is ahead of its clock."""
    machine = cluster.machines[number]
    assert machine.node is not None
    held = machine.node._store.get(storage_key(cluster.topology.partition(key), key))
    assert held is not None
    return versions.millis_of(records.version_of(held)) - machine.clock.wall_ms()


def test_a_read_spreads_no_record_from_the_future_to_the_node_that_asked() -> None:
    """It would bind that node's clock: after a restart it could write nothing at all for a day."""

    async def play(cluster: Cluster) -> None:
        one, two, three = map(NodeId, cluster.machines)
        client = await cluster.client(1)
        await client.put("k", b"old")
        for number in (one, two, three):
            cluster.stop(number)
        await asyncio.sleep(3)
        cluster.machines[one].clock.offset_ms = DAY_MS
        cluster.start(one)
        await asyncio.sleep(3)
        alone = await cluster.client(2, url=cluster.urls[0], pinned=True)
        await alone.put("k", b"future", consistency="one")
        cluster.machines[one].set_clock_right()
        cluster.start(two)
        cluster.start(three)
        await asyncio.sleep(4)
        asks = await cluster.client(3, url=cluster.urls[1], pinned=True)
        for _ in range(5):
            try:
                await asks.get("k", timeout=1)
            except errors.Unresolved:
                continue
        assert ahead_ms(cluster, one, b"k") > DAY_MS / 2
        assert ahead_ms(cluster, two, b"k") < 0
        assert ahead_ms(cluster, three, b"k") < 0
        cluster.stop(two)
        await asyncio.sleep(2)
        cluster.start(two)
        await asyncio.sleep(3)
        again = await cluster.client(4, url=cluster.urls[1], pinned=True)
        assert not (await again.put("other", b"x")).superseded

    played(play, clocks_right=True)


def test_who_reads_and_then_writes_is_not_superseded_by_what_it_read() -> None:
    """An owner's clock is ahead of the coordinator's, which owns nothing of the key; both are good."""

    async def play(cluster: Cluster) -> None:
        owners = cluster.topology.preference(b"k")
        stranger = next(number for number in cluster.machines if number not in owners)
        cluster.machines[owners[0]].clock.offset_ms = 200
        ahead = await cluster.client(1, url=cluster.urls[owners[0] - 1], pinned=True)
        behind = await cluster.client(2, url=cluster.urls[stranger - 1], pinned=True)
        assert not (await ahead.put("k", b"1")).superseded
        found = await behind.get("k")
        assert found is not None
        assert found.value == b"1"
        assert not (await behind.put("k", b"2")).superseded
        found = await behind.get("k")
        assert found is not None
        assert found.value == b"2"

    played(play, nodes=5, clocks_right=True)
