"""One process of the shortener for `shortener.py`: which store is under it, and which server in front.

    python bench/shortener_served.py --store kv://127.0.0.1:7401,... --port 8080 --server uvicorn
    python bench/shortener_served.py --store redis://127.0.0.1:6379 --port 8080

It is the app as `kv app shortener` runs it: the same `create_app`, the same options, the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
from contextlib import AbstractAsyncContextManager
from typing import Any

import kvstore
from kvstore.apps import serving
from kvstore.apps.shortener.app import create_app
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.serving import serve

KEY = "bench-key-0123456789"


async def opened(store: str) -> AbstractAsyncContextManager[Any]:
    """The store by its address."""
    if store.startswith("redis://"):
        from rivals.redis_store import RedisStore

        return RedisStore(store)
    return await kvstore.connect(store)


async def serve_granian(app: Any, port: int) -> None:
    """The other server, inside this loop, for the comparison: pip install granian."""
    embedded = importlib.import_module("granian.server.embed").Server
    interface = importlib.import_module("granian.constants").Interfaces.ASGI
    await embedded(app, address="127.0.0.1", port=port, interface=interface, log_enabled=False).serve()


async def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--server", choices=("uvicorn", "granian"), default="uvicorn")
    given = parser.parse_args()
    options = ShortenerOptions(
        base_url=f"http://127.0.0.1:{given.port}", creations_per_minute=1_000_000, allow_private=True
    )
    async with await opened(given.store) as kv:
        app = create_app(kv, options, keys={KEY: "bench"})
        if given.server == "granian":
            await serve_granian(app, given.port)
        else:
            await serve(app, serving.listening("127.0.0.1", given.port))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=serving.new_event_loop) as runner:
        runner.run(main())
