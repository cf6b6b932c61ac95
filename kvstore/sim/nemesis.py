"""Carries out a plan of faults on a cluster, and undoes each when its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvstore.sim.cluster import Cluster, Machine
from kvstore.sim.faults import Fault, Plan

CHOP_CHANCE = 0.1


class Nemesis:
    """One fault after the other."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._network = cluster.network
        self._kinds: dict[str, tuple[Callable[[Fault], None], Callable[[Fault], None]]] = {
            "crash": (self._crash, self._start_again),
            "power_cut": (self._light_fuse, self._start_again),
            "blackout": (self._flicker_and_go_out, self._start_again),
            "isolate": (self._cut, self._mend),
            "halves": (self._cut, self._mend),
            "one_way": (self._cut, self._mend),
            "slow": (self._slow, self._mend),
            "chop": (self._chop, self._chop_no_more),
            "pause": (self._pause, self._resume),
            "clock": (self._turn_clock, self._turn_clock_back),
            "disk_full": (self._fill, self._free),
            "stall": (self._stall, self._stall_no_more),
        }

    async def carry_out(self, plan: Plan, begin: float) -> None:
        """All of it, in order."""
        for fault in plan.faults:
            await asyncio.sleep(max(begin + fault.at - self._cluster.loop.time(), 0))
            self._cluster.trace("fault", str(fault))
            do, undo = self._kinds[fault.kind]
            do(fault)
            await asyncio.sleep(fault.lasts)
            undo(fault)

    def _machines(self, fault: Fault) -> list[Machine]:
        return [self._cluster.machines[number] for number in fault.nodes]

    def _crash(self, fault: Fault) -> None:
        for number in fault.nodes:
            self._cluster.crash(number)

    def _light_fuse(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.files.fuse = int(fault.amount)

    def _flicker_and_go_out(self, fault: Fault) -> None:
        # What waits for a slow disk when the power goes must not have been promised to anybody.
        self._stall(fault)
        self._network.at(self._cluster.loop.time() + fault.lasts / 2, lambda: self._crash(fault))

    def _start_again(self, fault: Fault) -> None:
        self._stall_no_more(fault)
        for number, machine in zip(fault.nodes, self._machines(fault), strict=True):
            machine.files.fuse = 0
            if not machine.runs:
                self._cluster.start(number)

    def _cut(self, fault: Fault) -> None:
        self._cluster.cut(list(fault.pairs))

    def _mend(self, _fault: Fault) -> None:
        self._network.heal()

    def _slow(self, fault: Fault) -> None:
        hosts = {number: machine.host for number, machine in self._cluster.machines.items()}
        self._network.slow.update({(hosts[src], hosts[dst]): fault.amount for src, dst in fault.pairs})

    def _chop(self, fault: Fault) -> None:
        self._network.chop_chance = fault.amount

    def _chop_no_more(self, _fault: Fault) -> None:
        self._network.chop_chance = CHOP_CHANCE

    def _pause(self, fault: Fault) -> None:
        for number in fault.nodes:
            self._cluster.pause(number)

    def _resume(self, fault: Fault) -> None:
        for number in fault.nodes:
            self._cluster.resume(number)

    def _turn_clock(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.clock.offset_ms += fault.amount

    def _turn_clock_back(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.clock.offset_ms -= fault.amount

    def _fill(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.files.refuse_writes = True

    def _free(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.files.refuse_writes = False

    def _stall(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.slowness[0] = fault.amount

    def _stall_no_more(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.slowness[0] = 1.0
