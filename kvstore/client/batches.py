"""Calls with many keys: grouped by the node that owns them, run together, failures tried again one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from kvstore import errors, limits
from kvstore.client.nodes import Nodes

GROUPS_AT_ONCE = 8
BYTES_MAX = 4 << 20
"""Of keys and values in one request: well below a frame."""

Ask = Callable[[Sequence[bytes]], Awaitable[Sequence[Any]]]
Again = Callable[[bytes], Awaitable[Any]]


def by_first_node(
    nodes: Nodes, keys: Sequence[bytes], sizes: Mapping[bytes, int] | None = None
) -> list[list[bytes]]:
    """Keys that go to one node together, in pieces within the limits of a request."""
    groups: dict[str, list[list[bytes]]] = {}
    filled: dict[str, int] = {}
    for key in keys:
        address = nodes.candidates(key)[0]
        pieces = groups.setdefault(address, [[]])
        size = (sizes or {}).get(key, len(key))
        if pieces[-1] and (
            len(pieces[-1]) >= limits.BATCH_KEYS_MAX or filled.get(address, 0) + size > BYTES_MAX
        ):
            pieces.append([])
            filled[address] = 0
        pieces[-1].append(key)
        filled[address] = filled.get(address, 0) + size
    return [piece for pieces in groups.values() for piece in pieces if piece]


async def run(
    groups: Sequence[Sequence[bytes]], ask: Ask, again: Again
) -> tuple[dict[bytes, Any], dict[bytes, errors.KVError]]:
    """Outcomes and errors by key. An outcome is `(result, node, tries)`."""
    done: dict[bytes, Any] = {}
    failures: dict[bytes, errors.KVError] = {}
    slots = asyncio.Semaphore(GROUPS_AT_ONCE)

    async def one_group(keys: Sequence[bytes]) -> None:
        async with slots:
            try:
                outcomes = await ask(keys)
            except errors.KVError as error:
                failures.update(dict.fromkeys(keys, error))
                return
            for key, outcome in zip(keys, outcomes, strict=True):
                await settle(key, outcome)

    async def settle(key: bytes, outcome: Any) -> None:
        result = outcome[0]
        if not isinstance(result, dict):
            done[key] = outcome
            return
        error = errors.from_wire(result.get("error"))
        if error.retryable:
            try:
                done[key] = await again(key)
            except errors.KVError as second:
                # An earlier try that may have happened stays the truth about this key.
                failures[key] = second if error.definite or not second.definite else error
        else:
            failures[key] = error

    async with asyncio.TaskGroup() as tasks:
        for keys in groups:
            tasks.create_task(one_group(keys))
    return done, failures
