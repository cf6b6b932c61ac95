"""Runs against real processes, kept small; and the parts they are made of, without any process."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

import kvstore
from jepsen_lite import history, judging, report, runner
from jepsen_lite.history import Operation
from jepsen_lite.nemesis import Fault, Plan
from jepsen_lite.runner import Options
from jepsen_lite.seat import ASKED_AFTER, Recorder, Seat, note_change
from jepsen_lite.targets import NodeAt, TargetError, disks
from jepsen_lite.targets.clocks import turn
from jepsen_lite.targets.cut import KernelLinks, ProxyLinks, kernel_problem
from jepsen_lite.verdict import Word, worst
from kvstore import Applied, Client, NotApplied, Receipt, errors
from kvstore import Operation as Named
from kvstore.io.disk import SystemFiles
from kvstore.storage import inspect
from kvstore.types import OperationId

SECONDS = 6.0


def _plan(*faults: Fault) -> Plan:
    return Plan("none", 1, 3, SECONDS, faults)


def _cut_off(node: int) -> tuple[tuple[int, int], ...]:
    others = [other for other in (1, 2, 3) if other != node]
    return tuple(pair for other in others for pair in ((node, other), (other, node)))


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "faults"),
    [
        (
            "register",
            (
                Fault(1.0, 1.5, "isolate", "cut", pairs=_cut_off(1)),
                Fault(3.0, 0.5, "torn-tail", "torn_tail", nodes=(2,)),
                Fault(4.5, 0.7, "pause", "pause", nodes=(3,)),
            ),
        ),
        ("quorum", (Fault(1.0, 1.0, "kill", "kill", nodes=(1, 2, 3)),)),
    ],
)
async def test_a_run_against_real_processes_is_ok_and_leaves_nothing_running(
    tmp_path: Path, workload: str, faults: tuple[Fault, ...]
) -> None:
    options = Options(
        workload=workload, nemesis="none", seconds=SECONDS, nodes=3, clients=6, rate=60, links="proxy"
    )
    plan = _plan(*faults)
    outcome = await runner.run(options, plan, tmp_path, say=lambda _text: None)
    told = "\n".join(map(str, outcome.judgement.verdicts))
    # Calls may be late on a machine that has other things to do; everything else may not be.
    assert worst(v for v in outcome.judgement.verdicts if v.check != "deadlines") is Word.OK, told
    assert len(outcome.spans) == len(faults)
    assert outcome.judgement.figures["ok"] > 50
    assert {op.node for op in outcome.operations if op.final} == {"n1", "n2", "n3"}
    runner.save(tmp_path, options, plan, outcome)
    page = await asyncio.to_thread(report.write, tmp_path, options, plan, outcome)
    assert page.name == "report.html"
    again = judging.judge_saved(history.load(tmp_path / "history.jsonl"))
    assert again.word is Word.OK
    assert runner.load_plan(tmp_path) == (options, plan)
    assert not _still_running(tmp_path)


def _still_running(directory: Path) -> list[Path]:
    """Processes that name a directory in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [path] if str(directory).encode() in path.read_bytes() else []
    return found


async def test_a_nemesis_that_cannot_be_done_here_is_refused_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JEPSEN_LITE_FAKETIME", "/nowhere/libfaketime.so")
    monkeypatch.setattr("jepsen_lite.targets.processes.Processes.start", lambda _self, _child: None)
    options = Options(workload="register", nemesis="clock", seconds=SECONDS, nodes=3, links="proxy")
    plan = _plan(Fault(1.0, 1.0, "clock", "clock", nodes=(1,), amount=2.0))
    with pytest.raises(TargetError, match="libfaketime"):
        await runner.run(options, plan, tmp_path, say=lambda _text: None)


# --- links ---------------------------------------------------------------------------------


class Echo:
    """Answers whatever it hears, as node 2 of 2."""

    def __init__(self, net: str, port: int) -> None:
        self.nodes = tuple(
            NodeAt(n, f"n{n}", f"{net}.{10 + n}", port + n, port + 10 + n, f"{net}.{100 + n}") for n in (1, 2)
        )
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100):
                writer.write(data)
            writer.close()

        node = self.nodes[1]
        self._server = await asyncio.start_server(serve, node.host, node.peer_port)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()


