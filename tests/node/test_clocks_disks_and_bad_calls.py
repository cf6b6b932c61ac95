"""Bad clocks, full disks and wrong arguments: refused by name, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from raw_nodes import OPERATION, Nodes, running

import kvstore
from kvstore import errors, limits
from kvstore.client.connection import Connection
from kvstore.io.clock import SystemClock
from kvstore.io.disk import SystemFile, SystemFiles
from kvstore.types import NodeId

pytestmark = pytest.mark.slow

ONE, THREE = NodeId(1), NodeId(3)
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


class MovedClock(SystemClock):
    """The machine's clock, with the wall moved by hand."""

    __slots__ = ("off_ms",)

    def __init__(self) -> None:
        self.off_ms = 0

    def wall_ms(self) -> int:
        """Milliseconds, moved."""
        return super().wall_ms() + self.off_ms


async def with_moved_clock(three: Nodes) -> MovedClock:
    """Node 3 restarted on a clock that the test moves."""
    clock = MovedClock()
    await three.local.stop(THREE)
    await three.local.start(THREE, clock=clock)
    for number in (1, 2, 3):
        await three.until_linked(number, 2)
    async with asyncio.timeout(5):
        while len(three.local.nodes[THREE]._guard._peers) < 2:  # until the first probes are answered
            await asyncio.sleep(0.01)
    return clock


@pytest.mark.parametrize("jump_ms", [DAY_MS, -HOUR_MS, -2_000, 2_000], ids=["day", "-hour", "-2s", "2s"])
async def test_a_node_whose_clock_jumped_writes_nothing_and_the_others_go_on(
    three: Nodes, jump_ms: int
) -> None:
    clock = await with_moved_clock(three)
    third = await three.connect(3)
    await third.call("put", b"k", b"before", OPERATION, {})
    clock.off_ms = jump_ms
    name, fields = await third.error("put", b"k", b"poison", OPERATION, {})
    assert name == "clock_skew"
    assert fields["maximum"] == limits.DRIFT_MS_MAX
    assert (await third.call("get", b"k", {}))[0] == b"before", "reads go on"
    first = await three.connect(1)
    receipt = await first.call("put", b"k", b"after", OPERATION, {})
    assert len(receipt[2]) >= 2
    assert (await first.call("get", b"k", {}))[0] == b"after", "nothing from the future stands in the way"
    async with await kvstore.connect(three.local.urls[2]) as client:
        assert (await client.put("other", b"x")).coordinator != THREE, "the client goes to another node"
    clock.off_ms = 0
    async with asyncio.timeout(5):
        while (await third.ask("put", b"k", b"again", OPERATION, {}))[0] is not None:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("jump_ms", [DAY_MS, -HOUR_MS, -2_000, 2_000], ids=["day", "-hour", "-2s", "2s"])
async def test_a_node_whose_clock_jumped_sets_no_end_of_what_another_one_stores(
    three: Nodes, jump_ms: int
) -> None:
    """It forwards changes of registers, and a ttl becomes an instant where it arrives."""
    clock = await with_moved_clock(three)
    topology = three.local.topology
    key = next(key for key in (b"k%d" % n for n in range(99)) if topology.preference(key)[0] != THREE)
    third = await three.connect(3)
    assert (await third.call("change", key, OPERATION, "incr", [1, 0, None, None], {"ttl": 60_000}))[
        2
    ] == b"1"
    clock.off_ms = jump_ms
    options = {"ttl": 60_000, "c": "linearizable"}
    for method, *params in (
        ("change", key, bytes(16), "incr", [1, 0, None, None], {"ttl": 60_000}),
        ("put", key, b"9", bytes(16), options),
        ("touch", key, bytes(16), options),
    ):
        name, _ = await third.error(method, *params)
        assert name == "clock_skew", method
    (outcome,) = await third.call("change_many", [[key, bytes(16), "put", [b"9"], {"ttl": 60_000}]], {})
    assert outcome["error"][0] == "clock_skew"
    first = await three.connect(int(topology.preference(key)[0]))
    assert (await first.call("get", key, {"c": "linearizable"}))[0] == b"1"


async def test_a_request_held_up_is_void_though_the_clock_is_set_back_meanwhile(three: Nodes) -> None:
    clock = await with_moved_clock(three)
    address = three.local.urls[2].removeprefix("kv://")
    connection = await Connection.open(address)
    try:
        void = connection.void_after(0.05)
        await asyncio.sleep(0.1)
        clock.off_ms = -HOUR_MS
        with pytest.raises(errors.TooLate):
            await connection.call("get", (b"k", {}, void))
        clock.off_ms = DAY_MS
        await connection.call("get", (b"k", {}, connection.void_after(5.0)))
    finally:
        connection.close()


