"""The benchmark's own parts: a wrong histogram or a lopsided key choice would make every figure a lie."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_cli.bench_histogram import Histogram
from kvstore_cli.bench_workload import GET, INSERT, MIXES, PUT, Workload, Zipfian, key_name, scatter

durations = st.lists(st.integers(1, 10**9), min_size=1, max_size=300)


def of(micros: list[int]) -> Histogram:
    made = Histogram()
    for value in micros:
        made.record(value)
    return made


@given(durations, st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]))
def test_a_quantile_is_never_too_low_and_less_than_one_percent_too_high(
    values: list[int], share: float
) -> None:
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert exact <= of(values).quantile(share) <= exact * (1 + 1 / 128)


@given(durations, durations)
def test_two_histograms_add_up_to_the_histogram_of_both(left: list[int], right: list[int]) -> None:
    both = of(left)
    both.add(of(right))
    assert both.to_plain() == of(left + right).to_plain()
    assert both.mean == pytest.approx(sum(left + right) / len(left + right))


@given(durations)
def test_a_histogram_survives_json(values: list[int]) -> None:
    back = Histogram.from_plain(json.loads(json.dumps(of(values).to_plain())))
    assert (back.total, back.to_plain()) == (len(values), of(values).to_plain())


def test_an_empty_histogram_answers_zero() -> None:
    assert (Histogram().quantile(0.99), Histogram().mean, Histogram().maximum) == (0, 0.0, 0)


@pytest.mark.parametrize("mix", list(MIXES.values()), ids=lambda mix: mix.name)
def test_a_mix_keeps_its_shares(mix: object) -> None:
    wanted = next(m for m in MIXES.values() if m is mix)
    workload = Workload(wanted, keys=1_000, zipfian=False, seed=1)
    kinds = Counter(workload.next()[0] for _ in range(20_000))
    assert kinds[GET] / 20_000 == pytest.approx(wanted.reads, abs=0.02)
    assert kinds[INSERT] / 20_000 == pytest.approx(wanted.inserts, abs=0.02)
    assert kinds[PUT] / 20_000 == pytest.approx(1 - wanted.reads - wanted.inserts, abs=0.02)


def test_the_same_seed_gives_the_same_operations_and_another_process_others() -> None:
    def first(share: int) -> list[tuple[str, bytes]]:
        workload = Workload(MIXES["a"], keys=10_000, zipfian=True, seed=7, share=share, shares=2)
        return [workload.next() for _ in range(50)]

    assert first(0) == first(0) != first(1)


def test_processes_never_insert_the_same_key() -> None:
    inserted = []
    for share in range(3):
        workload = Workload(MIXES["d"], keys=100, zipfian=False, seed=1, share=share, shares=3)
        inserted += [key for kind, key in (workload.next() for _ in range(2_000)) if kind == INSERT]
    assert len(inserted) == len(set(inserted)) > 100
    assert min(inserted) >= key_name(100)


def test_zipfian_ranks_have_the_shares_of_the_formula() -> None:
    items, draws = 1_000, 50_000
    rank = Zipfian(items, random.Random(3))
    seen = Counter(rank() for _ in range(draws))
    zeta = sum(1 / i**0.99 for i in range(1, items + 1))
    assert min(seen) == 0
    assert max(seen) < items
    assert seen[0] / draws == pytest.approx(1 / zeta, rel=0.05)
    assert seen[1] / draws == pytest.approx(0.5**0.99 / zeta, rel=0.08)
    top_tenth = sum(count for r, count in seen.items() if r < items // 10) / draws
    assert top_tenth == pytest.approx(sum(1 / i**0.99 for i in range(1, items // 10 + 1)) / zeta, rel=0.05)


@pytest.mark.parametrize("items", [1, 2, 3, 20_000])
def test_zipfian_stays_inside_small_and_large_ranges(items: int) -> None:
    rank = Zipfian(items, random.Random(1))
    assert all(0 <= rank() < items for _ in range(2_000))


def test_popular_keys_are_scattered() -> None:
    """Neighbouring ranks must not become neighbouring keys, or one node would get all the load."""
    places = [scatter(rank, 100_000) for rank in range(100)]
    assert len(set(places)) > 95
    assert max(places) - min(places) > 80_000


def test_read_latest_asks_most_for_what_was_inserted_last() -> None:
    workload = Workload(MIXES["d"], keys=1_000, zipfian=False, seed=5)
    for _ in range(2_000):
        workload.next()
    reads = [int(key[4:]) for kind, key in (workload.next() for _ in range(4_000)) if kind == GET]
    assert sum(number >= 1_000 for number in reads) / len(reads) > 0.5
    assert all(0 <= number < 1_400 for number in reads)
