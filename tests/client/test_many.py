"""Calls with many keys: one outcome for each, grouped by owner, within one deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted_node import DROP, HANG, Connect, ScriptedCluster

from kvstore import errors, limits
from kvstore.client import batches
from kvstore.wire import results

NOT_READY = errors.NotReady(reason="starting")
IN_DOUBT = errors.QuorumTimeout(operation="put", needed=2, acked=1, missing="n3")


def some_fail(node: Any, method: str, failing: dict[bytes, list[errors.KVError]]) -> None:
    """Have single keys of a batch fail, each so often as it has errors."""

    def act(items: Any, *rest: Any) -> Any:
        outcomes = node.serve(method, (items, *rest))
        for at, item in enumerate(items):
            key = item[0] if isinstance(item, tuple) else item
            if failing.get(key):
                outcomes[at] = results.encode_failure(failing[key].pop(0))
        return outcomes

    node.always[method] = act


async def test_each_key_gets_its_own_outcome_in_the_order_asked_for(connect: Connect) -> None:
    kv = await connect()
    keys = [f"k{i}" for i in range(100)]
    receipts = await kv.put_many({key: key.encode() for key in keys})
    assert list(receipts) == keys
    assert len({receipt.version for receipt in receipts.values()}) == 100
    found = await kv.get_many([*reversed(keys), "missing", b"k1", "k1"])
    assert list(found) == [*reversed(keys), "missing", b"k1"]
    assert found["missing"] is None
    for key in keys:
        entry = found[key]
        assert entry is not None
        assert (entry.key, entry.value) == (key, key.encode())
    deleted = await kv.delete_many(["k1", "k2", "missing"])
    assert {key: receipt.existed for key, receipt in deleted.items()} == {
        "k1": True,
        "k2": True,
        "missing": False,
    }
    assert (await kv.get_many(["k1", "k3"]))["k1"] is None


async def test_nothing_to_do_asks_nobody(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    assert await kv.put_many({}) == {}
    assert await kv.get_many([]) == {}
    assert await kv.delete_many([]) == {}
    assert sum(cluster.asked()) == 0


async def test_keys_are_grouped_by_their_first_owner(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    await kv.put_many({f"k{i}": b"v" for i in range(300)})
    assert cluster.asked("put_many") == [1, 1, 1]
    for node in cluster.nodes.values():
        (params,) = [params for method, params in node.calls if method == "put_many"]
        assert all(cluster.owners(key)[0] is node for key, _ in params[0])


@pytest.mark.parametrize(("count", "size"), [(limits.BATCH_KEYS_MAX + 1, 1), (6, 1 << 20), (2, 5 << 20)])
async def test_requests_stay_within_their_limits(
    cluster: ScriptedCluster, connect: Connect, count: int, size: int
) -> None:
    kv = await connect()
    await kv.put_many({f"{{one}}{i}": bytes(size) for i in range(count)})
    pieces = [params[0] for node in cluster.nodes.values() for m, params in node.calls if m == "put_many"]
    assert len(pieces) == 2
    assert sum(len(piece) for piece in pieces) == count
    for piece in pieces:
        assert len(piece) <= limits.BATCH_KEYS_MAX
        assert len(piece) == 1 or sum(len(value) for _, value in piece) <= batches.BYTES_MAX


async def test_a_key_that_may_pass_later_is_tried_again_elsewhere(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    keys = [f"{{one}}{i}".encode() for i in range(50)]
    first, second, _ = cluster.owners(keys[0])
    some_fail(first, "put_many", {keys[7]: [NOT_READY] * 9, keys[9]: [IN_DOUBT] * 9})
    receipts = await kv.put_many(dict.fromkeys(keys, b"v"))
    assert receipts[keys[7]].coordinator == second.number
    assert receipts[keys[7]].attempts == 2
    assert receipts[keys[8]].attempts == 1
    again = [params[0] for method, params in second.calls if method == "put_many"]
    assert [[key for key, _ in piece] for piece in again] == [[keys[7], keys[9]]]
    operations = {op for _, _, op in cluster.shared.operations}
    assert len(operations) == 1, "one operation id over all pieces and tries"


async def test_a_round_of_repetitions_says_that_it_is_one(cluster: ScriptedCluster, connect: Connect) -> None:
    """A register takes what says that it is a first try for one that was never applied."""
    kv = await connect()
    keys = [b"{one}1", b"{one}2"]
    first, second, _ = cluster.owners(keys[0])
    some_fail(first, "put_many", {keys[1]: [IN_DOUBT]})
    await kv.put_many(dict.fromkeys(keys, b"v"), consistency="linearizable")
    said = [
        [params[2].get("n") for method, params in node.calls if method == "put_many"]
        for node in (first, second)
    ]
    assert said == [[None], [2]]


@pytest.mark.parametrize("act", [DROP, NOT_READY])
async def test_a_node_that_fails_costs_its_group_one_more_try(
    cluster: ScriptedCluster, connect: Connect, act: Any
) -> None:
    kv = await connect()
    keys = [f"k{i}" for i in range(100)]
    cluster.nodes[2].acts["put_many"].append(act)
    cluster.nodes[2].acts["get_many"].append(act)
    await kv.put_many(dict.fromkeys(keys, b"v"))
    found = await kv.get_many(keys)
    assert all(entry is not None and entry.value == b"v" for entry in found.values())


async def test_a_node_killed_in_the_middle_is_no_error(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    victim = cluster.nodes[3]
    victim.always["put_many"] = HANG
    loop = asyncio.get_running_loop()
    call = loop.create_task(kv.put_many({f"k{i}": b"v" for i in range(5_000)}))
    while not victim.asked("put_many"):
        await asyncio.sleep(0.001)
    await victim.kill()
    assert len(await call) == 5_000


async def test_what_failed_is_named_and_the_rest_is_done(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    bad, doubtful = b"{one}bad", b"{one}doubtful"
    for node in cluster.nodes.values():
        refusals: dict[bytes, list[errors.KVError]] = {
            bad: [errors.NeedsRegister()] * 9,
            doubtful: [IN_DOUBT, *[NOT_READY] * 20],
        }
        some_fail(node, "put_many", refusals)
    with pytest.raises(errors.BatchFailed, match="2 of 4 keys failed") as failed:
        await kv.put_many({b"{one}a": b"1", bad: b"2", doubtful: b"3", b"{one}b": b"4"})
    assert list(failed.value.receipts) == [b"{one}a", b"{one}b"]
    assert {key: type(error) for key, error in failed.value.failures.items()} == {
        bad: errors.NeedsRegister,
        doubtful: errors.QuorumTimeout,  # one try was in doubt, whatever the later ones said
    }
    assert sorted(cluster.shared.values)[:2] == [b"{one}a", b"{one}b"]


async def test_a_key_that_cannot_be_read_is_an_error(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    for node in cluster.nodes.values():
        some_fail(node, "get_many", {b"k": [errors.BadConsistency(given="r=9", allowed="1 to 3")]})
    with pytest.raises(errors.BadConsistency):
        await kv.get_many(["a", "k"])


async def test_one_deadline_holds_for_the_whole_call(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    cluster.always("put_many", HANG)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(errors.BatchFailed) as failed:
        await kv.put_many({f"k{i}": b"v" for i in range(20_000)}, timeout=0.4)
    assert 0.3 < loop.time() - began < 2.0
    assert len(failed.value.failures) == 20_000


async def test_when_all_keys_are_refused_for_now_they_are_asked_in_rounds_not_one_by_one(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    down = errors.Unavailable(operation="put", needed=2, alive=1, down="n2 n3")
    cluster.always("put_many", lambda items, *_: [results.encode_failure(down)] * len(items))
    with pytest.raises(errors.BatchFailed, match="needs 2 replicas"):
        await kv.put_many({f"{{one}}{i}": b"v" for i in range(500)}, timeout=5)
    assert sum(cluster.asked("put_many")) < 20


async def test_an_answer_too_large_for_one_frame_is_fetched_in_parts(connect: Connect) -> None:
    """24 values of 1 MiB are above the 12 MiB of a frame."""
    kv = await connect()
    keys = [f"{{one}}{i}" for i in range(24)]
    await kv.put_many(dict.fromkeys(keys, bytes(1 << 20)))
    found = await kv.get_many(keys, timeout=20)
    assert all(entry is not None and len(entry.value) == 1 << 20 for entry in found.values())


@pytest.mark.parametrize("wrong", [[], [[1, 2, 3]], "ok", {}, [None, None]])
async def test_outcomes_of_another_shape_are_told_as_in_doubt(
    cluster: ScriptedCluster, connect: Connect, wrong: Any
) -> None:
    kv = await connect()
    cluster.always("put_many", wrong)
    with pytest.raises(errors.BatchFailed) as failed:
        await kv.put_many({"k": b"v"}, timeout=0.5)
    assert [type(error) for error in failed.value.failures.values()] == [errors.ConnectionLost]


async def test_an_answer_without_room_for_all_is_asked_for_in_parts(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    keys = [f"{{one}}{i}".encode() for i in range(50)]
    await kv.put_many(dict.fromkeys(keys, b"v"))
    full = errors.Overloaded(what="bytes in one answer", maximum=1, retry_after_ms=0)
    for node in cluster.nodes.values():

        def act(asked: Any, *rest: Any, node: Any = node) -> Any:
            outcomes = node.serve("get_many", (asked, *rest))
            return [*outcomes[:4], *(results.encode_failure(full) for _ in outcomes[4:])]

        node.always["get_many"] = act
    found = await kv.get_many(keys)
    assert list(found) == keys
    assert all(entry is not None and entry.value == b"v" for entry in found.values())
    pieces = [len(p[0]) for node in cluster.nodes.values() for m, p in node.calls if m == "get_many"]
    assert sorted(pieces) == [2, *[4] * 11, 50], "what fitted once is what is asked for from then on"
