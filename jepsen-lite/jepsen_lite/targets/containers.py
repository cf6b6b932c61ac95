"""Real containers of the image: one engine, one network of this run's own, clients at its gateway.

The nodes have the same configuration but for their names and addresses, and find each other by their seeds.
Their data is in the run's folder, so that logs can be looked at and torn there.

Rules kept here:
- everything that is made here has the label `jepsen-lite=RUN` and is removed on the way out; when a run was
  killed with force: docker rm -fv $(docker ps -aq --filter label=jepsen-lite); docker network prune
- an engine takes its time, so one fault may begin before the last one has ended: each container counts what
  is wished of it, and one at a time brings it there;
- a container that ends without being told to is a complaint, and so is a traceback in its log.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from jepsen_lite.nemesis import CLIENTS, Fault
from jepsen_lite.targets import clocks, disks
from jepsen_lite.targets.cut import LINK_KINDS
from jepsen_lite.targets.fences import Fences, tell
from jepsen_lite.targets.target import BUGS, CLIENT_PORT, PEER_PORT, NodeAt, TargetError

IMAGE = "kvstore:0.1.0"
_STOP_S = 20
_PAUSE_TRIES, _PAUSE_AGAIN_S = 20, 0.1
_USER = 10001
_NETWORKS = "10.213.{}.0/24"


def image() -> str:
    """What the containers are of."""
    return os.environ.get("KV_IMAGE", IMAGE)


async def problem() -> str:
    """Why there can be no containers here, in one line; empty when there can."""
    if shutil.which("docker") is None:
        return "there is no docker"
    try:
        await tell("docker", "version", patience_s=10)
    except TargetError:
        return "no Docker engine answers"
    if os.geteuid() != 0 or shutil.which("nsenter") is None or shutil.which("nft") is None:
        return "cuts inside of containers need root, nsenter and nft"
    try:
        await tell("docker", "image", "inspect", image())
    except TargetError:
        return f"there is no image {image()} (make image)"
    return ""


@dataclass(slots=True)
class Container:
    """One node, and the container that it is."""

    node: NodeAt
    folder: Path
    id: str = ""
    downs: int = 0
    """Faults that want it down."""
    pauses: int = 0
    """Faults that want it paused."""
    is_down: bool = True
    """Whether we ended it, or never started it."""
    is_paused: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    complaints: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """Its output, all starts of it; written when it is removed."""
        return self.folder.parent / f"{self.node.name}.log"

    @property
    def clock(self) -> Path:
        """What its libfaketime reads; in its folder, because a mounted file would not see a rename."""
        return self.folder / "clock"


class Containers:
    """See `Cluster`. Made by `opened`. It is the `Networks` of its own fences."""

    def __init__(
        self, containers: Sequence[Container], network: str, client_host: str, missing: Mapping[str, str]
    ) -> None:
        self._all = {each.node.number: each for each in containers}
        self._network = network
        self._link_faults: list[Fault] = []
        hosts = {CLIENTS: client_host, **{each.node.number: each.node.host for each in containers}}
        self._fences = Fences("nftables inside each container", self, hosts)
        self.client_host = client_host
        self.missing = missing
        self.nodes = tuple(each.node for each in containers)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report says of the place."""
        return (f"nodes are containers of {image()}", f"links are cut by {self._fences.name}")

    def log(self, node: NodeAt) -> Path:
        """The node's output."""
        return self._all[node.number].log

    async def inside(self, node: int) -> Sequence[str]:
        """Its network namespace, while it runs."""
        pid = await tell("docker", "inspect", "--format", "{{.State.Pid}}", self._all[node].id)
        return () if pid == "0" else ("nsenter", "--target", pid, "--net")

    async def unplug(self, node: int) -> None:
        """`docker network disconnect`."""
        await tell("docker", "network", "disconnect", self._network, self._all[node].id)

    async def plug(self, node: int) -> None:
        """`docker network connect`."""
        host = self._all[node].node.host
        await tell("docker", "network", "connect", "--ip", host, self._network, self._all[node].id)

    async def bring(self, each: Container) -> None:
        """Bring a container to where it is wished to be. Raises TargetError."""
        async with each.turn:
            if each.is_down and not each.downs:
                await tell("docker", "start", each.id)
                each.is_down = False
                await self._fences.again(each.node.number)
            if each.pauses and not (each.is_down or each.is_paused):
                await self._pause(each)
            elif not each.pauses:
                await self._resume(each)

    async def do(self, fault: Fault) -> None:
        """Begin a fault. Raises TargetError."""
        if fault.kind in LINK_KINDS:
            self._link_faults.append(fault)
            await self._fences.apply(self._link_faults)
            return
        async with asyncio.TaskGroup() as tasks:
            for number in fault.nodes:
                tasks.create_task(self._do(fault, self._all[number]))

    async def _do(self, fault: Fault, each: Container) -> None:
        match fault.kind:
            case "kill" | "torn_tail" | "restart":
                each.downs += 1
                await self._end(each, signal.SIGTERM if fault.kind == "restart" else signal.SIGKILL)
                if fault.kind == "torn_tail":
                    disks.tear_tail(each.folder, random.Random(f"{fault.at} {each.node.number}"))
            case "pause":
                each.pauses += 1
                await self.bring(each)
            case "clock" | "drift":
                clocks.turn(each.clock, fault)
            case "disk_full":
                await asyncio.to_thread(disks.fill, each.folder)
            case _:
                raise TargetError(f"containers know no fault {fault.kind}")

    async def undo(self, fault: Fault) -> None:
        """End it. Raises TargetError."""
        if fault.kind in LINK_KINDS:
            self._link_faults.remove(fault)
            await self._fences.apply(self._link_faults)
            return
        async with asyncio.TaskGroup() as tasks:
            for number in fault.nodes:
                tasks.create_task(self._undo(fault, self._all[number]))

    async def _undo(self, fault: Fault, each: Container) -> None:
        match fault.kind:
            case "pause":
                each.pauses -= 1
                await self.bring(each)
            case "clock" | "drift":
                clocks.turn(each.clock, None)
            case "disk_full":
                disks.free(each.folder)
            case _:
                each.downs -= 1
                await self.bring(each)

    async def heal(self) -> None:
        """End all faults; start what does not run. Raises TargetError."""
        self._link_faults.clear()
        await self._fences.apply(())
        for each in self._all.values():
            disks.free(each.folder)
            if each.clock.exists():
                clocks.turn(each.clock, None)
            each.downs = each.pauses = 0
            await self._look_at(each)
            await self.bring(each)

    async def _look_at(self, each: Container) -> None:
        """Note when a container has ended by itself."""
        if each.is_down:
            return
        form = "{{.State.Running}} {{.State.ExitCode}} {{.State.OOMKilled}}"
        running, status, starved = (await tell("docker", "inspect", "--format", form, each.id)).split()
        if running != "true":
            why = ", out of memory" if starved == "true" else ""
            each.complaints.append(f"{each.node.name} ended by itself, status {status}{why}")
            each.is_down = True

    async def _pause(self, each: Container) -> None:
        for _ in range(_PAUSE_TRIES):
            try:
                await tell("docker", "pause", each.id)
            except TargetError as error:
                # The freezer gives up on a container that starts a thread at that moment.
                if "unable to freeze" not in str(error):
                    raise
                await asyncio.sleep(_PAUSE_AGAIN_S)
            else:
                each.is_paused = True
                return
        raise TargetError(f"the engine could not pause {each.node.name} in {_PAUSE_TRIES} tries")

    async def _resume(self, each: Container) -> None:
        if each.is_paused:
            await tell("docker", "unpause", each.id)
            each.is_paused = False

    async def _end(self, each: Container, number: signal.Signals) -> None:
        async with each.turn:
            await self._resume(each)
            await self._look_at(each)
            if each.is_down:
                return
            each.is_down = True
            if number is signal.SIGKILL:
                await tell("docker", "kill", each.id)
                return
            await tell("docker", "stop", "--time", str(_STOP_S), each.id, patience_s=_STOP_S + 30)
            status = await tell("docker", "inspect", "--format", "{{.State.ExitCode}}", each.id)
            if status != "0":
                each.complaints.append(f"{each.node.name} ended with status {status} after docker stop")

    def complaints(self) -> list[str]:
        """Containers that ended by themselves or badly, and bugs that their logs tell of."""
        found: list[str] = []
        for each in self._all.values():
            found += each.complaints
            if each.log.exists():
                text = each.log.read_text(encoding="utf-8", errors="replace")
                found += [f"{each.node.name}.log says {bug!r}" for bug in BUGS if bug in text]
        return found

    async def stop(self) -> None:
        """Stop all in order, and keep their logs."""
        async with asyncio.TaskGroup() as tasks:
            for each in self._all.values():
                tasks.create_task(self._end(each, signal.SIGTERM))
        for each in self._all.values():
            each.log.write_text(await tell("docker", "logs", each.id) + "\n", encoding="utf-8")


