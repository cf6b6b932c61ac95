"""One node's copy of the partitions it owns: takes records, answers when they are durable.

Rules kept here:
- an answer to a write leaves only after the log batch that holds it is as durable as promised;
- a record whose version runs ahead of our clock by more than the allowed drift is refused and
  counted: one bad clock must not poison the cluster (DESIGN 3);
- only partitions that our topology gives us are taken;
- all that arrives in one loop turn becomes one log batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvstore import errors, limits
from kvstore.core import record as records
from kvstore.core import version as versions
from kvstore.core.topology import Topology
from kvstore.core.version import HybridClock
from kvstore.core.witness import Told
from kvstore.node.metrics import Counters
from kvstore.node.turn import Turn
from kvstore.storage.store import Store
from kvstore.types import Applied, Durability, NodeId, Version

_REFUSED = int(Applied.REFUSED)
_NOT_OWNER = int(Applied.NOT_OWNER)
_FAILED = int(Applied.FAILED)
_KINDS = 3

OnDurable = Callable[[BaseException | None], None]


class Answering(Protocol):
    """An operation that counts this replica's answer."""

    def answer(self, node: NodeId, applied: int, durability: int) -> None:
        """Take the answer of `node`: an `Applied` and a `Durability`."""
        ...


class _StoredBatch:
    """What a peer sent, stored, and to be answered. No nested function: compiled, that refers to itself."""

    __slots__ = ("_done", "_level", "_statuses")

    def __init__(self, done: Callable[[int, bytes], None], level: int, statuses: bytes) -> None:
        self._done = done
        self._level = level
        self._statuses = statuses

    def durable(self, failure: BaseException | None) -> None:
        """Answer."""
        if failure is None:
            self._done(self._level, self._statuses)
        else:
            self._done(int(Durability.MEMORY), bytes([_FAILED]) * len(self._statuses))


