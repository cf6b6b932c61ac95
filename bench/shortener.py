"""Redirects a second of the shortener over three durable nodes, beside creations; and the same over Redis.

    python bench/shortener.py --links 1000000 --seconds 60
    python bench/shortener.py --stores kvstore --kill          # one node is killed in the middle

For each store: N links of about 500 bytes are loaded straight into it (as the app stores them, with
`put_if_absent`; owners' lists are left out), one process of the app starts, and then at the same time
- wrk follows links and checks every answer: with one connection a thread (the default) whether it is the
  target of the very code it asked for; with fewer threads only whether it is one of the targets there are;
- a client makes links over the API at a fixed rate, and follows each at once;
- another follows loaded links at a low rate, asks once more when an attempt fails, and checks every answer.

All of it shares one machine: the nodes, the app, wrk, the disk. Redis runs as most would run it: one
process, `appendonly yes`, `appendfsync everysec`, which may lose a second of acknowledged writes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx

import shortener_served
import stores
from kvstore.apps.shortener.codes import ALPHABET
from kvstore.apps.shortener.link import Link, encode, link_key
from kvstore_cli.local_cluster import load_cluster

HERE = Path(__file__).parent
BASE = "https://example.com/"
PAD = 359
"""Makes a stored link 500 bytes with its key."""
_LOADERS = 128
_HEADERS = {"authorization": f"Bearer {shortener_served.KEY}", "content-type": "application/json"}


def code_of(n: int) -> str:
    """The code of link n; shortener.lua has the same."""
    rest, out = (n * 2654435761 + 12345) % 62**7, ""
    for _ in range(7):
        rest, digit = divmod(rest, 62)
        out = ALPHABET[digit] + out
    return out


def target_of(code: str) -> str:
    """Where a loaded link leads."""
    return f"{BASE}{code}/{'x' * PAD}"


@dataclass(slots=True)
class Seen:
    """What a checking client saw."""

    asked: int = 0
    tried_again: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    slow_ms: float = 0.0


async def load(store: str, links: int) -> float:
    """Put links 0..links-1 into a store; returns seconds. Redis gets them with MSET."""
    now_ms = int(time.time() * 1000)  # noqa: TID251  a benchmark has the real clock

    def pair(n: int) -> tuple[str, bytes]:
        code = code_of(n)
        link = Link(code=code, id=f"load{n:012}", url=target_of(code), owner="bench", created_ms=now_ms)
        return link_key(code), encode(link)

    async with await shortener_served.opened(store) as kv:
        began = perf_counter()
        if store.startswith("redis://"):
            for first in range(0, links, 1_000):
                await kv.put_many(dict(map(pair, range(first, min(first + 1_000, links)))))
        else:
            numbers = iter(range(links))

            async def write() -> None:
                for n in numbers:
                    await kv.put_if_absent(*pair(n))

            async with asyncio.TaskGroup() as tasks:
                for _ in range(_LOADERS):
                    tasks.create_task(write())
        return perf_counter() - began


class Http:
    """A client that costs little: http.client over kept connections, a thread each."""

    def __init__(self, base: str) -> None:
        self._host = base.removeprefix("http://")
        self._mine = threading.local()
        self._threads = ThreadPoolExecutor(8)

    async def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str, bytes]:
        """Status (0: no answer), location, body."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, method, path, body)

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, str, bytes]:
        line = getattr(self._mine, "line", None)
        if line is None:
            line = self._mine.line = http.client.HTTPConnection(self._host, timeout=10)
        try:
            line.request(method, path, body, _HEADERS if body else {})
            answer = line.getresponse()
            return answer.status, answer.getheader("location", ""), answer.read()
        except (OSError, http.client.HTTPException):
            line.close()
            self._mine.line = None
            return 0, "", b""


async def follow(http: Http, seen: Seen, code: str, target: str) -> None:
    """One redirect, checked; a failed attempt is made once more, as a visitor would."""
    seen.asked += 1
    for attempt in range(2):
        began = perf_counter()
        status, where, _ = await http.ask("GET", f"/{code}")
        seen.slow_ms = max(seen.slow_ms, (perf_counter() - began) * 1000)
        if status == 302:
            if where != target:
                seen.wrong.append(code)
            return
        seen.tried_again += attempt == 0
    seen.failed += 1


