"""`kv` run in this process, against a fake cluster in memory and against real nodes.

The data tests run on both, so the fake cannot drift from what it stands for.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any, Protocol, Self

import pytest

from kvstore import errors
from kvstore.client.receipt import Entry, Location, Receipt
from kvstore.core import admission, hashing
from kvstore.core.topology import NodeInfo, Topology
from kvstore.types import NodeId, Partition
from kvstore_cli.main import run
from kvstore_cli.session import Session
from kvstore_cli.settings import Settings

KV = [sys.executable, "-m", "kvstore_cli.main"]
_CALLS = ("put", "get", "delete", "exists", "ttl", "touch", "persist", "get_many", "put_many", "status")


def _raw(key: str | bytes) -> bytes:
    raw = key.encode() if isinstance(key, str) else key
    admission.check_key(raw)
    return raw


class FakeCluster:
    """Speaks the client's verbs over a dict. `failure` is raised by the next call, whatever it is."""

    def __init__(self) -> None:
        self.held: dict[bytes, tuple[bytes, int, float | None]] = {}
        self.levels: list[str | None] = []
        """The consistency of each call."""
        self.failure: BaseException | None = None
        self.refused_keys: set[bytes] = set()
        self.superseded = False
        self.turns = 1
        """Puts take up to so many turns of the loop, so that those that run together end in any order."""
        self.connections = 0
        self.settings = Settings()
        self.down: set[int] = set()
        self._version = 1 << 40
        nodes = tuple(
            NodeInfo(NodeId(n), f"{n:032x}", f"n{n}", "127.0.0.1", 7400 + n, 7500 + n) for n in (1, 2, 3)
        )
        self._topology = Topology.create("f" * 32, nodes)

    async def connect(self, settings: Settings) -> FakeCluster:
        """What `Session` is handed instead of the network."""
        self.connections += 1
        self.settings = settings
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        return None

    def _call(self, consistency: str | None) -> None:
        self.levels.append(consistency)
        if self.failure is not None:
            raise self.failure

    def _live(self, key: str | bytes) -> tuple[bytes, int, float | None] | None:
        found = self.held.get(_raw(key))
        return found if found is not None and (found[2] is None or found[2] > time()) else None

    def _receipt(self, *, existed: bool = False) -> Receipt:
        self._version += 4096
        return Receipt(self._version, 1, (1, 2), superseded=self.superseded, existed=existed)

    async def put(
        self,
        key: str | bytes,
        value: bytes,
        *,
        ttl: float | None = None,
        expires_at: float | None = None,
        consistency: str | None = None,
        w: int | None = None,
        durability: str | None = None,
    ) -> Receipt:
        self._call(consistency)
        assert w is None or 1 <= w <= 3
        assert durability in (None, "always")
        for _ in range(zlib.crc32(value) % self.turns):
            await asyncio.sleep(0)
        if _raw(key) in self.refused_keys:
            raise errors.DiskFull(free=1, reserve=2)
        existed = self._live(key) is not None
        receipt = self._receipt(existed=existed)
        ends = time() + ttl if ttl is not None else expires_at
        self.held[_raw(key)] = (value, receipt.version, ends)
        return receipt

    async def get(
        self, key: str | bytes, *, consistency: str | None = None, r: int | None = None
    ) -> Entry | None:
        self._call(consistency)
        assert r is None or 1 <= r <= 3
        found = self._live(key)
        if found is None:
            return None
        return Entry(key, found[0], found[1], found[2], Receipt(found[1], 1, (1, 2)))

    async def delete(self, key: str | bytes, *, consistency: str | None = None) -> Receipt:
        self._call(consistency)
        existed = self._live(key) is not None
        self.held.pop(_raw(key), None)
        return self._receipt(existed=existed)

    async def exists(self, key: str | bytes, *, consistency: str | None = None) -> bool:
        self._call(consistency)
        return self._live(key) is not None

    async def ttl(self, key: str | bytes) -> float | None:
        self._call(None)
        found = self._live(key)
        if found is None:
            return None
        return math.inf if found[2] is None else found[2] - time()

    async def touch(self, key: str | bytes, ttl: float, *, consistency: str | None = None) -> Receipt | None:
        self._call(consistency)
        found = self._live(key)
        if found is None:
            return None
        receipt = self._receipt(existed=True)
        self.held[_raw(key)] = (found[0], receipt.version, time() + ttl)
        return receipt

    async def persist(self, key: str | bytes, *, consistency: str | None = None) -> Receipt | None:
        self._call(consistency)
        found = self._live(key)
        if found is None:
            return None
        receipt = self._receipt(existed=True)
        self.held[_raw(key)] = (found[0], receipt.version, None)
        return receipt

    async def get_many(
        self, keys: Iterable[str | bytes], *, consistency: str | None = None
    ) -> dict[str | bytes, Entry | None]:
        return {key: await self.get(key, consistency=consistency) for key in keys}

    async def put_many(
        self,
        items: Mapping[str | bytes, bytes],
        *,
        ttl: float | None = None,
        expires_at: float | None = None,
        consistency: str | None = None,
    ) -> dict[str | bytes, Receipt]:
        self._call(consistency)
        receipts: dict[str | bytes, Receipt] = {}
        failures: dict[str | bytes, errors.KVError] = {}
        for key, value in items.items():
            try:
                receipts[key] = await self.put(key, value, ttl=ttl, expires_at=expires_at)
            except errors.KVError as error:
                failures[key] = error
        if failures:
            failed = errors.BatchFailed(failed=len(failures), total=len(items), first="x")
            failed.receipts, failed.failures = receipts, failures
            raise failed
        return receipts

    async def scan(
        self,
        prefix: str | bytes = b"",
        *,
        limit: int | None = None,
        keys_only: bool = False,
        consistency: str | None = None,
    ) -> AsyncIterator[Entry]:
        self._call(consistency)
        start = prefix.encode() if isinstance(prefix, str) else prefix
        order = sorted((key for key in self.held if key.startswith(start)), key=zlib.crc32)
        for key in order[:limit]:
            found = self._live(key)
            if found is not None:
                try:
                    shown: str | bytes = key.decode()
                except UnicodeDecodeError:
                    shown = key
                receipt = Receipt(found[1], 1, (1, 2))
                yield Entry(shown, None if keys_only else found[0], found[1], found[2], receipt)

    async def locate(self, key: str | bytes) -> Location:
        raw = _raw(key)
        partition = self._topology.partition(raw)
        owners = tuple(self._topology.node(n) for n in self._topology.preference(raw))
        return Location(hashing.slot_of(raw), Partition(partition), owners)

    async def topology(self) -> Topology:
        return self._topology

    async def status(self, node: str, *, timeout: float | None = None) -> dict[str, Any]:
        number = int(node[-1])
        assert timeout is not None
        if number in self.down:
            raise errors.CannotConnect(address=node, reason="connection refused")
        peers = {f"n{n}": {"up": n not in self.down, "reason": ""} for n in (1, 2, 3) if n != number}
        return {
            "node": number, "name": f"n{number}", "server": "kvstore/0.1.0", "state": "ready", "epoch": 1,
            "uptime_s": 75.5, "clock_off_ms": None, "connections": 1, "peers": peers,
            "storage": {"keys": 7, "wal_bytes": 4096, "base_bytes": 4096, "memtable_bytes": 10, "full": False,
                        "conflicts": 0},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What a run of `kv` left."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.out.decode()


class _Stream(io.TextIOWrapper):
    def __init__(self, data: bytes = b"", *, tty: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", newline="")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    def everything(self) -> bytes:
        self.flush()
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue()


class RunKv(Protocol):
    """`kv("get", "k", stdin=b"")`."""

    def __call__(self, *arguments: str, stdin: bytes | None = None, tty: bool = False) -> Result: ...


@dataclass(slots=True)
class InProcess:
    """Runs `kv` here, with its streams replaced."""

    session: Callable[[], Session]
    monkeypatch: pytest.MonkeyPatch
    results: list[Result] = field(default_factory=list[Result])

    def __call__(self, *arguments: str, stdin: bytes | None = None, tty: bool = False) -> Result:
        """`stdin` None is a terminal that nobody types at. `tty`: a person watches the output."""
        into, out, err = _Stream(stdin or b"", tty=stdin is None), _Stream(tty=tty), _Stream(tty=tty)
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", into)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            status = run(list(arguments), self.session())
        result = Result(status, out.everything(), err.everything().decode())
        self.results.append(result)
        return result


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may have KV_URL set, or a cluster in ./kv-data."""
    for name in [name for name in os.environ if name.startswith("KV_") and name != "KV_TEST_LOOP"]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cluster() -> FakeCluster:
    """The fake cluster of a test."""
    return FakeCluster()


@pytest.fixture
def kv(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> RunKv:
    """`kv` against the fake cluster."""
    return InProcess(lambda: Session(connect=cluster.connect), monkeypatch)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def real_url(tmp_path_factory: pytest.TempPathFactory, _port_source: Iterator[int]) -> Iterator[str]:
    """A running cluster of three real processes, shared by the tests that only read and write."""
    folder = tmp_path_factory.mktemp("real")
    base = _free_base(_port_source)
    up = [*KV, "up", "--detach", "--dir", str(folder / "data"), "--base-port", str(base)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KV_")}
    subprocess.run(up, check=True, cwd=folder, env=environment, capture_output=True, timeout=60)
    try:
        yield "kv://" + ",".join(f"127.0.0.1:{base + n}" for n in range(3))
    finally:
        down = [*KV, "down", "--dir", str(folder / "data")]
        subprocess.run(down, check=True, cwd=folder, env=environment, capture_output=True, timeout=60)


def _free_base(ports: Iterator[int]) -> int:
    import socket

    def is_free(port: int) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
        return True

    return next(base for base in ports if all(is_free(base + n + up) for n in range(3) for up in (0, 100)))


@pytest.fixture
def real_kv(real_url: str, monkeypatch: pytest.MonkeyPatch) -> RunKv:
    """`kv` against real nodes."""
    monkeypatch.setenv("KV_URL", real_url)
    return InProcess(Session, monkeypatch)


@pytest.fixture(
    params=["fake", pytest.param("real", marks=[pytest.mark.e2e, pytest.mark.xdist_group("real")])]
)
def both(request: pytest.FixtureRequest) -> RunKv:
    """`kv` against the fake, and again against real nodes: what a test promises holds for both."""
    if request.param == "fake":
        made: RunKv = request.getfixturevalue("kv")
        return made
    real: RunKv = request.getfixturevalue("real_kv")
    return real
