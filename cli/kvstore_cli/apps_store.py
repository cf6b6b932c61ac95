"""The store under an application that is served: a cluster that runs, or one made for it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from kvstore_cli.settings import Settings, token_of

if TYPE_CHECKING:
    from kvstore import Client


async def store_of(
    settings: Settings, *, directory: str | None = None
) -> AbstractAsyncContextManager[Client]:
    """The cluster that was named; else three nodes here, whose data goes with them or to `directory`.

    Raises kvstore.errors.KVError when the cluster cannot be reached.
    """
    import kvstore

    timeout = settings.deadline_ms / 1000
    if settings.named is None:
        return kvstore.local_cluster(nodes=3, directory=directory, timeout=timeout)
    return await kvstore.connect(settings.named, token=token_of(settings), timeout=timeout)
