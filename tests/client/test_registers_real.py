"""Register verbs and locks against real nodes: both outcomes of each verb, and many clients at one key."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nodes_in_thread import nodes_in_thread

import kvstore
from kvstore import errors
from kvstore.client.locks import KEY_PREFIX
from kvstore.server import LocalNodes, local_nodes
from kvstore.types import NodeId

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
LINEAR = "linearizable"
EVERY_BYTE = bytes(range(256))
Connect = Callable[..., Awaitable[kvstore.Client]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of three durable nodes, which run in a thread for all tests that stop none."""
    with nodes_in_thread(tmp_path_factory.mktemp("nodes")) as found:
        yield found


@pytest.fixture
async def connect(shared: list[str]) -> AsyncIterator[Connect]:
    """Make clients of the shared nodes; at the end they are closed, and every key is deleted."""
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> kvstore.Client:
            return await stack.enter_async_context(await kvstore.connect(shared, **options))

        sweeper = await make()
        yield make
        await sweeper.delete_many(
            [entry.key async for entry in sweeper.scan(keys_only=True)], consistency=LINEAR
        )


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[LocalNodes]:
    """Three nodes of a test's own, to stop and start."""
    async with local_nodes(tmp_path, count=3, cluster_id="f" * 32) as local:
        yield local


@pytest.fixture
async def kv(connect: Connect) -> kvstore.Client:
    """One client."""
    return await connect()


def append(item: Any, seen: Any) -> Any:
    return [*(seen or []), item]


async def seconds_left(kv: kvstore.Client, key: str) -> float:
    left = await kv.ttl(key, consistency=LINEAR)
    assert left is not None
    return left


async def held(kv: kvstore.Client, key: str) -> Any:
    entry = await kv.get(key, consistency=LINEAR)
    return None if entry is None else entry.value


# --- each verb, both outcomes -----------------------------------------------------------


async def test_cas_by_version_writes_only_over_what_was_seen(kv: kvstore.Client) -> None:
    first = await kv.cas("k", new=b"1", expected_version=0)
    assert isinstance(first, kvstore.Applied)
    assert not first.existed
    assert len(first.receipt.answered) >= 2
    lost = await kv.cas("k", new=b"x", expected_version=0)
    assert isinstance(lost, kvstore.NotApplied)
    assert (lost.version, lost.value) == (first.version, b"1")
    second = await kv.cas("k", new=b"2", expected_version=first.version)
    assert second
    assert second.version > first.version
    assert not await kv.cas("k", new=b"x", expected_version=first.version)
    entry = await kv.get("k", consistency=LINEAR)
    assert entry is not None
    assert (entry.value, entry.version) == (b"2", second.version)


async def test_cas_by_value_compares_every_byte(kv: kvstore.Client) -> None:
    assert not await kv.cas("k", new=b"x", expected_value=b"")
    assert await kv.cas("k", new=EVERY_BYTE, expected_value=None)
    lost = await kv.cas("k", new=b"x", expected_value=EVERY_BYTE[:-1])
    assert (bool(lost), lost.value) == (False, EVERY_BYTE)
    assert await kv.cas("k", new=b"", expected_value=EVERY_BYTE)
    assert not await kv.cas("k", new=b"x", expected_value=None), "an empty value is a value"
    assert await held(kv, "k") == b""


async def test_cas_to_none_deletes_and_versions_go_on(kv: kvstore.Client) -> None:
    first = await kv.put_if_absent("k", b"1")
    gone = await kv.cas("k", new=None, expected_value=b"1")
    assert gone.version > first.version
    assert await held(kv, "k") is None
    again = await kv.put_if_absent("k", b"1")
    assert again.version > gone.version
    assert not await kv.cas("k", new=b"x", expected_version=first.version), "the same value, another time"


async def test_cas_wants_one_expectation(kv: kvstore.Client) -> None:
    both = {"expected_version": 1, "expected_value": b"x"}
    for terms in ({}, both, {"expected_version": True}, {"expected_version": "1"}):
        with pytest.raises(errors.BadOption):
            await kv.cas("k", new=b"x", **terms)


