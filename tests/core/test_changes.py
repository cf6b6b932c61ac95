"""Changes as pure functions: what each does, what is remembered, and what is not done twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core import changes, window
from kvstore.core import record as records
from kvstore.core.changes import BAD_TYPE, TOO_OLD, Request, fold
from kvstore.core.window import APPLIED, BYTES_MAX, CANCELLED, ENTRIES_MAX, EXISTED, Outcome, Window
from kvstore.types import Kind, OperationId, Version

NOW = 1_800_000_000_000


def op(number: int, at_ms: int = NOW) -> OperationId:
    return OperationId(at_ms.to_bytes(6, "big") + number.to_bytes(10, "big"))


class Register:
    """A register as rounds would leave it."""

    def __init__(self) -> None:
        self.record: bytes | None = None
        self.version = 100
        self.count = 0

    def do(
        self, name: str, *args: Any, known: int | None = None, first: bool = True, now: int = NOW
    ) -> Outcome:
        self.count += 1
        number = self.count if known is None else known
        return self.fold([Request(op(number), first, name, args)], now=now)[0]

    def fold(self, requests: list[Request], now: int = NOW) -> list[Outcome]:
        versions = [Version(self.version + n + 1) for n in range(len(requests))]
        self.version += len(requests)
        self.record, outcomes = fold(
            self.record, requests, ballot=versions[-1], versions=versions, now_ms=now
        )
        assert records.is_well_formed(self.record)
        assert records.version_of(self.record) == versions[-1]
        return outcomes

    @property
    def value(self) -> bytes | None:
        """What a reader sees."""
        assert self.record is not None
        alive = records.kind_of(self.record) == Kind.VALUE
        return records.payload_of(self.record) if alive else None


def test_what_each_change_does() -> None:
    register = Register()
    assert register.do("get") == Outcome(APPLIED, Version(0))
    first = register.do("put", b"a", 0)
    assert first.applied
    assert not first.flags & EXISTED
    assert register.value == b"a"
    assert register.do("get") == Outcome(APPLIED | EXISTED, first.version, b"a")
    lost = register.do("cas_version", 1, b"b", 0)
    assert not lost.applied
    assert (lost.value, lost.version) == (b"a", first.version)
    won = register.do("cas_version", int(first.version), b"b", 0)
    assert won.applied
    assert won.version > first.version
    assert not register.do("cas_value", b"a", b"c", 0).applied
    assert register.do("cas_value", b"b", b"c", 0).applied
    assert register.do("get_and_set", b"d", 0).value == b"c"
    assert not register.do("cas_value", None, b"e", 0).applied
    assert register.do("delete").flags == APPLIED | EXISTED
    assert register.do("delete").flags == APPLIED
    assert register.do("cas_version", 0, b"f", 0).applied
    assert register.do("cas_value", b"f", None, 0).applied
    assert register.value is None


def test_a_version_never_restarts_after_a_delete() -> None:
    register = Register()
    before = register.do("put", b"a", 0).version
    register.do("delete")
    assert register.do("put", b"a", 0).version > before


def test_an_identity_keeps_the_version_readers_see() -> None:
    register = Register()
    version = register.do("put", b"a", 0).version
    for _ in range(3):
        assert register.do("get").version == version
    assert register.record is not None
    assert records.version_of(register.record) > version
    assert records.shown_version_of(register.record) == version


def test_increments_and_their_bounds() -> None:
    register = Register()
    assert register.do("incr", 5, 10, None, None, 0).value == b"15"
    assert not register.do("incr", -20, 0, 0, None, 0).applied
    assert register.do("incr", -15, 0, 0, None, 0).value == b"0"
    assert not register.do("incr", 1, 0, None, 0, 0).applied
    register.do("put", str((1 << 63) - 1).encode(), 0)
    assert not register.do("incr", 1, 0, None, None, 0).applied
    register.do("put", b"many", 0)
    wrong = register.do("incr", 1, 0, None, None, 0)
    assert wrong.flags & BAD_TYPE
    assert not wrong.applied
    assert register.value == b"many"


def test_a_number_that_begins_gets_the_expiry_and_keeps_it() -> None:
    register = Register()
    assert register.do("incr", 1, 0, None, None, NOW + 50).expires_ms == NOW + 50
    assert register.do("incr", 1, 0, None, None, NOW + 900).expires_ms == NOW + 50
    assert register.do("incr", 1, 0, None, None, NOW + 900, now=NOW + 60).value == b"1"


def test_a_number_of_a_period_begins_again_with_a_later_one_and_not_with_an_earlier_one() -> None:
    register = Register()
    assert register.do("incr_in", 7, 2, 0, None, 3, NOW + 50).value == b"2"
    assert register.value == b"7:2"
    full = register.do("incr_in", 7, 2, 0, None, 3, NOW + 90)
    assert (full.applied, full.value) == (False, b"2")
    last = register.do("incr_in", 7, 1, 0, None, 3, NOW + 90)
    assert (last.value, last.expires_ms) == (b"3", NOW + 50), "it keeps the expiry it began with"
    later = register.do("incr_in", 8, 1, 5, None, None, NOW + 90)
    assert (later.value, later.expires_ms) == (b"6", NOW + 90)
    over = register.do("incr_in", 7, 1, 0, None, 3, NOW + 90)
    assert (over.applied, over.value) == (False, None)
    assert register.do("incr_in", 8, 1, 0, None, None, 0, now=NOW + 90).value == b"1", "it has expired"


@pytest.mark.parametrize("value", [b"7", b"", b"x:1", b"7:x", b"7:", b":7"])
def test_what_is_no_number_of_a_period_is_left_alone(value: bytes) -> None:
    register = Register()
    register.do("put", value, 0)
    wrong = register.do("incr_in", 7, 1, 0, None, None, 0)
    assert wrong.flags & BAD_TYPE
    assert not wrong.applied
    assert register.value == value


def test_an_expiry_is_judged_by_the_round_and_stays() -> None:
    register = Register()
    register.do("put", b"a", NOW + 100)
    assert register.do("get", now=NOW + 99).value == b"a"
    assert register.do("get", now=NOW + 100).value is None
    # A proposer whose clock is behind does not bring it back.
    assert register.do("get", now=NOW).value is None
    assert register.do("cas_value", None, b"b", 0, now=NOW).applied


def test_retiming_keeps_the_version() -> None:
    register = Register()
    version = int(register.do("put", b"a", 0).version)
    assert not register.do("retime", NOW + 9, version + 1).applied
    done = register.do("retime", NOW + 9, version)
    assert done.applied
    assert done.version == version
    assert done.expires_ms == NOW + 9
    assert register.do("retime", 0, 0).expires_ms == 0
    register.do("delete")
    assert not register.do("retime", NOW + 9, 0).applied


def test_changes_of_one_round_see_each_other_and_have_versions_of_their_own() -> None:
    register = Register()
    outcomes = register.fold([Request(op(n), True, "incr", (1, 0, None, None, 0)) for n in range(50)])
    assert [outcome.value for outcome in outcomes] == [str(n).encode() for n in range(1, 51)]
    assert len({outcome.version for outcome in outcomes}) == 50


def test_an_operation_is_done_once_within_a_round_and_over_rounds() -> None:
    register = Register()
    request = Request(op(7), True, "incr", (1, 0, None, None, 0))
    assert [each.value for each in register.fold([request, request])] == [b"1", b"1"]
    assert register.do("incr", 1, 0, None, None, 0, known=7, first=False).value == b"1"
    assert register.value == b"1"


def test_a_retry_that_lost_is_remembered_without_what_it_saw() -> None:
    register = Register()
    register.do("put", b"a", 0, known=1)
    lost = register.do("cas_value", b"x", b"y", 0, known=2, first=False)
    assert (lost.applied, lost.value) == (False, b"a")
    register.do("put", b"x", 0, known=3)
    again = register.do("cas_value", b"x", b"y", 0, known=2, first=False)
    assert not again.applied
    assert again.value is None
    assert register.value == b"x"


def test_a_first_try_that_lost_may_win_when_it_is_tried_again() -> None:
    register = Register()
    assert not register.do("cas_value", b"x", b"y", 0, known=2).applied
    register.do("put", b"x", 0, known=3)
    assert register.do("cas_value", b"x", b"y", 0, known=2, first=False).applied


def test_who_is_older_than_the_window_is_not_done_unless_it_is_new() -> None:
    register = Register()
    register.do("put", b"a", 0, known=1)
    register.fold([Request(op(n, NOW + n), True, "incr", (1, 0, None, None, 0)) for n in range(10, 11)])
    for n in range(ENTRIES_MAX + 5):
        register.fold([Request(op(1_000 + n, NOW + n), True, "put", (b"%d" % n, 0))])
    assert register.do("put", b"late", 0, known=1, first=False).flags == TOO_OLD
    assert register.value == b"%d" % (ENTRIES_MAX + 4)
    assert register.do("put", b"new", 0, known=2, first=True).applied
    assert register.do("get", first=False).value == b"new"


def test_a_resolved_operation_is_never_applied_later() -> None:
    register = Register()
    assert register.do("resolve", known=9, first=False).flags == CANCELLED
    assert register.do("put", b"late", 0, known=9).flags == CANCELLED
    assert register.value is None
    done = register.do("put", b"a", 0, known=10)
    assert register.do("resolve", known=10, first=False) == done._replace(expires_ms=0)
    assert register.value == b"a"


def test_a_plain_record_is_adopted_with_the_operation_that_wrote_it() -> None:
    register = Register()
    register.record = records.encode(Version(5), 0, Kind.VALUE, b"plain", operation=op(1))
    assert register.do("get_and_set", b"y", 0, known=2).value == b"plain"
    again = register.do("put", b"plain", 0, known=1, first=False)
    assert again.applied
    assert again.version == 5
    assert register.value == b"y"
    nameless = Register()
    nameless.record = records.encode(Version(5), 0, Kind.TOMBSTONE, b"")
    assert nameless.do("get") == Outcome(APPLIED, Version(5))


def test_an_expired_strong_record_keeps_its_window() -> None:
    register = Register()
    register.do("put", b"a", NOW + 5, known=1)
    assert register.record is not None
    register.record = records.reclaim(register.record)
    assert records.payload_of(register.record) == b""
    assert records.is_well_formed(register.record)
    assert register.do("put", b"a", 0, known=1, first=False, now=NOW + 9).applied
    assert register.value is None


# --- the window -------------------------------------------------------------------------

OUTCOMES = st.builds(
    Outcome,
    st.sampled_from([APPLIED, APPLIED | EXISTED, 0, CANCELLED]),
    st.integers(0, (1 << 64) - 1).map(Version),
    st.none() | st.binary(max_size=30),
    st.just(0),
)
ENTRIES = st.lists(st.tuples(st.binary(min_size=16, max_size=16).map(OperationId), OUTCOMES), max_size=8)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 48), ENTRIES, st.binary(max_size=40))
def test_a_window_comes_out_as_it_went_in(
    changed: int, dropped: int, entries: list[tuple[OperationId, Outcome]], value: bytes
) -> None:
    held = Window(dropped).adding(entries)
    assert held.entries == tuple(entries)
    payload = window.encode(changed, held, value)
    assert window.is_well_formed(payload, 0)
    assert window.decode(payload) == (changed, held, value)
    assert window.changed_of(payload) == changed
    assert payload[window.value_at(payload) :] == value
    assert window.decode(window.emptied(payload)) == (changed, held, b"")


@given(st.binary(max_size=60))
def test_bytes_that_are_no_window_are_told(payload: bytes) -> None:
    if window.is_well_formed(payload, 0):
        changed, found, value = window.decode(payload)
        assert len(window.encode(changed, found, value)) == len(payload)


def test_a_window_whose_lengths_do_not_add_up_is_told() -> None:
    payload = window.encode(1, Window().adding([(op(1), Outcome(APPLIED, Version(1), b"abc"))]), b"v")
    assert window.is_well_formed(payload, 0)
    for cut in range(len(payload) - 1):
        assert not window.is_well_formed(payload[:cut], 0)
    with pytest.raises(ValueError, match="add up"):
        window.decode(payload[:19] + b"\x7f" + payload[20:])
    with pytest.raises(ValueError, match="add up"):
        fold(
            records.encode(Version(1), 0, Kind.VALUE, b"\1", flags=records.FLAG_STRONG),
            [Request(op(1), True, "get", ())],
            ballot=Version(2),
            versions=[Version(2)],
            now_ms=NOW,
        )


@pytest.mark.parametrize("size", [3, 255, 256, 65_536])
@pytest.mark.parametrize("byte", range(4))
def test_each_byte_of_a_length_counts(size: int, byte: int) -> None:
    news = [(op(n), Outcome(APPLIED, Version(n), bytes(size))) for n in (1, 2)]
    payload = bytearray(window.encode(1, Window().adding(news), b"v"))
    assert window.is_well_formed(bytes(payload), 0)
    at = payload.index(size.to_bytes(4, "big"), window.HEAD_BYTES + 25)
    payload[at + byte] ^= 1
    assert not window.is_well_formed(bytes(payload), 0)


NEWS = st.tuples(st.binary(min_size=16, max_size=16).map(OperationId), OUTCOMES)


@given(st.sampled_from([0, 1, 120, ENTRIES_MAX]), ENTRIES, NEWS, st.binary(max_size=9))
def test_a_window_continues_the_one_before_it(
    older: int, entries: list[tuple[OperationId, Outcome]], newest: tuple[OperationId, Outcome], value: bytes
) -> None:
    before = Window().adding([(op(n), Outcome(0, Version(1), bytes(n % 3))) for n in range(older)] + entries)
    after = before.adding([newest])
    held = window.encode(1, before, b"some value")
    assert window.continues(b"head" + window.encode(2, after, value), b"HEAD" + held, 4)
    for number in range(0, len(after.raw), 7):
        assert not window.continues(window.encode(2, after, b"")[: window.HEAD_BYTES + number], held, 0)


@given(ENTRIES, ENTRIES, st.integers(0), st.integers(1, 255))
def test_what_continues_a_sound_window_is_sound(
    entries: list[tuple[OperationId, Outcome]],
    news: list[tuple[OperationId, Outcome]],
    place: int,
    bit: int,
) -> None:
    before = Window().adding(entries)
    damaged = bytearray(window.encode(2, before.adding(news), b"value"))
    damaged[place % len(damaged)] ^= bit
    if window.continues(bytes(damaged), window.encode(1, before, b""), 0):
        assert window.is_well_formed(bytes(damaged), 0)


def test_an_operation_that_stands_inside_a_value_is_not_found() -> None:
    held = Window().adding([(op(1), Outcome(APPLIED, Version(1), op(2))), (op(3), Outcome(0, Version(2)))])
    assert held.find(op(2)) is None
    assert held.find(op(1)) == Outcome(APPLIED, Version(1), op(2))
    again = held.adding([(op(1), Outcome(EXISTED, Version(9)))])
    assert again.find(op(1)) == Outcome(EXISTED, Version(9)), "the latest outcome counts"


@pytest.mark.parametrize("value", [None, b"abc"])
def test_lengths_inside_a_window_are_checked_when_somebody_looks(value: bytes | None) -> None:
    sound = Window().adding([(op(n), Outcome(APPLIED, Version(n), value)) for n in (1, 2)])
    at = sound.raw.index(op(2)) + 28
    for length in (1, 4, 200):
        raw = sound.raw[:at] + bytes((length,)) + sound.raw[at + 1 :]
        payload = window.encode(1, sound._replace(raw=raw), b"v")
        assert not window.is_well_formed(payload, 0)
        with pytest.raises(ValueError, match="add up"):
            window.decode(payload)[1].find(op(2))
    cut = window.encode(1, sound._replace(raw=sound.raw[:-1]), b"v")
    assert not window.is_well_formed(cut, 0)
    one_more = sound._replace(number=3, raw=sound.raw + bytes(28))
    assert not window.is_well_formed(window.encode(1, one_more, b"v"), 0)


def test_the_window_is_bounded_in_number_and_bytes_and_keeps_the_newest() -> None:
    big = Outcome(APPLIED, Version(1), b"x" * BYTES_MAX)
    kept = Window().adding([(op(1, 5), big), (op(2, 6), big)])
    assert [number for number, _ in kept.entries] == [op(2, 6)]
    assert kept.dropped_ms == 5
    many = Window().adding([(op(n, n), Outcome(APPLIED, Version(n))) for n in range(1, 200)])
    assert len(many.entries) == ENTRIES_MAX
    assert many.dropped_ms == 199 - ENTRIES_MAX
    assert many.find(op(199, 199)) is not None
    assert many.find(op(1, 1)) is None
    assert changes.FOLD_MAX <= ENTRIES_MAX, "what a round did must be in the window when it is answered"
