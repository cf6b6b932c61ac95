"""Counters of one node, as plain integers: a count costs one addition on the hot path."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """What happened since the start. Names are the metrics' names."""

    requests: int = 0
    reads: int = 0
    writes: int = 0
    refused: int = 0
    """Requests answered with a definite error."""
    unresolved: int = 0
    """Requests answered with an indefinite error."""
    superseded: int = 0
    """Writes that met something newer on a replica."""
    read_repairs: int = 0
    """Records sent to replicas that were behind a read."""
    version_conflicts: int = 0
    """Equal versions with different content: a broken node, or a bug. Alarm."""
    future_versions: int = 0
    """Records refused because their version ran ahead of our clock. Alarm."""
    damaged_records: int = 0
    """Times that this node met a record on its disk that is not what was put there. Alarm."""
    deadline_drops: int = 0
    """Requests dropped because their deadline had passed before we read them."""
    register_rounds: int = 0
    """Rounds that this node proposed."""
    register_prepares: int = 0
    """Of them those that had to prepare first."""
    register_retries: int = 0
    """Rounds that had to be repeated at a higher ballot."""
    register_reads_slow: int = 0
    """Linearizable reads that needed a round."""
    forwarded: int = 0
    """Changes of registers sent to another owner."""
    expired: int = 0
    """Expired records reclaimed."""
    connections_refused: int = 0
    protocol_errors: int = 0

    def plain(self) -> dict[str, int]:
        """As a map, for status and metrics."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
