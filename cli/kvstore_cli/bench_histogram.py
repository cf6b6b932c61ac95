"""Count durations so that quantiles stay true from a microsecond to hours.

The HDR histogram's idea (Gil Tene): keep the leading bits of each value and count equal ones, so
that the error is relative (under 1 % here) whatever the size, and memory does not grow with time.

    width(v)  = max(0, bits(v) - 8)          low bits that are dropped
    bucket(v) = v with its low width(v) bits cleared

Two histograms add up without loss, which is how generator processes are put together.
Values are whole microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_PRECISION_BITS = 8
"""Of these one is always set: 128 buckets to a doubling, an error below 1/128."""


class Histogram:
    """Counts of durations in microseconds."""

    __slots__ = ("_counts", "maximum", "sum", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.total = 0
        """How many were recorded."""
        self.sum = 0
        """Exact sum of all, in microseconds."""
        self.maximum = 0
        """The exact largest, in microseconds; 0 when empty."""

    def record(self, micros: int) -> None:
        """Count one duration. Below one microsecond counts as one."""
        micros = max(micros, 1)
        self.total += 1
        self.sum += micros
        self.maximum = max(self.maximum, micros)
        width = micros.bit_length() - _PRECISION_BITS
        if width > 0:
            micros = micros >> width << width
        counts = self._counts
        counts[micros] = counts.get(micros, 0) + 1

    def add(self, other: Histogram) -> None:
        """Take over everything another histogram holds."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.total += other.total
        self.sum += other.sum
        self.maximum = max(self.maximum, other.maximum)

    def quantile(self, share: float) -> int:
        """The smallest value that at least `share` (0 to 1) of the durations do not exceed.

        Answers with the upper end of its bucket, so never too low; 0 when empty.
        """
        assert 0 <= share <= 1, share
        needed = max(1, math.ceil(share * self.total))
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= needed:
                width = max(0, bucket.bit_length() - _PRECISION_BITS)
                return min(self.maximum, bucket + (1 << width) - 1)
        return self.maximum

    @property
    def mean(self) -> float:
        """The exact mean in microseconds; 0.0 when empty."""
        return self.sum / self.total if self.total else 0.0

    def to_plain(self) -> dict[str, Any]:
        """What JSON can carry; `from_plain` takes it back."""
        return {"sum": self.sum, "max": self.maximum, "counts": sorted(self._counts.items())}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Histogram:
        """Rebuild what `to_plain` gave."""
        made = cls()
        made._counts = dict(plain["counts"])
        made.total = sum(made._counts.values())
        made.sum = plain["sum"]
        made.maximum = plain["max"]
        return made
