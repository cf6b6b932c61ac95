"""One contract for every base store, run against each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_rig import NOW, skey, tombstone, value

from kvstore.storage.engine import Engine, Full, Grow, Mark, expiry_key, split_expiry_key
from kvstore.storage.lmdb_engine import LmdbEngine
from kvstore.storage.memory_engine import Backing, MemoryEngine

Reopen = Callable[[], Engine]
Pairs = list[tuple[bytes, bytes]]
ENGINES = ["lmdb", "memory"]
MARK = Mark(position=7, segment=2, highest_version=9, ceiling=11, keys=3, tombstones=1, owner=b"o" * 18)


class Kept:
    """Where an engine's data is, and the engine that has it open."""

    def __init__(self, kind: str, path: Path) -> None:
        self._kind = kind
        self._path = path
        self._backing = Backing()
        self.engine = self._made()

    def _made(self) -> Engine:
        made: Engine = (
            LmdbEngine(str(self._path), map_bytes=1 << 20)
            if self._kind == "lmdb"
            else MemoryEngine(self._backing)
        )
        made.open()
        return made

    def reopened(self) -> Engine:
        """As the next process finds it."""
        self.engine.close()
        self.engine = self._made()
        return self.engine


@pytest.fixture(params=ENGINES)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    made = Kept(request.param, tmp_path)
    yield made
    made.engine.close()


def put(engine: Engine, pairs: Pairs, mark: Mark | None = None, retire: list[bytes] | None = None) -> None:
    """One slice, all of it."""
    engine.begin()
    if retire:
        engine.retire(retire)
    engine.put(sorted(pairs))
    engine.seal(mark)()
    engine.adopt()


def everything(engine: Engine) -> Pairs:
    page, more = engine.scan(b"", b"\xff" * 8, limit=1 << 30, bytes_max=1 << 40)
    assert not more
    return page


def test_a_slice_is_there_after_it_was_adopted_and_after_a_reopen(kept: Kept) -> None:
    put(kept.engine, [(skey("a"), value(1)), (skey("b"), tombstone(2))], MARK)
    for reopen in (False, True):
        engine = kept.reopened() if reopen else kept.engine
        assert engine.get(skey("a")) == value(1)
        assert engine.get(skey("b")) == tombstone(2)
        assert engine.get(skey("c")) is None
        assert engine.mark() == MARK
        assert engine.leaves() in {1, 2}, "one page, or one for each"


def test_a_new_store_is_empty(kept: Kept) -> None:
    assert kept.engine.mark() == Mark()
    assert kept.engine.get(skey("a")) is None
    assert everything(kept.engine) == []
    assert kept.engine.first_due(b"") is None
    assert (kept.engine.leaves(), kept.engine.expiring()) == (0, 0)
    assert kept.engine.size_bytes() >= 0


def test_a_slice_that_was_not_made_durable_is_absent_as_a_whole(kept: Kept) -> None:
    put(kept.engine, [(skey("a"), value(1))], Mark(position=1))
    kept.engine.begin()
    kept.engine.put([(skey("a"), value(2)), (skey("b"), value(3, expires_ms=NOW))])
    kept.engine.seal(MARK)
    engine = kept.reopened()
    assert everything(engine) == [(skey("a"), value(1))]
    assert engine.mark() == Mark(position=1)
    assert engine.expiring() == 0


def test_an_aborted_slice_leaves_nothing_and_another_may_follow(kept: Kept) -> None:
    kept.engine.begin()
    kept.engine.put([(skey("a"), value(1))])
    kept.engine.abort()
    kept.engine.abort()
    put(kept.engine, [(skey("b"), value(2))])
    assert everything(kept.engine) == [(skey("b"), value(2))]


def test_closing_in_the_middle_of_a_slice_drops_it(kept: Kept) -> None:
    kept.engine.begin()
    kept.engine.put([(skey("a"), value(1))])
    assert everything(kept.reopened()) == []
    kept.engine.close()
    kept.engine.close()


