"""What the counters of a link say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import kvstore
from kvstore import errors
from kvstore.apps.shortener import visitors
from kvstore.apps.shortener.clicks import hour_of, names_of
from kvstore.apps.shortener.link import counter_key, names_key, spent_key

DAYS_SHOWN, HOURS_SHOWN = 30, 48
_READERS = 16
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
Row = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """Clicks of one link."""

    total: int
    days: tuple[Row, ...]
    """The last 30, oldest first, `2026-11-21`; UTC."""
    hours: tuple[Row, ...]
    """The last 48, oldest first, `2026-11-21T09`."""
    referrers: tuple[Row, ...]
    """Most first."""
    countries: tuple[Row, ...]
    devices: tuple[Row, ...]


async def read_stats(kv: kvstore.Client, link_id: str, now_ms: int) -> Stats:
    """Read a link's counters; counters of days without clicks are not asked for."""
    names = await names_of(kv, link_id)
    days = [hour_of(now_ms - ago * _DAY_MS)[:8] for ago in reversed(range(DAYS_SHOWN))]
    hours = [hour_of(now_ms - ago * _HOUR_MS) for ago in reversed(range(HOURS_SHOWN))]
    asked = [
        "t",
        *(f"d/{day}" for day in days if day in names.days),
        *(f"h/{hour}" for hour in hours if hour[:8] in names.days),
        *(f"r/{name}" for name in sorted(names.referrers)),
        *(f"g/{name}" for name in sorted(names.countries)),
        *(f"v/{name}" for name in visitors.DEVICES),
    ]
    counts = await _counted(kv, link_id, asked)
    return Stats(
        total=counts["t"],
        days=tuple((f"{day[:4]}-{day[4:6]}-{day[6:]}", counts.get(f"d/{day}", 0)) for day in days),
        hours=tuple((f"{h[:4]}-{h[4:6]}-{h[6:8]}T{h[8:]}", counts.get(f"h/{h}", 0)) for h in hours),
        referrers=_most(counts, "r/"),
        countries=_most(counts, "g/"),
        devices=_most(counts, "v/"),
    )


def _most(counts: dict[str, int], prefix: str) -> tuple[Row, ...]:
    rows = [(name.removeprefix(prefix), n) for name, n in counts.items() if name.startswith(prefix) and n > 0]
    return tuple(sorted(rows, key=lambda row: (-row[1], row[0])))


async def _counted(kv: kvstore.Client, link_id: str, asked: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = dict.fromkeys(asked, 0)
    left = iter(asked)

    async def read() -> None:
        for what in left:
            counts[what] = await kv.counter_get(counter_key(link_id, what))

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_READERS):
                tasks.create_task(read())
    except* errors.KVError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        failure = first
    else:
        return counts
    raise failure


async def forget_stats(kv: kvstore.Client, link_id: str) -> None:
    """Delete a link's counters. Raises errors.KVError; what is left then is never read again."""
    names = await names_of(kv, link_id)
    days = sorted(names.days)
    parts = [
        "t",
        *(f"d/{day}" for day in days),
        *(f"h/{day}{hour:02}" for day in days for hour in range(24)),
        *(f"r/{name}" for name in sorted(names.referrers)),
        *(f"g/{name}" for name in sorted(names.countries)),
        *(f"v/{name}" for name in visitors.DEVICES),
    ]
    if names.days:
        await kv.delete_many([counter_key(link_id, part) for part in parts])
        await kv.delete_if(names_key(link_id), expected_value=names.encode())
    entry = await kv.get(spent_key(link_id))
    if entry is not None:
        await kv.delete_if(spent_key(link_id), expected_value=entry.value)
