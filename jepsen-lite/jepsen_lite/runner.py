"""One run: start, disturb, heal, read, judge; and the files it leaves.

DIR/plan.json        what was to go wrong, for a replay
DIR/history.jsonl    what clients asked and were told
DIR/results.json     verdicts and figures
DIR/report.html      all of it, to look at
DIR/nodes/           logs of the nodes; their data too, unless the verdict is ok
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import kvstore
from jepsen_lite import history, judging, targets, workloads
from jepsen_lite.judging import Judgement, Span
from jepsen_lite.nemesis import Plan
from jepsen_lite.seat import Recorder, Seat
from jepsen_lite.targets import Cluster, NodeAt, TargetError
from jepsen_lite.workloads import Workload
from kvstore import errors
from kvstore.io.clock import SystemClock
from kvstore.ports import Clock

READY_S = 60.0
RECOVER_S = 20.0
"""Within which every node serves again after healing: links are dialled again within 2 s, logs replayed."""
SETTLE_S = 1.0
CALL_S = 2.0
_FINAL_S = 5.0
_ASK_S = 1.0
_TICK_S = 0.25

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is, beside its plan."""

    target: str = "processes"
    workload: str
    nemesis: str
    seconds: float = 60.0
    seed: int = 1
    nodes: int = 5
    replicas: int = 3
    clients: int = 10
    """Half of them stay with one node each, the others may ask any."""
    rate: float = 100.0
    """Operations a second, of all clients together."""
    links: str = "auto"
    level: str = "quorum"
    """Of plain reads and writes. Anything weaker must be convicted: that is what it is for."""

    def command(self) -> str:
        """The line that runs this again."""
        return (
            f"jepsen-lite run --target {self.target} --workload {self.workload} --nemesis {self.nemesis} "
            f"--time {self.seconds:g} --seed {self.seed} --nodes {self.nodes} --replicas {self.replicas} "
            f"--clients {self.clients} --rate {self.rate:g} --links {self.links}"
            + (f" --level {self.level}" if self.level != "quorum" else "")
        )


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    judgement: Judgement
    operations: list[history.Operation]
    spans: list[Span]
    header: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    """Node -> the tail of its log."""


