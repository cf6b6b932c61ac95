"""What a caller wrote as what the wire carries: keys, levels, times, operation ids. Checked here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from kvstore import errors, limits
from kvstore.core import admission
from kvstore.ports import Clock, Dice
from kvstore.types import Consistency

Key = str | bytes
_TAIL_BYTES, _COUNT_BYTES = 6, 4
_SECONDS_MAX = 1e15
"""Far beyond what may be asked for, and small enough to be reckoned with: ints know no bound."""


def key_bytes(key: Key) -> bytes:
    """A key as the store has it; str is UTF-8. Raises errors.BadKey, errors.BadOption."""
    try:
        raw = key.encode() if isinstance(key, str) else key
    except UnicodeEncodeError:
        raise errors.BadOption(option="key", given="str that is no UTF-8", allowed="str or bytes") from None
    if not isinstance(raw, bytes):
        raise errors.BadOption(option="key", given=type(key).__name__, allowed="str or bytes")
    admission.check_key(raw)
    return raw


def keys_bytes(keys: Iterable[Key]) -> list[tuple[Key, bytes]]:
    """Each key as it was given and as the store has it. Raises errors.BadKey, errors.BadOption.

    One str is refused: it would be taken for as many keys as it has characters.
    """
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise errors.BadOption(option="keys", given=repr(keys)[:100], allowed="several keys: a list, say")
    return [(key, key_bytes(key)) for key in keys]


def shown_key(raw: bytes) -> Key:
    """The other way: str when it is UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def level_of(consistency: str | Consistency) -> Consistency:
    """A level by its name. Raises errors.BadConsistency."""
    try:
        return Consistency(consistency)
    except ValueError:
        allowed = ", ".join(Consistency)
        raise errors.BadConsistency(given=repr(consistency)[:60], allowed=allowed) from None


def check_timeout(timeout: object) -> None:
    """Raises errors.BadOption unless it is a time a call may take, in seconds."""
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float)
        or not 0.001 <= timeout <= limits.TIMEOUT_MS_MAX / 1000
    ):
        allowed = f"0.001 to {limits.TIMEOUT_MS_MAX // 1000} seconds"
        raise errors.BadOption(option="timeout", given=repr(timeout)[:60], allowed=allowed)


class Terms:
    """A client's defaults, and what they make of each call's own."""

    def __init__(self, *, consistency: Consistency, timeout: float, clock: Clock, dice: Dice) -> None:
        self._consistency = consistency
        self._timeout = timeout
        self._clock = clock
        self._tail = dice.randbytes(_TAIL_BYTES)
        self._counts = itertools.count(1)
        """Whichever thread asks, no two get the same."""

    def timeout(self, timeout: float | None) -> float:
        """Seconds for a call."""
        if timeout is None:
            return self._timeout
        check_timeout(timeout)
        return timeout

    def read(self, consistency: str | None, r: int | None) -> dict[str, Any]:
        """Options of a read."""
        return self._options(consistency, "r", r)

    def write(self, consistency: str | None, w: int | None, durability: str | None) -> dict[str, Any]:
        """Options of a write."""
        options = self._options(consistency, "w", w)
        if durability is not None:
            if durability != "always":
                raise errors.BadOption(
                    option="durability", given=repr(durability)[:60], allowed='"always", or leave it out'
                )
            options["d"] = durability
        return options

    def _options(self, consistency: str | None, name: str, count: int | None) -> dict[str, Any]:
        level = self._consistency if consistency is None else level_of(consistency)
        options: dict[str, Any] = {} if level is Consistency.QUORUM else {"c": level.value}
        if count is not None:
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= limits.REPLICAS_MAX:
                raise errors.BadConsistency(
                    given=repr(count)[:60], allowed=f"{name} from 1 to the number of replicas"
                )
            if level is Consistency.LINEARIZABLE and consistency is not None:
                raise errors.BadConsistency(
                    given=f"{name}={count} with linearizable", allowed=f"linearizable alone, or {name} alone"
                )
            options[name] = count
        return options

    def ends(self, ttl: float | None, expires_at: float | datetime | None) -> dict[str, int]:
        """Options that say when a record ends: seconds from now, or an instant. Raises errors.BadTtl."""
        if ttl is None and expires_at is None:
            return {}
        if ttl is not None and expires_at is not None:
            raise errors.BadOption(option="ttl and expires_at", given="both", allowed="one of them")
        now_ms = self._clock.wall_ms()
        if ttl is not None:
            ttl_ms = _number(ttl) * 1000
            admission.expires_from(ttl_ms=ttl_ms, expires_ms=None, now_ms=now_ms)
            return {"ttl": math.ceil(ttl_ms)}
        if isinstance(expires_at, datetime):
            if expires_at.tzinfo is None:
                raise errors.BadTtl(given=f"{expires_at!r}, a datetime without time zone")
            expires_at = expires_at.timestamp()
        instant_ms = int(_number(expires_at) * 1000)
        return {"exp": int(admission.expires_from(ttl_ms=None, expires_ms=instant_ms, now_ms=now_ms))}

    def seconds_left(self, expires_ms: int) -> float:
        """Until an instant, by this machine's clock; infinity for 0, which is never."""
        return max(expires_ms - self._clock.wall_ms(), 0) / 1000 if expires_ms else math.inf

    def operation(self) -> bytes:
        """A new operation's id: time of its first try, who we are, and a count, 6 + 6 + 4 bytes."""
        count = next(self._counts) & 0xFFFFFFFF
        return self._clock.wall_ms().to_bytes(6, "big") + self._tail + count.to_bytes(_COUNT_BYTES, "big")


def _number(seconds: object) -> float:
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not -_SECONDS_MAX < seconds < _SECONDS_MAX
    ):
        raise errors.BadTtl(given=repr(seconds)[:60])
    return seconds
