"""Votes: for nothing that is no record, by what is on its way to the disk, and by nobody who may forget."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from raw_nodes import Nodes, running

import kvstore
from kvstore import errors
from kvstore.core import record as records
from kvstore.core import ring, window
from kvstore.core import version as versions
from kvstore.io.disk import SystemFiles
from kvstore.node.acceptor import Acceptor
from kvstore.types import Kind, NodeId, OperationId, Version
from kvstore.wire.register_messages import ACCEPT, BEATEN, FAILED, GRANTED, PREPARE

pytestmark = pytest.mark.slow
KEY = b"k"


def acceptor_of(nodes: Nodes, number: int = 1) -> Acceptor:
    return nodes.local.nodes[NodeId(number)]._peer_service._acceptor


def skey_of(nodes: Nodes, key: bytes = KEY) -> bytes:
    return ring.storage_key(nodes.local.topology.partition(key), key)


def held_by(one: Nodes) -> bytes:
    """The record of the register."""
    held = acceptor_of(one).latest(skey_of(one))
    assert held is not None
    return held


async def voted(nodes: Nodes, *votes: tuple[int, bytes, Any]) -> list[int]:
    """The statuses of the votes that a peer would get, which asks for all at once."""
    answered: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    acceptor_of(nodes).vote(votes, now_ms=int(time.time() * 1000), done=answered.set_result)
    return list((await answered)[::3])


async def asked(one: Nodes, *records_asked: bytes) -> list[int]:
    """To accept these records of the register."""
    return await voted(one, *((ACCEPT, skey_of(one), record) for record in records_asked))


def successor(held: bytes, count: int = 0) -> bytes:
    """The next record of a register, as a round would make it."""
    changed, outcomes, _ = window.decode(held[records.HEADER_BYTES :])
    version = versions.pack(int(time.time() * 1000), count, NodeId(1))
    after = outcomes.adding([(OperationId(bytes(15) + b"n"), window.Outcome(window.APPLIED, changed, b"7"))])
    payload = window.encode(version, after, b"7")
    return records.encode(Version(version), 0, Kind.VALUE, payload, flags=records.FLAG_STRONG)


async def test_a_record_is_accepted_only_when_it_is_one(one: Nodes) -> None:
    async with await kvstore.connect(one.local.urls) as kv:
        for _ in range(3):
            await kv.incr(KEY)
        sound = successor(held_by(one))
        begin = records.HEADER_BYTES + window.HEAD_BYTES
        lengths_at = begin + 25
        unsound = [
            sound[: begin + 10],
            sound[:lengths_at] + b"\0\0\1\0" + sound[lengths_at + 4 :],
            sound[: begin - 4] + b"\0\0\0\1" + sound[begin:],
            sound[:16] + b"\x63" + sound[17:],
        ]
        assert await asked(one, *unsound) == [FAILED] * len(unsound)
        entry = await kv.get(KEY, consistency="linearizable")
        assert entry is not None
        assert entry.value == b"3"
        assert await asked(one, sound) == [GRANTED]


async def test_what_is_not_durable_yet_counts_in_the_next_vote(one: Nodes) -> None:
    async with await kvstore.connect(one.local.urls) as kv:
        await kv.incr(KEY)
    held = held_by(one)
    assert await asked(one, successor(held, 2), successor(held, 1)) == [GRANTED, BEATEN]


async def test_a_node_that_may_forget_has_no_vote(three: Nodes) -> None:
    first = {three.local.topology.preference(b"%d" % n)[0]: b"%d" % n for n in range(99)}
    for number in (NodeId(2), NodeId(3)):
        await three.local.stop(number)
        await three.local.start(number, sync="interval:100")
    await three.until_linked(1, 2)
    for urls in (three.local.urls[:1], three.local.urls[1:]):
        async with await kvstore.connect(urls, pinned=True) as kv:
            for key in first.values():
                with pytest.raises((errors.UnsafeRegisters, errors.NoMajority, errors.DeadlineExceeded)):
                    await kv.incr(key, timeout=1.0)
            assert (await kv.put("plain", b"v")).answered, "it stores what is no register's"


async def test_who_does_not_own_a_key_has_no_vote(tmp_path: Path) -> None:
    async with running(tmp_path, 4) as four:
        keys = {NodeId(1) in four.local.topology.preference(b"%d" % n)[:3]: b"%d" % n for n in range(99)}
        votes = [(PREPARE, skey_of(four, keys[is_owned]), 1) for is_owned in (True, False)]
        assert await voted(four, *votes) == [GRANTED, FAILED]


async def fill(three: Nodes, full: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these nodes find their disks full, and the others theirs not."""

    def free(_files: SystemFiles, path: str) -> int:
        return 1_000 if full & set(path.split("/")) else 1 << 40

    monkeypatch.setattr(SystemFiles, "free_bytes", free)
    wanted = [
        (acceptor_of(three, number)._store.promises, three.local.topology.node(number).name in full)
        for number in three.local.nodes
    ]
    async with await kvstore.connect(three.local.urls) as kv, asyncio.timeout(10):
        while any(promises.is_full != is_full for promises, is_full in wanted):
            with suppress(errors.KVError):
                await kv.put("other", b"v", timeout=0.2)


async def test_a_change_that_nobody_has_space_for_is_refused_by_name(
    three: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await kvstore.connect(three.local.urls, retries=0) as kv:
        await kv.incr(KEY)
        await fill(three, {"n1", "n2", "n3"}, monkeypatch)
        rounds = sum(node.counters.register_rounds for node in three.local.nodes.values())
        for _ in range(3):
            with pytest.raises(errors.DiskFull):
                await kv.incr(KEY)
            entry = await kv.get(KEY, consistency="linearizable")
            assert entry is not None
            assert entry.value == b"1"
        # At most: one for each change, and one for the read after it; none is tried until its deadline.
        assert sum(node.counters.register_rounds for node in three.local.nodes.values()) <= rounds + 6
        assert (await kv.delete(KEY, consistency="linearizable")).existed
        assert await kv.get(KEY, consistency="linearizable") is None


async def test_a_change_that_one_owner_had_space_for_is_not_told_as_refused(
    three: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await kvstore.connect(three.local.urls, retries=0) as kv:
        await kv.incr(KEY)
        await fill(three, {"n1", "n2"}, monkeypatch)
        with pytest.raises(errors.Unresolved) as caught:
            await kv.incr(KEY, timeout=1.0)
        await fill(three, set(), monkeypatch)
        assert (await kv.resolve(caught.value.operation)).version >= 0
        assert (await kv.incr(KEY)).value in {2, 3}


async def test_one_owner_without_space_is_one_of_three(three: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await kvstore.connect(three.local.urls) as kv:
        await fill(three, {"n2"}, monkeypatch)
        assert [(await kv.incr(KEY)).value for _ in range(5)] == [1, 2, 3, 4, 5]
