"""What a node can be told, with the defaults and their relations. `kvstore.config` fills it in."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore import errors, limits


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """Times in milliseconds, sizes in bytes."""

    listen_host: str = "127.0.0.1"
    """Address to bind. Outgoing links leave from it too, so that a firewall rule between two
    node addresses cuts both directions."""
    client_port: int = 7401
    peer_port: int = 7501
    value_bytes_max: int = limits.VALUE_BYTES_MAX
    connections_max: int = limits.CONNECTIONS_MAX
    in_flight_max: int = limits.IN_FLIGHT_MAX
    drift_ms_max: int = limits.DRIFT_MS_MAX
    timeout_ms: int = limits.TIMEOUT_MS
    """Deadline of a request that names none."""
    drain_ms: int = 5_000
    """How long a stopping node waits for the requests it has begun."""
    read_repair_chance: float = 0.05
    """Part of the reads at `one` after which the other replicas are compared and mended. At
    quorum and above every read does, before it answers."""
    unsafe_registers: bool = False
    """Take part in linearizable calls though acknowledgements here do not mean "on disk". For tests."""
    client_token: str = ""
    """Clients must show it in hello; empty asks for none."""
    peer_token: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.read_repair_chance <= 1:
            raise errors.BadOption(
                option="read_repair_chance", given=self.read_repair_chance, allowed="0 to 1"
            )
        if not 1 <= self.value_bytes_max <= limits.VALUE_BYTES_CEILING:
            raise errors.BadOption(
                option="value_bytes_max",
                given=self.value_bytes_max,
                allowed=f"1 to {limits.VALUE_BYTES_CEILING}",
            )
