"""Names that tell like-looking numbers apart, and the few enums everybody shares.

Units are part of the names: `Millis` is milliseconds since 1970-01-01Z unless a
name says otherwise; a `Version` is opaque to everything but `core.version`.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple, NewType

NodeId = NewType("NodeId", int)
"""A node's number in the topology, 0..1023. It is the low 10 bits of its versions."""

Epoch = NewType("Epoch", int)
"""The version of a topology; grows by one with each change."""

Slot = NewType("Slot", int)
"""A point of the ring, 0..16383 (Redis Cluster's slots)."""

Partition = NewType("Partition", int)
"""An equal run of slots, 0..Q-1: the unit of ownership, streaming and repair."""

Version = NewType("Version", int)
"""A 64-bit hybrid timestamp; 0 means "no record". Compared as an integer."""

Millis = NewType("Millis", int)
"""Milliseconds; since 1970-01-01Z where it names an instant."""

OperationId = NewType("OperationId", bytes)
"""16 bytes that name one client operation over all its tries; starts with the time of the first."""


class Operation(NamedTuple):
    """Names one change of one key, to ask later what became of it; `str()` and `parse` are inverse."""

    key: bytes
    id: OperationId

    def __str__(self) -> str:
        return f"{self.id.hex()}:{self.key.hex()}"

    @classmethod
    def parse(cls, text: str) -> Operation:
        """Raises ValueError."""
        operation, _, key = text.partition(":")
        if len(operation) != 32 or not key:
            raise ValueError(f"not an operation: {text!r}")
        return cls(bytes.fromhex(key), OperationId(bytes.fromhex(operation)))


class Kind(IntEnum):
    """What a record holds. The number is the byte on disk and on the wire."""

    VALUE = 1
    TOMBSTONE = 2
    COUNTER = 3


class Consistency(StrEnum):
    """How many replicas must answer; `r=` and `w=` integers override it."""

    ONE = "one"
    QUORUM = "quorum"
    ALL = "all"
    LINEARIZABLE = "linearizable"


class Durability(IntEnum):
    """What an acknowledgement means for the disk, weakest first."""

    MEMORY = 0
    """Held in memory only (the `memory` engine, or sync mode `os` before the write)."""
    OS = 1
    """Written to the operating system, not synced."""
    INTERVAL = 2
    """Written; synced within the configured interval."""
    ALWAYS = 3
    """Synced to disk before the acknowledgement."""


class Applied(IntEnum):
    """What a replica did with a record. The number is the byte on the wire."""

    APPLIED = 0
    """Stored; nothing live was there before."""
    REPLACED = 1
    """Stored over a live record."""
    SUPERSEDED = 2
    """Not stored: the replica already holds something newer."""
    DUPLICATE = 3
    """Not stored: this very record is already held."""
    REFUSED = 4
    """Not stored: the version is too far ahead of the replica's clock."""
    DISK_FULL = 5
    """Not stored: the replica keeps its disk reserve."""
    NOT_OWNER = 6
    """Not stored: the replica does not own the key's partition in its topology."""
    FAILED = 7
    """Unknown: the replica could not write its log; it is going down."""
    NEEDS_REGISTER = 8
    """Not stored: the key is a register, or about to become one."""
