"""A store against a dict, with jobs that run when they like, crashes that tear, and restarts.

The dict's rule is one line: the newer record wins. After a crash the store must hold all that was
acknowledged; what was staged and not acknowledged may be there or not, but only in the order of groups.
"""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_rig import NOW, StoreRig, contents, skey, tombstone, value

from kvstore import errors
from kvstore.core import record as records
from kvstore.storage import flush, group
from kvstore.types import Applied

KEYS = [skey(f"k{n}", partition=n % 3) for n in range(6)]
State = dict[bytes, bytes]


class StoreMachine(RuleBasedStateMachine):
    """Rules are what a node does to its store, and what the world does to the node."""

    @initialize(
        sync=st.sampled_from(["always", "always", "interval:100", "os"]),
        memtable_bytes=st.sampled_from([1, 150, 600, 1 << 20]),
        segment_bytes=st.sampled_from([4_096, 8_192]),
        group_bytes=st.sampled_from([300, 1 << 20]),
    )
    def start(self, sync: str, memtable_bytes: int, segment_bytes: int, group_bytes: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(flush, "STEP_RECORDS", 1)
        self.patch.setattr(flush, "SLICE_PAGES", 2)
        self.patch.setattr(flush, "PAGE_RECORDS_MAX", 1)
        self.patch.setattr(group, "GROUP_BYTES_MAX", group_bytes)
        self.counts_are_exact = group_bytes > 300
        """A crash between the parts of one large group leaves them off by the part that is missing."""
        self.options: dict[str, Any] = {
            "sync": sync,
            "memtable_bytes": memtable_bytes,
            "segment_bytes": segment_bytes,
        }
        self.rig = StoreRig()
        self.store = self.rig.open(**self.options)
        self.staged: State = {}
        """Everything applied since the start of this process, over what was there."""
        self.acknowledged: State = {}
        """As it was when the newest acknowledged commit was asked for."""
        self.synced: State = {}
        """The same for commits that asked for a sync."""
        self.ceiling = 0
        self.now = NOW
        self.made: dict[tuple[bytes, int], bytes] = {}
        """Records by key and version: a version names one record for ever."""

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.store.abandon()
            self.patch.undo()

    # --- the node -----------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        version=st.integers(1, 12),
        alive=st.booleans(),
        size=st.integers(0, 80),
        ttl=st.sampled_from([0, 0, 5, 50]),
    )
    def apply(self, key: bytes, version: int, alive: bool, size: int, ttl: int) -> None:
        expires = self.now + ttl if ttl else 0
        record = value(version, bytes([size]) * size, expires_ms=expires) if alive else tombstone(version)
        record = self.made.setdefault((key, version), record)
        held = self.staged.get(key)
        applied = self.store.apply(key, record, self.now)
        if records.is_newer(record, held):
            assert applied in (Applied.APPLIED, Applied.REPLACED)
            self.staged[key] = record
        else:
            assert applied in (Applied.SUPERSEDED, Applied.DUPLICATE)

    @rule(sync=st.booleans())
    def commit(self, sync: bool) -> None:
        then = dict(self.staged)

        def done(error: BaseException | None) -> None:
            assert error is None
            assert self._covers(contents(self.store), then), "acknowledged and not visible"
            self.acknowledged = then
            if sync or self.options["sync"] == "always":
                self.synced = then

        self.store.commit(done, sync=sync)

    @rule(by=st.integers(1, 50))
    def ceiling_rises(self, by: int) -> None:
        self.ceiling += by
        self.store.stage_ceiling(self.ceiling)

    @rule(later=st.integers(0, 40))
    def tick(self, later: int) -> None:
        self.now += later
        before = dict(self.staged)
        reclaimed = self.store.tick(self.now)
        changed = 0
        for record in before.values():
            if records.is_expired(record, self.now) and record[16] != 2:
                # Which of the due ones it took is its own business; a later read shows it.
                changed += 1
        assert reclaimed <= changed

    # --- the world ----------------------------------------------------------------------

    @rule(jobs=st.integers(1, 4))
    def log_worker_runs(self, jobs: int) -> None:
        for _ in range(jobs):
            self.rig.worker.step()

    @rule(jobs=st.integers(1, 8))
    def flush_worker_runs(self, jobs: int) -> None:
        for _ in range(jobs):
            self.rig.flusher.step()

    @rule(seed=st.integers(0, 1 << 30))
    def power_cut(self, seed: int) -> None:
        dice = random.Random(seed)
        disk = self.rig.disk.crash(dice)
        kept = self.synced
        self._restart(StoreRig(disk, deepcopy(self.rig.backing)), kept)

    @rule()
    def process_dies(self) -> None:
        """As after kill -9: the operating system still writes what it was given."""
        self._restart(StoreRig(self.rig.disk.copy(), deepcopy(self.rig.backing)), self.acknowledged)

    @rule()
    def stop_in_order(self) -> None:
        self.store.close()
        self._restart(StoreRig(self.rig.disk.crash(), deepcopy(self.rig.backing)), self.staged)
        assert self.store.ceiling == self.ceiling
        assert self.store.stats().recovered_records == 0

    @rule()
    def opened_twice(self) -> None:
        with pytest.raises(errors.DataDirInUse):
            StoreRig(self.rig.disk, deepcopy(self.rig.backing)).open()

    def _restart(self, rig: StoreRig, kept: State) -> None:
        self.rig = rig
        self.store = rig.open(**self.options)
        found = contents(self.store)
        assert self._covers(found, kept), "an acknowledged write is gone"
        for key, record in found.items():
            assert not records.is_newer(record, self.staged.get(key)), "a record that nobody wrote"
        stats = self.store.stats()
        dead = sum(record[16] == 2 for record in found.values())
        if self.counts_are_exact:
            assert (stats.keys, stats.tombstones) == (len(found) - dead, dead)
        assert self.store.ceiling <= self.ceiling
        assert self.store.highest_version >= max((records.version_of(r) for r in found.values()), default=0)
        self.ceiling = self.store.ceiling
        self.staged, self.acknowledged, self.synced = dict(found), dict(found), dict(found)

    @staticmethod
    def _covers(found: State, expected: State) -> bool:
        """Whether each expected record, its reclaimed tombstone, or something newer is there."""
        return all(
            key in found and not records.is_newer(record, found[key]) for key, record in expected.items()
        )

    # --- always -------------------------------------------------------------------------

    @invariant()
    def readers_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        page = contents(self.store)
        assert {key: self.store.get(key) for key in page} == page
        assert all(self.store.get(key) is None for key in KEYS if key not in page)
        for key, record in page.items():
            assert not records.is_newer(record, self.staged[key])

    @precondition(lambda self: self.store.failed is not None)
    @rule()
    def never_fails(self) -> None:
        raise AssertionError(self.store.failed)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=40)