async def test_delete_if_deletes_only_what_was_meant(kv: kvstore.Client) -> None:
    made = await kv.put_if_absent("k", b"1")
    assert not await kv.delete_if("k", expected_value=b"2")
    assert not await kv.delete_if("k", expected_version=made.version + 1)
    assert await held(kv, "k") == b"1"
    assert await kv.delete_if("k", expected_version=made.version)
    assert await held(kv, "k") is None
    assert not await kv.delete_if("k", expected_version=made.version)


async def test_incr_counts_within_bounds(kv: kvstore.Client) -> None:
    assert (await kv.incr("n")).value == 1
    assert (await kv.incr("n", -4)).value == -3
    below = await kv.incr("n", -3, minimum=-5)
    assert (bool(below), below.value) == (False, -3)
    above = await kv.incr("n", 4, maximum=0)
    assert (bool(above), above.value) == (False, -3)
    assert (await kv.incr("n", -2, minimum=-5)).value == -5
    assert (await kv.incr("other", 5, initial=100)).value == 105
    assert await held(kv, "other") == b"105"


async def test_incr_refuses_what_is_no_number_or_no_64_bits(kv: kvstore.Client) -> None:
    await kv.put("k", b"1x", consistency=LINEAR)
    with pytest.raises(errors.NotANumber):
        await kv.incr("k")
    with pytest.raises(errors.BadOption):
        await kv.incr("n", 1 << 63)
    assert (await kv.incr("n", (1 << 63) - 1)).value == (1 << 63) - 1
    assert not await kv.incr("n")
    assert await held(kv, "n") == b"%d" % ((1 << 63) - 1)


async def test_incr_gives_its_ttl_only_to_a_number_that_begins(kv: kvstore.Client) -> None:
    made = await kv.incr("n", ttl=1000)
    more = await kv.incr("n", ttl=5)
    assert isinstance(made, kvstore.Applied)
    assert isinstance(more, kvstore.Applied)
    assert made.expires_at == more.expires_at
    assert 900 < await seconds_left(kv, "n") <= 1000


async def test_get_and_set_answers_with_what_it_replaced(kv: kvstore.Client) -> None:
    first = await kv.get_and_set("k", EVERY_BYTE)
    assert (first.value, first.existed) == (None, False)
    second = await kv.get_and_set("k", b"2")
    assert (second.value, second.existed) == (EVERY_BYTE, True)
    assert (await kv.get_and_set("k", None)).value == b"2"
    assert await held(kv, "k") is None


async def test_extend_moves_the_end_and_not_the_version(kv: kvstore.Client) -> None:
    assert not await kv.extend("k", 100)
    made = await kv.put_if_absent("k", b"1", ttl=5)
    assert not await kv.extend("k", 100, expected_version=made.version + 1)
    assert await seconds_left(kv, "k") <= 5
    done = await kv.extend("k", 100, expected_version=made.version)
    assert done.version == made.version
    assert 90 < await seconds_left(kv, "k") <= 100
    await kv.persist("k", consistency=LINEAR)
    assert await seconds_left(kv, "k") == math.inf


async def test_what_has_expired_is_absent(kv: kvstore.Client) -> None:
    made = await kv.put_if_absent("k", b"1", ttl=1)
    assert not await kv.put_if_absent("k", b"2")
    await asyncio.sleep(1.1)
    assert not await kv.cas("k", new=b"x", expected_version=made.version)
    assert await kv.put_if_absent("k", b"2")
    assert await held(kv, "k") == b"2"


async def test_codecs_reach_registers_too(connect: Connect) -> None:
    kv = await connect(codec="json")
    assert await kv.put_if_absent("k", {"a": [1, None]})
    assert (await kv.put_if_absent("k", 5)).value == {"a": [1, None]}
    assert await kv.cas("k", new=[2], expected_value={"a": [1, None]})
    assert (await kv.update("k", functools.partial(append, 3))).version
    assert (await kv.get_and_set("k", 0)).value == [2, 3]
    assert (await kv.incr("k", 7)).value == 7


