"""Runs seeds: a cluster, a workload, a plan of faults, a verdict.

    python -m kvstore.sim --seed 1 --runs 200

A run is (commit, seed): everything else is drawn from the seed.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from kvstore.client.client import Client
from kvstore.sim.cluster import Cluster
from kvstore.sim.faults import KINDS, Plan, plan
from kvstore.sim.judge import LATE_S, Operation, Verdict, judge, judge_substance
from kvstore.sim.judge_registers import judge_registers
from kvstore.sim.loop import SimLoop
from kvstore.sim.loop import run as run_loop
from kvstore.sim.nemesis import Nemesis
from kvstore.sim.register_workload import COUNTER_KEYS, MIXED_KEYS, REGISTER_KEYS
from kvstore.sim.workload import PLAIN_KEYS, TIMED_KEYS, TOUCHED_KEYS, Workload

SETTLE_S = 9.0
"""From healing to the final reads: silence is noticed after 3 s, a dial repeated within 2, a call has 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a run looks like, beside its seed."""

    nodes: int = 5
    replicas: int = 3
    clients: int = 4
    seconds: float = 8.0
    kinds: tuple[str, ...] = KINDS
    swarm: bool = True
    """Draw some of the kinds; False: have them all."""
    registers: float | None = None
    """Share of calls that are linearizable; None: drawn."""


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    seed: int
    verdict: Verdict
    digest: str
    plan: Plan
    operations: int
    succeeded: int
    seconds: float
    trace: list[str]
    history: list[Operation]
    registers: list[Operation]
    """The calls of linearizable registers."""


def simulate(seed: int, shape: Shape | None = None, *, keep_trace: bool = False) -> Outcome:
    """Run one seed to its verdict."""
    return run_loop(_main(seed, shape or Shape(), keep_trace=keep_trace))


async def _main(seed: int, shape: Shape, *, keep_trace: bool) -> Outcome:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    cluster = Cluster(loop, seed, nodes=shape.nodes, replicas=shape.replicas, keep_trace=keep_trace)
    faults = plan(seed, nodes=shape.nodes, seconds=shape.seconds, kinds=shape.kinds, swarm=shape.swarm)
    for number in cluster.machines:
        cluster.start(number)
    await asyncio.sleep(1.0)
    workload = Workload(loop, cluster.trace, random.Random(cluster.dice.getrandbits(64)), shape.registers)
    clients = [await _client(cluster, number) for number in range(1, shape.clients + 1)]
    begin = loop.time()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Nemesis(cluster).carry_out(faults, begin))
        for number, client in enumerate(clients, 1):
            tasks.create_task(workload.drive(number, client, begin + shape.seconds))
    cluster.heal()
    await asyncio.sleep(SETTLE_S)
    await _final_calls(cluster, workload)
    spans = [(begin + fault.at, begin + fault.at + fault.lasts) for fault in faults.faults]
    registers = workload.registers.history
    verdict = judge(workload.history, timed_keys=frozenset(TIMED_KEYS + TOUCHED_KEYS))
    verdict.unknown += judge_substance(workload.history + registers, spans)
    verdict.violations += judge_registers(registers)
    verdict.violations += [f"stuck: {op}" for op in registers if op.final and op.outcome != "ok"]
    verdict.violations += [
        f"late: {op}"
        for op in registers
        if op.ended is not None and op.ended - op.began > 2 * op.timeout + LATE_S
    ]
    verdict.violations += [f"ended: {failure!r}" for failure in cluster.failures]
    verdict.violations += [
        f"refused-start: {machine.refused.message}"
        for machine in cluster.machines.values()
        if machine.refused is not None
    ]
    verdict.violations += [f"bug: {text}" for text in cluster.trace.bugs]
    for client in clients:
        await client.close()
    cluster.end()
    return Outcome(
        seed,
        verdict,
        cluster.trace.digest,
        faults,
        len(workload.history) + len(registers),
        sum(op.outcome in ("ok", "lost") for op in workload.history + registers),
        loop.time(),
        cluster.trace.lines,
        workload.history,
        registers,
    )


async def _client(cluster: Cluster, number: int) -> Client:
    """Half the clients know the whole cluster; the others stay with one node.

    So every kind of coordinator is used, also one that owns nothing of the key.
    """
    if number % 2:
        return await cluster.client(number)
    return await cluster.client(number, url=cluster.dice.choice(cluster.urls), pinned=True)


async def _final_calls(cluster: Cluster, workload: Workload) -> None:
    """Through every node: each key at `all`, and a write."""
    for number, machine in cluster.machines.items():
        if machine.refused is not None:
            continue  # a violation of its own
        client = await cluster.client(100 + number, url=f"kv://{machine.host}:7401", pinned=True)
        for key in PLAIN_KEYS + TIMED_KEYS + TOUCHED_KEYS:
            await workload.call(client, 100 + number, "get", key, "all", timeout=3.0, final=True)
        await workload.call(client, 100 + number, "put", f"after-{number}", "quorum", timeout=3.0, final=True)
        for key in REGISTER_KEYS + MIXED_KEYS + COUNTER_KEYS:
            await workload.registers.call(client, 100 + number, "get", key, timeout=3.0, final=True)
        await workload.registers.call(client, 100 + number, "incr", COUNTER_KEYS[0], timeout=3.0, final=True)
        await client.close()
    client = await cluster.client(200)
    for key in PLAIN_KEYS:
        await workload.call(client, 200, "put", key, "quorum", timeout=3.0, final=True)
        await workload.call(client, 200, "get", key, "quorum", timeout=3.0, final=True)
    await client.close()