class Replica:
    """The store, guarded by clock and ownership, with its commits gathered by loop turn."""

    __slots__ = (
        "_clock",
        "_counters",
        "_durable",
        "_durable_synced",
        "_life",
        "_local",
        "_local_synced",
        "_marked",
        "_number",
        "_owned",
        "_store",
        "_synced",
        "_turn",
        "durability",
    )  # fmt: skip

    def __init__(
        self,
        *,
        number: NodeId,
        store: Store,
        clock: HybridClock,
        turn: Turn,
        counters: Counters,
        durability: Durability,
        life: int,
    ) -> None:
        self._number = number
        self._life = life
        self._store = store
        self._clock = clock
        self._turn = turn
        self._counters = counters
        self._owned: frozenset[bytes] = frozenset()
        self._durable: list[OnDurable] = []
        self._durable_synced: list[OnDurable] = []
        self._local: list[tuple[Answering, int]] = []
        self._local_synced: list[tuple[Answering, int]] = []
        self._marked = False
        self._synced = int(Durability.MEMORY if durability is Durability.MEMORY else Durability.ALWAYS)
        self.durability = durability
        """What an answer means for the disk when the caller asks for nothing more."""

    def adopt(self, topology: Topology) -> None:
        """Own what this topology gives us."""
        self._owned = frozenset(
            partition.to_bytes(2, "big")
            for partition, owners in enumerate(topology.owners)
            if self._number in owners
        )

    # --- writing ------------------------------------------------------------------------

    def write_local(
        self,
        skey: bytes,
        record: bytes,
        operation: Answering,
        *,
        now_ms: int,
        sync: bool,
        repair: bool = False,
    ) -> None:
        """Store a record of an operation that this node coordinates; it is told when durable.

        A repair brings what somebody else made: it may run ahead of our clock as what a peer sends may.
        """
        if repair and record[:8] > self._ahead(now_ms):
            self._counters.future_versions += 1
            applied = _REFUSED
        else:
            try:
                applied = self._store.apply(skey, record, now_ms, repair=repair)
            except errors.DamagedRecord:
                # Not raised: other replicas are asked too, and so the operation ends by itself.
                self._counters.damaged_records += 1
                applied = _FAILED
        (self._local_synced if sync else self._local).append((operation, applied))
        self._mark()

    def write_batch(
        self,
        flat: Sequence[bytes],
        *,
        now_ms: int,
        sync: bool,
        repair: bool,
        done: Callable[[int, bytes], None],
    ) -> None:
        """Store what a peer sends, `[skey, record, ...]`; `done(durability, statuses)` when durable.

        `repair` says that other replicas already hold the records: a full disk does not refuse them.
        """
        statuses = bytearray()
        apply, owned = self._store.apply, self._owned
        ahead = self._ahead(now_ms)
        highest = b""
        for at in range(0, len(flat), 2):
            skey, record = flat[at], flat[at + 1]
            if skey[:2] not in owned:
                statuses.append(_NOT_OWNER)
            elif (
                len(record) < records.HEADER_BYTES
                or not 0 < record[16] <= _KINDS
                or (record[17] and not records.is_well_formed(record))
            ):
                statuses.append(_REFUSED)
            elif record[:8] > ahead:
                self._counters.future_versions += 1
                statuses.append(_REFUSED)
            else:
                highest = max(highest, record[:8])
                statuses.append(apply(skey, record, now_ms, repair=repair))
        if highest:
            self._clock.observe(Version(int.from_bytes(highest, "big")), now_ms)
        level = self._synced if sync else int(self.durability)
        self.when_durable(_StoredBatch(done, level, bytes(statuses)).durable, sync=sync)

    def _ahead(self, now_ms: int) -> bytes:
        """The first eight bytes of the newest record that may come from somebody else."""
        return versions.pack(now_ms + self._clock.drift_ms_max, 0, NodeId(0)).to_bytes(8, "big")

    def when_durable(self, done: OnDurable, *, sync: bool = False) -> None:
        """Call `done` once everything applied so far is durable."""
        (self._durable_synced if sync else self._durable).append(done)
        self._mark()

    def _mark(self) -> None:
        if not self._marked:
            self._marked = True
            self._turn.mark(self._commit)

    def _commit(self) -> None:
        """End of the turn: everything applied in it goes out as one log batch."""
        self._marked = False
        if self._local or self._durable:
            self._commit_one(self._local, self._durable, int(self.durability), sync=False)
            self._local, self._durable = [], []
        if self._local_synced or self._durable_synced:
            self._commit_one(self._local_synced, self._durable_synced, self._synced, sync=True)
            self._local_synced, self._durable_synced = [], []

    def _commit_one(
        self, local: list[tuple[Answering, int]], durable: list[OnDurable], level: int, *, sync: bool
    ) -> None:
        number = self._number

        def committed(failure: BaseException | None) -> None:
            for operation, applied in local:
                operation.answer(number, applied if failure is None else _FAILED, level)
            for done in durable:
                done(failure)

        self._store.commit(committed, sync=sync)

    # --- reading ------------------------------------------------------------------------

    def read(self, skey: bytes) -> bytes | None:
        """The durable record, tombstones and expired ones included."""
        return self._store.get(skey)

    def read_batch(self, skeys: Sequence[bytes]) -> list[bytes | None]:
        """What a peer asks for, as much from the front as fits in an answer.

        Keys we do not own answer like keys we do not have.
        """
        get = self._store.get
        found: list[bytes | None] = []
        room = limits.ANSWER_BYTES_MAX
        for skey in skeys:
            record = get(skey)
            found.append(record)
            if record is not None:
                room -= len(record)
                if room < 0:
                    break
        return found

    def told(self) -> Told | None:
        """What peers may hold us to, for it is on our disk; None when nothing is."""
        return None if self.durability is Durability.MEMORY else Told(self._life, int(self._store.ceiling))

    def owns(self, skey: bytes) -> bool:
        """Whether the key's partition is ours."""
        return skey[:2] in self._owned
