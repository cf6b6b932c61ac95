"""Generator processes: they begin together, add up, and their failures reach the caller as typed errors.

The store is a toy Redis in this process, so nothing has to be installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvstore import errors
from kvstore_cli.bench_load import Tally
from kvstore_cli.bench_run import run, split
from kvstore_cli.bench_worker import Share

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parent.parent.parent / "bench"


@asynccontextmanager
async def toy_redis(seen: list[bytes]) -> AsyncIterator[str]:
    """Answers GET and SET at once; yields its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readline():
                parts = []
                for _ in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    parts.append((await reader.readexactly(size + 2))[:-2])
                seen.append(parts[0])
                writer.write(b"+OK\r\n" if parts[0] != b"GET" else b"$1\r\nv\r\n")
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield "127.0.0.1:{1}".format(*server.sockets[0].getsockname())


def share(address: str, **changes: object) -> Share:
    settings: dict[str, object] = {
        "connector": "rivals.redis:connect", "addresses": (address,), "first": 0, "connections": 4,
        "depth": 1, "mix": "a", "keys": 250, "zipfian": False, "value_bytes": 10, "options": {},
        "seed": 1, "share": 0, "shares": 1, "load": True, "warmup_s": 0.0,
        "duration_s": 0.2, "rate": 0.0, "count": 0,
    }  # fmt: skip
    return Share(**settings | changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _workers_find_the_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BENCH))


async def test_two_processes_load_every_key_and_send_exactly_the_count() -> None:
    seen: list[bytes] = []
    progress: list[Tally] = []
    async with toy_redis(seen) as address:
        outcome = await run(split(share(address, count=400), 2), lambda _seconds, part: progress.append(part))
    assert seen.count(b"MSET") == 3
    assert seen.count(b"GET") + seen.count(b"SET") == 400
    assert outcome.tally.inside == outcome.latency.total == 400
    assert sum(part.inside for part in progress) == 400
    assert outcome.per_second > 0
    assert (dict(outcome.tally.errors), outcome.turns_lost) == ({}, 0)


async def test_a_store_that_is_not_there_is_one_typed_error(free_port: Callable[[], int]) -> None:
    with pytest.raises(errors.CannotConnect):
        await run(split(share(f"127.0.0.1:{free_port()}"), 1), lambda _seconds, _part: None)
