"""Pages lose and double nothing; retries stay small; what comes in is checked."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors, limits
from kvstore.core import admission
from kvstore.core import record as records
from kvstore.core.retry import RetryBudget, RetryPolicy
from kvstore.core.scanning import Page, merge
from kvstore.types import Kind, Version

NOW = 1_800_000_000_000


def record(version: int, *, dead: bool = False) -> bytes:
    return records.encode(Version(version), 0, Kind.TOMBSTONE if dead else Kind.VALUE, b"" if dead else b"v")


def page_of(held: dict[bytes, bytes], after: bytes | None, limit: int) -> Page:
    rest = [item for item in sorted(held.items()) if after is None or item[0] > after]
    return Page(rest[:limit], len(rest) > limit)


REPLICA = st.dictionaries(
    st.sampled_from([b"%02d" % n for n in range(12)]),
    st.builds(record, st.integers(1, 3), dead=st.booleans()),
)


@given(st.lists(REPLICA, min_size=1, max_size=3), st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_a_scan_over_pages_is_the_merge_of_all(replicas: list[dict[bytes, bytes]], cuts: list[int]) -> None:
    whole: dict[bytes, bytes] = {}
    for held in replicas:
        for key, one in held.items():
            if records.is_newer(one, whole.get(key)):
                whole[key] = one
    expected = [(key, one) for key, one in sorted(whole.items()) if records.is_live(one, NOW)]
    found: list[tuple[bytes, bytes]] = []
    after: bytes | None = None
    for _ in range(60):
        merged = merge([page_of(held, after, cut) for held, cut in zip(replicas, cuts, strict=False)], NOW)
        found += merged.entries
        after = merged.resume
        if after is None:
            break
    assert after is None
    assert found == expected


def test_disagreements_are_counted() -> None:
    one = Page([(b"a", record(1)), (b"b", record(2)), (b"c", record(1))], more=False)
    other = Page([(b"a", record(1)), (b"b", record(3))], more=False)
    assert merge([one, other], NOW).stale == 2
    assert merge([one], NOW).stale == 0


# --- retry --------------------------------------------------------------------------------


@given(st.integers(0, 2_000), st.integers(0, 1 << 30))
def test_pauses_double_up_to_a_cap_with_full_jitter(attempt: int, seed: int) -> None:
    policy = RetryPolicy(base_ms=10, cap_ms=500)
    pause = policy.delay_ms(attempt, random.Random(seed))
    assert 0 <= pause < min(500, 10 * 2 ** max(attempt - 1, 0))


def test_retries_are_a_fifth_of_the_calls_and_a_small_reserve() -> None:
    budget = RetryBudget(ratio=0.2, reserve=10)
    assert sum(budget.retry() for _ in range(100)) == 10
    for _ in range(1_000):
        budget.call()
    assert sum(budget.retry() for _ in range(100)) == 10, "quiet times do not pile up more than the reserve"
    spent = 0
    for _ in range(1_000):
        budget.call()
        spent += budget.retry()
    assert spent == pytest.approx(200, abs=2)


# --- admission ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, limits.KEY_BYTES_MAX + 1])
def test_keys_are_neither_empty_nor_too_long(length: int) -> None:
    with pytest.raises(errors.BadKey):
        admission.check_key(b"k" * length)
    admission.check_key(b"k" * limits.KEY_BYTES_MAX)


def test_values_have_a_limit() -> None:
    admission.check_value(b"v" * 10, 10)
    with pytest.raises(errors.BadValue):
        admission.check_value(b"v" * 11, 10)


BAD_TIMES: list[Any] = [0, -1, math.nan, math.inf, True, "60", None, b"1", limits.EXPIRES_MS_MAX]


@pytest.mark.parametrize("ttl", BAD_TIMES)
def test_a_ttl_is_a_positive_time_before_the_year_10000(ttl: Any) -> None:
    with pytest.raises(errors.BadTtl):
        admission.expires_from(ttl_ms=ttl, expires_ms=None, now_ms=NOW)


def test_expiry_is_counted_from_now_or_taken_as_it_is() -> None:
    assert admission.expires_from(ttl_ms=1.5, expires_ms=None, now_ms=NOW) == NOW + 2
    assert admission.expires_from(ttl_ms=None, expires_ms=NOW + 5, now_ms=NOW) == NOW + 5
    with pytest.raises(errors.BadTtl):
        admission.expires_from(ttl_ms=None, expires_ms=limits.EXPIRES_MS_MAX + 1, now_ms=NOW)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("90s", 90_000),
        ("15m", 900_000),
        ("12h", 43_200_000),
        ("7d", 604_800_000),
        ("250ms", 250),
        ("1.5", 1_500),
    ],
)
def test_durations(text: str, ms: int) -> None:
    assert admission.parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "-5", "0", "0s", "5 s x", "1e9", "99999999999d", "s", "\u0661s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(errors.BadTtl):
        admission.parse_duration(text)