async def create(http: Http, seen: Seen, n: int) -> None:
    """Make one link, once more if that fails, and follow it."""
    target = f"{BASE}made/{n}/{'x' * PAD}"
    for attempt in range(2):
        status, _, body = await http.ask("POST", "/api/links", json.dumps({"url": target}).encode())
        if status == 201:
            await follow(http, seen, json.loads(body)["code"], target)
            return
        seen.tried_again += attempt == 0
    seen.failed += 1


async def paced(rate: float, seconds: float, act: Any) -> None:
    """Start `act(n)` at a fixed rate, whatever becomes of the ones before."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for n in range(int(rate * seconds)):
            await asyncio.sleep(max(began + n / rate - loop.time(), 0))
            tasks.create_task(act(n))


async def beside(base: str, given: argparse.Namespace) -> tuple[Seen, Seen]:
    """The two clients that check, while wrk runs."""
    made, checked = Seen(), Seen()
    http = Http(base)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(paced(given.creations, given.seconds, lambda n: create(http, made, n)))

        async def check(n: int) -> None:
            code = code_of(n * 104_729 % given.links)
            await follow(http, checked, code, target_of(code))

        tasks.create_task(paced(given.checks, given.seconds, check))
    return made, checked


@contextlib.contextmanager
def redis_everysec(folder: Path) -> Iterator[str]:
    """One Redis with its append-only file, synced every second."""
    (port,) = stores.free_ports(1)
    log = folder / "redis.log"
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
    with stores.processes([command], log):
        stores.wait_until_true(["redis-cli", "-p", str(port), "ping"], log, "PONG")
        yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def kvstore_nodes(folder: Path) -> Iterator[str]:
    """Three nodes as `kv up` starts them: each write is on two disks before it is acknowledged."""
    data = folder / "kv-data"
    if not data.exists():
        with stores.ours(folder) as target:
            yield f"kv://{','.join(target.addresses)}"
        return
    _kv("up", "--dir", str(data), "--detach")
    try:
        yield load_cluster(data).url
    finally:
        _kv("down", "--dir", str(data))


def _kv(*arguments: str) -> None:
    quiet = subprocess.DEVNULL
    subprocess.run(stores.kv(*arguments), check=True, stdin=quiet, stdout=quiet)


@contextlib.contextmanager
def place(name: str, given: argparse.Namespace) -> Iterator[Path]:
    """Where a store keeps its files: a folder for this run, or one that stays for the next."""
    if given.keep is None:
        with tempfile.TemporaryDirectory() as fresh:
            yield Path(fresh)
    else:
        folder = Path(given.keep) / name
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def loaded(folder: Path, store: str, links: int) -> float:
    """Load the links, unless an earlier run did; how many seconds that took."""
    mark = folder / f"loaded-{links}"
    if not mark.exists():
        mark.write_text(str(asyncio.run(load(store, links))), encoding="ascii")
    return float(mark.read_text(encoding="ascii"))


STORES = {"kvstore": kvstore_nodes, "redis": redis_everysec}


@contextlib.contextmanager
def served(store: str, folder: Path, given: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """One process of the app: its address and its process id."""
    (port,) = stores.free_ports(1)
    log = folder / "app.log"
    command = [sys.executable, str(HERE / "shortener_served.py"), "--store", store, "--port", str(port)]
    with stores.processes([[*command, "--server", given.server]], log) as (process,):
        stores.wait_until_true(["curl", "-sf", f"http://127.0.0.1:{port}/readyz"], log, "true")
        yield f"http://127.0.0.1:{port}", process.pid


def wrk(base: str, given: argparse.Namespace, seconds: float) -> subprocess.Popen[str]:
    """Start wrk."""
    each = str(given.connections)
    exact = "form" if given.threads and given.threads < given.connections else "exact"
    script = [str(HERE / "shortener.lua"), base, "--", str(given.links), given.spread, str(PAD), exact]
    return subprocess.Popen(
        [
            "wrk",
            "-t",
            str(given.threads or given.connections),
            "-c",
            each,
            "-d",
            f"{seconds:g}s",
            "--timeout",
            "10s",
            "-s",
            *script,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


async def kill_one(folder: Path, after_s: float) -> None:
    """SIGKILL to a node in the middle of the run."""
    await asyncio.sleep(after_s)
    cluster = load_cluster(folder / "kv-data")
    mark = cluster.process(cluster.members[0])
    assert mark is not None
    os.kill(mark.pid, signal.SIGKILL)
    print(f"killed node {cluster.members[0].name}", file=sys.stderr)


async def drive(base: str, folder: Path, given: argparse.Namespace, *, kill: bool) -> dict[str, Any]:
    """The load and its companions; what they saw."""
    running = wrk(base, given, given.seconds)
    async with asyncio.TaskGroup() as tasks:
        if kill:
            tasks.create_task(kill_one(folder, given.seconds / 2))
        companions = tasks.create_task(beside(base, given))
        told, _ = await asyncio.to_thread(running.communicate)
    found: dict[str, Any] = json.loads(told.partition("RESULT ")[2] or "{}")
    made, checked = companions.result()
    for name, seen in (("created", made), ("checked", checked)):
        found |= {
            name: seen.asked, f"{name}_again": seen.tried_again, f"{name}_failed": seen.failed,
            f"{name}_wrong": len(seen.wrong), f"{name}_max_ms": round(seen.slow_ms, 1),
        }  # fmt: skip
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time of some processes until now."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            after = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(after[11]) + int(after[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def nodes_of(store: str, folder: Path) -> list[int]:
    """Process ids of a store."""
    if store.startswith("redis://"):
        asked = ["redis-cli", "-p", store.rpartition(":")[2], "info", "server"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return [int(told.partition("process_id:")[2].split()[0])]
    cluster = load_cluster(folder / "kv-data")
    return [mark.pid for member in cluster.members if (mark := cluster.process(member)) is not None]


def metrics_of(base: str) -> dict[str, float]:
    """The app's own counts of its cache and its clicks."""
    counts: Counter[str] = Counter()
    for line in httpx.get(f"{base}/metrics").text.splitlines():
        if line.startswith(("kv_shortener_c", "kv_shortener_journal")) and "_created" not in line:
            name, _, value = line.partition(" ")
            counts[name.removeprefix("kv_shortener_")] = int(float(value))
    return dict(counts)


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One store, from nothing."""
    with place(name, given) as folder, STORES[name](folder) as store:
        loaded_s = loaded(folder, store, given.links)
        print(f"{name}: {given.links:,} links in {loaded_s:.0f} s", file=sys.stderr)
        with served(store, folder, given) as (base, pid):
            wrk(base, given, min(given.seconds, 5)).communicate()  # warm
            nodes = nodes_of(store, folder)
            before = cpu_s([pid]), cpu_s(nodes)
            found = asyncio.run(drive(base, folder, given, kill=given.kill and name == "kvstore"))
            after = cpu_s([pid]), cpu_s(nodes)
            per = 1e6 / found["requests"]
            found["app_us"], found["store_us"] = (
                round((b - a) * per) for a, b in zip(before, after, strict=True)
            )
            found |= metrics_of(base)
        found["per_second"] = round(found["requests"] / found["seconds"])
        load_now = " ".join(f"{one:.1f}" for one in os.getloadavg())
        return {"store": name, "server": given.server, "loaded_s": round(loaded_s), "load": load_now, **found}


def main() -> None:
    """Print a line of JSON for each store, and the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--threads", type=int, default=0, help="of wrk; fewer than connections: it checks forms only"
    )
    parser.add_argument("--creations", type=float, default=40.0, help="a second")
    parser.add_argument("--checks", type=float, default=20.0, help="checked redirects a second, beside wrk")
    parser.add_argument("--spread", choices=("uniform", "zipf"), default="zipf")
    parser.add_argument("--server", choices=("uvicorn", "granian"), default="uvicorn")
    parser.add_argument("--stores", nargs="+", choices=sorted(STORES), default=["kvstore", "redis"])
    parser.add_argument("--kill", action="store_true", help="SIGKILL to one node in the middle")
    parser.add_argument("--keep", metavar="DIR", help="load once, and keep the stores there for further runs")
    given = parser.parse_args()
    wanted = ["wrk", "curl", *(["redis-server", "redis-cli"] if "redis" in given.stores else [])]
    if absent := stores.missing(*wanted):
        sys.exit(f"not installed: {', '.join(absent)}")
    rates: dict[str, int] = {}
    for name in given.stores:
        found = measured(name, given)
        rates[name] = found["per_second"]
        print(json.dumps(found), flush=True)
    if len(rates) > 1:
        print(f"ratio kvstore / redis: {rates['kvstore'] / rates['redis']:.2f}")


if __name__ == "__main__":
    main()
