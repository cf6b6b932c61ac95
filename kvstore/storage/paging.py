"""Make one page of what several sources hold under a range of keys. Pure."""

from __future__ import annotations

from collections.abc import Sequence

Page = tuple[list[tuple[bytes, bytes]], bool]
"""Records in key order, and whether the source has more behind the last one."""


def merge_pages(sources: Sequence[Page], *, limit: int, bytes_max: int) -> Page:
    """Merge pages of the same range; a later source hides an earlier one's record of the same key.

    A page that was cut short is complete only up to its last key, so the result ends at the smallest
    of those, after `limit` records, or with the record that reaches `bytes_max`.
    """
    horizon = min((page[-1][0] for page, more in sources if more), default=None)
    merged: dict[bytes, bytes] = {}
    for page, _ in sources:
        merged.update(page)
    result: list[tuple[bytes, bytes]] = []
    size = 0
    for skey in sorted(merged):
        if horizon is not None and skey > horizon:
            break
        if len(result) >= limit or size >= bytes_max:
            return result, True
        result.append((skey, merged[skey]))
        size += len(merged[skey])
    return result, horizon is not None
