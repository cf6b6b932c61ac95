"""What a client gets back: entries, receipts, locations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kvstore.core.topology import NodeInfo
from kvstore.types import Durability, Partition, Slot
from kvstore.wire.results import FLAG_EXISTED, FLAG_SUPERSEDED, Found, Written


@dataclass(frozen=True, slots=True)
class Receipt:
    """How good an answer is."""

    version: int
    """The record's version: unique, and greater for every later write of the key."""
    epoch: int
    """The topology's version at the coordinator."""
    answered: tuple[int, ...]
    """Numbers of the nodes that count: for a write they hold it, for a read they were asked and told."""
    repaired: tuple[int, ...] = ()
    """Nodes that were behind and were mended before the answer."""
    superseded: bool = False
    """A write that lost: a replica already held something newer, which stays."""
    existed: bool = False
    """The write took the place of a live record."""
    durability: Durability = Durability.ALWAYS
    """The weakest durability among the nodes that count; for reads, ALWAYS."""
    coordinator: int = 0
    """The node that answered us."""
    attempts: int = 1
    """How many tries it took."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A live record."""

    key: str | bytes
    """As it was asked for; from a scan, str when it is UTF-8, else bytes."""
    value: Any
    """Bytes, or what the client's codec makes of them; None from a scan with `keys_only`."""
    version: int
    expires_at: float | None
    """Seconds since 1970-01-01Z; None: never."""
    receipt: Receipt

    def ttl(self, now: float) -> float:
        """Seconds left at `now` (seconds since 1970); infinity without expiry."""
        return math.inf if self.expires_at is None else max(self.expires_at - now, 0.0)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a key lives."""

    slot: Slot
    partition: Partition
    owners: tuple[NodeInfo, ...]
    """In preference order."""


def receipt_of(written: Written, node: int, attempts: int) -> Receipt:
    """What a caller gets for a write that `node` answered."""
    return Receipt(
        written.version,
        written.epoch,
        written.acked,
        written.repaired,
        superseded=bool(written.flags & FLAG_SUPERSEDED),
        existed=bool(written.flags & FLAG_EXISTED),
        durability=Durability(written.durability),
        coordinator=node,
        attempts=attempts,
    )


def receipt_of_read(found: Found, node: int, attempts: int) -> Receipt:
    """What a caller gets for a read."""
    return Receipt(
        found.version, found.epoch, found.answered, found.repaired, coordinator=node, attempts=attempts
    )


def instant(expires_ms: int) -> float | None:
    """Seconds since 1970; None for never."""
    return expires_ms / 1000 if expires_ms else None
