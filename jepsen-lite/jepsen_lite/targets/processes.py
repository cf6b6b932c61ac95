"""Real node processes, each on a loopback address of its own: 127.0.X.Y, with X drawn anew for each run.

Rules kept here:
- only processes that were started here are signalled, and all of them are ended on the way out; with
  `setpriv` they even end when we are killed;
- a node that ends without being told to is a complaint, and so is a traceback in its log;
- nothing acknowledged is destroyed: a torn tail is garbage *behind* the last whole record.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jepsen_lite.nemesis import CLIENTS, Fault
from jepsen_lite.targets import clocks, disks, founding
from jepsen_lite.targets.cut import LINK_KINDS, KernelLinks, Links, ProxyLinks, kernel_problem
from jepsen_lite.targets.target import BUGS, CLIENT_PORT, PEER_PORT, NodeAt, TargetError

_CLIENT_HOST, _FIRST_HOST, _FIRST_PROXY = 200, 10, 100
_STOP_S = 10.0
PROGRAM = (sys.executable, "-m", "kvstore_cli.main")
"""What a node is. Tests put a program with a broken rule in its place."""


@dataclass(slots=True)
class Child:
    """One node, and the process that is it at the moment."""

    node: NodeAt
    folder: Path
    prefix: Sequence[str] = ()
    """What its command is run by."""
    process: subprocess.Popen[bytes] | None = None
    is_down: bool = False
    """Whether we ended it."""
    downs: int = 0
    """Faults under way that want it down: the end of one does not start it while another lasts."""
    is_paused: bool = False
    complaints: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """Its output, all starts of it."""
        return self.folder.parent / f"{self.node.name}.log"


@dataclass(frozen=True, slots=True)
class Place:
    """What lies between nodes, and where clients stand."""

    links: Links
    client_host: str
    notes: tuple[str, ...] = ()


class Processes:
    """See `Cluster`. Made by `opened`."""

    def __init__(
        self,
        children: Sequence[Child],
        place: Place,
        *,
        faketime: str,
        missing: Mapping[str, str],
    ) -> None:
        self._children = {child.node.number: child for child in children}
        self._place = place
        self._links = place.links
        self._link_faults: list[Fault] = []
        self._faketime = faketime
        self._has_small_disks = "disk_full" not in missing
        self.client_host = place.client_host
        self.missing = missing
        self.nodes = tuple(child.node for child in children)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report says of the place."""
        return (*self._place.notes, f"links are cut by {self._links.name}")

    def log(self, node: NodeAt) -> Path:
        """The node's output."""
        return self._children[node.number].log

    def start(self, child: Child) -> None:
        """Start a node. From the main thread: `setpriv` ties its life to the thread that did."""
        node = child.node
        line = [
            *(["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []),
            *child.prefix,
            *(*PROGRAM, "server"),
            *("--name", node.name, "--data-dir", str(child.folder)),
            *("--listen-host", node.host, "--advertise-host", node.advertised),
            *("--client-port", str(node.client_port), "--peer-port", str(node.peer_port)),
            *("--log-format", "json", "--insecure"),
        ]
        env = {name: value for name, value in os.environ.items() if not name.startswith("KV_")}
        env |= disks.SMALL if self._has_small_disks else {}
        if self._faketime:
            env |= clocks.environment(self._faketime, child.folder.parent / f"{node.name}.clock")
        with child.log.open("ab") as out:
            child.process = subprocess.Popen(  # noqa: S603  our own interpreter and command
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )
        child.is_down = child.is_paused = False

    async def do(self, fault: Fault) -> None:
        """Begin a fault."""
        if fault.kind in LINK_KINDS:
            self._link_faults.append(fault)
            await self._links.apply(self._link_faults)
            return
        for child in self._of(fault):
            match fault.kind:
                case "kill" | "torn_tail" | "restart":
                    child.downs += 1
                    await self._end(child, signal.SIGTERM if fault.kind == "restart" else signal.SIGKILL)
                    if fault.kind == "torn_tail":
                        disks.tear_tail(child.folder, random.Random(f"{fault.at} {child.node.number}"))
                case "pause":
                    self._signal(child, signal.SIGSTOP)
                    child.is_paused = True
                case "clock" | "drift":
                    clocks.turn(self._clock(child), fault)
                case "disk_full":
                    await asyncio.to_thread(disks.fill, child.folder)
                case _:
                    raise TargetError(f"processes know no fault {fault.kind}")

    async def undo(self, fault: Fault) -> None:
        """End it."""
        if fault.kind in LINK_KINDS:
            self._link_faults.remove(fault)
            await self._links.apply(self._link_faults)
            return
        for child in self._of(fault):
            match fault.kind:
                case "pause":
                    self._resume(child)
                case "clock" | "drift":
                    clocks.turn(self._clock(child), None)
                case "disk_full":
                    disks.free(child.folder)
                case _:
                    child.downs -= 1
                    if not child.downs:
                        self.start(child)

    async def heal(self) -> None:
        """End all faults; start what does not run."""
        self._link_faults.clear()
        await self._links.apply(())
        for child in self._children.values():
            self._resume(child)
            child.downs = 0
            disks.free(child.folder)
            if self._faketime:
                clocks.turn(self._clock(child), None)
            self._look_at(child)
            if child.process is None or child.process.poll() is not None:
                self.start(child)

    def _of(self, fault: Fault) -> list[Child]:
        return [self._children[number] for number in fault.nodes]

    @staticmethod
    def _clock(child: Child) -> Path:
        return child.folder.parent / f"{child.node.name}.clock"

    def _look_at(self, child: Child) -> None:
        """Note when a node has ended by itself."""
        if child.process is not None and not child.is_down and child.process.poll() is not None:
            child.complaints.append(f"{child.node.name} ended by itself, status {child.process.returncode}")
            child.is_down = True

    def _signal(self, child: Child, number: signal.Signals) -> None:
        self._look_at(child)
        if child.process is not None and child.process.poll() is None:
            child.process.send_signal(number)

    def _resume(self, child: Child) -> None:
        if child.is_paused:
            self._signal(child, signal.SIGCONT)
            child.is_paused = False

    async def _end(self, child: Child, number: signal.Signals) -> None:
        self._resume(child)
        self._signal(child, number)
        child.is_down = True
        if child.process is not None:
            try:
                await asyncio.to_thread(child.process.wait, _STOP_S)
            except subprocess.TimeoutExpired:
                child.complaints.append(
                    f"{child.node.name} did not end within {_STOP_S:g} s of {number.name}"
                )
                child.process.kill()
                await asyncio.to_thread(child.process.wait)

    def complaints(self) -> list[str]:
        """Nodes that ended by themselves, and bugs that their logs tell of."""
        found: list[str] = []
        for child in self._children.values():
            self._look_at(child)
            found += child.complaints
            if child.log.exists():
                text = child.log.read_text(encoding="utf-8", errors="replace")
                found += [f"{child.node.name}.log says {bug!r}" for bug in BUGS if bug in text]
        return found

    async def stop(self) -> None:
        """End all our processes: asked first, and then by force."""
        for child in self._children.values():
            self._resume(child)
            self._signal(child, signal.SIGTERM)
            child.is_down = True
        for child in self._children.values():
            await self._end(child, signal.SIGTERM)


def claim_net(dice: random.Random) -> tuple[str, socket.socket]:
    """A network of loopback addresses for one run, and the socket that keeps others off. Raises TargetError.

    Asking whether a port is free would not do: a killed node's is, until it is started again.
    """
    for _ in range(50):
        net = f"127.0.{dice.randrange(1, 255)}"
        claim = socket.socket()
        try:
            claim.bind((f"{net}.{_CLIENT_HOST}", CLIENT_PORT))
            claim.listen(1)
        except OSError:
            claim.close()
        else:
            return net, claim
    raise TargetError("no free loopback addresses: this target needs all of 127.0.0.0/8, as Linux has it")


def _addresses(
    nodes: int, dice: random.Random, *, proxied: bool
) -> tuple[str, tuple[NodeAt, ...], socket.socket]:
    """Addresses for clients and for each node, and the claim on them. Raises TargetError."""
    for _ in range(20):
        net, claim = claim_net(dice)
        found = tuple(
            NodeAt(
                number,
                f"n{number}",
                f"{net}.{_FIRST_HOST + number}",
                CLIENT_PORT,
                PEER_PORT,
                f"{net}.{(_FIRST_PROXY if proxied else _FIRST_HOST) + number}",
            )
            for number in range(1, nodes + 1)
        )
        if all(_is_free(node.host, port) for node in found for port in (CLIENT_PORT, PEER_PORT)):
            return f"{net}.{_CLIENT_HOST}", found, claim
        claim.close()
    raise TargetError("no free loopback addresses: this target needs all of 127.0.0.0/8, as Linux has it")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _links_for(wish: str, kinds: Collection[str]) -> str:
    """Choose between "kernel" and "proxy". Raises TargetError."""
    problem = kernel_problem()
    if wish == "kernel" and problem:
        raise TargetError(f"{problem}; --links proxy needs no rights")
    if wish != "auto":
        return wish
    return "proxy" if problem or "slow" in kinds else "kernel"


def _missing(kinds: Collection[str], links: Mapping[str, str]) -> dict[str, str]:
    """What cannot be done here, of what is asked for."""
    missing = dict(links)
    if not clocks.library():
        missing |= dict.fromkeys(("clock", "drift"), f"there is no libfaketime: {clocks.REMEDY}")
    if "disk_full" not in kinds:
        missing["disk_full"] = "not prepared"
    elif problem := disks.problem():
        missing["disk_full"] = problem
    return missing


@asynccontextmanager
async def opened(
    directory: Path, *, nodes: int, replicas: int, kinds: Collection[str], links: str
) -> AsyncIterator[Processes]:
    """Found a cluster in a directory and start it; end all of it at the end. Raises TargetError."""
    dice = random.Random(random.SystemRandom().getrandbits(64))
    proxied = _links_for(links, kinds) == "proxy"
    client_host, where, claim = _addresses(nodes, dice, proxied=proxied)
    net: Links
    if proxied:
        net = ProxyLinks(where, client_host, dice)
    else:
        table = f"jepsen_lite_{os.getpid()}_{client_host.split('.')[2]}"
        net = KernelLinks(table, {CLIENTS: client_host, **{node.number: node.host for node in where}})
    children = [Child(node, directory / node.name) for node in where]
    with claim:
        async with running(
            directory, children, Place(net, client_host), replicas=replicas, kinds=kinds
        ) as cluster:
            yield cluster


@asynccontextmanager
async def running(
    directory: Path, children: Sequence[Child], place: Place, *, replicas: int, kinds: Collection[str]
) -> AsyncIterator[Processes]:
    """Found a cluster of these nodes and start it; end all of it at the end. Raises TargetError."""
    missing = _missing(kinds, place.links.missing)
    faketime = clocks.library() if {"clock", "drift"} & set(kinds) else ""
    async with AsyncExitStack() as stack:
        for child in children:
            child.folder.mkdir(parents=True, exist_ok=True)
            if "disk_full" not in missing:
                await asyncio.to_thread(disks.mount, child.folder)
                stack.callback(disks.unmount, child.folder)
        founding.found(directory, [child.node for child in children], replicas=replicas)
        stack.push_async_callback(place.links.close)
        await place.links.open()
        cluster = Processes(children, place, faketime=faketime, missing=missing)
        stack.push_async_callback(cluster.stop)
        for child in children:
            if faketime:
                clocks.turn(directory / f"{child.node.name}.clock", None)
            cluster.start(child)
        yield cluster
