"""Nodes from which nothing comes: when a connection is given up, when it is kept, and who finds out."""

from __future__ import annotations

import asyncio

import pytest
from scripted_node import HANG, Connect, Later, ScriptedCluster, in_use

from kvstore import errors

KEY = "user:1"


async def test_a_silent_connection_is_given_up_and_a_fresh_one_tried(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    """Its other end may be gone for ever, or cut off; TCP would take a quarter of an hour to say so."""
    kv, first = await in_use(cluster, connect, KEY)
    accepted = first.accepted
    first.acts["get"].append(HANG)
    assert (await kv.get(KEY, timeout=0.5)).receipt.attempts == 2  # type: ignore[union-attr]
    kv._nodes.worked(first.address)
    entry = await kv.get(KEY)
    assert entry is not None
    assert entry.receipt.coordinator == first.number
    assert first.accepted == accepted + 1


async def test_a_loop_that_tells_the_time_roughly_finds_out_as_well(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    """Uvloop's time is in whole milliseconds: a try of 0.25 s may have seen 0.249 s of silence."""
    kv, first = await in_use(cluster, connect, KEY)
    connection = await kv._nodes.connection(first.address)
    first.acts["get"].append(HANG)
    asked = asyncio.get_running_loop().create_task(kv.get(KEY, timeout=0.5))
    while connection.silent_since is None:
        await asyncio.sleep(0)
    connection.silent_since += 0.001
    assert (await asked).receipt.attempts == 2  # type: ignore[union-attr]
    assert not connection.is_open


async def test_who_waits_too_short_disturbs_nobody(cluster: ScriptedCluster, connect: Connect) -> None:
    """A connection is everybody's, and so is the opinion that a node failed."""
    kv, first = await in_use(cluster, connect, KEY)
    accepted = first.accepted
    first.always["get"] = Later(0.1)
    patient = asyncio.get_running_loop().create_task(kv.get(KEY))
    while first.asked("get") == 0:
        await asyncio.sleep(0.001)
    for _ in range(3):
        with pytest.raises(errors.DeadlineExceeded):
            await kv.get(KEY, timeout=0.01)
    entries = await patient, await kv.get(KEY)
    for entry in entries:
        assert entry is not None
        assert (entry.receipt.attempts, entry.receipt.coordinator) == (1, first.number)
    assert first.accepted == accepted


async def test_no_try_is_made_in_less_than_half_a_millisecond(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    """It ended as "no connection" after 0.00 s, and the node counted as failed."""
    kv, first = await in_use(cluster, connect, KEY)
    asked = first.asked("get")
    for timeout in (1e-12, 1e-6, 4e-4):
        with pytest.raises(errors.DeadlineExceeded):
            await kv._caller.call(
                "get", lambda t: (KEY.encode(), {"t": t}), key=KEY.encode(), timeout=timeout, writes=False
            )
    await asyncio.sleep(0.01)
    assert first.asked("get") == asked


async def test_those_who_wait_short_find_out_together_that_a_node_hangs(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv, first = await in_use(cluster, connect, KEY)
    first.always["get"] = HANG
    for _ in range(50):
        try:
            entry = await kv.get(KEY, timeout=0.05)
        except errors.DeadlineExceeded:
            continue
        assert entry is not None
        assert entry.receipt.coordinator != first.number
        break
    else:
        pytest.fail("they asked the node that hangs for ever")


async def test_a_connection_on_which_others_get_answers_is_kept(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv, first = await in_use(cluster, connect, KEY)
    accepted = first.accepted
    first.acts["get"].append(HANG)
    slow = asyncio.get_running_loop().create_task(kv.get(KEY, timeout=0.5))
    while not slow.done():
        kv._nodes.worked(first.address)
        await kv.put(KEY, b"v")
        await asyncio.sleep(0.01)
    assert (await slow).receipt.attempts == 2  # type: ignore[union-attr]
    assert first.accepted == accepted


async def test_when_the_pause_is_over_one_call_finds_out_for_all(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv, first = await in_use(cluster, connect, KEY)
    kv._nodes._failures[first.address] = (6, 0.0)  # it failed often, and the last pause has passed
    first.always["get"] = HANG
    async with asyncio.TaskGroup() as tasks:
        for _ in range(50):
            tasks.create_task(kv.get(KEY, timeout=0.6))
    assert first.asked("get") == 1
