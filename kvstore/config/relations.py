"""What options mean for each other: rules that no option can keep alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.config.values import Unit, written


@dataclass(frozen=True, slots=True)
class Breach:
    """One broken rule, told at the option that is best changed."""

    option: str
    problem: str
    hint: str


def broken(values: Mapping[str, Any]) -> Iterator[Breach]:
    """Yield every rule that these options (by flat name, all of them) break together."""
    if values["client_port"] == values["peer_port"]:
        yield Breach(
            "peer_port",
            f"client_port and peer_port are both {values['client_port']}",
            "give them two ports, such as 7401 and 7501",
        )
    if values["partitions"] & (values["partitions"] - 1):
        yield Breach(
            "partitions",
            f"{values['partitions']} is not a power of two",
            "give 256, or 1, 2, 4 ... 16384",
        )
    if values["memtable_bytes"] < values["value_bytes_max"]:
        yield Breach(
            "memtable_bytes",
            f"{written(values['memtable_bytes'], Unit.BYTES)} cannot hold one value of "
            f"{written(values['value_bytes_max'], Unit.BYTES)} (value_bytes_max)",
            "raise memtable_bytes, or lower value_bytes_max",
        )
    yield from _broken_exposure(values)


def _broken_exposure(values: Mapping[str, Any]) -> Iterator[Breach]:
    host = values["listen_host"]
    if is_wildcard(host) and not values["advertise_host"]:
        yield Breach(
            "advertise_host",
            f"listen_host {host} is every address, and none that others could connect to",
            "set advertise_host to the name or address of this machine; auto: its host name",
        )
    if values["client_token"] and values["client_token"] == values["peer_token"]:
        yield Breach(
            "peer_token",
            "client_token and peer_token are the same, so every client could act as a node",
            "make another one: openssl rand -hex 32",
        )
    if is_loopback(host) or values["insecure"]:
        return
    missing = [name for name in ("client_token", "peer_token") if not values[name]]
    if missing:
        yield Breach(
            "listen_host",
            f"{host} can be reached from other machines, and without {' and '.join(missing)} anybody may "
            "read and write",
            "set both tokens (KV_CLIENT_TOKEN_FILE, KV_PEER_TOKEN_FILE), or insecure = true on a network "
            "you trust",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether the address means all addresses."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
