"""The public face's composition: a client on real clocks and sockets, and a cluster in this process."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstore.client.client import Client
from kvstore.io.clock import SystemClock
from kvstore.io.entropy import new_uuid, system_dice

if TYPE_CHECKING:
    from kvstore.client.codecs import Codec

DEFAULT_URL = "kv://127.0.0.1:7401"


async def connect(
    url: str | Sequence[str] = DEFAULT_URL,
    *,
    consistency: str = "quorum",
    timeout: float = 5.0,
    codec: str | Codec | None = None,
    token: str | None = None,
    **options: Any,
) -> Client:
    """Connect to a cluster through any of its nodes; the others are learned from it.

    `url`: `kv://host:port[,host:port...]`, or several such. `timeout`: seconds, for each call.
    `codec`: None (bytes), "text", "json", "msgpack", or an object with `encode` and `decode`.
    Raises errors.CannotConnect when no node answers, errors.AuthFailed, errors.BadOption.
    """
    return await Client.connect(
        url,
        consistency=consistency,
        timeout=timeout,
        codec=codec,
        token=token,
        clock=SystemClock(),
        dice=system_dice(),
        **options,
    )


@asynccontextmanager
async def local_cluster(
    nodes: int = 3,
    *,
    directory: str | Path | None = None,
    replicas: int = 3,
    partitions: int = 256,
    **client_options: Any,
) -> AsyncIterator[Client]:
    """Run real nodes in this process, durable in `directory` (a temporary one by default).

    For tests and small tools: real sockets on loopback, real logs, real fsync. Yields a client;
    the nodes stop when the block ends. The same directory brings the same data again.
    """
    from kvstore.server import local_nodes  # noqa: PLC0415  servers bring lmdb and structlog; clients never load them

    async with AsyncExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-"))
        local = await stack.enter_async_context(
            local_nodes(
                Path(directory), count=nodes, cluster_id=new_uuid(), replicas=replicas, partitions=partitions
            )
        )
        client = await stack.enter_async_context(await connect(local.urls, **client_options))
        yield client


__all__ = ["DEFAULT_URL", "connect", "local_cluster"]
