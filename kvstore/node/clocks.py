"""What this node tells of its two clocks, to clients and to peers."""

from __future__ import annotations

from kvstore.ports import Clock


def steady_ms(clock: Clock) -> int:
    """A clock that nobody sets: by it others say when what they ask for is void."""
    return int(clock.monotonic() * 1000)


def clocks(clock: Clock) -> list[int]:
    """What `ping` is answered with: milliseconds since 1970, and on the steady clock."""
    return [clock.wall_ms(), steady_ms(clock)]
