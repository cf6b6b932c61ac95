"""What may come in: keys, values and times, checked once, at the edge."""

from __future__ import annotations

import math
import re

from kvstore import errors, limits
from kvstore.types import Millis

_UNITS = {"ms": 1, "": 1_000, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w|)")


def check_key(key: bytes) -> None:
    """Raises errors.BadKey unless it has 1 to 480 bytes."""
    if not 0 < len(key) <= limits.KEY_BYTES_MAX:
        raise errors.BadKey(length=len(key), maximum=limits.KEY_BYTES_MAX)


def check_value(value: bytes, maximum: int) -> None:
    """Raises errors.BadValue when it is longer than `maximum`."""
    if len(value) > maximum:
        raise errors.BadValue(length=len(value), maximum=maximum)


def expires_from(*, ttl_ms: float | None, expires_ms: int | None, now_ms: int) -> Millis:
    """The absolute instant of a ttl (counted from now) or of an expiry. Raises errors.BadTtl."""
    given = ttl_ms if expires_ms is None else expires_ms
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise errors.BadTtl(given=repr(given))
    end = now_ms + math.ceil(given) if expires_ms is None else int(given)
    if given <= 0 or end > limits.EXPIRES_MS_MAX:
        raise errors.BadTtl(given=f"{given} ms")
    return Millis(end)


def parse_duration(text: str) -> int:
    """`90s`, `15m`, `12h`, `7d`, `2w`, `250ms`, or seconds (`1.5`), in milliseconds. Raises errors.BadTtl."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise errors.BadTtl(given=repr(text))
    ms = math.ceil(float(found[1]) * _UNITS[found[2]])
    if not 0 < ms <= limits.EXPIRES_MS_MAX:
        raise errors.BadTtl(given=repr(text))
    return ms
