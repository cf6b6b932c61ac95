"""What a store can say about itself. Cheap enough for every status call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Sizes in bytes, times in milliseconds."""

    keys: int
    """Keys that hold a value. Exact but for keys that were in the middle of a crash."""
    tombstones: int
    expiring: int
    """Keys with an expiry, at most: some entries of the index may be obsolete."""
    wal_bytes: int
    segments: int
    memtable_bytes: int
    base_bytes: int
    batches: int
    """Group commits since the start."""
    fsyncs: int
    last_fsync_ms: float
    """How long the last group's write and sync took; 0 when the store was given no clock."""
    recovered_records: int
    """Replayed from the log at the start."""
    torn_tail: str
    """Where recovery put the unfinished write it cut off; empty if there was none."""
    conflicts: int
    """Records of equal version and different bytes. Must be 0."""
    disk_free: int
    disk_reserve: int
    full: bool
    """Client writes are stopped."""
    sync_mode: str
