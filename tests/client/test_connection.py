"""One connection: writes, answers, limits, and its end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scripted_node import CLUSTER, DROP, HANG, Raw, ScriptedCluster, ScriptedNode

from kvstore import errors, limits
from kvstore.client import connection as connections
from kvstore.client.connection import Connection
from kvstore.wire import codec

OPERATION = bytes(16)


@pytest.fixture
def node(cluster: ScriptedCluster) -> ScriptedNode:
    return cluster.nodes[1]


@pytest.fixture
async def connection(node: ScriptedNode) -> AsyncIterator[Connection]:
    made = await Connection.open(node.address)
    yield made
    made.close()


async def until(condition: Any) -> None:
    """Wait for something that nobody signals."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_hello_comes_first_and_tells_who_is_there(node: ScriptedNode, connection: Connection) -> None:
    assert [method for method, _ in node.calls] == ["hello"]
    assert node.calls[0][1][0]["agent"] == connections.AGENT
    assert (connection.node, connection.hello["cluster"]) == (1, CLUSTER)


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (errors.AuthFailed(), errors.AuthFailed),
        (errors.WrongCluster(expected="a", got="b"), errors.WrongCluster),
        (errors.ProtocolMismatch(offered="1 to 1", supported="2"), errors.ProtocolMismatch),
        (errors.NotReady(reason="starting"), errors.NotReady),
        (DROP, errors.CannotConnect),
        (Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), errors.CannotConnect),
        ({"node": 1}, errors.CannotConnect),
        ([], errors.CannotConnect),
        (HANG, errors.CannotConnect),
    ],
)
async def test_a_hello_that_goes_wrong_is_a_definite_error_and_leaves_nothing_open(
    node: ScriptedNode, act: Any, kind: type[errors.KVError]
) -> None:
    node.acts["hello"].append(act)
    with pytest.raises(kind) as refused:
        await Connection.open(node.address, timeout=0.1)
    assert refused.value.definite
    await until(lambda: not node.links)


async def test_a_node_that_refuses_the_connection_at_once_says_why(node: ScriptedNode) -> None:
    refusal = codec.Packer().error_response(0, errors.Overloaded(what="connections", maximum=1))

    def refuse(*_params: Any) -> Raw:
        asyncio.get_running_loop().call_soon(node.links[-1].transport.close)
        return Raw(refusal)

    node.acts["hello"].append(refuse)
    with pytest.raises(errors.Overloaded, match="connections"):
        await Connection.open(node.address)


async def test_nobody_there_is_refused(node: ScriptedNode) -> None:
    await node.kill()
    with pytest.raises(errors.CannotConnect, match="refused"):
        await Connection.open(node.address)


async def test_frames_of_one_turn_leave_in_one_write(node: ScriptedNode, connection: Connection) -> None:
    before = len(node.reads)
    answers: list[Any] = []
    for i in range(100):
        connection.send("get", (b"k%d" % i, {}), lambda error, result: answers.append((error, result)))
    await until(lambda: len(answers) == 100)
    assert node.reads[before:] == [100]
    assert all(error is None for error, _ in answers)


async def test_answers_reach_who_asked_in_whatever_order_they_come(
    node: ScriptedNode, connection: Connection
) -> None:
    packer, dice = codec.Packer(), random.Random(3)
    asked = 200
    ids: list[int] = []

    def keep(key: bytes, *_: Any) -> Any:
        ids.append(int(key))
        if len(ids) == asked:
            # The ids on the wire count from the one behind hello.
            frames = [packer.response(i + 2, b"for %d" % i) for i in ids]
            dice.shuffle(frames)
            node.links[-1].transport.write(b"".join(frames))
        return HANG

    node.always["echo"] = keep
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(connection.call("echo", (b"%d" % i,))) for i in range(asked)]
    assert [call.result() for call in calls] == [b"for %d" % i for i in range(asked)]