def test_a_mark_comes_and_stays_with_its_slice(kept: Kept) -> None:
    put(kept.engine, [(skey("a"), value(1))], MARK)
    put(kept.engine, [(skey("b"), value(1))])
    assert kept.engine.mark() == MARK
    put(kept.engine, [], Mark(position=8))
    assert kept.reopened().mark() == Mark(position=8)


def test_growing_loses_nothing(kept: Kept) -> None:
    put(kept.engine, [(skey("a"), value(1))], MARK)
    kept.engine.grow()
    put(kept.engine, [(skey("b"), value(2))])
    assert everything(kept.reopened()) == [(skey("a"), value(1)), (skey("b"), value(2))]
    assert kept.engine.mark() == MARK


# --- expiry -------------------------------------------------------------------------------


def test_the_expiry_index_has_live_records_with_an_expiry_in_order_of_time(kept: Kept) -> None:
    ending = tombstone(1)[:8] + (NOW + 5).to_bytes(8, "big") + tombstone(1)[16:]
    put(
        kept.engine,
        [
            (skey("a"), value(1, expires_ms=NOW + 9)),
            (skey("b"), value(1)),
            (skey("c"), value(1, expires_ms=NOW + 1)),
            (skey("d"), ending),
            (skey("e"), value(1, expires_ms=NOW + 1)),
        ],
    )
    keys = [
        expiry_key((NOW + ms).to_bytes(8, "big"), skey(name)) for ms, name in ((1, "c"), (1, "e"), (9, "a"))
    ]
    assert kept.engine.expiring() == 3
    assert kept.engine.due(b"", NOW + 9, 100) == keys
    assert kept.engine.due(b"", NOW + 8, 100) == keys[:2]
    assert kept.engine.due(b"", NOW, 100) == []
    assert kept.engine.due(b"", NOW + 9, 1) == keys[:1]
    assert kept.engine.due(b"", NOW + 9, 0) == []
    assert kept.engine.due(keys[0], NOW + 9, 100) == keys[1:]
    assert kept.engine.first_due(b"") == keys[0]
    assert kept.engine.first_due(keys[1]) == keys[2]
    assert kept.engine.first_due(keys[2]) is None
    assert split_expiry_key(keys[2]) == ((NOW + 9).to_bytes(8, "big"), skey("a"))


def test_retired_expiry_keys_go_and_those_put_after_them_stay(kept: Kept) -> None:
    first = expiry_key((NOW + 1).to_bytes(8, "big"), skey("a"))
    put(kept.engine, [(skey("a"), value(1, expires_ms=NOW + 1))])
    put(kept.engine, [(skey("a"), value(2, expires_ms=NOW + 2))], retire=[first, b"\0" * 8 + b"never there"])
    assert kept.engine.due(b"", NOW + 9, 9) == [expiry_key((NOW + 2).to_bytes(8, "big"), skey("a"))]
    put(kept.engine, [(skey("a"), value(3, expires_ms=NOW + 1))], retire=[first])
    assert first in kept.engine.due(b"", NOW + 9, 9)


# --- scanning -----------------------------------------------------------------------------


def test_a_page_ends_at_its_limits_and_says_whether_there_is_more(kept: Kept) -> None:
    pairs = [(skey(f"k{n}"), value(1, b"x" * 100)) for n in range(9)]
    put(kept.engine, pairs)
    scan = kept.engine.scan
    assert scan(skey("k2"), skey("k5"), limit=99, bytes_max=9_999) == (pairs[2:5], False)
    assert scan(skey("k2"), skey("k5"), limit=3, bytes_max=9_999) == (pairs[2:5], False)
    assert scan(skey("k2"), skey("k5"), limit=2, bytes_max=9_999) == (pairs[2:4], True)
    assert scan(skey("k2"), skey("k9"), limit=99, bytes_max=139) == (pairs[2:4], True)
    assert scan(skey("k2"), skey("k9"), limit=99, bytes_max=1) == (pairs[2:3], True)
    assert scan(skey("z"), skey("zz"), limit=9, bytes_max=9_999) == ([], False)
    assert scan(skey("k5"), skey("k5"), limit=9, bytes_max=9_999) == ([], False)


