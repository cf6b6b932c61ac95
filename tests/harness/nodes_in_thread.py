"""Three durable nodes on a loop in a thread, for tests that block, or that share them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kvstore.server import local_nodes


@contextmanager
def nodes_in_thread(directory: Path) -> Iterator[list[str]]:
    """Their addresses, `kv://host:port` each; they stop at the end of the block."""
    ready: Future[list[str]] = Future()
    stop: Future[None] = Future()

    async def serve() -> None:
        async with local_nodes(directory, count=3, cluster_id="f" * 32) as local:
            ready.set_result(local.urls)
            await asyncio.wrap_future(stop)

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(asyncio.run, serve())
        try:
            yield ready.result(timeout=30)
        finally:
            stop.set_result(None)
            served.result(timeout=30)
