"""One call through good and bad times: what is tried again, where, how often, and which error comes out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted_node import DROP, HANG, Connect, Raw, ScriptedCluster, in_use

from kvstore import errors, limits

KEY = "user:1"
RAW = b"user:1"
RETRYABLE: list[errors.KVError] = [
    errors.NotReady(reason="starting"),
    errors.Overloaded(what="requests", maximum=1, retry_after_ms=1),
    errors.Unavailable(operation="put", needed=2, alive=1, down="n2 n3"),
    errors.DiskFull(free=1, reserve=2),
    errors.ClockSkew(ahead_ms=900, maximum=500),
    errors.StaleEpoch(theirs=1, ours=2),
    errors.TooLate(late_ms=3),
    errors.QuorumTimeout(operation="put", needed=2, acked=1, missing="n3"),
    errors.Crashed(reason="disk"),
]
FINAL: list[errors.KVError] = [
    errors.BadKey(length=0, maximum=480),
    errors.BadValue(length=9, maximum=8),
    errors.BadConsistency(given="w=4", allowed="1 to 3"),
    errors.NeedsRegister(),
    errors.Unsupported(what="that"),
    errors.UnknownMethod(method="put"),
    errors.Unresolved(message="the node made a mistake"),
]


async def call(kv: Any, verb: str, **terms: Any) -> Any:
    """One call of a verb on KEY."""
    arguments = {"put": (b"v",), "touch": (60,)}.get(verb, ())
    return await getattr(kv, verb)(KEY, *arguments, **terms)


VERBS = ["put", "get", "delete", "touch", "persist", "exists", "ttl"]
METHODS = {"exists": "get", "ttl": "get"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("act", [*RETRYABLE, DROP], ids=lambda x: getattr(x, "name", "drop"))
async def test_what_may_pass_is_asked_of_the_next_owner(
    cluster: ScriptedCluster, connect: Connect, verb: str, act: Any
) -> None:
    kv = await connect()
    await kv.put(KEY, b"v")
    first, second, _ = cluster.owners(RAW)
    method = METHODS.get(verb, verb)
    before = second.asked(method)
    first.acts[method].append(act)
    await call(kv, verb)
    assert second.asked(method) == before + 1


@pytest.mark.parametrize("error", FINAL, ids=lambda x: x.name)
async def test_what_will_not_pass_is_told_at_once(
    cluster: ScriptedCluster, connect: Connect, error: errors.KVError
) -> None:
    kv = await connect()
    cluster.owners(RAW)[0].always["put"] = error
    with pytest.raises(type(error)) as told:
        await kv.put(KEY, b"v")
    assert told.value.message == error.message
    assert sum(cluster.asked("put")) == 1


@pytest.mark.parametrize("verb", ["put", "delete", "touch", "persist"])
async def test_a_write_keeps_its_operation_id_over_all_its_tries(
    cluster: ScriptedCluster, connect: Connect, verb: str
) -> None:
    kv = await connect()
    await kv.put(KEY, b"v")
    first, second, third = cluster.owners(RAW)
    first.acts[verb].append(DROP)
    second.acts[verb].append(errors.QuorumTimeout(operation=verb, needed=2, acked=1, missing="n3"))
    receipt = await call(kv, verb)
    assert receipt.attempts == 3
    assert receipt.coordinator == third.number
    at = 2 if verb == "put" else 1
    ids = {params[at] for node in cluster.nodes.values() for method, params in node.calls if method == verb}
    assert len(ids) == (2 if verb == "put" else 1)  # the first put of this test has its own
    again = await call(kv, verb)
    assert again.attempts == 1
    assert len(ids) < len(
        {params[at] for node in cluster.nodes.values() for method, params in node.calls if method == verb}
    )


async def test_a_killed_node_is_no_error_for_many_calls_in_flight(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    """More of them than the retry budget holds: asking another node because one is gone is free."""
    kv = await connect()
    victim = cluster.nodes[2]
    victim.always["put"] = victim.always["get"] = HANG
    keys = [f"k{i}" for i in range(1_000)]
    async with asyncio.TaskGroup() as tasks:
        for key in keys:
            tasks.create_task(kv.put(key, b"v"))
            tasks.create_task(kv.get(key))
        while victim.asked() < 500:
            await asyncio.sleep(0.001)
        await victim.kill()
    assert len(cluster.shared.values) == 1_000
    assert kv._nodes._open.keys() == {cluster.nodes[1].address, cluster.nodes[3].address}


async def test_a_node_that_hangs_gets_a_part_of_the_time_and_then_no_more_calls(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    await kv.get(KEY)
    first = cluster.owners(RAW)[0]
    first.always = dict.fromkeys(["get", "hello", "topology", "ping"], HANG)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await kv.get(KEY, timeout=0.5)
    assert 0.2 < loop.time() - began < 0.49
    asked = first.asked("get")
    began = loop.time()
    for _ in range(20):
        await kv.get(KEY)
    assert loop.time() - began < 1
    assert first.asked("get") == asked


async def test_the_deadline_is_kept_whatever_hangs(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    cluster.always("put", HANG)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(errors.Unresolved):
        await kv.put(KEY, b"v", timeout=0.3)
    assert 0.25 < loop.time() - began < 0.9


@pytest.mark.parametrize("verb", ["put", "get", "delete", "get_many", "put_many", "scan"])
async def test_each_try_tells_the_node_less_than_what_is_left(
    cluster: ScriptedCluster, connect: Connect, verb: str
) -> None:
    kv = await connect()
    for node in cluster.nodes.values():
        node.acts[verb].append(errors.NotReady(reason="starting"))
    match verb:
        case "get_many":
            await kv.get_many([KEY], timeout=2)
        case "put_many":
            await kv.put_many({KEY: b"v"}, timeout=2)
        case "scan":
            assert [entry async for entry in kv.scan(timeout=2)] == []
        case _:
            await call(kv, verb, timeout=2)
    calls = [params for node in cluster.nodes.values() for method, params in node.calls if method == verb]
    assert len(calls) >= 4
    for params in calls:
        budget, void_after = params[-2]["t"], params[-1]
        assert 100 < budget < 2_000
        assert isinstance(void_after, int)


async def test_if_all_fail_the_error_that_says_most_comes_out(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    first, second, third = cluster.owners(RAW)
    await second.kill()
    await third.kill()
    first.always["put"] = errors.Unavailable(operation="put", needed=2, alive=1, down="n2 n3")
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(errors.Unavailable, match="needs 2 replicas, 1 can be reached"):
        await kv.put(KEY, b"v", timeout=5)
    assert loop.time() - began < 2.5, "well within the deadline"


async def test_nobody_there_is_a_definite_error(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    for node in cluster.nodes.values():
        await node.kill()
    with pytest.raises(errors.CannotConnect) as refused:
        await kv.put(KEY, b"v", timeout=0.5)
    assert refused.value.definite


async def test_a_write_that_was_in_doubt_once_stays_in_doubt(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    first, second, third = cluster.owners(RAW)
    first.acts["put"].append(DROP)
    second.always["put"] = third.always["put"] = first.always["put"] = errors.NotReady(reason="stopping")
    with pytest.raises(errors.ConnectionLost):
        await kv.put(KEY, b"v", timeout=0.5)
    cluster.always("get", errors.NotReady(reason="stopping"))
    first.acts["get"].append(DROP)
    with pytest.raises(errors.NotReady):  # a read leaves no doubt behind
        await kv.get(KEY, timeout=0.5)


async def test_a_final_refusal_after_a_doubtful_try_does_not_hide_the_doubt(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    first, second, _ = cluster.owners(RAW)
    first.acts["put"].append(DROP)
    second.acts["put"].append(errors.NeedsRegister())
    with pytest.raises(errors.ConnectionLost):
        await kv.put(KEY, b"v")


async def test_retries_are_bounded_in_number(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect(retries=2)
    cluster.always("get", errors.NotReady(reason="starting"))
    with pytest.raises(errors.NotReady):
        await kv.get(KEY)
    assert sum(cluster.asked("get")) == 3
    none = await connect(retries=0)
    with pytest.raises(errors.NotReady):
        await none.get(KEY)
    assert sum(cluster.asked("get")) == 4


async def test_when_the_cluster_is_overloaded_retries_are_a_fraction_of_the_calls(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect(retries=2)
    cluster.always("get", errors.Overloaded(what="requests", maximum=1, retry_after_ms=1))
    kv._caller._budget._tokens = 0.0
    for _ in range(100):
        with pytest.raises(errors.Overloaded):
            await kv.get(KEY)
    assert 100 <= sum(cluster.asked("get")) <= 125


async def test_an_answer_of_another_shape_is_a_lost_connection_and_is_tried_again(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect()
    first = cluster.owners(RAW)[0]
    answers: list[Any] = [[1, 2, 3], None, "ok", {}, [0, 0, 0, 0, 0, 0]]
    for wrong in answers:
        first.acts["put"].append(lambda *_params, wrong=wrong: wrong)
        receipt = await kv.put(KEY, b"v")
        assert receipt.attempts == 2
        kv._nodes.worked(first.address)
    first.always["put"] = lambda *_params: "ok"
    for node in cluster.owners(RAW)[1:]:
        node.always["put"] = lambda *_params: "ok"
    with pytest.raises(errors.ConnectionLost, match="the answer should be a receipt"):
        await kv.put(KEY, b"v", timeout=0.5)


@pytest.mark.parametrize("garbage", [b"\xc1", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x94\x01\x00"])
async def test_garbage_from_one_node_disturbs_no_call(
    cluster: ScriptedCluster, connect: Connect, garbage: bytes
) -> None:
    kv = await connect()
    first = cluster.owners(RAW)[0]
    first.always["put"] = Raw(garbage)
    if garbage == b"\x94\x01\x00":  # half an answer, and then nothing
        first.acts["put"].append(Raw(garbage))
        with pytest.raises(errors.Unresolved):
            await (await connect(first_only(cluster), pinned=True)).put(KEY, b"v", timeout=0.3)
        return
    assert (await kv.put(KEY, b"v")).attempts == 2


def first_only(cluster: ScriptedCluster) -> str:
    """A url of the first owner of KEY alone."""
    return f"kv://{cluster.owners(RAW)[0].address}"


async def test_a_cancelled_call_is_forgotten_and_the_connection_stays(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv, first = await in_use(cluster, connect, KEY)
    accepted = first.accepted
    first.acts["get"].append(HANG)
    task = asyncio.get_running_loop().create_task(kv.get(KEY))
    while first.asked("get") == 0:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    entry = await kv.get(KEY)
    assert entry is not None
    assert entry.receipt.attempts == 1
    assert first.accepted == accepted


async def test_a_try_that_never_got_out_is_definite(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect(first_only(cluster), pinned=True)
    first = cluster.owners(RAW)[0]
    first.always["get"] = HANG
    loop = asyncio.get_running_loop()
    hanging = [loop.create_task(kv.get(KEY)) for _ in range(limits.CLIENT_IN_FLIGHT_MAX)]
    while first.asked("get") < limits.CLIENT_IN_FLIGHT_MAX:
        await asyncio.sleep(0.001)
    with pytest.raises(errors.Overloaded) as refused:  # no room on the connection
        await kv.put(KEY, b"v", timeout=0.1)
    assert refused.value.definite
    for task in hanging:
        task.cancel()
    first.always["hello"] = HANG
    kv._nodes._open[first.address].abort()
    with pytest.raises(errors.CannotConnect, match="no answer within"):  # hello is not answered
        await kv.put(KEY, b"v", timeout=0.1)
    assert first.asked("put") == 0


async def test_an_overloaded_cluster_says_how_long_to_wait(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    kv = await connect(first_only(cluster), pinned=True)
    first = cluster.owners(RAW)[0]
    first.acts["put"].append(errors.Overloaded(what="requests", maximum=1, retry_after_ms=120))
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await kv.put(KEY, b"v")).attempts == 2
    assert 0.115 < loop.time() - began < 1


async def test_who_is_told_to_be_late_compares_the_clocks(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    first = cluster.owners(RAW)[0]
    first.acts["put"].append(errors.TooLate(late_ms=5))
    assert (await kv.put(KEY, b"v")).attempts == 2
    async with asyncio.timeout(1):
        while "ping" not in [method for method, _ in first.calls]:
            await asyncio.sleep(0.001)


async def test_calls_that_lose_one_connection_name_an_operation_each(
    cluster: ScriptedCluster, connect: Connect
) -> None:
    node = cluster.nodes[1]
    kv = await connect(f"kv://{node.address}", pinned=True)
    node.always["change"] = HANG
    calls = [asyncio.create_task(kv.incr(f"n{number}")) for number in range(4)]
    while node.asked("change") < len(calls):
        await asyncio.sleep(0.001)
    await node.kill()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    operations = [each.operation.key for each in outcomes if isinstance(each, errors.Unresolved)]
    assert operations == [b"n0", b"n1", b"n2", b"n3"]