KEYS = st.binary(min_size=3, max_size=5).map(lambda key: bytes(byte & 3 for byte in key))
STEPS = st.lists(st.dictionaries(KEYS, st.binary(max_size=40), max_size=12), max_size=6)


@pytest.mark.parametrize("kind", ENGINES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=STEPS, start=KEYS, stop=KEYS, limit=st.integers(1, 5), bytes_max=st.integers(1, 300))
def test_an_engine_is_a_sorted_dict(
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[dict[bytes, bytes]],
    start: bytes,
    stop: bytes,
    limit: int,
    bytes_max: int,
) -> None:
    kept = Kept(kind, tmp_path_factory.mktemp("base"))
    model: dict[bytes, bytes] = {}
    for version, step in enumerate(steps, 1):
        records = {key: value(version, payload) for key, payload in step.items()}
        put(kept.engine, list(records.items()))
        model |= records
    assert everything(kept.engine) == sorted(model.items())
    inside = [pair for pair in sorted(model.items()) if start <= pair[0] < stop]
    found: Pairs = []
    at, more = start, True
    while more:
        page, more = kept.engine.scan(at, stop, limit=limit, bytes_max=bytes_max)
        assert len(page) <= limit
        assert page or not more
        found += page
        at = page[-1][0] + b"\0" if page else at
    assert found == inside
    kept.engine.close()


def test_lmdb_says_when_its_map_is_full_and_goes_on_when_it_has_grown(tmp_path: Path) -> None:
    engine = LmdbEngine(str(tmp_path), map_bytes=64 << 10)
    engine.open()
    large = [(skey(f"k{n:04}"), value(1, b"x" * 500)) for n in range(1_000)]
    with pytest.raises(Grow):
        put(engine, large)
    grown = 0
    while True:
        engine.abort()
        engine.grow()
        grown += 1
        try:
            put(engine, large)
        except Grow:
            continue
        break
    assert grown > 2
    assert everything(engine) == large
    engine.close()


def test_lmdb_can_grow_when_its_map_is_full_at_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LmdbEngine(str(tmp_path), map_bytes=1 << 20)
    engine.open()
    engine.begin()
    engine.put([(skey("a"), value(1))])
    with monkeypatch.context() as patch:
        patch.setattr("kvstore.storage.lmdb_engine._encode_mark", lambda _mark: b"m" * (2 << 20))
        with pytest.raises(Grow) as caught:
            engine.seal(MARK)
    engine.abort()
    engine.grow()
    del caught  # as in a flush, what was raised was still at hand when the map grew
    engine.begin()
    engine.put([(skey("a"), value(2))])
    engine.seal(MARK)()
    engine.adopt()
    assert engine.get(skey("a")) == value(2)
    assert engine.mark() == MARK
    engine.close()


def test_a_reader_keeps_its_snapshot_until_it_adopts_the_next(kept: Kept) -> None:
    """LMDB runs without its reader table here, so pages a reader needs must not be used again."""
    names = [skey(f"k{n:03}") for n in range(300)]
    put(kept.engine, [(name, value(1, b"x" * 200)) for name in names])
    for version in range(2, 12):
        kept.engine.begin()
        kept.engine.put([(name, value(version, b"x" * 200)) for name in names])
        before = [kept.engine.get(name) for name in names]
        job = kept.engine.seal(None)
        assert before == [value(version - 1, b"x" * 200)] * 300
        if isinstance(kept.engine, LmdbEngine):
            job()
            assert [kept.engine.get(name) for name in names] == before
            assert everything(kept.engine) == list(zip(names, before, strict=True))
        else:
            job()
        kept.engine.adopt()
        assert [kept.engine.get(name) for name in names] == [value(version, b"x" * 200)] * 300


def test_lmdb_says_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LmdbEngine(str(tmp_path))
    engine.open()

    def full() -> None:
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    engine.begin()
    engine.put([(skey("a"), value(1))])
    monkeypatch.setattr(engine, "_writer", SimpleNamespace(commit=full, abort=engine._writer.abort))
    with pytest.raises(Full, match="No space"):
        engine.seal(None)()
    engine.close()
