"""The rate limiter on simulated nodes, while everything goes wrong that the simulator knows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from jepsen_lite.history import Operation
from jepsen_lite.seat import Recorder, Seat
from jepsen_lite.verdict import Word
from jepsen_lite.workloads.ratelimits import RateLimits
from kvstore.sim.cluster import Cluster
from kvstore.sim.faults import KINDS, plan
from kvstore.sim.loop import SimLoop
from kvstore.sim.loop import run as run_loop
from kvstore.sim.nemesis import Nemesis

pytestmark = [pytest.mark.sim, pytest.mark.slow]
NODES, CLIENTS, SECONDS, SETTLE_S = 5, 8, 10.0, 9.0


class LoopClock:
    """The simulator's time, for the history."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def wall_ms(self) -> int:
        return int(self._loop.time() * 1000)

    def monotonic(self) -> float:
        return self._loop.time()


async def _drive(workload: RateLimits, seat: Seat, until: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        await workload.step(seat)
        await asyncio.sleep(seat.dice.expovariate(20))


async def _run(seed: int, kinds: Sequence[str]) -> tuple[list[Operation], str]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    cluster = Cluster(loop, seed, nodes=NODES, replicas=3, keep_trace=False)
    faults = plan(seed, nodes=NODES, seconds=SECONDS, kinds=tuple(kinds))
    for number in cluster.machines:
        cluster.start(number)
    await asyncio.sleep(1.0)
    recorder, workload = Recorder(LoopClock(loop)), RateLimits()
    clients, seats = [], []
    for number in range(1, CLIENTS + 1):
        url = None if number % 2 else cluster.dice.choice(cluster.urls)
        kv = await (cluster.client(number, url=url, pinned=True) if url else cluster.client(number))
        clients.append(kv)
        seats.append(Seat(kv, recorder, random.Random(f"{seed} {number}"), node=f"n{number}" if url else ""))
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Nemesis(cluster).carry_out(faults, began))
        for seat in seats:
            tasks.create_task(_drive(workload, seat, began + SECONDS))
    cluster.heal()
    await asyncio.sleep(SETTLE_S)
    kv = await cluster.client(200)
    await workload.finish(Seat(kv, recorder, random.Random(seed), node="last", final=True))
    for client in (*clients, kv):
        await client.close()
    await workload.close()
    cluster.end()
    return recorder.operations, cluster.trace.digest


@pytest.mark.parametrize("seed", range(1, 5))
def test_limits_hold_whatever_goes_wrong(seed: int) -> None:
    operations, _ = run_loop(_run(seed, KINDS))
    verdicts = {verdict.check: verdict for verdict in RateLimits().judge(operations)}
    assert all(each.word is not Word.ILLEGAL for each in verdicts.values()), "\n".join(
        map(str, verdicts.values())
    )
    assert verdicts["admitted"].counts["admitted"] > 20
    assert [str(op) for op in operations if op.final and op.outcome != "ok"] == []


def test_a_seed_is_a_run() -> None:
    runs = [run_loop(_run(3, KINDS)) for _ in range(2)]
    assert runs[0][1] == runs[1][1]
    assert [str(op) for op in runs[0][0]] == [str(op) for op in runs[1][0]]
