"""Node processes with a network namespace each, joined by a bridge: containers' networks without an engine.

Everything about the processes is as in `processes`. Needs root. The bridge has a namespace too, because the
firewall of the machine looks at what passes over its own bridges.

Rules kept here:
- all names begin with `jl` and the run's number; what is made is removed on the way out, and when a run was
  killed with force by: ip netns delete jl...
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from jepsen_lite.nemesis import CLIENTS
from jepsen_lite.targets.fences import Fences, tell
from jepsen_lite.targets.processes import Child, Place, Processes, running
from jepsen_lite.targets.target import CLIENT_PORT, PEER_PORT, NodeAt, TargetError

_NETWORK = "10.214.{}"
_TRIES = 20


def problem() -> str:
    """Why there can be no namespaces here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "nft") if shutil.which(name) is None]
    return f"there is no {' and no '.join(missing)}: apt-get install iproute2 nftables" if missing else ""


class Namespaces:
    """See `Networks`: a namespace with a bridge, and cables from there to each node and to the clients."""

    def __init__(self, run: str, net: str) -> None:
        self._run = run
        self._net = net

    @property
    def client_host(self) -> str:
        """The clients' end of their cable."""
        return f"{self._net}.1"

    @property
    def middle(self) -> str:
        """The namespace of the bridge."""
        return f"{self._run}m"

    def host(self, node: int) -> str:
        """A node's address."""
        return f"{self._net}.{10 + node}"

    def name(self, node: int) -> str:
        """A node's namespace, and the bridge's end of its cable."""
        return f"{self._run}n{node}"

    async def inside(self, node: int) -> Sequence[str]:
        """The namespace is there whether the node is or not."""
        return ("ip", "netns", "exec", self.name(node))

    async def unplug(self, node: int) -> None:
        """Pull the cable."""
        await self._ip(f"-netns {self.middle} link set {self.name(node)} down")

    async def plug(self, node: int) -> None:
        """Put it back."""
        await self._ip(f"-netns {self.middle} link set {self.name(node)} up")

    async def make(self, node: int) -> None:
        """A namespace, and its cable. Raises TargetError."""
        name = self.name(node)
        await self._ip(f"netns add {name}")
        await self._ip(f"link add {name} netns {self.middle} type veth peer name eth0 netns {name}")
        await self._ip(f"-netns {self.middle} link set {name} master bridge up")
        await self._ip(f"-netns {name} addr add {self.host(node)}/24 dev eth0")
        for device in ("lo", "eth0"):
            await self._ip(f"-netns {name} link set {device} up")

    async def make_middle(self) -> None:
        """The bridge, and the clients' cable. Raises TargetError."""
        await self._ip(f"netns add {self.middle}")
        await self._ip(f"-netns {self.middle} link add bridge type bridge")
        await self._ip(f"-netns {self.middle} link set bridge up")
        await self._ip(f"link add {self._run} type veth peer name clients netns {self.middle}")
        await self._ip(f"-netns {self.middle} link set clients master bridge up")
        await self._ip(f"addr add {self.client_host}/24 dev {self._run}")
        await self._ip(f"link set {self._run} up")

    @staticmethod
    async def _ip(line: str) -> None:
        await tell("ip", *line.split())


async def _free_net(dice: random.Random) -> str:
    taken = await tell("ip", "-4", "-oneline", "addr", "show")
    for _ in range(_TRIES):
        net = _NETWORK.format(dice.randrange(256))
        if f" {net}." not in taken:
            return net
    raise TargetError("no free network")


async def _remove(*command: str) -> None:
    with suppress(TargetError):
        await tell(*command)


@asynccontextmanager
async def opened(
    directory: Path, *, nodes: int, replicas: int, kinds: Collection[str], why: str = ""
) -> AsyncIterator[Processes]:
    """A cluster in namespaces; `why` not in containers, for the report. Raises TargetError."""
    if said := problem():
        raise TargetError(said)
    dice = random.Random(random.SystemRandom().getrandbits(64))
    # The names of interfaces have at most 15 characters.
    networks = Namespaces(f"jl{os.getpid() % 10**6}x{dice.randrange(1000)}", await _free_net(dice))
    where = [
        NodeAt(number, f"n{number}", networks.host(number), CLIENT_PORT, PEER_PORT, networks.host(number))
        for number in range(1, nodes + 1)
    ]
    hosts = {CLIENTS: networks.client_host, **{node.number: node.host for node in where}}
    fences = Fences("nftables inside each network namespace", networks, hosts)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_remove, "ip", "netns", "delete", networks.middle)
        await networks.make_middle()
        for node in where:
            stack.push_async_callback(_remove, "ip", "netns", "delete", networks.name(node.number))
            await networks.make(node.number)
        prefixes = {node.number: await networks.inside(node.number) for node in where}
        children = [Child(node, directory / node.name, prefixes[node.number]) for node in where]
        note = "nodes are processes in network namespaces" + (f", not containers: {why}" if why else "")
        place = Place(fences, networks.client_host, (note,))
        yield await stack.enter_async_context(
            running(directory, children, place, replicas=replicas, kinds=kinds)
        )