# --- many at once -----------------------------------------------------------------------


async def test_of_a_hundred_who_put_if_absent_one_wins(connect: Connect) -> None:
    clients = [await connect() for _ in range(4)]
    done = await asyncio.gather(*(clients[i % 4].put_if_absent("k", b"%d" % i) for i in range(100)))
    winners = [i for i, outcome in enumerate(done) if outcome]
    assert len(winners) == 1
    assert await held(clients[0], "k") == b"%d" % winners[0]
    assert {outcome.value for outcome in done if not outcome} == {b"%d" % winners[0]}


async def test_two_hundred_increments_at_once_add_up(connect: Connect) -> None:
    clients = [await connect() for _ in range(4)]
    done = await asyncio.gather(*(clients[i % 4].incr("n") for i in range(200)))
    assert sorted(outcome.value for outcome in done) == list(range(1, 201))
    assert await held(clients[0], "n") == b"200"
    by_version = sorted(done, key=lambda outcome: outcome.version)
    assert [outcome.value for outcome in by_version] == list(range(1, 201)), "versions are their order"


async def test_get_and_set_at_once_is_a_chain(connect: Connect) -> None:
    clients = [await connect() for _ in range(3)]
    done = await asyncio.gather(*(clients[i % 3].get_and_set("k", b"%d" % i) for i in range(60)))
    seen = [outcome.value for outcome in done]
    last = await held(clients[0], "k")
    assert sorted([*seen, last], key=str) == sorted([None, *(b"%d" % i for i in range(60))], key=str)


async def test_updates_in_contention_lose_nothing(connect: Connect) -> None:
    clients = [await connect(codec="json", timeout=30) for _ in range(4)]

    async def add(client: kvstore.Client, worker: int) -> None:
        for count in range(8):
            await client.update("k", functools.partial(append, [worker, count]))

    await asyncio.gather(*(add(client, worker) for worker, client in enumerate(clients)))
    whole = await held(clients[0], "k")
    assert sorted(whole) == [[worker, count] for worker in range(4) for count in range(8)]
    for worker in range(4):
        assert [count for who, count in whole if who == worker] == list(range(8))


