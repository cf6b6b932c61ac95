"""Cuts, loses and delays what goes from one node to another.

`KernelLinks` has nftables drop packets, as a broken network would. Its table belongs to an `nft` process of
ours (`flags owner`): the kernel removes it when that process ends, so it outlives no exit, not even kill -9.
`ProxyLinks` stands in front of every node as its advertised address, and needs no rights: it holds back bytes
instead of losing packets, and accepts connections it does not serve. It alone can delay.

Rules kept here:
- only packets between the addresses of this run are touched: each node has its own, and links leave from it;
- what is cut is the sum of the faults under way: the end of one does not mend another's.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from jepsen_lite.nemesis import Fault
from jepsen_lite.targets.target import NodeAt, TargetError

LINK_KINDS = ("cut", "flaky", "slow", "disconnect")
_NO_PLUG = {"disconnect": "these nodes share a network: use --target docker"}
_CHUNK = 64 << 10
_RETRANSMIT_S = (0.2, 0.6)
"""What a lost packet costs a TCP connection."""
_SAY_S = 5.0


class Links(Protocol):
    """The network between the nodes; node 0 is the clients."""

    name: str
    missing: Mapping[str, str]

    async def open(self) -> None:
        """Get ready. Raises TargetError."""
        ...

    async def apply(self, faults: Sequence[Fault]) -> None:
        """From now on these faults, and no others."""
        ...

    async def close(self) -> None:
        """Leave nothing behind."""
        ...


def kernel_problem() -> str:
    """Why nftables cannot be used; empty when it can."""
    if os.geteuid() != 0:
        return "cuts in the kernel need root"
    return "" if shutil.which("nft") else "there is no nft: apt-get install nftables"


class KernelLinks:
    """Packets dropped by nftables."""

    name = "nftables"
    missing: Mapping[str, str] = {"slow": "nftables cannot delay: use --links proxy", **_NO_PLUG}

    def __init__(self, table: str, hosts: Mapping[int, str]) -> None:
        self._table = table
        self._hosts = hosts
        self._nft: asyncio.subprocess.Process | None = None

    async def open(self) -> None:
        """Make our table, owned by an nft process of ours. Raises TargetError."""
        self._nft = await asyncio.create_subprocess_exec(
            "nft",
            "-i",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        await self._say(
            f"add table inet {self._table} {{ flags owner; }}",
            f"add chain inet {self._table} cuts {{ type filter hook input priority 0; policy accept; }}",
        )
        await self._confirm(0)

    async def apply(self, faults: Sequence[Fault]) -> None:
        """One transaction: the old rules go as the new ones come."""
        rules = [rule for fault in faults for rule in self._rules(fault)]
        chain = f"inet {self._table} cuts"
        await self._say("; ".join([f"flush chain {chain}", *(f"add rule {chain} {rule}" for rule in rules)]))
        await self._confirm(len(rules))

    def _rules(self, fault: Fault) -> list[str]:
        chance = f"numgen random mod 1000 < {round(fault.amount * 1000)} " if fault.kind == "flaky" else ""
        return [
            f"ip saddr {self._hosts[a]} ip daddr {self._hosts[b]} {chance}counter drop"
            for a, b in fault.pairs
        ]

    async def _say(self, *lines: str) -> None:
        assert self._nft is not None
        assert self._nft.stdin is not None
        for line in lines:
            self._nft.stdin.write(line.encode() + b"\n")
        await self._nft.stdin.drain()

    async def _confirm(self, rules: int) -> None:
        """Until the kernel has it: the interactive nft does not say when."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _SAY_S
        while loop.time() < give_up_at:
            asked = await asyncio.create_subprocess_exec(
                *("nft", "list", "table", "inet", self._table),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            shown, _ = await asked.communicate()
            if asked.returncode == 0 and shown.count(b" drop") == rules and b"hook input" in shown:
                return
            await asyncio.sleep(0.02)
        raise TargetError(f"nft did not take the rules of table {self._table}: use --links proxy")

    async def close(self) -> None:
        """End our nft; its table goes with it."""
        if self._nft is not None and self._nft.returncode is None:
            assert self._nft.stdin is not None
            self._nft.stdin.close()
            try:
                await asyncio.wait_for(self._nft.wait(), 2.0)
            except TimeoutError:
                self._nft.kill()
                await self._nft.wait()


class ProxyLinks:
    """A listener in front of each node, at the address the others were told."""

    name = "proxy"
    missing: Mapping[str, str] = _NO_PLUG

    def __init__(self, nodes: Sequence[NodeAt], client_host: str, dice: random.Random) -> None:
        self._nodes = nodes
        self._client_host = client_host
        self._dice = dice
        self._by_host = {node.host: node.number for node in nodes}
        self._faults: tuple[Fault, ...] = ()
        self._changed = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen in front of every node. Raises TargetError."""
        for node in self._nodes:
            for port in (node.client_port, node.peer_port):
                try:
                    server = await asyncio.start_server(self._serve(node, port), node.advertised, port)
                except OSError as error:
                    raise TargetError(
                        f"cannot listen on {node.advertised}:{port}: {error.strerror}"
                    ) from None
                self._servers.append(server)

    async def apply(self, faults: Sequence[Fault]) -> None:
        """From now on these."""
        self._faults = tuple(faults)
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        """Stop listening, and end every connection."""
        for server in self._servers:
            server.close()
        for writer in list(self._writers):
            writer.close()
        await asyncio.sleep(0)

    def _serve(self, node: NodeAt, port: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            source = self._by_host.get(writer.get_extra_info("peername")[0], 0)
            self._writers.add(writer)
            with suppress(OSError, asyncio.CancelledError):
                await self._join(source, node, port, reader, writer)
            self._writers.discard(writer)
            writer.close()

        return serve

    async def _join(
        self, source: int, node: NodeAt, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._pass((source, node.number))
        await self._pass((node.number, source))
        inner, outer = await asyncio.open_connection(node.host, port, local_addr=(self._client_host, 0))
        self._writers.add(outer)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump((source, node.number), reader, outer))
                both.create_task(self._pump((node.number, source), inner, writer))
        except* OSError:
            pass
        finally:
            self._writers.discard(outer)
            outer.close()

    async def _pump(
        self, pair: tuple[int, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Bytes in one direction, until one side ends; then both do."""
        while data := await reader.read(_CHUNK):
            await self._pass(pair)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _pass(self, pair: tuple[int, int]) -> None:
        """Until something may go this way."""
        while any(fault.kind == "cut" and pair in fault.pairs for fault in self._faults):
            await self._changed.wait()
        for fault in self._faults:
            if pair not in fault.pairs:
                continue
            if fault.kind == "slow":
                await asyncio.sleep(fault.amount)
            elif fault.kind == "flaky" and self._dice.random() < fault.amount:
                await asyncio.sleep(self._dice.uniform(*_RETRANSMIT_S))