async def test_thousands_of_cancelled_calls_and_no_crossed_answer(
    node: ScriptedNode, connection: Connection
) -> None:
    """What nobody waits for goes to nobody; redis-py gave it to the next caller (CVE-2023-28858)."""
    dice = random.Random(7)
    node.always["echo"] = lambda token, *_: token
    loop = asyncio.get_running_loop()
    done = cancelled = 0
    for start in range(0, 10_000, 500):
        tokens = [b"token-%d" % i for i in range(start, start + 500)]
        tasks = [loop.create_task(connection.call("echo", (token,))) for token in tokens]
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
        for task in tasks:
            if dice.random() < 0.5:
                task.cancel()
        for task, token in zip(tasks, tokens, strict=True):
            try:
                assert await task == token
                done += 1
            except asyncio.CancelledError:
                cancelled += 1
    assert done > 1_000
    assert cancelled > 1_000
    assert not connection._pending
    assert node.accepted == 1


async def test_what_left_is_in_doubt_and_what_never_did_is_not(
    node: ScriptedNode, connection: Connection
) -> None:
    node.always["put"] = HANG
    told: list[errors.KVError] = []
    connection.send("put", (b"left", b"v", OPERATION), lambda error, _: told.append(error))
    await until(lambda: node.asked("put") == 1)
    connection.send("put", (b"never", b"v", OPERATION), lambda error, _: told.append(error))
    connection.connection_lost(ConnectionResetError("reset"))
    assert [type(error) for error in told] == [errors.ConnectionLost, errors.CannotConnect]
    assert [error.definite for error in told] == [False, True]
    connection.send("put", (b"after", b"v", OPERATION), lambda error, _: told.append(error))
    assert isinstance(told[-1], errors.CannotConnect)


async def test_the_ids_of_requests_come_round(node: ScriptedNode, connection: Connection) -> None:
    node.always["echo"] = lambda token, *_: token
    connection._next_id = 0xFFFFFFFE
    assert [await connection.call("echo", (b"%d" % i,)) for i in range(4)] == [b"0", b"1", b"2", b"3"]
    node.always["put"] = HANG
    connection._next_id = 0xFFFFFFFE
    told: list[errors.KVError] = []
    for _ in range(3):
        connection.send("put", (b"k",), lambda error, _: told.append(error))
    connection.connection_lost(None)
    assert [type(error) for error in told] == [errors.CannotConnect] * 3


async def test_more_calls_than_a_connection_takes_wait_their_turn(
    node: ScriptedNode, connection: Connection
) -> None:
    most = 0
    now = 0
    loop = asyncio.get_running_loop()
    packer = codec.Packer()

    def slow(*_: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        msgid = len(node.calls)

        def answer() -> None:
            nonlocal now
            now -= 1
            node.links[-1].transport.write(packer.response(msgid, b"ok"))

        loop.call_later(0.002, answer)
        return HANG

    node.always["echo"] = slow
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5_000):
            tasks.create_task(connection.call("echo", (b"x",)))
    assert node.asked("echo") == 5_000
    assert most <= limits.CLIENT_IN_FLIGHT_MAX


async def test_who_waits_for_room_is_let_go_when_the_connection_ends(
    node: ScriptedNode, connection: Connection
) -> None:
    node.always["echo"] = HANG
    loop = asyncio.get_running_loop()
    tasks = [
        loop.create_task(connection.call("echo", (b"x",))) for _ in range(limits.CLIENT_IN_FLIGHT_MAX + 10)
    ]
    await until(lambda: node.asked("echo") == limits.CLIENT_IN_FLIGHT_MAX)
    connection.close()
    kinds = [type(await asyncio.wait_for(_error(task), 1)) for task in tasks]
    assert kinds == [errors.ConnectionLost] * limits.CLIENT_IN_FLIGHT_MAX + [errors.CannotConnect] * 10


