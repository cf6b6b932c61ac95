"""From the name of a target to a running cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from jepsen_lite.targets import containers, namespaces, processes
from jepsen_lite.targets.target import Cluster, TargetError


@asynccontextmanager
async def opened(
    target: str, directory: Path, *, nodes: int, replicas: int, kinds: Collection[str], links: str
) -> AsyncIterator[Cluster]:
    """Found a cluster and start it; end all of it at the end. Raises TargetError."""
    place: AbstractAsyncContextManager[Cluster]
    why = ""
    if target == "processes":
        place = processes.opened(directory, nodes=nodes, replicas=replicas, kinds=kinds, links=links)
    elif links == "proxy":
        raise TargetError(f"target {target} has no proxies: --links auto, or --target processes")
    elif target == "docker" and not (why := await containers.problem()):
        place = containers.opened(directory, nodes=nodes, replicas=replicas, kinds=kinds)
    else:
        place = namespaces.opened(directory, nodes=nodes, replicas=replicas, kinds=kinds, why=why)
    async with place as cluster:
        yield cluster
