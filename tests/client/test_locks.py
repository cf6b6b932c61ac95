"""Locks that last long, and locks whose holder is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import kvstore
from kvstore.client import locks

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
async def kv() -> AsyncIterator[kvstore.Client]:
    async with kvstore.local_cluster(nodes=3) as client:
        yield client


async def test_a_lease_longer_than_any_call_is_renewed_too(
    kv: kvstore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_RENEW_PART", 1e-5)
    async with kv.lock("job", ttl=3_600) as lease, asyncio.timeout(5):
        first = await kv.ttl(lease.key, consistency="linearizable")
        assert first is not None
        while (await kv.ttl(lease.key, consistency="linearizable") or 0) <= first:
            await asyncio.sleep(0.01)
        assert lease.held


async def test_a_holder_that_is_cancelled_while_it_releases_is_cancelled(kv: kvstore.Client) -> None:
    async def work() -> None:
        mine = asyncio.current_task()
        assert mine is not None
        async with kv.lock("job"):
            asyncio.get_running_loop().call_soon(mine.cancel)

    working = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await working
    assert working.cancelled()
