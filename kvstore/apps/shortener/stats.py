"""What the counters of a link say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import kvstore
from kvstore import errors
from kvstore.apps.shortener import visitors
from kvstore.apps.shortener.counting import hour_of, names_of
from kvstore.apps.shortener.link import Link, counter_key, names_key, spent_key

DAYS_SHOWN, HOURS_SHOWN = 30, 48
_READERS = 16
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_SPENT_KEPT_S = 86_400.0
"""How long spent clicks outlive their link: longer than another service may have the link in memory."""
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


async def read_stats(kv: kvstore.Client, link: Link, now_ms: int) -> Stats:
    """Read a link's counters, of no hour before it was made."""
    names = await names_of(kv, link.id)
    days = [hour_of(now_ms - ago * _DAY_MS)[:8] for ago in reversed(range(DAYS_SHOWN))]
    hours = [hour_of(now_ms - ago * _HOUR_MS) for ago in reversed(range(HOURS_SHOWN))]
    first = hour_of(link.created_ms - _HOUR_MS)  # clocks of two processes differ a little
    asked = [
        *(f"d/{day}" for day in days if day >= first[:8]),
        *(f"h/{hour}" for hour in hours if hour >= first),
        *(f"r/{name}" for name in sorted(names.referrers)),
        *(f"g/{name}" for name in sorted(names.countries)),
        *(f"v/{name}" for name in visitors.DEVICES),
    ]
    counts = await _counted(kv, link.id, asked)
    total = sum(counts[f"v/{name}"] for name in visitors.DEVICES)
    return Stats(
        total=total,
        days=tuple((f"{day[:4]}-{day[4:6]}-{day[6:]}", counts.get(f"d/{day}", 0)) for day in days),
        hours=tuple((f"{h[:4]}-{h[4:6]}-{h[6:8]}T{h[8:]}", counts.get(f"h/{h}", 0)) for h in hours),
        referrers=_most(counts, "r/", total, visitors.DIRECT),
        countries=_most(counts, "g/", total, visitors.UNKNOWN),
        devices=_most(counts, "v/", total, visitors.OTHER),
    )


def _most(counts: dict[str, int], prefix: str, total: int, usual: str) -> tuple[Row, ...]:
    """Most first; what no counter has is `usual`."""
    found = Counter({name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)})
    found[usual] += total - found.total()
    rows = [(name, n) for name, n in found.items() if n > 0]
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


async def forget_stats(kv: kvstore.Client, link: Link, now_ms: int) -> None:
    """Delete a link's counters; clicks spent of `max_clicks` end by themselves, later.

    Raises errors.KVError; what is left then is never read again.
    """
    names = await names_of(kv, link.id)
    first, last = (link.created_ms - _HOUR_MS) // _HOUR_MS, now_ms // _HOUR_MS
    hours = [hour_of(hour * _HOUR_MS) for hour in range(first, last + 1)]
    parts = [
        *(f"d/{day}" for day in sorted({hour[:8] for hour in hours})),
        *(f"h/{hour}" for hour in hours),
        *(f"r/{name}" for name in sorted(names.referrers)),
        *(f"g/{name}" for name in sorted(names.countries)),
        *(f"v/{name}" for name in visitors.DEVICES),
    ]
    await kv.delete_many([counter_key(link.id, part) for part in parts])
    names_entry = await kv.get(names_key(link.id))
    if names_entry is not None:
        await kv.delete_if(names_key(link.id), expected_value=names_entry.value)
    if await kv.get(spent_key(link.id)) is not None:
        await kv.touch(spent_key(link.id), _SPENT_KEPT_S, consistency="linearizable")
