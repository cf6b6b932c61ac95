"""Cuts and loses what goes between nodes that have a network of their own each: containers, or namespaces.

Every node drops what comes to it from others, and what it would send to clients, by an nftables table in its
own namespace: one direction of a link is one rule. The table goes when the namespace does. Unplugging takes
the whole network away from a node, as `docker network disconnect` does.

Rules kept here:
- nothing outside the nodes' namespaces is touched;
- what is cut is the sum of the faults under way: the end of one does not mend another's;
- a network that came back empty, with a container that was started again, gets the cuts of now (`again`).
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol

from jepsen_lite.nemesis import CLIENTS, Fault
from jepsen_lite.targets.target import TargetError

TABLE = "jepsen_lite"


class Networks(Protocol):
    """Where the nodes' networks are."""

    async def inside(self, node: int) -> Sequence[str]:
        """What to put before a command to run it in a node's network; nothing while there is none."""
        ...

    async def unplug(self, node: int) -> None:
        """Take its network away. Raises TargetError."""
        ...

    async def plug(self, node: int) -> None:
        """Give it back, at the same address. Raises TargetError."""
        ...


async def tell(*command: str, text: str = "", patience_s: float = 60.0) -> str:
    """Run a command to its end and return what it said. Raises TargetError."""
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            # A pipe that nobody reads may be closed before it is written to.
            stdin=subprocess.PIPE if text else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise TargetError(f"{command[0]}: {error.strerror}") from None
    try:
        async with asyncio.timeout(patience_s):
            said, _ = await child.communicate(text.encode() if text else None)
    except TimeoutError:
        raise TargetError(f"{' '.join(command)}: no end within {patience_s:g} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise TargetError(f"{' '.join(command)}: {said.decode(errors='replace').strip()}")
    return said.decode(errors="replace").strip()


def rules(node: int, hosts: Mapping[int, str], faults: Sequence[Fault]) -> str:
    """The whole table of one node, in place of the one before; empty of rules when nothing concerns it."""
    came, goes = [], []
    for fault in faults:
        chance = f"numgen random mod 1000 < {round(fault.amount * 1000)} " if fault.kind == "flaky" else ""
        for a, b in fault.pairs:
            if b == node:
                came.append(f"ip saddr {hosts[a]} {chance}counter drop")
            elif a == node and b == CLIENTS:
                goes.append(f"ip daddr {hosts[b]} {chance}counter drop")
    chains = "\n".join(
        f"chain {hook} {{ type filter hook {hook} priority 0; policy accept;\n{lines}\n}}"
        for hook, lines in (("input", "\n".join(came)), ("output", "\n".join(goes)))
    )
    # Named before it is deleted: deleting what is not there would be an error.
    return f"table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{chains}\n}}\n"


class Fences:
    """See `Links`."""

    missing: Mapping[str, str] = {"slow": "nftables cannot delay: use --target processes"}

    def __init__(self, name: str, networks: Networks, hosts: Mapping[int, str]) -> None:
        self.name = name
        self._networks = networks
        self._hosts = hosts
        self._nodes = [number for number in sorted(hosts) if number != CLIENTS]
        self._faults: tuple[Fault, ...] = ()
        self._told: dict[int, str] = dict.fromkeys(self._nodes, "")
        """Node -> the table it has."""
        self._unplugged: set[int] = set()
        self._one_at_a_time = asyncio.Lock()

    async def open(self) -> None:
        """Nothing is needed before the first fault."""

    async def apply(self, faults: Sequence[Fault]) -> None:
        """From now on these faults, and no others. Raises TargetError."""
        self._faults = tuple(faults)
        async with self._one_at_a_time, asyncio.TaskGroup() as tasks:
            for node in self._nodes:
                tasks.create_task(self._bring(node))

    async def again(self, node: int) -> None:
        """What holds now, for a network that may have come back empty. Raises TargetError."""
        async with self._one_at_a_time:
            self._told[node] = ""
            await self._bring(node)

    async def close(self) -> None:
        """The tables go with the nodes."""

    async def _bring(self, node: int) -> None:
        """One node to where it has to be: its plug first, because the rules hold with and without it."""
        away = any(fault.kind == "disconnect" and node in fault.nodes for fault in self._faults)
        if away and node not in self._unplugged:
            self._unplugged.add(node)
            await self._networks.unplug(node)
        elif not away and node in self._unplugged:
            await self._networks.plug(node)
            self._unplugged.discard(node)
        cuts = [fault for fault in self._faults if fault.pairs]
        wanted = rules(node, self._hosts, cuts) if any(_concerns(node, each) for each in cuts) else ""
        if wanted == self._told[node]:
            return
        inside = await self._networks.inside(node)
        if inside:
            await tell(*inside, "nft", "-f", "-", text=wanted or rules(node, self._hosts, ()))
            self._told[node] = wanted


def _concerns(node: int, fault: Fault) -> bool:
    return any(b == node or (a, b) == (node, CLIENTS) for a, b in fault.pairs)
