"""Versions: 64-bit hybrid logical timestamps that never repeat and never run away.

    version := milliseconds since 2024-01-01Z (42 bits) | logical (12 bits) | node number (10 bits)

The layout is Snowflake's, the rules are those of hybrid logical clocks (Kulkarni et al., 2014):
versions grow with real time, exceed everything the node has seen, and stay within a bounded
drift of its wall clock.

Rules kept here:
- a version issued is greater than every version issued or observed before;
- a clock never runs more than the drift ahead of the wall clock it is shown, and an observed
  version further ahead is refused and leaves the clock untouched;
- when the 4,096 versions of a millisecond are used up, the next comes from the following one.
"""

from __future__ import annotations

from kvstore import errors, limits
from kvstore.types import Millis, NodeId, Version

EPOCH_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z."""
NODE_BITS = 10
LOGICAL_BITS = 12
_SHIFT = NODE_BITS + LOGICAL_BITS
_NODE_MASK = (1 << NODE_BITS) - 1
_LOGICAL_MASK = (1 << LOGICAL_BITS) - 1
VERSION_MAX = Version((1 << 64) - 1)


def pack(ms: int, logical: int, node: int) -> Version:
    """Build a version. `ms` since 1970; instants before 2024 count as its first."""
    return Version(max(ms - EPOCH_MS, 0) << _SHIFT | logical << NODE_BITS | node)


def millis_of(version: int) -> Millis:
    """The version's physical part, in milliseconds since 1970."""
    return Millis((version >> _SHIFT) + EPOCH_MS)


def logical_of(version: int) -> int:
    """The version's counter within its millisecond."""
    return version >> NODE_BITS & _LOGICAL_MASK


def node_of(version: int) -> NodeId:
    """The node that issued it."""
    return NodeId(version & _NODE_MASK)


def after(base: int, node: int) -> Version:
    """The smallest version above `base` that `node` may issue; the counter carries into the time."""
    return Version(((base >> NODE_BITS) + 1) << NODE_BITS | node)


class HybridClock:
    """The version source of one node."""

    __slots__ = ("drift_ms_max", "last", "node")

    def __init__(self, node: NodeId, *, drift_ms_max: int = limits.DRIFT_MS_MAX, last: int = 0) -> None:
        self.node = node
        self.drift_ms_max = drift_ms_max
        self.last = Version(last)
        """The highest version issued or observed."""

    def next(self, now_ms: int) -> Version:
        """Issue a version. Raises errors.ClockSkew rather than run further ahead than the drift."""
        version = pack(now_ms, 0, self.node)
        if version <= self.last:
            version = after(self.last, self.node)
            self._check(version, now_ms)
        self.last = version
        return version

    def observe(self, version: int, now_ms: int) -> None:
        """Take note of somebody's version. Raises errors.ClockSkew when it is too far ahead."""
        if version > self.last:
            self._check(version, now_ms)
            self.last = Version(version)

    def note(self, version: int, now_ms: int) -> None:
        """As `observe`, of what was only read: a version too far ahead is left alone."""
        if self.last < version and millis_of(version) - now_ms <= self.drift_ms_max:
            self.last = Version(version)

    def _check(self, version: int, now_ms: int) -> None:
        ahead_ms = millis_of(version) - now_ms
        if ahead_ms > self.drift_ms_max:
            raise errors.ClockSkew(ahead_ms=ahead_ms, maximum=self.drift_ms_max)