async def test_a_clock_a_day_ahead_neither_drops_nor_hides_what_is_alive(three: Nodes) -> None:
    clock = await with_moved_clock(three)
    first, third = await three.connect(1), await three.connect(3)
    await first.call("put", b"k", b"v", OPERATION, {"ttl": HOUR_MS, "c": "all"})
    clock.off_ms = DAY_MS
    await asyncio.sleep(0.4)  # several rounds of expiry
    assert (await third.error("get", b"k", {"c": "one"}))[0] == "clock_skew"
    assert (await first.call("get", b"k", {"c": "all"}))[0] == b"v"
    async with await kvstore.connect(three.local.urls[2]) as client:
        found = await client.get("k")
        assert found is not None
    clock.off_ms = 0
    async with asyncio.timeout(5):
        while (answer := await third.ask("get", b"k", {"c": "one"}))[0] is not None:
            await asyncio.sleep(0.05)
    assert answer[1][0] == b"v"


async def test_a_restart_with_the_clock_gone_back_issues_no_version_twice(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as nodes:
        raw = await nodes.connect(1)
        before = await raw.call("put", b"k", b"v", OPERATION, {})
        await nodes.local.stop(ONE)
        clock = MovedClock()
        clock.off_ms = -HOUR_MS
        await nodes.local.start(ONE, clock=clock)
        raw = await nodes.connect(1)
        assert (await raw.call("get", b"k", {}))[0] == b"v"
        assert (await raw.error("put", b"k", b"w", OPERATION, {}))[0] == "clock_skew"
        clock.off_ms = 0
        after = await raw.call("put", b"k", b"w", OPERATION, {})
        assert after[0] > before[0]


async def test_a_full_disk_stops_writes_by_name_and_heals_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1 << 40]
    monkeypatch.setattr(SystemFiles, "free_bytes", lambda _self, _path: free[0])
    async with running(tmp_path, 1) as nodes:
        raw = await nodes.connect(1)
        strong = {"c": "linearizable"}
        await raw.call("put", b"k", b"v", OPERATION, {})
        await raw.call("put", b"r", b"v", OPERATION, strong)
        free[0] = 1_000

        async def until(wanted: str | None) -> None:
            async with asyncio.timeout(5):
                while True:
                    error, _ = await raw.ask("put", b"k2", b"v", OPERATION, {})
                    if (error[0] if error else None) == wanted:
                        return
                    await asyncio.sleep(0.05)

        await until("disk_full")
        assert (await raw.call("get", b"k", {}))[0] == b"v"
        await raw.call("delete", b"k", OPERATION, {})
        assert (await raw.error("put", b"r", b"w", bytes(15) + b"w", strong | {"t": 500}))[0] == "disk_full"
        assert (await raw.call("get", b"r", strong))[0] == b"v"
        await raw.call("delete", b"r", bytes(15) + b"d", strong)
        assert (await raw.call("get", b"r", strong))[0] is None
        free[0] = 1 << 40
        await until(None)


async def test_a_log_that_cannot_be_written_ends_the_node_and_confirms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  the group comes when the block ends
        async with running(tmp_path, 1) as nodes:
            raw = await nodes.connect(1)
            await raw.call("put", b"k", b"v", OPERATION, {})

            def broken(*_args: Any) -> None:
                raise OSError(5, "Input/output error")

            monkeypatch.setattr(SystemFile, "write_at", broken)
            error, _ = await asyncio.wait_for(raw.ask("put", b"k", b"lost", OPERATION, {}), 5)
            assert error is not None
            assert not errors.BY_NAME[error[0]].definite, "nobody can know whether it is on the disk"
            nodes.local.nodes.clear()
            await asyncio.sleep(0.05)
    assert caught.group_contains(errors.Crashed)