async def _network(run: str, dice: random.Random) -> ipaddress.IPv4Network:
    """Make the run's network, where no other is. Raises TargetError."""
    failed = TargetError("no free network")
    for _ in range(20):
        net = ipaddress.IPv4Network(_NETWORKS.format(dice.randrange(256)))
        try:
            await tell(
                "docker", "network", "create", "--label", f"jepsen-lite={run}", "--subnet", str(net), run
            )
        except TargetError as error:
            failed = error
        else:
            return net
    raise failed


async def _create(each: Container, run: str, options: Mapping[str, str], faketime: str) -> None:
    """Make a node's container, without starting it. Raises TargetError."""
    each.folder.mkdir(parents=True, exist_ok=True)
    os.chown(each.folder, _USER, 0)
    mounts = [f"{each.folder.resolve()}:/data"]
    environment = dict(options)
    if faketime:
        clocks.turn(each.clock, None)
        mounts.append(f"{faketime}:/opt/faketime.so:ro")
        told = {"LD_PRELOAD": "/opt/faketime.so", "FAKETIME_TIMESTAMP_FILE": "/data/clock"}
        environment |= clocks.environment(faketime, each.clock) | told
    each.id = await tell(
        *("docker", "create", "--label", f"jepsen-lite={run}", "--name", f"{run}-{each.node.name}"),
        *("--hostname", each.node.name, "--network", run, "--ip", each.node.host),
        # We ask them ourselves; a Python for each every five seconds is load that belongs to no workload.
        *("--no-healthcheck", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *(part for mount in mounts for part in ("--volume", mount)),
        *(part for pair in environment.items() for part in ("--env", "=".join(pair))),
        image(),
    )


def _missing(kinds: Collection[str]) -> dict[str, str]:
    missing = dict(Fences.missing)
    if not clocks.library():
        missing |= dict.fromkeys(("clock", "drift"), f"there is no libfaketime: {clocks.REMEDY}")
    if "disk_full" not in kinds:
        missing["disk_full"] = "not prepared"
    return missing


@asynccontextmanager
async def opened(
    directory: Path, *, nodes: int, replicas: int, kinds: Collection[str]
) -> AsyncIterator[Containers]:
    """A cluster of containers; all of it is removed at the end. Raises TargetError."""
    dice = random.Random(random.SystemRandom().getrandbits(64))
    run = f"jepsen-lite-{os.getpid()}-{dice.randrange(10**6)}"
    faketime = clocks.library() if {"clock", "drift"} & set(kinds) else ""
    async with AsyncExitStack() as stack:
        net = await _network(run, dice)
        stack.push_async_callback(_remove, "docker", "network", "rm", run)
        hosts = [str(net[10 + number]) for number in range(nodes + 1)]
        all_of_it = [
            Container(
                NodeAt(number, f"n{number}", hosts[number], CLIENT_PORT, PEER_PORT, hosts[number]),
                directory / f"n{number}",
            )
            for number in range(1, nodes + 1)
        ]
        missing = _missing(kinds)
        cluster = Containers(all_of_it, run, str(net[1]), missing)
        for each in all_of_it:
            each.folder.mkdir(parents=True, exist_ok=True)
            if "disk_full" not in missing:
                await asyncio.to_thread(disks.mount, each.folder)
                stack.callback(disks.unmount, each.folder)
        for each in all_of_it:
            options = {
                "KV_NAME": each.node.name,
                "KV_ADVERTISE_HOST": each.node.host,
                "KV_SEEDS": ",".join(hosts[1:]),
                "KV_REPLICAS": str(min(replicas, nodes)),
                "KV_PARTITIONS": "64",
                "KV_INSECURE": "true",
                **(disks.SMALL if "disk_full" not in missing else {}),
            }
            await _create(each, run, options, faketime)
            stack.push_async_callback(_remove, "docker", "rm", "--force", "--volumes", each.id)
        async with asyncio.TaskGroup() as tasks:
            for each in all_of_it:
                tasks.create_task(cluster.bring(each))
        yield cluster


async def _remove(*command: str) -> None:
    with suppress(TargetError):
        await tell(*command)
