"""Fifty claims of one alias at real node processes while one of them is cut off: exactly one wins."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import kvstore
from jepsen_lite.nemesis import Fault
from jepsen_lite.targets.processes import Processes, opened
from kvstore import errors
from kvstore.apps.shortener.clock import wall_ms
from kvstore.apps.shortener.links import Links, Made
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.problems import AliasTaken
from kvstore.apps.shortener.wishes import Wish

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("shortener")]
CUT = Fault(0.0, 60.0, "isolate", "cut", pairs=((1, 2), (2, 1), (1, 3), (3, 1)))


async def ready(cluster: Processes) -> None:
    """Until each node is linked to all others."""
    async with asyncio.timeout(30):
        for node in cluster.nodes:
            while True:
                try:
                    async with await kvstore.connect(node.url, pinned=True) as kv:
                        status = await kv.status()
                    if status["state"] == "ready" and all(peer["up"] for peer in status["peers"].values()):
                        break
                except errors.KVError:
                    pass
                await asyncio.sleep(0.1)


async def test_one_of_fifty_claims_wins_on_both_sides_of_a_cut(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            opened(tmp_path, nodes=3, replicas=3, kinds={"cut"}, links="proxy")
        )
        await ready(cluster)
        clients = [
            await stack.enter_async_context(await kvstore.connect(node.url, pinned=True, timeout=3.0))
            for node in cluster.nodes
        ]
        at_each = [Links(kv, ShortenerOptions(), now_ms=wall_ms, monotonic=time.monotonic) for kv in clients]

        async def claim(number: int) -> object:
            wish = Wish(url=f"https://example.com/{number}", alias="only-one")
            try:
                return await at_each[number % 3].create(f"owner{number % 5}", wish)
            except (AliasTaken, errors.KVError) as refused:
                return refused

        await cluster.do(CUT)
        during = await asyncio.gather(*(claim(number) for number in range(30)))
        assert not [made for made in during[::3] if isinstance(made, Made)], "no majority, no claim"
        late = [asyncio.ensure_future(claim(number)) for number in range(30, 50)]
        await asyncio.sleep(0.05)
        await cluster.undo(CUT)
        outcomes = [*during, *await asyncio.gather(*late)]
        winners = [outcome.link for outcome in outcomes if isinstance(outcome, Made)]
        assert len(winners) == 1, Counter(map(repr, outcomes))
        assert sum(isinstance(outcome, AliasTaken) for outcome in outcomes) >= 20
        await ready(cluster)
        for kv in clients:
            fresh = Links(kv, ShortenerOptions(), now_ms=wall_ms, monotonic=time.monotonic)
            assert (await fresh.get(winners[0].owner, "only-one")) == winners[0]
            assert (await fresh.resolve("only-one")).url == winners[0].url