BAD_CALLS: list[tuple[str, tuple[Any, ...], str]] = [
    ("put", (b"", b"v", OPERATION), "bad_key"),
    ("put", (b"k" * (limits.KEY_BYTES_MAX + 1), b"v", OPERATION), "bad_key"),
    ("put", (b"k", b"v" * (limits.VALUE_BYTES_MAX + 1), OPERATION), "bad_value"),
    ("put", ("k", b"v", OPERATION), "bad_option"),
    ("put", (b"k", "v", OPERATION), "bad_option"),
    ("put", (b"k", b"v", b"short"), "bad_option"),
    ("put", (b"k",), "bad_option"),
    ("put", (b"k", b"v", OPERATION, {"ttl": -1}), "bad_ttl"),
    ("put", (b"k", b"v", OPERATION, {"ttl": 0}), "bad_ttl"),
    ("put", (b"k", b"v", OPERATION, {"ttl": "soon"}), "bad_ttl"),
    ("put", (b"k", b"v", OPERATION, {"ttl": True}), "bad_ttl"),
    ("put", (b"k", b"v", OPERATION, {"ttl": limits.EXPIRES_MS_MAX}), "bad_ttl"),
    ("put", (b"k", b"v", OPERATION, {"exp": limits.EXPIRES_MS_MAX + 1}), "bad_ttl"),
    ("put", (b"k", b"v", OPERATION, {"c": "most"}), "bad_consistency"),
    ("scan", (None, {"c": "linearizable"}), "unsupported"),
    ("change", (b"k", OPERATION, "cas", ()), "bad_option"),
    ("change", (b"k", OPERATION, "put", (1,)), "bad_option"),
    ("change", (b"k", OPERATION, "incr", (1, 0, None)), "bad_option"),
    ("change", (b"", OPERATION, "delete", ()), "bad_key"),
    ("change", (b"k", b"short", "delete", ()), "bad_option"),
    ("change", (b"k", OPERATION), "bad_option"),
    ("change", (b"k", OPERATION, "put", (b"v" * (limits.VALUE_BYTES_MAX + 1),)), "bad_value"),
    ("put", (b"k", b"v", OPERATION, {"w": 0}), "bad_consistency"),
    ("put", (b"k", b"v", OPERATION, {"w": 4}), "bad_consistency"),
    ("put", (b"k", b"v", OPERATION, {"t": 0}), "bad_option"),
    ("put", (b"k", b"v", OPERATION, {"d": "often"}), "bad_option"),
    ("put", (b"k", b"v", OPERATION, []), None),  # type: ignore[list-item]
    ("put", (b"k", b"v", OPERATION, {"tomorrow's option": 1}), None),  # type: ignore[list-item]
    ("get", (b"k", {"r": 4}), "bad_consistency"),
    ("get", (b"k", {"r": True}), "bad_consistency"),
    ("get", (7,), "bad_option"),
    ("get_many", ((b"k",) * (limits.BATCH_KEYS_MAX + 1),), "bad_option"),
    ("get_many", (b"k",), "bad_option"),
    ("scan", (None, {"limit": 0}), "bad_option"),
    ("scan", (b"x", {}), "bad_option"),
    ("scan", (None, {"prefix": "text"}), "bad_option"),
    ("touch", (b"k", OPERATION, {}), "bad_ttl"),
    ("no such thing", (), "unknown_method"),
]


async def test_wrong_arguments_get_one_typed_error_and_the_connection_goes_on(three: Nodes) -> None:
    raw = await three.connect(1)
    for method, params, name in BAD_CALLS:
        error, _ = await asyncio.wait_for(raw.ask(method, *params), 5)
        assert (error[0] if error else None) == name, (method, params, error)
        if error is not None:
            assert errors.BY_NAME[error[0]].definite
    assert (await raw.call("get", b"k", {}))[6] is True


async def test_a_node_that_starts_with_a_wrong_clock_does_not_bind_itself_to_it(three: Nodes) -> None:
    """Found by the simulator: its first client came before its first peer."""
    clock = MovedClock()
    clock.off_ms = DAY_MS
    await three.local.stop(THREE)
    await three.local.start(THREE, clock=clock)
    third = await three.connect(3)
    deadline = asyncio.get_running_loop().time() + 2
    while asyncio.get_running_loop().time() < deadline:
        error, _ = await third.ask("put", b"k", b"poison", OPERATION, {"w": 1})
        assert error is not None
        assert error[0] in ("clock_unknown", "clock_skew"), error
        await asyncio.sleep(0.005)
    clock.off_ms = 0
    async with asyncio.timeout(5):
        while (await third.ask("put", b"k", b"sound", OPERATION, {}))[0] is not None:
            await asyncio.sleep(0.05)


async def test_a_node_that_starts_alone_believes_its_clock_after_a_second(three: Nodes) -> None:
    for number in (ONE, NodeId(2), THREE):
        await three.local.stop(number)
    await three.local.start(ONE)
    first = await three.connect(1)
    name, _ = await first.error("put", b"k", b"v", OPERATION, {"w": 1})
    assert name == "clock_unknown"
    async with asyncio.timeout(5):
        while (await first.ask("put", b"k", b"v", OPERATION, {"w": 1}))[0] is not None:
            await asyncio.sleep(0.05)
