"""Decide whether this node's wall clock can be trusted to make versions.

A version from a clock a day ahead would win over every later write for a day. Replicas refuse
it; this guard keeps a node from issuing it at all.

Rules kept here:
- a wall clock that jumped against the monotonic clock is not trusted until it agrees, with itself, with a
  majority of the cluster: one peer may have jumped along, having asked the same broken time server. With
  no peer known there is nobody to disagree with, and the jump is accepted;
- nor is one that any known peer's differs from by more than the drift, until a majority of the cluster
  agrees: of those that can be reached just now the wrong ones may be more.
"""

from __future__ import annotations

from kvstore.types import NodeId


class ClockGuard:
    """What we know about our clock. Offsets are peer minus ours, in milliseconds."""

    __slots__ = ("_anchor", "_drift_ms_max", "_jump_ms", "_majority", "_peers", "_verdict")

    def __init__(self, drift_ms_max: int, *, nodes: int) -> None:
        self._drift_ms_max = drift_ms_max
        self._majority = nodes // 2 + 1
        self._anchor: float | None = None
        self._jump_ms = 0
        self._peers: dict[NodeId, int] = {}
        self._verdict: int | None = None

    def reading(self, wall_ms: int, monotonic_s: float) -> None:
        """Compare the two clocks with the last reading."""
        anchor = wall_ms - monotonic_s * 1000
        before, self._anchor = self._anchor, anchor
        if before is None:
            return
        jumped = anchor - before
        if -self._drift_ms_max <= jumped <= self._drift_ms_max:
            return
        if self._peers:
            self._jump_ms = int(jumped)
            self._peers.clear()  # their offsets were measured with the clock as it was
            self._verdict = self._judge()

    def peer(self, node: NodeId, offset_ms: int) -> None:
        """A probe told how far a peer's clock is from ours."""
        self._peers[node] = offset_ms
        self._verdict = self._judge()

    def forget(self, node: NodeId) -> None:
        """A peer is gone; its last offset says nothing any more."""
        self._peers.pop(node, None)
        self._verdict = self._judge()

    @property
    def knows_peers(self) -> bool:
        """Whether any peer's clock has been compared with ours."""
        return bool(self._peers)

    def verdict(self) -> int | None:
        """None when the clock can be trusted, else how many milliseconds it is ahead (below 0: behind)."""
        return self._verdict

    def _judge(self) -> int | None:
        limit, peers = self._drift_ms_max, self._peers
        off = [offset for offset in peers.values() if offset > limit or offset < -limit]
        if len(peers) - len(off) + 1 >= self._majority:
            self._jump_ms = 0
            return None
        return -sorted(off)[len(off) // 2] if off else self._jump_ms or None
