"""The benchmark's channel to our own nodes: the client library's connection, without the client above it."""

from __future__ import annotations

from kvstore.client.connection import Connection
from kvstore_cli.bench_load import Channel


async def connect(address: str, token: str) -> Channel:
    """Connect to one node and say hello. Raises errors.CannotConnect, errors.AuthFailed."""
    return await Connection.open(address, token=token)
