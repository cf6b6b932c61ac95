"""A key's changes through one node need one phase; whoever comes in between costs a prepare."""

from __future__ import annotations

import asyncio

import pytest
from raw_nodes import Nodes

import kvstore
from kvstore import errors
from kvstore.core.changes import Request
from kvstore.node.proposers import Settled, awaited
from kvstore.types import NodeId, OperationId

pytestmark = pytest.mark.slow


def counted(three: Nodes) -> tuple[int, int, int]:
    """Rounds, prepares and repeats of all nodes."""
    counters = [node.counters for node in three.local.nodes.values()]
    return (
        sum(each.register_rounds for each in counters),
        sum(each.register_prepares for each in counters),
        sum(each.register_retries for each in counters),
    )


async def propose_at(three: Nodes, number: NodeId, key: bytes, name: int) -> Settled:
    """Add one by a round of a certain node's."""
    loop = asyncio.get_running_loop()
    operation = OperationId(loop.time().hex().encode()[:15].ljust(15) + bytes((name,)))
    request = Request(operation, True, "incr", (1, 0, None, None, 0))
    proposers = three.local.nodes[number]._proposers
    return await awaited(proposers.submit, key, request, loop.time() + 5)


async def test_changes_that_follow_one_another_prepare_once(three: Nodes) -> None:
    async with await kvstore.connect(three.local.urls) as kv:
        versions = [(await kv.incr("k")).version for _ in range(5)]
        assert versions == sorted(set(versions))
        assert counted(three) == (5, 1, 0)
        await kv.delete("k", consistency="linearizable")
        assert await kv.get("k", consistency="linearizable") is None
        read = counted(three)
        assert read in {(6, 1, 0), (7, 1, 0)}, "a read that met an owner behind the others runs a round"
        assert (await kv.incr("k")).value == 1
        assert counted(three) == (read[0] + 1, 1, 0), "a deletion is followed like any change"


async def test_who_was_overtaken_prepares_and_leads_again(three: Nodes) -> None:
    first, second, _ = three.local.topology.preference(b"k")
    for expected, number in enumerate((first, first, second, second, first, first), 1):
        outcome, _ = await propose_at(three, number, b"k", expected)
        assert outcome.value == b"%d" % expected
    rounds, prepares, retries = counted(three)
    assert rounds - retries == 6
    assert 3 <= prepares <= 3 + retries, (
        "one for each that comes in between, and for each round that was beaten"
    )


async def test_a_new_epoch_ends_all_leads(three: Nodes) -> None:
    first = three.local.topology.preference(b"k")[0]
    await propose_at(three, first, b"k", 1)
    node = three.local.nodes[first]
    node._adopt(three.local.topology.with_addresses({}))
    await propose_at(three, first, b"k", 2)
    assert counted(three) == (2, 2, 0)


async def test_a_node_that_stops_tells_what_waits(three: Nodes) -> None:
    first = three.local.topology.preference(b"k")[0]
    proposing = asyncio.create_task(propose_at(three, first, b"k", 1))
    await asyncio.sleep(0)
    three.local.nodes[first]._proposers.close()
    with pytest.raises(errors.KVError, match="stopping"):
        await proposing
