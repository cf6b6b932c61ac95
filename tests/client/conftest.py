"""A scripted cluster, and clients of it with seeded dice."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from scripted_node import Connect, ScriptedCluster, scripted

from kvstore.client.client import Client
from kvstore.io.clock import SystemClock


@pytest.fixture
async def cluster() -> AsyncIterator[ScriptedCluster]:
    """Three scripted nodes."""
    async with scripted(3) as made:
        yield made


@pytest.fixture
async def connect(cluster: ScriptedCluster) -> AsyncIterator[Connect]:
    """Make clients of the cluster; they are closed at the end."""
    async with AsyncExitStack() as stack:

        async def make(url: str | list[str] | None = None, **options: object) -> Client:
            client = await Client.connect(
                url or cluster.url,
                clock=SystemClock(),
                dice=random.Random(1),
                **options,  # type: ignore[arg-type]
            )
            return await stack.enter_async_context(client)

        yield make
