"""Merge the pages of several replicas into one page of live entries.

A replica that cut its page short says nothing about keys after its last one; so the merged page ends at
the smallest last key of the pages that were cut (the horizon), and the scan goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core import record as records
from kvstore.core.record import Order


@dataclass(frozen=True, slots=True)
class Page:
    """What one replica holds from some position on, in key order, all kinds of records."""

    entries: list[tuple[bytes, bytes]]
    """(storage key, record)."""
    more: bool
    """Whether the page was cut short."""


@dataclass(frozen=True, slots=True)
class Merged:
    """One page for the reader."""

    entries: list[tuple[bytes, bytes]]
    """Live entries only, newest wins, in key order."""
    resume: bytes | None
    """Go on strictly after this key; None when nothing is left."""
    stale: int
    """Keys on which the replicas disagreed."""


def merge(pages: Sequence[Page], now_ms: int) -> Merged:
    """Put pages over the same range together. At least one page."""
    horizon = min((page.entries[-1][0] for page in pages if page.more and page.entries), default=None)
    newest: dict[bytes, bytes] = {}
    seen: dict[bytes, int] = {}
    disagreed: set[bytes] = set()
    for page in pages:
        for skey, record in page.entries:
            if horizon is not None and skey > horizon:
                break
            held = newest.get(skey)
            seen[skey] = seen.get(skey, 0) + 1
            if held is not None and records.compare(held, record) is not Order.SAME:
                disagreed.add(skey)
            if held is None or records.is_newer(record, held) or records.fuller(record, held):
                both = held is not None and records.flags_of(record) & records.FLAG_COUNTER
                newest[skey] = records.merged(record, held) if both and held is not None else record
    disagreed.update(skey for skey, count in seen.items() if count != len(pages))
    entries = [(skey, newest[skey]) for skey in sorted(newest) if records.is_live(newest[skey], now_ms)]
    return Merged(entries, horizon, len(disagreed))
