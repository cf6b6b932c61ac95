"""The sections of a node's configuration: every option, its default, its range and its reason.

Option names are unique over all sections, so that one name serves everywhere: `client_port` under
`[listen]` in the file is `KV_CLIENT_PORT` in the environment and `--client-port` on the command line.
`configs/node.toml` is written from here.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from kvstore import errors, limits
from kvstore.config.relations import Breach, broken
from kvstore.config.values import Rule, Unfit, Unit, Value, from_typed
from kvstore.node.options import NodeOptions
from kvstore.storage.options import StoreOptions

_SYNC = re.compile(r"always|os|interval:[1-9][0-9]{0,4}")
_SEED = re.compile(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[1-9][0-9]{0,4})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")


def _option(default: Value, about: str, **rule: Any) -> Any:
    return field(default=default, metadata={"rule": Rule(about=about, **rule)})


def _is_name(text: str) -> bool:
    return not text or _NAME.fullmatch(text) is not None


def _is_sync(text: str) -> bool:
    return _SYNC.fullmatch(text) is not None and int(text.partition(":")[2] or 1) <= 60_000


def _is_host(text: str) -> bool:
    return bool(text) and not any(c.isspace() or c == "/" for c in text)


def _is_seeds(text: str) -> bool:
    return not text or all(_SEED.fullmatch(part) for part in seeds_in(text))


def seeds_in(text: str) -> list[str]:
    """The entries of a seed list."""
    return [part.strip() for part in text.split(",")]


def _is_cluster_id(text: str) -> bool:
    return not text or _UUID.fullmatch(text) is not None


def _invalid(where: str, why: Unfit | Breach) -> errors.ConfigInvalid:
    return errors.ConfigInvalid(where=where, problem=why.problem, hint=why.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSection:
    """Who the node is and where its data lives."""

    name: str = _option(
        "",
        "The node's name in tables and logs. Empty: n and its number.",
        check=_is_name,
        allowed="letters, digits, dots, dashes and underscores, at most 63",
    )
    data_dir: str = _option(
        "./kv-data",
        "Directory of the log, the base store and the node's identity. One node each.",
        check=bool,
        allowed="a path",
    )
    cluster_id: str = _option(
        "",
        "Refuse to start on the data of any other cluster. Empty: whatever the directory belongs to; "
        "a new one gets a new id.",
        check=_is_cluster_id,
        allowed="a UUID, as `kv status` shows it",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSection:
    """Addresses and ports."""

    listen_host: str = _option(
        "127.0.0.1",
        "Address to bind. Any but loopback needs both tokens, or insecure = true. Links to other "
        "nodes leave from it too.",
        check=_is_host,
        allowed="an IP address or a host name, without port",
    )
    client_port: int = _option(7401, "Port for clients.", low=1, high=65_535)
    peer_port: int = _option(7501, "Port for other nodes.", low=1, high=65_535)
    advertise_host: str = _option(
        "",
        "What others are told to connect to. Empty: listen_host. auto: this machine's host name, as "
        "containers with one configuration want it.",
        check=lambda text: not text or _is_host(text),
        allowed="an IP address or a host name, without port",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSection:
    """What is fixed when a cluster is born; later starts read it from the data directory."""

    replicas: int = _option(
        limits.REPLICAS,
        "Copies of each key. More survives more, and writes cost more.",
        low=1,
        high=limits.REPLICAS_MAX,
    )
    partitions: int = _option(
        limits.PARTITIONS,
        "Equal runs the ring is cut into, a power of two; never changes.",
        low=1,
        high=limits.PARTITIONS_MAX,
    )
    zone: str = _option(
        "",
        "Where the node stands: rack, room, region. Copies go to distinct zones when there are any.",
        check=_is_name,
        allowed="letters, digits, dots, dashes and underscores, at most 63",
    )
    seeds: str = _option(
        "",
        "Where the other nodes of a new cluster are: host or host:client_port, separated by commas; one DNS "
        "name may have an address for each node. The same on every node, which may stand there itself. "
        "Empty: a new directory is a cluster of one node.",
        check=_is_seeds,
        allowed="host[:port],host[:port]...",
    )
    cluster_nodes: int = _option(
        0,
        "How many nodes found the cluster; none serves before all are there. 0: as many as seeds has "
        "entries.",
        low=0,
        high=limits.NODES_MAX,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSection:
    """The log, memory and the base store."""

    engine: str = _option(
        "lmdb",
        "Base store: lmdb, or memory, which forgets everything at a stop (caches and tests).",
        choices=("lmdb", "memory"),
    )
    sync: str = _option(
        "always",
        "When the log reaches the disk: always = before every answer; interval:<ms> = at least that "
        "often; os = when the operating system sees fit, so a power cut loses some.",
        check=_is_sync,
        allowed="always, os, or interval:<milliseconds from 1 to 60000>",
    )
    segment_bytes: int = _option(
        limits.SEGMENT_BYTES,
        "One file of the log, reserved ahead of use.",
        unit=Unit.BYTES,
        low=64 << 10,
        high=1 << 30,
    )
    memtable_bytes: int = _option(
        limits.MEMTABLE_BYTES,
        "Written bytes after which memory moves to the base store. Bounds memory, and replay at start.",
        unit=Unit.BYTES,
        low=64 << 10,
        high=1 << 32,
    )
    disk_reserve_ratio: float = _option(
        limits.DISK_RESERVE_RATIO,
        "Part of the disk kept free for repair, expiry and deletes: below it client writes are refused.",
        low=0.0,
        high=0.9,
    )
    disk_reserve_bytes_max: int = _option(
        limits.DISK_RESERVE_BYTES_MAX,
        "The reserve is never more than this.",
        unit=Unit.BYTES,
        low=0,
    )
    expiry_keys_per_tick: int = _option(
        limits.EXPIRY_KEYS_PER_TICK,
        "Expired keys reclaimed in one step, ten steps a second.",
        low=1,
        high=100_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSection:
    """What is refused instead of queued."""

    value_bytes_max: int = _option(
        limits.VALUE_BYTES_MAX,
        "Largest value. The same on every node.",
        unit=Unit.BYTES,
        low=1,
        high=limits.VALUE_BYTES_CEILING,
    )
    connections_max: int = _option(limits.CONNECTIONS_MAX, "Client connections.", low=1, high=1 << 20)
    in_flight_max: int = _option(
        limits.IN_FLIGHT_MAX, "Requests this node works on at a time.", low=1, high=1 << 24
    )
    timeout_ms: int = _option(
        limits.TIMEOUT_MS,
        "Deadline of a request that names none.",
        unit=Unit.MILLIS,
        low=1,
        high=limits.TIMEOUT_MS_MAX,
    )
    drift_ms_max: int = _option(
        limits.DRIFT_MS_MAX,
        "How far clocks may differ before writes are refused.",
        unit=Unit.MILLIS,
        low=10,
        high=60_000,
    )
    drain_ms: int = _option(
        5_000,
        "How long a stopping node waits for the requests it has begun.",
        unit=Unit.MILLIS,
        low=0,
        high=600_000,
    )
    read_repair_chance: float = _option(
        0.05,
        "Part of the reads at one after which the other replicas are compared and mended; at quorum "
        "and above every read does.",
        low=0.0,
        high=1.0,
    )
    unsafe_registers: bool = _option(
        False,
        "Take part in linearizable calls though acknowledgements here do not mean on disk: a crash may "
        "then undo what a register promised. For tests and caches.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuritySection:
    """Who may talk to the node."""

    client_token: str = _option(
        "",
        "Clients must show it. Better kept out of this file: client_token_file, or KV_CLIENT_TOKEN_FILE.",
        secret=True,
    )
    peer_token: str = _option(
        "",
        "Other nodes must show it; the same on every node. peer_token_file, or KV_PEER_TOKEN_FILE.",
        secret=True,
    )
    insecure: bool = _option(
        False,
        "Allow addresses that others can reach without tokens, for networks you trust to the last machine.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSection:
    """What the node tells."""

    log_format: str = _option(
        "auto", "auto = for people on a terminal, JSON elsewhere.", choices=("auto", "console", "json")
    )
    log_level: str = _option(
        "info", "The least that is logged.", choices=("debug", "info", "warning", "error")
    )


def kind_of(of: Field[Any]) -> type[Value]:
    """The type of an option, which is that of its default."""
    assert of.default is not MISSING
    return type(of.default)


Section = (
    NodeSection
    | ListenSection
    | ClusterSection
    | StorageSection
    | LimitsSection
    | SecuritySection
    | LogSection
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """A node's whole configuration, checked. Made by `load`, or in code from sections."""

    node: NodeSection = NodeSection()
    listen: ListenSection = ListenSection()
    cluster: ClusterSection = ClusterSection()
    storage: StorageSection = StorageSection()
    limits: LimitsSection = LimitsSection()
    security: SecuritySection = SecuritySection()
    log: LogSection = LogSection()

    def __post_init__(self) -> None:
        for section in self.sections().values():
            for each in fields(section):
                try:
                    from_typed(getattr(section, each.name), kind_of(each), each.metadata["rule"])
                except Unfit as unfit:
                    raise _invalid(each.name, unfit) from None
        for breach in broken(self.flat()):
            raise _invalid(breach.option, breach)

    def sections(self) -> dict[str, Section]:
        """Sections by name, in order."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def flat(self) -> dict[str, Value]:
        """Every option by its name, in order."""
        return {
            each.name: getattr(section, each.name)
            for section in self.sections().values()
            for each in fields(section)
        }

    @property
    def advertised(self) -> str:
        """The host that others are told to connect to."""
        return self.listen.advertise_host or self.listen.listen_host

    def node_options(self) -> NodeOptions:
        """What the node needs of all this."""
        names = {each.name for each in fields(NodeOptions)}
        return NodeOptions(**{name: value for name, value in self.flat().items() if name in names})  # type: ignore[arg-type]

    def store_options(self) -> StoreOptions:
        """What the store needs of all this."""
        names = {each.name for each in fields(StoreOptions)}
        return StoreOptions(**{name: value for name, value in self.flat().items() if name in names})  # type: ignore[arg-type]