async def test_update_deletes_with_none_and_passes_errors_on(kv: kvstore.Client) -> None:
    await kv.put_if_absent("k", b"1")
    await kv.update("k", lambda _seen: None)
    assert await held(kv, "k") is None
    with pytest.raises(ZeroDivisionError):
        await kv.update("k", lambda _seen: b"%d" % (1 // 0))
    assert await held(kv, "k") is None


# --- what became of it ------------------------------------------------------------------


async def test_an_unknown_operation_is_not_applied_and_never_will_be(kv: kvstore.Client) -> None:
    late = kv.change.put_if_absent("k", b"late")
    for _ in range(2):
        answer = await kv.resolve(str(late.named))
        assert isinstance(answer, kvstore.NotApplied)
    with pytest.raises(errors.Cancelled):
        await kv._change(late, None)
    assert await held(kv, "k") is None
    assert await kv.put_if_absent("k", b"new"), "others are not cancelled"


async def test_an_applied_operation_is_told_so_however_often(kv: kvstore.Client) -> None:
    change = kv.change.incr("k", 5)
    done = await kv._change(change, None)
    await kv._change(change, None)  # a retry: answered, not repeated
    await kv.incr("k")
    for _ in range(2):
        answer = await kv.resolve(change.named)
        assert isinstance(answer, kvstore.Applied)
        assert (answer.version, answer.value) == (done.version, b"5")
    assert await held(kv, "k") == b"6"


async def test_resolve_takes_only_operations(kv: kvstore.Client) -> None:
    for what in (None, "", "zz", "00:00", "0" * 32, "0" * 32 + ":zz"):
        with pytest.raises(errors.BadOption):
            await kv.resolve(what)


# --- nodes that stop --------------------------------------------------------------------


async def test_one_node_may_stop_and_two_may_not(nodes: LocalNodes) -> None:
    async with await kvstore.connect(nodes.urls) as kv:
        await kv.incr("n", 5)
        await nodes.stop(NodeId(1))
        assert (await kv.incr("n")).value == 6
        await nodes.stop(NodeId(2))
        for call in (kv.incr("n", timeout=1), kv.get("n", consistency=LINEAR, timeout=1)):
            with pytest.raises(errors.Refused) as refused:
                await call
            assert refused.value.exit_status == 5
        await nodes.start(NodeId(1))
        assert (await kv.incr("n", timeout=20)).value == 7, "what was refused was not applied"


async def test_all_may_stop_and_nothing_is_forgotten(nodes: LocalNodes) -> None:
    async with await kvstore.connect(nodes.urls) as kv:
        change = kv.change.put_if_absent("k", b"v")
        done = await kv._change(change, None)
        await nodes.stop_all()
        for member in nodes.topology.nodes:
            await nodes.start(member.number)
        again = await kv.resolve(change.named, timeout=20)
        assert (bool(again), again.version) == (True, done.version)
        assert not await kv.put_if_absent("k", b"w", timeout=20)


# --- locks ------------------------------------------------------------------------------


async def test_a_lock_excludes_and_its_tokens_grow(connect: Connect) -> None:
    clients = [await connect() for _ in range(3)]
    inside: list[int] = []
    tokens: list[int] = []

    async def work(client: kvstore.Client, worker: int) -> None:
        for _ in range(3):
            async with client.lock("job", ttl=5) as lease:
                inside.append(worker)
                assert len(inside) == 1
                assert lease.held
                tokens.append(lease.token)
                await asyncio.sleep(0.01)
                inside.remove(worker)
            assert (lease.token, lease.held) == (0, False)

    await asyncio.gather(*(work(client, worker) for worker, client in enumerate(clients)))
    assert len(tokens) == 9
    assert tokens == sorted(set(tokens))


async def test_a_taken_lock_is_waited_for_only_so_long(connect: Connect) -> None:
    kv, other = await connect(), await connect()
    async with kv.lock("job"):
        for wait in (0, 0.1):
            with pytest.raises(errors.LockTaken) as taken:
                await other.lock("job", wait=wait).acquire()
            assert taken.value.exit_status == 1
        assert await other.lock("another", wait=0).acquire()
    assert await other.lock("job", wait=0).acquire()


async def test_a_lease_is_renewed_beyond_its_ttl(connect: Connect) -> None:
    kv, other = await connect(), await connect()
    async with kv.lock("job", ttl=1) as lease:
        token = lease.token
        await asyncio.sleep(2.2)
        assert lease.held
        assert not lease.lost.is_set()
        assert lease.token == token
        with pytest.raises(errors.LockTaken):
            await other.lock("job", wait=0).acquire()


async def test_a_lease_that_was_taken_away_says_so_and_releases_nothing(connect: Connect) -> None:
    kv, other = await connect(), await connect()
    async with kv.lock("job", ttl=1) as lease:
        await other.delete(KEY_PREFIX + b"job", consistency=LINEAR)
        theirs = other.lock("job", ttl=30)
        assert await theirs.acquire() > lease.token
        async with asyncio.timeout(5):
            await lease.lost.wait()
        assert not lease.held
    found = await kv.get(KEY_PREFIX + b"job", consistency=LINEAR)
    assert found is not None
    assert found.version == theirs.token
    await theirs.release()


async def test_a_lock_wants_a_ttl_it_can_renew(kv: kvstore.Client) -> None:
    for ttl in (0, -1, 0.05, math.nan, True, "5"):
        with pytest.raises(errors.BadTtl):
            kv.lock("job", ttl)  # type: ignore[arg-type]
