"""What a limit is, and what a decision says. Times are integers of microseconds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from kvstore import errors

NEVER: Final = -1
"""As `retry_after_us`: more than the limit ever gives at once."""
AMOUNT_MAX: Final = 1_000_000_000
LOG_AMOUNT_MAX: Final = 10_000
"""The log and the leases keep every call: more would make each change of the register a large one."""
PERIOD_US_MIN, PERIOD_US_MAX = 1_000, 366 * 86_400 * 1_000_000

State = tuple[int, ...]
"""What a limit remembers of a key; the empty one is a key that was never seen."""
FRESH: Final[State] = ()


class Algorithm(StrEnum):
    """How a limit counts, and so what it promises; docs/ratelimit.md has the table."""

    TOKEN_BUCKET = "token_bucket"  # noqa: S105  no password
    LEAKY_BUCKET = "leaky_bucket"
    FIXED_WINDOW = "fixed_window"
    SLIDING_COUNTER = "sliding_counter"
    SLIDING_LOG = "sliding_log"
    CONCURRENCY = "concurrency"


_KEEPS_ALL = (Algorithm.SLIDING_LOG, Algorithm.CONCURRENCY)
_BUCKETS = (Algorithm.TOKEN_BUCKET, Algorithm.LEAKY_BUCKET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most `amount` in `period_us`, by one algorithm. Raises errors.BadOption."""

    algorithm: Algorithm
    amount: int
    period_us: int
    """Of concurrency: how long a lease lasts unless it is renewed."""
    burst: int = 0
    """Of the buckets: how much at once. 0: the amount."""
    capacity: int = field(init=False, repr=False, compare=False)
    """The most that a fresh key may take at once."""
    fingerprint: int = field(init=False, repr=False, compare=False)
    """Tells a state of this limit from the state of another one."""

    def __post_init__(self) -> None:
        most = LOG_AMOUNT_MAX if self.algorithm in _KEEPS_ALL else AMOUNT_MAX
        if not 1 <= self.amount <= most:
            raise errors.BadOption(
                option="limit", given=str(self.amount), allowed=f"1 to {most} for {self.algorithm}"
            )
        if not PERIOD_US_MIN <= self.period_us <= PERIOD_US_MAX:
            raise errors.BadOption(option="per", given=f"{self.period_us} us", allowed="1 ms to 366 days")
        if self.burst and self.algorithm not in _BUCKETS:
            raise errors.BadOption(option="burst", given=str(self.burst), allowed="only with the buckets")
        if not 0 <= self.burst <= AMOUNT_MAX:
            raise errors.BadOption(option="burst", given=str(self.burst), allowed=f"0 to {AMOUNT_MAX}")
        capacity = self.burst or self.amount
        told = f"{self.algorithm}:{self.amount}:{self.period_us}:{capacity}"
        object.__setattr__(self, "capacity", capacity)
        object.__setattr__(self, "fingerprint", zlib.crc32(told.encode()))


class Decision(NamedTuple):
    """What one limit says to one call."""

    allowed: bool
    remaining: int
    """What could be taken right after this decision."""
    retry_after_us: int
    """0 when allowed; NEVER when waiting does not help. Others may come first."""
    reset_after_us: int
    """Until the key is as if never seen, if nobody comes."""
    delay_us: int = 0
    """Leaky bucket: an allowed call waits this long before it goes on."""
