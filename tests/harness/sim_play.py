"""A scene on a simulated cluster, played to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvstore.sim.cluster import Cluster
from kvstore.sim.loop import SimLoop, run


def played(
    play: Callable[[Cluster], Awaitable[None]],
    *,
    nodes: int = 3,
    clocks_right: bool = False,
    within_s: float = 60,
) -> None:
    """Run it on a cluster of its own with three replicas, for so long at most by the simulated clock."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        cluster = Cluster(loop, 1, nodes=nodes, replicas=3, keep_trace=False)
        for machine in cluster.machines.values():
            if clocks_right:
                machine.drift = machine.offset_ms = 0.0
                machine.set_clock_right()
            cluster.start(machine.number)
        async with asyncio.timeout(within_s):
            await asyncio.sleep(1)
            await play(cluster)
        cluster.end()

    run(main())
