"""Carries out a plan of faults on a cluster, and undoes each when its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from kvstore.sim.cluster import Cluster, Machine, address
from kvstore.sim.faults import Fault, Plan

CHOP_CHANCE = 0.1


class Nemesis:
    """Faults in their time; those on links add up."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._network = cluster.network
        self._on_links: list[Fault] = []
        self._kinds: dict[str, tuple[Callable[[Fault], None], Callable[[Fault], None]]] = {
            "crash": (self._each(cluster.crash), self._start_again),
            "kill": (self._each(cluster.kill), self._start_again),
            "power_cut": (self._light_fuse, self._start_again),
            "blackout": (self._flicker_and_go_out, self._start_again),
            "restart": (self._each(cluster.stop), self._start_again),
            "pause": (self._each(cluster.pause), self._each(cluster.resume)),
            "isolate": (self._link_fault, self._link_fault_over),
            "halves": (self._link_fault, self._link_fault_over),
            "one_way": (self._link_fault, self._link_fault_over),
            "client_cut": (self._link_fault, self._link_fault_over),
            "slow": (self._link_fault, self._link_fault_over),
            "chop": (self._chop, self._chop),
            "reset": (self._reset, self._reset),
            "clock": (self._machine(_turn_clock), self._machine(_set_clock_right)),
            "drift": (self._machine(_let_drift), self._machine(_set_clock_right)),
            "disk_full": (self._machine(_fill), self._machine(_free)),
            "bad_disk": (self._machine(_fail_syncs), self._new_disk_controller),
            "stall": (self._machine(_stall), self._machine(_stall_no_more)),
        }

    async def carry_out(self, plan: Plan, begin: float) -> None:
        """All of it."""
        async with asyncio.TaskGroup() as tasks:
            for fault in plan.faults:
                tasks.create_task(self._one(fault, begin))

    async def _one(self, fault: Fault, begin: float) -> None:
        await asyncio.sleep(max(begin + fault.at - self._cluster.loop.time(), 0))
        self._cluster.trace("fault", str(fault))
        do, undo = self._kinds[fault.kind]
        do(fault)
        await asyncio.sleep(fault.lasts)
        self._cluster.trace("over", fault.kind)
        undo(fault)

    @staticmethod
    def _each(action: Callable[[int], None]) -> Callable[[Fault], None]:
        def all_of(fault: Fault) -> None:
            for number in fault.nodes:
                action(number)

        return all_of

    def _machine(self, action: Callable[[Machine, Fault], None]) -> Callable[[Fault], None]:
        def all_of(fault: Fault) -> None:
            for machine in self._machines(fault):
                action(machine, fault)

        return all_of

    def _machines(self, fault: Fault) -> list[Machine]:
        return [self._cluster.machines[number] for number in fault.nodes]

    # --- processes ----------------------------------------------------------------------

    def _light_fuse(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.files.fuse = int(fault.amount)

    def _flicker_and_go_out(self, fault: Fault) -> None:
        # What waits for a slow disk when the power goes must not have been promised to anybody.
        self._machine(_stall)(fault)
        go_out = self._each(self._cluster.crash)
        self._network.at(self._cluster.loop.time() + fault.lasts / 2, lambda: go_out(fault))

    def _start_again(self, fault: Fault) -> None:
        for number, machine in zip(fault.nodes, self._machines(fault), strict=True):
            machine.slowness[0] = 1.0
            machine.files.fuse = 0
            if not machine.runs:
                self._cluster.start(number)
            elif fault.kind == "restart":
                # It drains still: whoever supervises it waits.
                self._network.at(self._cluster.loop.time() + 0.1, partial(self._start_ended, number))

    def _start_ended(self, number: int) -> None:
        if not self._cluster.machines[number].runs:
            self._cluster.start(number)

    # --- links --------------------------------------------------------------------------

    def _link_fault(self, fault: Fault) -> None:
        self._on_links.append(fault)
        self._set_links()

    def _link_fault_over(self, fault: Fault) -> None:
        self._on_links.remove(fault)
        self._set_links()

    def _set_links(self) -> None:
        network = self._network
        network.cuts.clear()
        network.slow.clear()
        for fault in self._on_links:
            pairs = [(address(src), address(dst)) for src, dst in fault.pairs]
            if fault.kind == "slow":
                network.slow.update(dict.fromkeys(pairs, fault.amount))
            else:
                network.cuts.update(pairs)
        network.kick()

    def _chop(self, fault: Fault) -> None:
        """Called twice: the second time it is over."""
        network = self._network
        network.chop_chance = fault.amount if network.chop_chance == CHOP_CHANCE else CHOP_CHANCE

    def _reset(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            self._network.reset(machine.host)

    # --- disks --------------------------------------------------------------------------

    def _new_disk_controller(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.files.fail_syncs = False
        self._start_again(fault)


def _turn_clock(machine: Machine, fault: Fault) -> None:
    machine.clock.offset_ms += fault.amount


def _let_drift(machine: Machine, fault: Fault) -> None:
    machine.clock.drift = fault.amount


def _set_clock_right(machine: Machine, _fault: Fault) -> None:
    machine.set_clock_right()


def _fill(machine: Machine, _fault: Fault) -> None:
    machine.files.refuse_writes = True


def _free(machine: Machine, _fault: Fault) -> None:
    machine.files.refuse_writes = False


def _fail_syncs(machine: Machine, _fault: Fault) -> None:
    machine.files.fail_syncs = True


def _stall(machine: Machine, fault: Fault) -> None:
    machine.slowness[0] = fault.amount


def _stall_no_more(machine: Machine, _fault: Fault) -> None:
    machine.slowness[0] = 1.0