async def _error(task: asyncio.Task[Any]) -> BaseException:
    try:
        await task
    except errors.KVError as error:
        return error
    raise AssertionError


async def test_the_low_level_send_refuses_what_is_too_much(
    node: ScriptedNode, connection: Connection
) -> None:
    node.always["echo"] = HANG
    told: list[Any] = []
    for _ in range(limits.IN_FLIGHT_PER_CONNECTION_MAX + 3):
        connection.send("echo", (b"x",), lambda error, _: told.append(error))
    assert [type(error) for error in told] == [errors.Overloaded] * 3


async def test_a_node_that_does_not_read_makes_calls_wait_not_pile_up(
    node: ScriptedNode, connection: Connection
) -> None:
    node.links[-1].transport.pause_reading()
    node.always["echo"] = lambda token, *_: len(token)
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(connection.call("echo", (bytes(1 << 20),))) for _ in range(64)]
    await asyncio.sleep(0.1)
    assert connection._transport is not None
    assert connection._transport.get_write_buffer_size() < 8 << 20
    assert len(connection._pending) < 32
    node.links[-1].transport.resume_reading()
    assert [await task for task in tasks] == [1 << 20] * 64


async def test_a_request_above_a_frame_is_refused_here_and_spares_the_connection(
    node: ScriptedNode, connection: Connection
) -> None:
    with pytest.raises(errors.FrameTooLarge):
        await connection.call("echo", (bytes(limits.FRAME_BYTES_MAX),))
    node.always["echo"] = lambda token, *_: token
    assert await connection.call("echo", (b"x",)) == b"x"
    assert node.asked("echo") == 1


async def test_notifications_and_unasked_answers_are_passed_over(
    node: ScriptedNode, connection: Connection
) -> None:
    packer = codec.Packer()
    stray = packer.notification("news", [1]) + packer.response(9_999, b"?") + packer.request(5, "what", [])
    node.links[-1].transport.write(stray)
    node.always["echo"] = lambda token, *_: token
    assert await connection.call("echo", (b"x",)) == b"x"


async def test_the_end_is_told_once(node: ScriptedNode, connection: Connection) -> None:
    ends: list[Connection] = []
    connection.on_lost = ends.append
    await node.kill()
    await until(lambda: ends)
    connection.close()
    assert ends == [connection]
    assert not connection.is_open


async def test_a_request_names_its_end_on_the_nodes_steady_clock(node: ScriptedNode) -> None:
    node.greeting = {"steady_ms": 1_000_000_000}
    connection = await Connection.open(node.address)
    try:
        assert abs(connection.void_after(2.0) - 1_000_002_000) < 500
        node.always["ping"] = lambda *_: [0, 2_000_000_000]  # the clocks ran apart
        connection.compare_clocks()
        await until(lambda: abs(connection.void_after(2.0) - 2_000_002_000) < 500)
    finally:
        connection.close()


async def test_the_nodes_clock_is_learned_again_now_and_then(
    node: ScriptedNode, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.void_after(1.0)
    await asyncio.sleep(0.01)
    assert node.asked("ping") == 0
    monkeypatch.setattr("kvstore.core.node_clock.COMPARE_EVERY_S", 0.0)
    connection.void_after(1.0)
    await until(lambda: node.asked("ping") == 1)


async def test_what_a_cancelled_call_leaves_behind_is_forgotten_though_no_answer_comes(
    node: ScriptedNode, connection: Connection
) -> None:
    node.always["echo"] = HANG
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(connection.call("echo", (b"x",))) for _ in range(limits.CLIENT_IN_FLIGHT_MAX)]
    late = loop.create_task(connection.call("last", (b"x",)))
    node.always["last"] = "done"
    await until(lambda: node.asked("echo") == limits.CLIENT_IN_FLIGHT_MAX)
    assert not late.done()
    for task in tasks:
        task.cancel()
    assert await asyncio.wait_for(late, 1) == "done"
    assert not connection._pending