class Run:
    """Drives one workload against one cluster."""

    def __init__(self, options: Options, plan: Plan, cluster: Cluster, *, say: Say, clock: Clock) -> None:
        self.options = options
        self.plan = plan
        self.spans: list[Span] = []
        self.notes: list[str] = []
        self.recorder = Recorder(clock)
        self.workload: Workload = workloads.make(options.workload)
        self.recovered_s: float | None = None
        self.bugs: list[str] = []
        """What clients raised and never should."""
        self.owners: dict[str, tuple[int, ...]] = {}
        self._cluster = cluster
        self._say = say
        self._dice = random.Random(f"work {options.seed}")

    async def drive(self) -> None:
        """From a started cluster to the last final read. Raises TargetError."""
        if await self._ready_s(READY_S) is None:
            raise TargetError(f"not every node was ready within {READY_S:g} s: see their logs")
        async with AsyncExitStack() as stack:
            seats = [await self._seat(stack, number) for number in range(self.options.clients)]
            self.recorder.restart_clock()
            try:
                await self._work_and_disturb(seats)
            except BaseExceptionGroup as group:
                failed = group.subgroup(TargetError)
                raise _first(failed or group) from None
            self._say("healing")
            await self._cluster.heal()
            self.recovered_s = await self._ready_s(RECOVER_S)
            await asyncio.sleep(SETTLE_S)
            await self._finish()
            await self._learn_owners(seats[0].kv)

    async def _work_and_disturb(self, seats: Sequence[Seat]) -> None:
        async with asyncio.TaskGroup() as tasks:
            disturbing = tasks.create_task(self._disturb())
            working = [tasks.create_task(self._work(seat)) for seat in seats]
            tasks.create_task(self._progress(self.plan.seconds, [disturbing, *working]))

    async def _seat(self, stack: AsyncExitStack, number: int) -> Seat:
        nodes = self._cluster.nodes
        node = nodes[number // 2 % len(nodes)] if number % 2 else None
        kv = await stack.enter_async_context(await self._connect([node] if node else nodes, CALL_S))
        return Seat(
            kv, self.recorder, random.Random(f"{self.options.seed} {number}"), node=node.name if node else ""
        )

    async def _connect(self, nodes: Sequence[NodeAt], timeout: float) -> kvstore.Client:
        return await kvstore.connect(
            [node.url for node in nodes],
            timeout=timeout,
            consistency=self.options.level,
            pinned=len(nodes) == 1,
            local_addr=(self._cluster.client_host, 0),
        )

    async def _work(self, seat: Seat) -> None:
        pace = self.options.rate / self.options.clients
        while True:
            pause = seat.dice.expovariate(pace)
            if seat.now() + pause >= self.plan.seconds:
                return
            await asyncio.sleep(pause)
            with self._noting_bugs():
                await self.workload.step(seat)

    @contextmanager
    def _noting_bugs(self) -> Iterator[None]:
        """Keep what no client should raise, and go on: it belongs to the verdict."""
        try:
            yield
        except errors.KVError as error:
            self.bugs.append(f"outside any operation: {error.one_line()}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self.bugs.append(f"{type(error).__name__}: {error}")

    async def _disturb(self) -> None:
        """Every fault at its time, and its end at its own."""
        async with asyncio.TaskGroup() as tasks:
            for fault in self.plan.faults:
                if fault.kind not in self._cluster.missing:
                    tasks.create_task(self._one_fault(fault))

    async def _one_fault(self, fault: Any) -> None:
        await asyncio.sleep(max(fault.at - self.recorder.now(), 0))
        began = self.recorder.now()
        await self._cluster.do(fault)
        await asyncio.sleep(max(fault.until - self.recorder.now(), 0))
        await self._cluster.undo(fault)
        self.spans.append(Span(began, self.recorder.now(), fault))
        self.spans.sort(key=lambda span: span.began)

    async def _progress(self, seconds: float, others: Sequence[asyncio.Task[None]]) -> None:
        while not all(task.done() for task in others):
            await asyncio.sleep(_TICK_S)
            now = self.recorder.now()
            done = self.recorder.operations
            ok = sum(op.outcome == "ok" for op in done[-1000:]) / max(len(done[-1000:]), 1)
            faults = ", ".join(f.name for f in self.plan.faults if f.at <= now <= f.until) or "-"
            self._say(
                f"{min(now, seconds):4.0f} of {seconds:g} s  {len(done)} operations, {ok:.0%} ok  {faults}"
            )

    async def _ready_s(self, within_s: float) -> float | None:
        """Seconds until every node was ready and linked to all others; None when it took longer."""
        began = self.recorder.now()
        waiting = list(self._cluster.nodes)
        while waiting and self.recorder.now() - began < within_s:
            waiting = [node for node in waiting if not await self._is_ready(node)]
            self._say(
                f"{len(self._cluster.nodes) - len(waiting)} of {len(self._cluster.nodes)} nodes are ready"
            )
            if waiting:
                await asyncio.sleep(0.1)
        return None if waiting else self.recorder.now() - began

    async def _is_ready(self, node: NodeAt) -> bool:
        try:
            async with await self._connect([node], _ASK_S) as kv:
                status = await kv.status()
        except errors.KVError:
            return False
        peers = status.get("peers") or {}
        return status.get("state") == "ready" and all(peer.get("up") for peer in peers.values())

    async def _finish(self) -> None:
        """Final operations through every node, one after the other."""
        for node in self._cluster.nodes:
            self._say(f"final reads through {node.name}")
            dice = random.Random(f"final {self.options.seed} {node.number}")
            try:
                async with await self._connect([node], _FINAL_S) as kv:
                    with self._noting_bugs():
                        await self.workload.finish(Seat(kv, self.recorder, dice, node=node.name, final=True))
            except errors.KVError as error:
                self.notes.append(f"no final reads through {node.name}: {error}")

    async def _learn_owners(self, kv: kvstore.Client) -> None:
        """Which nodes hold each key, for the figures on availability."""
        if not self.workload.keys_are_stored:
            return
        try:
            topology = await kv.topology(timeout=_FINAL_S)
        except errors.KVError as error:
            self.notes.append(f"nobody told who owns the keys: {error}")
            return
        for op in self.recorder.operations:
            if op.key not in self.owners:
                self.owners[op.key] = tuple(int(number) for number in topology.preference(op.key.encode()))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside a TaskGroup's group."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


async def run(options: Options, plan: Plan, directory: Path, *, say: Say) -> Outcome:
    """A run against real nodes, from nothing to its verdict. Raises TargetError."""
    from jepsen_lite.targets import opening  # noqa: PLC0415  brings the storage engine

    clock = SystemClock()
    nodes = directory / "nodes"
    async with opening.opened(
        options.target,
        nodes,
        nodes=options.nodes,
        replicas=options.replicas,
        kinds=plan.kinds(),
        links=options.links,
    ) as cluster:
        one = Run(options, plan, cluster, say=say, clock=clock)
        one.notes += cluster.notes
        left_out = sorted(plan.kinds() & set(cluster.missing))
        one.notes += [f"left out: {kind}: {cluster.missing[kind]}" for kind in left_out]
        if left_out and not plan.kinds() - set(left_out):
            raise TargetError(f"nothing of {plan.nemesis} can be done here: {cluster.missing[left_out[0]]}")
        await one.drive()
        await cluster.stop()
        complaints = cluster.complaints()
        logs = {node.name: _tail(cluster.log(node)) for node in cluster.nodes}
        addresses = {node.name: node.number for node in cluster.nodes}
    outcome = _judged(one, addresses, complaints)
    outcome.logs = logs
    if not outcome.judgement.word:
        for name in logs:
            shutil.rmtree(nodes / name, ignore_errors=True)
    return outcome


def _judged(one: Run, addresses: dict[str, int], complaints: Sequence[str]) -> Outcome:
    options, operations = one.options, one.recorder.operations
    judgement = judging.judge(options.workload, operations, [(span.began, span.ended) for span in one.spans])
    judgement.verdicts += [
        judging.check_recovery(one.recovered_s, RECOVER_S),
        judging.check_deadlines(operations, CALL_S),
        judging.check_nodes(complaints),
        judging.check_clients(one.bugs),
    ]
    judgement.figures["availability"] = judging.availability(
        operations, one.spans, one.owners, addresses, linearizable=one.workload.linearizable
    )
    judgement.figures["recovered_s"] = one.recovered_s
    header = {**asdict(options), "commit": commit(), "faults": [span.as_json() for span in one.spans]}
    return Outcome(judgement, operations, one.spans, header, one.notes)


def save(directory: Path, options: Options, plan: Plan, outcome: Outcome) -> None:
    """Write plan, history and results."""
    directory.mkdir(parents=True, exist_ok=True)
    text = {"options": asdict(options), "plan": plan.as_json()}
    (directory / "plan.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    history.save(directory / "history.jsonl", outcome.header, outcome.operations)
    results = {**outcome.judgement.as_json(), "notes": outcome.notes, "again": options.command()}
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def load_plan(directory: Path) -> tuple[Options, Plan]:
    """What `save` kept. Raises OSError, ValueError, KeyError, TypeError."""
    text = (directory / "plan.json").read_text(encoding="utf-8")
    plain = json.loads(text, parse_constant=_not_finite)
    return _checked(Options(**plain["options"])), Plan.from_json(plain["plan"])


def _not_finite(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _checked(options: Options) -> Options:
    """What a file said. Raises ValueError."""
    for each in fields(Options):
        given = getattr(options, each.name)
        wanted = str if each.default is MISSING else type(each.default)
        if type(given) is not wanted and (wanted, type(given)) != (float, int):
            raise ValueError(f"{each.name} cannot be {given!r}")
    if options.workload not in workloads.ABOUT:
        raise ValueError(f"there is no workload {options.workload!r}")
    if options.target not in targets.ABOUT:
        raise ValueError(f"there is no target {options.target!r}")
    return options


def commit() -> str:
    """The commit that runs, as git knows it; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        asked = subprocess.run(  # noqa: S603 - a fixed program
            ["git", "-C", str(here), "describe", "--always", "--dirty"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return asked.stdout.strip()


def _tail(log: Path, lines: int = 60) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
