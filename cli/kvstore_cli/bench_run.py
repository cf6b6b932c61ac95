"""Start the generator processes, let them begin together, and put together what they measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from kvstore import errors
from kvstore_cli.bench_histogram import Histogram
from kvstore_cli.bench_load import Tally
from kvstore_cli.bench_worker import Share

LINE_BYTES_MAX = 8 << 20
"""One report of one worker: at most a few thousand histogram buckets."""
END_S = 5.0
"""How long a worker may take from its last message to its end."""

Progress = Callable[[float, Tally], None]
"""Called with seconds since the beginning and what came in since the last call."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all processes measured together."""

    tally: Tally
    window_s: float
    load_s: float
    """How long connecting and loading took."""
    turns_lost: int
    """Requesters whose connection broke; not 0 means that the load was less than asked for."""

    @property
    def per_second(self) -> float:
        """Successful operations a second."""
        return self.tally.inside / self.window_s if self.window_s > 0 else 0.0

    @property
    def latency(self) -> Histogram:
        """Latency of all kinds of operations together."""
        both = Histogram()
        for histogram in self.tally.latency.values():
            both.add(histogram)
        return both


def split(whole: Share, processes: int) -> list[Share]:
    """Cut one share into one for each process; rates, counts and connections add up to the whole."""
    processes = max(1, min(processes, whole.connections))
    parts = []
    first = 0
    for number in range(processes):
        connections = whole.connections // processes + (number < whole.connections % processes)
        parts.append(
            replace(
                whole,
                first=first,
                connections=connections,
                rate=whole.rate * connections / whole.connections,
                count=whole.count // processes + (number < whole.count % processes),
                share=number,
                shares=processes,
            )
        )
        first += connections
    return parts


class _Worker:
    """One generator process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, share: Share) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kvstore_cli.bench_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            # Ctrl-C is for us; we end the workers ourselves.
            start_new_session=True,
        )
        made = cls(process)
        made.write(share.to_json())
        return made

    def write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def read(self) -> dict[str, Any]:
        """The next message; raises what the worker failed with."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise errors.Crashed(reason="a generator process ended early")
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            raise errors.from_wire(message["failed"])
        return message

    async def end(self) -> None:
        """Let it end by itself after its last message."""
        async with asyncio.timeout(END_S):
            await self._process.wait()

    async def kill(self) -> None:
        """End it wherever it is; harmless when it has ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def run(shares: Sequence[Share], on_progress: Progress) -> Outcome:
    """Run one process for each share. Raises the `KVError` of the first that fails."""
    began = perf_counter()
    workers: list[_Worker] = []
    try:
        workers.extend([await _Worker.start(share) for share in shares])
        for worker in workers:
            await worker.read()
        loaded = perf_counter()
        for worker in workers:
            worker.write("")
        total = Tally()
        ends: list[dict[str, Any]] = []

        async def follow(worker: _Worker) -> None:
            while True:
                message = await worker.read()
                part = Tally.from_plain(message["tick"] if "tick" in message else message["done"])
                total.add(part)
                on_progress(perf_counter() - loaded, part)
                if "done" in message:
                    ends.append(message)
                    return

        try:
            async with asyncio.TaskGroup() as followers:
                for worker in workers:
                    followers.create_task(follow(worker))
        except* errors.KVError as failed:
            raise failed.exceptions[0] from None
        with contextlib.suppress(TimeoutError):
            for worker in workers:
                await worker.end()
    finally:
        for worker in workers:
            await worker.kill()
    window_s = max(end["window_s"] for end in ends)
    return Outcome(total, window_s, loaded - began, sum(end["turns_lost"] for end in ends))
