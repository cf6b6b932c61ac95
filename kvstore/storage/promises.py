"""Promises of acceptors: where they are kept, beside the records and in the same log and base store.

    key   := the record's storage key with the first bit set
    entry := a record header of kind 127: version = the ballot promised; revision 1: it is over

A promise is over once a record of at least its ballot is held; that says everything it said. So only
live ones are kept in memory, and only those that were live at the flush are in the base store.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstore.core import record as records
from kvstore.storage.engine import Engine
from kvstore.storage.group import Group
from kvstore.storage.memtable import Memtable
from kvstore.storage.reserve import Reserve
from kvstore.types import Version

KIND = 127
"""Not among `types.Kind`: it is no record of a key, and no peer may send one."""
FIRST = b"\x80"
"""Partitions end below 2**14, so no record's key begins with this bit."""
_STOP = b"\xff\xff\xff"
_PAGE = 4_096


def key_of(skey: bytes) -> bytes:
    """Where a key's promise is kept."""
    return bytes((skey[0] | 0x80,)) + skey[1:]


def entry(ballot: int, *, over: bool = False) -> bytes:
    """What is kept there."""
    return records.encode(Version(ballot), 0, KIND, b"", revision=int(over))


def is_over(key: bytes, record: bytes) -> bool:
    """Whether this entry only says that a promise is over."""
    return key >= FIRST and records.revision_of(record) != 0


def load(engine: Engine, table: Memtable) -> dict[bytes, int]:
    """All live promises by storage key. Blocks; at start."""
    found: dict[bytes, bytes] = {}
    start, more = FIRST, True
    while more:
        page, more = engine.scan(start, _STOP, limit=_PAGE, bytes_max=1 << 20)
        found.update(page)
        start = page[-1][0] + b"\0" if page else _STOP
    for prefix, shard in table.shards.items():
        if prefix >= FIRST:
            found.update(shard)
    return {
        bytes((key[0] & 0x7F,)) + key[1:]: int(records.version_of(record))
        for key, record in found.items()
        if not is_over(key, record)
    }


class Promises:
    """What an acceptor knows of its keys: everything that is durable or on its way."""

    __slots__ = ("_get", "_group", "_reserve", "live")

    def __init__(
        self,
        live: dict[bytes, int],
        *,
        group: Group,
        reserve: Reserve,
        get: Callable[[bytes], bytes | None],
    ) -> None:
        self._group = group
        self._reserve = reserve
        self._get = get
        self.live = live
        """Ballots by storage key."""

    @property
    def is_full(self) -> bool:
        """Whether the disk is too full for clients' writes."""
        return self._reserve.full

    def latest(self, skey: bytes) -> bytes | None:
        """The record under a key, durable or on its way. Raises DamagedRecord."""
        group = self._group
        return group.staged.get(skey) or group.flying.get(skey) or self._get(skey)

    def promised(self, skey: bytes) -> int:
        """The ballot promised for a key; 0 when no promise is live."""
        return self.live.get(skey, 0)

    def promise(self, skey: bytes, ballot: int) -> None:
        """Stage a promise; it is given once a later `commit` of the store with `sync` says so."""
        self.live[skey] = ballot
        self._stage(skey, entry(ballot))

    def kept_by(self, skey: bytes, record: bytes) -> None:
        """A strong record was staged: one that says as much as a promise ends it."""
        ballot = self.live.get(skey)
        if ballot is not None and records.version_of(record) >= ballot:
            del self.live[skey]
            self._stage(skey, entry(ballot, over=True))

    def _stage(self, skey: bytes, what: bytes) -> None:
        """Last of all: a group that is cut in two must not tell of the end without what ended it."""
        group, key = self._group, key_of(skey)
        group.staged.pop(key, None)
        group.staged[key] = what
        group.staged_bytes += len(key) + len(what)
        group.highest = max(group.highest, what[:8])
