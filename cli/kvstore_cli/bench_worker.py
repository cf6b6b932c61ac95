"""One generator process of `kv bench`: `python -m kvstore_cli.bench_worker`, driven through its pipes.

    parent  its share of the work (JSON)         worker  {"ready": ...} once connected and loaded
    parent  an empty line: begin                 worker  {"tick": tally} twice a second
                                                 worker  {"done": tally, "window_s": ..., "turns_lost": ...}
    at any time                                  worker  {"failed": [name, message, fields]}

Each line is one JSON object. Python runs on one processor a process, so load that one process
cannot make takes several; they begin together, when the parent says so.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvstore import errors
from kvstore.io.clock import SystemClock
from kvstore.io.loop import new_event_loop
from kvstore_cli.bench_load import Channel, Requests, Run, as_error
from kvstore_cli.bench_workload import MIXES, Workload, key_name

TICK_S = 0.5
LOAD_BATCH_KEYS = 100
"""Small enough for etcd's 128 operations a transaction, which bench/compare.py loads the same way."""
GRACE_S = 5.0
"""How long the last answers may take after the end."""

Connect = Callable[[str, str], Awaitable[Channel]]
"""Opens a channel to `host:port`, showing a token (or an empty one)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one generator process has to do."""

    connector: str
    """`module:function`, a `Connect`."""
    addresses: tuple[str, ...]
    """`host:port` of each node; connection i goes to address (first + i) modulo their number."""
    first: int
    connections: int
    depth: int
    mix: str
    keys: int
    zipfian: bool
    value_bytes: int
    options: dict[str, Any]
    seed: int
    share: int
    shares: int
    load: bool
    warmup_s: float
    duration_s: float
    rate: float
    count: int
    token: str = ""

    def to_json(self) -> str:
        """One line for the worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Share:
        """Take `to_json`'s line back."""
        plain = json.loads(line)
        return cls(**plain | {"addresses": tuple(plain["addresses"])})


def operation_prefix() -> bytes:
    """The first 12 bytes of this process's operation ids: when it began, and its lot."""
    return SystemClock().wall_ms().to_bytes(8, "big") + random.SystemRandom().randbytes(4)


async def connect(share: Share) -> list[Channel]:
    """Open this process's connections, spread over the nodes."""
    module, _, function = share.connector.partition(":")
    opener: Connect = getattr(importlib.import_module(module), function)
    nodes = len(share.addresses)
    return [
        await opener(share.addresses[(share.first + number) % nodes], share.token)
        for number in range(share.connections)
    ]


async def ask(channel: Channel, method: str, params: Sequence[Any]) -> Any:
    """Call and wait, for the parts that are not measured."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def settle(error: Any, result: Any) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(as_error(error))

    channel.send(method, params, settle)
    return await answer


async def load(channels: Sequence[Channel], share: Share, value: bytes) -> int:
    """Write this process's part of the keys 0..keys-1, so that reads find them; returns how many."""
    starts = iter(range(share.share * LOAD_BATCH_KEYS, share.keys, share.shares * LOAD_BATCH_KEYS))
    prefix = operation_prefix()
    options = {name: value for name, value in share.options.items() if name != "r"}
    written = 0

    async def writer(channel: Channel) -> None:
        nonlocal written
        for start in starts:
            pairs = [[key_name(n), value] for n in range(start, min(start + LOAD_BATCH_KEYS, share.keys))]
            operation = prefix + start.to_bytes(4, "big")
            for item in await ask(channel, "put_many", [pairs, operation, options]):
                if isinstance(item, dict):
                    raise errors.from_wire(item.get("error"))
            written += len(pairs)

    async with asyncio.TaskGroup() as writers:
        # More writers than this only queue at the nodes, and every batch must meet its deadline.
        for channel in channels[: max(1, 16 // share.shares)]:
            writers.create_task(writer(channel))
    return written


def say(**what: Any) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def work(share: Share) -> None:
    """Connect, load, wait for the word, run, report."""
    channels = await connect(share)
    value = random.Random(share.seed).randbytes(share.value_bytes)
    loaded = await load(channels, share, value) if share.load else 0
    say(ready=True, loaded=loaded)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    workload = Workload(
        MIXES[share.mix],
        keys=share.keys,
        zipfian=share.zipfian,
        seed=share.seed,
        share=share.share,
        shares=share.shares,
    )
    requests = Requests(workload, value=value, options=share.options, operation_prefix=operation_prefix())
    run = Run(
        channels,
        requests.draw,
        depth=share.depth,
        warmup_s=share.warmup_s,
        duration_s=share.duration_s,
        rate=share.rate,
        count=share.count,
    )
    # A pause of ours would be counted as the server's. Nothing here makes cycles.
    gc.disable()
    async with asyncio.TaskGroup() as parts:
        ticking = parts.create_task(_tick(run))
        await run.drive(grace_s=GRACE_S)
        ticking.cancel()
    say(done=run.take().to_plain(), window_s=run.window_s, turns_lost=run.turns_lost)
    for channel in channels:
        channel.close()


async def _tick(run: Run) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        say(tick=run.take().to_plain())


def main() -> None:
    """Do what the first line of standard input says."""
    share = Share.from_json(sys.stdin.readline())
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(work(share))
    except (errors.KVError, OSError, ExceptionGroup) as failed:
        error = _first(failed)
        if isinstance(error, OSError):
            error = errors.CannotConnect(address=", ".join(share.addresses), reason=str(error))
        if not isinstance(error, errors.KVError):
            raise
        say(failed=error.to_wire())
        sys.exit(1)


def _first(error: Exception) -> Exception:
    """The first real error inside nested groups."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
