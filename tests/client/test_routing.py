"""Which node is asked: owners first, who failed is left alone, and the topology is kept fresh."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from scripted_node import HANG, Connect, ScriptedCluster, scripted

from kvstore import errors
from kvstore.client.urls import addresses_of
from kvstore.core.topology import Topology
from kvstore.types import NodeId
from kvstore.wire import codec


async def settled() -> None:
    """Let answers that nobody waits for arrive."""
    await asyncio.sleep(0.1)


async def test_a_key_goes_to_its_first_owner(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    for i in range(60):
        key = b"key-%d" % i
        first = cluster.owners(key)[0]
        before = first.asked("put")
        receipt = await kv.put(key, b"v")
        assert first.asked("put") == before + 1
        assert receipt.coordinator == first.number


async def test_keys_with_one_tag_go_to_one_node(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    for i in range(10):
        await kv.put(f"{{user:1}}:{i}", b"v")
    assert sorted(cluster.asked("put")) == [0, 0, 10]


async def test_calls_without_a_key_are_spread(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    for _ in range(60):
        await kv.ping()
    pings = Counter(
        node.number for node in cluster.nodes.values() for method, _ in node.calls if method == "ping"
    )
    assert min(pings[number] for number in cluster.nodes) >= 10


async def test_a_node_can_be_asked_by_its_address(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    for node in cluster.nodes.values():
        assert (await kv.status(node.address))["node"] == node.number
        assert await kv.ping(node.address) >= 0
    await cluster.nodes[2].kill()
    with pytest.raises(errors.CannotConnect):
        await kv.status(cluster.nodes[2].address, timeout=0.3)


async def test_one_address_is_enough_to_find_the_others(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect(f"kv://{cluster.nodes[3].address}")
    for i in range(20):
        await kv.put(b"key-%d" % i, b"v")
    assert all(asked > 0 for asked in cluster.asked("put"))


async def test_seeds_that_are_down_are_passed_over(cluster: ScriptedCluster, connect: Connect) -> None:
    await cluster.nodes[1].kill()
    kv = await connect(["kv://127.0.0.1:1", cluster.url])
    await kv.put("k", b"v")


async def test_a_pinned_client_asks_nobody_else(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect(f"kv://{cluster.nodes[1].address}", pinned=True)
    for i in range(20):
        await kv.put(b"key-%d" % i, b"v")
    assert cluster.asked("put") == [20, 0, 0]


async def test_connections_are_opened_when_needed_and_shared(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect(f"kv://{cluster.nodes[1].address}")
    assert [node.accepted for node in cluster.nodes.values()] == [1, 0, 0]
    async with asyncio.TaskGroup() as tasks:
        for i in range(300):
            tasks.create_task(kv.put(b"key-%d" % i, b"v"))
    assert [node.accepted for node in cluster.nodes.values()] == [1, 1, 1]


async def test_a_cancelled_call_does_not_cancel_those_that_wait_for_the_same_connection(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect(f"kv://{cluster.nodes[1].address}")
    second = cluster.nodes[2]
    hello = second.serve("hello", ())
    waiting: list[Any] = []
    second.acts["hello"].append(HANG)
    key = cluster.key_of(2)
    loop = asyncio.get_running_loop()
    first = loop.create_task(kv.put(key, b"1"))
    await settled()
    waiting = [loop.create_task(kv.put(key, b"2")) for _ in range(5)]
    await settled()
    first.cancel()
    receipts = [await asyncio.wait_for(task, 1) for task in waiting]
    assert all(receipt.attempts == 2 for receipt in receipts)
    assert hello["node"] == 2


async def test_who_waits_for_a_connection_may_be_cancelled_alone(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect(f"kv://{cluster.nodes[1].address}")
    second, key = cluster.nodes[2], cluster.key_of(2)
    packer = codec.Packer()
    second.acts["hello"].append(HANG)
    loop = asyncio.get_running_loop()
    calls = [loop.create_task(kv.put(key, b"v")) for _ in range(3)]
    await settled()
    calls[1].cancel()
    await settled()
    second.links[0].transport.write(packer.response(1, second.serve("hello", ())))
    assert [(await asyncio.wait_for(calls[i], 1)).coordinator for i in (0, 2)] == [2, 2]
    assert second.accepted == 1


async def test_a_node_that_failed_is_left_alone_and_found_again(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    second = cluster.nodes[2]
    key = cluster.key_of(2)
    await kv.put(key, b"v")
    await second.kill()
    attempts = [(await kv.put(key, b"v")).attempts for _ in range(30)]
    assert attempts[0] <= 2
    assert attempts[-10:] == [1] * 10, "the others answer at the first try while it is left alone"
    await second.start()
    async with asyncio.timeout(5):
        while (await kv.put(key, b"v")).coordinator != 2:
            await asyncio.sleep(0.01)


async def test_the_pause_grows_and_one_call_finds_out_for_all(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    nodes, address = kv._nodes, cluster.nodes[2].address
    now = asyncio.get_running_loop().time()
    pauses = []
    for _ in range(10):
        nodes.failed(address)
        pauses.append(nodes._failures[address][1] - now)
    assert 0.04 < pauses[0] < 0.11
    assert pauses[4] > 4 * pauses[0]
    assert max(pauses) < 5.1
    nodes._failures[address] = (3, now - 1.0)  # the pause is over
    key = cluster.key_of(2)
    assert nodes.candidates(key)[0] == address
    nodes.asking(address)
    assert nodes.candidates(key)[0] != address, "until the first has come back, the others keep away"
    nodes.worked(address)
    assert nodes.candidates(key)[0] == address


async def test_when_all_failed_all_are_asked_all_the_same(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    for node in cluster.nodes.values():
        kv._nodes.failed(node.address)
    await kv.put("k", b"v")


def moved(cluster: ScriptedCluster, epoch: int) -> Topology:
    """The same cluster with owners the other way round, some epochs later."""
    plain = cluster.topology.to_plain()
    plain["epoch"] = epoch
    plain["owners"] = [list(reversed(row)) for row in plain["owners"]]
    return Topology.from_plain(plain)


@pytest.mark.parametrize("verb", ["put", "get", "delete", "get_many", "put_many", "scan"])
async def test_an_answer_of_a_newer_epoch_brings_the_new_topology(
    cluster: ScriptedCluster, connect: Connect, verb: str
) -> None:
    kv = await connect()
    await kv.put("k", b"v")
    newer = moved(cluster, 7)
    for node in cluster.nodes.values():
        node.topology = newer
    match verb:
        case "put":
            await kv.put("k", b"v")
        case "scan":
            assert [entry async for entry in kv.scan()]
        case "get_many":
            await kv.get_many(["k"])
        case "put_many":
            await kv.put_many({"k": b"v"})
        case _:
            await getattr(kv, verb)("k")
    async with asyncio.timeout(5):
        while kv._nodes.epoch != 7:
            await asyncio.sleep(0.002)
    receipt = await kv.put("k", b"v")
    assert receipt.coordinator == newer.preference(b"k")[0]


async def test_a_lost_node_makes_the_client_ask_for_the_topology(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    for i in range(20):
        await kv.put(b"key-%d" % i, b"v")
    for node in cluster.nodes.values():
        node.topology = moved(cluster, 9)
    await cluster.nodes[3].kill()
    async with asyncio.timeout(2):
        while kv._nodes.epoch != 9:
            await asyncio.sleep(0.005)


async def test_an_older_or_unreadable_topology_is_not_taken(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    kv._nodes.adopt(moved(cluster, 5))
    kv._nodes.adopt(moved(cluster, 4))
    assert kv._nodes.epoch == 5
    cluster.always("topology", {"epoch": 99})
    kv._nodes.saw_epoch(99)
    await settled()
    assert kv._nodes.epoch == 5
    with pytest.raises(errors.Unresolved):
        await kv.topology(timeout=0.3)


async def test_when_every_address_moved_the_seeds_are_asked_again(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    kv._nodes.adopt(cluster.topology.with_addresses({NodeId(n): ("127.0.0.1", 1, 1) for n in (1, 2, 3)}))
    await kv.put("k", b"v")


async def test_a_node_of_another_cluster_at_a_known_address_is_not_used(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect(f"kv://{cluster.nodes[1].address}")
    cluster.nodes[2].always["hello"] = errors.WrongCluster(expected="another", got="ours")
    receipt = await kv.put(cluster.key_of(2), b"v")
    assert receipt.coordinator != 2
    assert cluster.nodes[1].calls[0][1][0].get("cluster") is None
    cluster_asked_for = [p[0].get("cluster") for m, p in cluster.nodes[2].calls if m == "hello"]
    assert cluster_asked_for == [cluster.topology.cluster_id]


async def test_a_wrong_token_is_told_not_retried_for_ever(connect: Connect) -> None:
    async with scripted(2) as other:
        for node in other.nodes.values():
            node.always["hello"] = errors.AuthFailed()
        with pytest.raises(errors.AuthFailed):
            await connect(other.url, token="wrong")
        assert sum(len(node.calls) for node in other.nodes.values()) == 2


async def test_nothing_goes_out_after_close(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    await kv.put("k", b"v")
    await kv.close()
    with pytest.raises(errors.CannotConnect, match="closed"):
        await kv.put("k", b"v", timeout=0.3)
    await kv.close()
    await settled()
    assert not any(node.links for node in cluster.nodes.values())


GOOD: list[tuple[Any, list[str]]] = [
    ("kv://h", ["h:7401"]),
    ("kv://h:1", ["h:1"]),
    ("kv://h:1/", ["h:1"]),
    ("kv://h1,h2:2", ["h1:7401", "h2:2"]),
    ("kv://[::1]:5,[::2]", ["[::1]:5", "[::2]:7401"]),
    (["kv://h1", "kv://h2", "kv://h1"], ["h1:7401", "h2:7401"]),
]


@pytest.mark.parametrize(("url", "addresses"), GOOD)
def test_urls(url: Any, addresses: list[str]) -> None:
    assert addresses_of(url) == addresses


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:1",
        "http://h",
        "kv://",
        "kv://h:x",
        "kv://h:70000",
        "kv://h:0",
        "kv://u:secret@h",
        "kv://h/path",
        "kv://h?x=1",
        "kv://h#x",
        "kv://h,,i",
        "kv://[::1",
        "kv://..:1",
        f"kv://{'a' * 64}.com:1",
        "kv://\udcff:1",
        "kv://a\0b:1",
        [],
        [7],
        7,
        None,
    ],
)
def test_a_wrong_url_is_refused(url: Any) -> None:
    with pytest.raises(errors.BadOption, match="kv://host:port"):
        addresses_of(url)


async def test_a_connection_that_comes_after_close_is_not_kept(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect(f"kv://{cluster.nodes[1].address}")
    second = cluster.nodes[2]
    second.acts["hello"].append(HANG)
    call = asyncio.get_running_loop().create_task(kv.put(cluster.key_of(2), b"v", timeout=1))
    await settled()
    await kv.close()
    second.links[0].transport.write(codec.Packer().response(1, second.serve("hello", ())))
    with pytest.raises(errors.CannotConnect, match="closed"):
        await call
    await settled()
    assert not second.links
