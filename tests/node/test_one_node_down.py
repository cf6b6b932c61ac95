"""What clients see when nodes go away and come back, on real sockets and real logs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raw_nodes import OPERATION, Nodes, running

import kvstore
from kvstore import errors
from kvstore.config import load
from kvstore.io.disk import SystemFiles
from kvstore.server import first_start
from kvstore.storage import identity as identities
from kvstore.types import Durability, NodeId

pytestmark = pytest.mark.slow

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


async def test_with_one_node_down_quorum_goes_on_and_all_is_refused_definitely(three: Nodes) -> None:
    raw = await three.connect(1)
    await three.local.stop(THREE)
    await three.until_linked(1, 1)
    receipt = await raw.call("put", b"k", b"v", OPERATION, {})
    assert sorted(receipt[2]) == [1, 2]
    assert (await raw.call("get", b"k", {}))[0] == b"v"
    name, fields = await raw.error("put", b"k", b"w", OPERATION, {"c": "all"})
    assert name == "unavailable"
    assert (fields["needed"], fields["alive"], fields["down"]) == (3, 2, "n3")
    assert (await raw.call("get", b"k", {}))[0] == b"v", "what was refused did not happen"


async def test_with_two_nodes_down_quorum_is_refused_at_once_and_one_still_reads(three: Nodes) -> None:
    raw = await three.connect(1)
    await raw.call("put", b"k", b"v", OPERATION, {"c": "all"})
    await three.local.stop(THREE)
    await three.local.stop(TWO)
    await three.until_linked(1, 0)
    began = asyncio.get_running_loop().time()
    calls: list[tuple[Any, ...]] = [
        ("put", b"k", b"w", OPERATION, {}),
        ("get", b"k", {}),
        ("delete", b"k", OPERATION, {}),
    ]
    for call in calls:
        assert (await raw.error(*call))[0] == "unavailable"
    assert asyncio.get_running_loop().time() - began < 1
    assert (await raw.call("get", b"k", {"c": "one"}))[0] == b"v"
    assert (await raw.call("put", b"k", b"w", OPERATION, {"c": "one"}))[2] == (1,)


async def test_what_a_node_missed_reaches_it_by_a_read_at_quorum(three: Nodes) -> None:
    raw = await three.connect(1)
    await raw.call("put", b"k", b"old", OPERATION, {"c": "all"})
    await three.local.stop(THREE)
    await three.until_linked(1, 1)
    await raw.call("put", b"k", b"new", OPERATION, {})
    await raw.call("delete", b"gone", OPERATION, {})
    await three.local.start(THREE)
    await three.until_linked(1, 2)
    await three.until_linked(3, 2)
    third = await three.connect(3)
    answer = await third.call("get", b"k", {"c": "all"})
    assert answer[0] == b"new"
    assert answer[5] == (3,), "the receipt names who was mended"
    assert (await third.call("get", b"k", {"r": 1, "c": "one"}))[0] == b"new"


async def test_a_restarted_node_finds_everything_it_acknowledged(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as nodes:
        raw = await nodes.connect(1)
        for number in range(300):
            await raw.call("put", b"k%d" % number, b"v%d" % number, OPERATION, {})
        await raw.call("delete", b"k7", OPERATION, {})
        before = await raw.call("put", b"last", b"x", OPERATION, {})
        await nodes.local.stop(ONE)
        await nodes.local.start(ONE)
        raw = await nodes.connect(1)
        found = [await raw.call("get", b"k%d" % number, {}) for number in range(300)]
        assert [entry[0] for entry in found] == [
            None if number == 7 else b"v%d" % number for number in range(300)
        ]
        after = await raw.call("put", b"last", b"y", OPERATION, {})
        assert after[0] > before[0], "versions go on above everything issued before"


async def test_no_error_reaches_the_client_while_nodes_restart_one_by_one(three: Nodes) -> None:
    acknowledged: dict[str, bytes] = {}
    stop = asyncio.Event()

    async def write(client: kvstore.Client, worker: int) -> None:
        count = 0
        while not stop.is_set():
            key, value = f"w{worker}-{count % 20}", b"%d" % count
            await client.put(key, value)
            acknowledged[key] = value
            found = await client.get(key)
            assert found is not None
            assert found.value == value
            count += 1

    async with await kvstore.connect(three.local.urls, timeout=10) as client:
        async with asyncio.TaskGroup() as tasks:
            for worker in range(8):
                tasks.create_task(write(client, worker))
            for number in (ONE, TWO, THREE):
                await asyncio.sleep(0.15)
                await three.local.stop(number)
                await asyncio.sleep(0.15)
                await three.local.start(number)
                await three.until_linked(number, 2)
                for other in (ONE, TWO, THREE):
                    await three.until_linked(other, 2)
            stop.set()
        assert len(acknowledged) >= 8
        for key, value in acknowledged.items():
            found = await client.get(key)
            assert found is not None
            assert found.value == value


async def test_a_stopping_node_refuses_definitely_and_finishes_what_it_began(three: Nodes) -> None:
    raw = await three.connect(1)
    begun = [raw.ask("put", b"k%d" % n, b"v", OPERATION, {}) for n in range(50)]
    await asyncio.sleep(0)
    await three.local.stop(ONE)
    outcomes = [await asyncio.wait_for(asyncio.shield(future), 5) for future in begun if future.done()]
    assert outcomes, "what was begun is answered before the end"
    assert all(error is None or error[0] == "not_ready" for error, _ in outcomes)


async def test_a_cancelled_call_leaves_the_connection_usable(three: Nodes) -> None:
    async with await kvstore.connect(three.local.urls[0]) as client:
        for number in range(300):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await client.put(f"c{number}", b"x")
            await client.put("token", b"%d" % number)
            found = await client.get("token")
            assert found is not None
            assert found.value == b"%d" % number
    assert three.status(1)["state"] == "ready"


async def test_touch_never_brings_an_older_value_forward(three: Nodes) -> None:
    first, second = await three.connect(1), await three.connect(2)
    for number in range(100):
        await first.call("put", b"k", b"old%d" % number, OPERATION, {})
        touch = first.ask("touch", b"k", OPERATION, {"ttl": 60_000})
        put = second.ask("put", b"k", b"new%d" % number, OPERATION, {})
        (touch_error, _), (put_error, receipt) = await touch, await put
        assert touch_error is None
        assert put_error is None
        if not receipt[3] & 1:
            found = await first.call("get", b"k", {})
            assert found[0] == b"new%d" % number, "the put was acknowledged and not superseded"


async def test_an_expired_overwrite_does_not_uncover_the_value_before_it(three: Nodes) -> None:
    """Decision 0001: put forever everywhere; overwrite with a ttl while a node is away; let it expire."""
    raw = await three.connect(1)
    await raw.call("put", b"k", b"old", OPERATION, {"c": "all"})
    await three.local.stop(THREE)
    await three.until_linked(1, 1)
    await raw.call("put", b"k", b"short", OPERATION, {"ttl": 60})
    await asyncio.sleep(0.3)
    assert (await raw.call("get", b"k", {}))[0] is None
    await three.local.start(THREE)
    await three.until_linked(1, 2)
    await three.until_linked(3, 2)
    third = await three.connect(3)
    for connection in (raw, third):
        for level in ("quorum", "all"):
            assert (await connection.call("get", b"k", {"c": level}))[0] is None


async def test_embedded_nodes_keep_their_data_between_runs(tmp_path: Path) -> None:
    async with kvstore.local_cluster(nodes=3, directory=tmp_path) as kv:
        await kv.put("k", b"v")
    async with kvstore.local_cluster(nodes=3, directory=tmp_path) as kv:
        found = await kv.get("k")
        assert found is not None
        assert found.value == b"v"


async def test_a_directory_in_use_and_a_port_in_use_are_told_by_name(three: Nodes) -> None:
    with pytest.raises(errors.DataDirInUse, match="in use by another node"):
        await three.local.start(ONE)
    await three.local.stop(TWO)
    info = three.local.topology.node(TWO)
    loop = asyncio.get_running_loop()
    squatter = await loop.create_server(asyncio.Protocol, info.host, info.client_port)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(three.local.open(TWO).serve())
    squatter.close()
    assert isinstance(caught.value.exceptions[0], errors.PortInUse)
    assert str(info.client_port) in str(caught.value.exceptions[0])


async def test_the_memory_engine_promises_no_disk(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as nodes:
        await nodes.local.stop(ONE)
        shutil.rmtree(tmp_path / "n1" / "base")  # else it refuses: it would lose what is there
        shutil.rmtree(tmp_path / "n1" / "wal")
        await nodes.local.start(ONE, engine="memory")
        raw = await nodes.connect(1)
        for options in ({}, {"d": "always"}):
            receipt = await raw.call("put", b"k", b"v", OPERATION, options)
            assert receipt[4] == Durability.MEMORY


async def test_a_node_alone_may_move_to_another_port(tmp_path: Path, free_port: Callable[[], int]) -> None:
    directory = str(tmp_path / "alone")
    for epoch in (1, 2):
        config = load(flags={"data_dir": directory, "client_port": free_port(), "peer_port": free_port()})
        first_start(config)
        topology = identities.load_topology(SystemFiles(), directory)
        assert topology is not None
        assert topology.nodes[0].client_port == config.listen.client_port
        assert topology.epoch == epoch