async def _dial(echo: Echo, *, through: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As node 1 would."""
    return await asyncio.open_connection(through, echo.nodes[1].peer_port, local_addr=(echo.nodes[0].host, 0))


async def _says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, within: float) -> bool:
    writer.write(b"?")
    try:
        async with asyncio.timeout(within):
            return await reader.readexactly(1) == b"?"
    except TimeoutError:
        return False


@pytest.mark.parametrize("pairs", [((1, 2),), ((2, 1),)])
async def test_the_proxy_cuts_one_way_and_delivers_what_it_held_back(
    free_port: Callable[[], int], pairs: tuple[tuple[int, int], ...]
) -> None:
    echo = Echo(f"127.0.{random.Random().randrange(1, 255)}", free_port())
    await echo.open()
    links = ProxyLinks(echo.nodes, "127.0.0.1", random.Random(1))
    await links.open()
    reader, writer = await _dial(echo, through=echo.nodes[1].advertised)
    assert await _says(reader, writer, within=2)
    await links.apply([Fault(0, 1, "one-way", "cut", pairs=pairs)])
    assert not await _says(reader, writer, within=0.1)
    await links.apply([])
    async with asyncio.timeout(2):
        assert await reader.readexactly(1) == b"?"
    await links.apply([Fault(0, 1, "slow", "slow", pairs=((1, 2),), amount=0.15)])
    assert not await _says(reader, writer, within=0.1)
    async with asyncio.timeout(2):
        assert await reader.readexactly(1) == b"?"
    writer.close()
    await links.close()
    await echo.close()
    await asyncio.sleep(0.01)


@pytest.mark.skipif(bool(kernel_problem()), reason="needs root and nft")
async def test_the_kernel_cuts_only_our_pair_and_its_table_goes_with_us(free_port: Callable[[], int]) -> None:
    echo = Echo(f"127.0.{random.Random().randrange(1, 255)}", free_port())
    await echo.open()
    table = f"jepsen_lite_test_{os.getpid()}"
    links = KernelLinks(table, {node.number: node.host for node in echo.nodes})
    await links.open()
    reader, writer = await _dial(echo, through=echo.nodes[1].host)
    assert await _says(reader, writer, within=2)
    await links.apply([Fault(0, 1, "one-way", "cut", pairs=((1, 2),))])
    assert not await _says(reader, writer, within=0.2)
    other = await asyncio.open_connection(echo.nodes[1].host, echo.nodes[1].peer_port)
    assert await _says(*other, within=2)
    await links.apply([])
    async with asyncio.timeout(5):
        assert await reader.readexactly(1) == b"?"
    await links.close()
    for each in (writer, other[1]):
        each.close()
    await echo.close()
    shown = await asyncio.to_thread(
        subprocess.run, ["nft", "list", "tables"], capture_output=True, check=True
    )
    assert table.encode() not in shown.stdout


def test_a_clock_is_turned_and_turned_back(tmp_path: Path) -> None:
    control = tmp_path / "n1.clock"
    said = []
    for fault in (
        Fault(0, 1, "clock", "clock", amount=-3600.0),
        Fault(0, 1, "drift", "drift", amount=0.02),
        None,
    ):
        turn(control, fault)
        said.append(control.read_text(encoding="utf-8").strip())
    assert said == ["-3600 x1", "+0 x1.02", "+0 x1"]


# --- disks and processes -------------------------------------------------------------------


def _only_node(directory: Path) -> Path:
    (folder,) = (path.parent for path in directory.glob("*/wal"))
    return folder


async def test_a_torn_tail_is_taken_for_torn_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    async with kvstore.local_cluster(1, directory=tmp_path, replicas=1, partitions=8) as kv:
        await kv.put("key", b"acknowledged")
    folder = _only_node(tmp_path)
    assert disks.tear_tail(folder, random.Random(1))
    assert inspect.verify(SystemFiles(), str(folder)).verdict == "torn"
    assert not disks.tear_tail(folder, random.Random(1)), "one tail is torn once"
    async with kvstore.local_cluster(1, directory=tmp_path, replicas=1, partitions=8) as kv:
        entry = await kv.get("key")
    assert entry is not None
    assert entry.value == b"acknowledged"


@pytest.mark.skipif(bool(disks.problem()), reason="needs root")
def test_a_small_disk_is_full_until_it_is_freed(tmp_path: Path) -> None:
    disks.mount(tmp_path)
    try:
        disks.fill(tmp_path)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "file").write_bytes(b"x" * 5_000)
        disks.free(tmp_path)
        (tmp_path / "file").write_bytes(b"x" * 5_000)
    finally:
        disks.unmount(tmp_path)
    assert not list(tmp_path.iterdir())


# --- recording -----------------------------------------------------------------------------


class Ticking:
    """A clock that moves by a second each time it is looked at."""

    def __init__(self) -> None:
        self._now = 0.0

    def wall_ms(self) -> int:
        return int(self._now * 1000)

    def monotonic(self) -> float:
        self._now += 1.0
        return self._now


class Resolving:
    """A client that can only tell what became of a change."""

    def __init__(self, answer: Applied | NotApplied | errors.KVError) -> None:
        self._answer = answer

    async def resolve(self, operation: object) -> Applied | NotApplied:
        assert operation is not None
        if isinstance(self._answer, errors.KVError):
            raise self._answer
        return self._answer


def _seat(answer: Any = None) -> tuple[Seat, Recorder]:
    recorder = Recorder(Ticking())
    kv = cast("Client", Resolving(answer))
    return Seat(kv, recorder, random.Random(2)), recorder  # these dice begin above a half: they ask after


def _raising(error: BaseException) -> Callable[[Operation], Awaitable[None]]:
    async def ask(_op: Operation) -> None:
        raise error

    return ask


def _unresolved() -> errors.Unresolved:
    error = errors.DeadlineExceeded(timeout_ms=5)
    error.operation = Named(b"k", OperationId(b"x" * 16))
    return error


RECEIPT = Receipt(7, 1, (1, 2))
APPLIED = Applied(7, None, None, True, RECEIPT)
NOT_APPLIED = NotApplied(5, b"other", RECEIPT)


async def test_a_definite_error_is_a_failure_and_the_process_goes_on() -> None:
    seat, recorder = _seat()
    op = await seat.call("read", "k", _raising(errors.NoMajority(operation="get")))
    assert (op.outcome, op.error, op.process) == ("fail", "no_majority", seat.process)
    assert recorder.operations == [op]
    assert op.ended is not None
    assert op.ended > op.began


async def test_an_indefinite_error_is_unknown_and_the_process_number_is_never_used_again() -> None:
    seat, _ = _seat()
    op = await seat.call("read", "k", _raising(errors.DeadlineExceeded(timeout_ms=5)))
    assert (op.outcome, op.error) == ("unknown", "deadline_exceeded")
    assert seat.process != op.process


@pytest.mark.parametrize(
    ("answer", "outcome", "version"),
    [(APPLIED, "ok", 7), (NOT_APPLIED, "fail", 0), (errors.NoMajority(operation="resolve"), "unknown", 0)],
)
async def test_a_change_that_is_asked_after_is_recorded_as_it_was_answered(
    answer: Any, outcome: str, version: int
) -> None:
    seat, _ = _seat(answer)
    op = await seat.call("cas", "k", _raising(_unresolved()), value="new")
    assert (op.outcome, op.version) == (outcome, version)
    assert op.error.endswith(ASKED_AFTER)
    assert not op.is_mismatch


async def test_a_call_that_is_cancelled_stays_open() -> None:
    seat, recorder = _seat()
    with pytest.raises(asyncio.CancelledError):
        await seat.call("write", "k", _raising(asyncio.CancelledError()))
    assert (recorder.operations[0].outcome, recorder.operations[0].ended) == ("unknown", None)


@pytest.mark.parametrize(
    ("done", "outcome", "observed", "seen"),
    [
        (APPLIED, "ok", False, None),
        (NOT_APPLIED, "fail", True, "other"),
        (NotApplied(0, None, RECEIPT), "fail", True, None),
        (NotApplied(5, None, RECEIPT), "fail", False, None),  # remembered: its version, not its value
    ],
)
def test_what_a_failed_cas_found_is_recorded_as_far_as_it_was_told(
    done: Applied | NotApplied, outcome: str, observed: bool, seen: str | None
) -> None:
    op = Operation(0, "cas", "k", 0.0, outcome="ok")
    note_change(op, done, bytes.decode)
    assert (op.outcome, op.observed, op.seen, op.version) == (outcome, observed, seen, done.version)
    assert op.is_mismatch == (outcome == "fail")
