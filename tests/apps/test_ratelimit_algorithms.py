"""Each algorithm against a dumb twin, and what the answers say about waiting and what is left."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors
from kvstore.apps.ratelimit import algorithms, ledger
from kvstore.apps.ratelimit.ledger import Ledger
from kvstore.apps.ratelimit.limit import FRESH, NEVER, Algorithm, Decision, Limit, State
from kvstore.apps.ratelimit.machine import Moment

START_US = 1_700_000_000_000_000
RATES = [each for each in Algorithm if each is not Algorithm.CONCURRENCY]

Call = tuple[int, int]
"""Microseconds since the call before, and the cost."""
calls = st.lists(st.tuples(st.sampled_from([0, 1, 300, 999, 1000, 2500]), st.integers(1, 4)), max_size=25)


@st.composite
def limits(draw: st.DrawFn, algorithm: Algorithm | None = None) -> Limit:
    kind = algorithm or draw(st.sampled_from(list(Algorithm)))
    buckets = kind in (Algorithm.TOKEN_BUCKET, Algorithm.LEAKY_BUCKET)
    return Limit(
        algorithm=kind,
        amount=draw(st.integers(1, 7)),
        period_us=draw(st.sampled_from([1000, 1700, 3001])),
        burst=draw(st.integers(0, 9)) if buckets else 0,
    )


def run(limit: Limit, made: list[Call]) -> tuple[list[tuple[int, int, Decision]], State]:
    """(time, cost, decision) of each call, each a lease of its own."""
    state, told = FRESH, []
    times = accumulate((step for step, _ in made), initial=START_US)
    for lease, (now_us, (_, cost)) in enumerate(zip(list(times)[1:], made, strict=True), 1):
        decision, state = algorithms.decide(limit, state, now_us=now_us, cost=cost, lease=lease)
        told.append((now_us, cost, decision))
    return told, state


def admitted(told: list[tuple[int, int, Decision]]) -> list[tuple[int, int]]:
    return [(at, cost) for at, cost, decision in told if decision.allowed]


# --- the promises ------------------------------------------------------------------------


@given(limits(Algorithm.TOKEN_BUCKET), calls)
def test_token_bucket_never_exceeds_burst_and_rate_in_any_span(limit: Limit, made: list[Call]) -> None:
    let_in = admitted(run(limit, made)[0])
    for first, (begin, _) in enumerate(let_in):
        for last, (end, _) in enumerate(let_in[first:], first):
            took = sum(cost for _, cost in let_in[first : last + 1])
            assert took <= limit.capacity + Fraction(limit.amount * (end - begin), limit.period_us)


@given(limits(Algorithm.TOKEN_BUCKET), calls)
def test_token_bucket_is_a_bucket_of_tokens(limit: Limit, made: list[Call]) -> None:
    tokens, before = Fraction(limit.capacity), START_US
    for now_us, cost, decision in run(limit, made)[0]:
        tokens += Fraction(limit.amount * (now_us - before), limit.period_us)
        tokens, before = min(tokens, Fraction(limit.capacity)), now_us
        assert decision.allowed == (cost <= tokens)
        tokens -= cost if decision.allowed else 0
        assert decision.remaining == tokens // 1


@given(limits(Algorithm.LEAKY_BUCKET), calls)
def test_leaky_bucket_lets_go_at_an_even_pace(limit: Limit, made: list[Call]) -> None:
    left = [(at + decision.delay_us, cost) for at, cost, decision in run(limit, made)[0] if decision.allowed]
    for (one, cost), (after, _) in pairwise(left):
        # Departures are rounded up to microseconds, each on its own.
        assert after - one > Fraction(cost * limit.period_us, limit.amount) - 1


@given(limits(Algorithm.LEAKY_BUCKET), calls)
def test_leaky_bucket_never_makes_anybody_wait_longer_than_its_depth(limit: Limit, made: list[Call]) -> None:
    for _, cost, decision in run(limit, made)[0]:
        depth = Fraction((limit.capacity - cost) * limit.period_us, limit.amount)
        assert not decision.allowed or decision.delay_us < depth + 1


@given(limits(Algorithm.FIXED_WINDOW), calls)
def test_fixed_window_is_a_count_for_each_window(limit: Limit, made: list[Call]) -> None:
    used: dict[int, int] = {}
    for now_us, cost, decision in run(limit, made)[0]:
        window = now_us // limit.period_us
        assert decision.allowed == (used.get(window, 0) + cost <= limit.amount)
        used[window] = used.get(window, 0) + (cost if decision.allowed else 0)
        assert decision.remaining == limit.amount - used[window]


@given(limits(Algorithm.SLIDING_COUNTER), calls)
def test_sliding_counter_is_its_estimate(limit: Limit, made: list[Call]) -> None:
    used: dict[int, int] = {}
    for now_us, cost, decision in run(limit, made)[0]:
        window, into = divmod(now_us, limit.period_us)
        part_left = 1 - Fraction(into, limit.period_us)
        estimate = used.get(window, 0) + used.get(window - 1, 0) * part_left
        assert decision.allowed == (estimate + cost <= limit.amount)
        used[window] = used.get(window, 0) + (cost if decision.allowed else 0)
        assert used[window] <= limit.amount


@given(limits(Algorithm.SLIDING_LOG), calls)
def test_sliding_log_never_exceeds_its_amount_in_any_span(limit: Limit, made: list[Call]) -> None:
    log: list[tuple[int, int]] = []
    for now_us, cost, decision in run(limit, made)[0]:
        in_span = sum(each for at, each in log if at > now_us - limit.period_us)
        assert decision.allowed == (in_span + cost <= limit.amount)
        log += [(now_us, cost)] if decision.allowed else []


@given(
    limits(Algorithm.CONCURRENCY),
    st.lists(
        st.tuples(st.sampled_from([0, 1, 999, 1700]), st.integers(1, 5), st.integers(-1, 3)), max_size=25
    ),
)
def test_concurrency_never_has_more_held_than_its_amount(
    limit: Limit, made: list[tuple[int, int, int]]
) -> None:
    """A cost of 0 or less lets go."""
    state, now_us = FRESH, START_US
    held: dict[int, tuple[int, int]] = {}
    for step, lease, cost in made:
        now_us += step
        held = {who: (until, each) for who, (until, each) in held.items() if until > now_us}
        if cost <= 0:
            state = algorithms.released(state, now_us=now_us, lease=lease)
            held.pop(lease, None)
            continue
        decision, state = algorithms.decide(limit, state, now_us=now_us, cost=cost, lease=lease)
        others = sum(each for who, (_, each) in held.items() if who != lease)
        assert decision.allowed == (others + cost <= limit.amount)
        if decision.allowed:
            held[lease] = (now_us + limit.period_us, cost)
        assert sum(each for _, each in held.values()) <= limit.amount
        assert decision.remaining == limit.amount - sum(each for _, each in held.values())


# --- what the answers say ----------------------------------------------------------------


@given(limits(), calls, st.sampled_from([0, 1, 777]), st.integers(1, 12))
def test_retry_after_is_the_first_moment_that_works(
    limit: Limit, made: list[Call], step: int, cost: int
) -> None:
    told, state = run(limit, made)
    now_us = (told[-1][0] if told else START_US) + step
    decision, after = algorithms.decide(limit, state, now_us=now_us, cost=cost, lease=99)
    if decision.allowed:
        assert decision.retry_after_us == 0
        return
    assert after == state  # a refused call leaves no trace
    wait = decision.retry_after_us
    assert (wait == NEVER) == (cost > limit.capacity)
    if wait != NEVER:
        assert algorithms.decide(limit, state, now_us=now_us + wait, cost=cost, lease=99)[0].allowed
        assert not algorithms.decide(limit, state, now_us=now_us + wait - 1, cost=cost, lease=99)[0].allowed


@given(limits(), calls)
def test_remaining_is_what_can_be_taken_and_no_more(limit: Limit, made: list[Call]) -> None:
    told, state = run(limit, made)
    now_us = told[-1][0] if told else START_US
    left = algorithms.decide(limit, state, now_us=now_us, cost=0)[0].remaining
    assert not told or told[-1][2].remaining == left
    assert algorithms.decide(limit, state, now_us=now_us, cost=left, lease=99)[0].allowed
    assert not algorithms.decide(limit, state, now_us=now_us, cost=left + 1, lease=99)[0].allowed


@given(limits(), calls)
def test_after_reset_the_key_is_as_if_never_seen(limit: Limit, made: list[Call]) -> None:
    told, state = run(limit, made)
    now_us = told[-1][0] if told else START_US
    reset = algorithms.decide(limit, state, now_us=now_us, cost=0)[0].reset_after_us
    assert not told or told[-1][2].reset_after_us == reset
    then = algorithms.decide(limit, state, now_us=now_us + reset, cost=0)[0]
    assert (then.remaining, then.delay_us) == (limit.capacity, 0)


# --- services that do not know the time for certain ----------------------------------------

Asked = tuple[int, int, int, int]
"""Microseconds since the call before; the doubt of who decides, and by how much it is behind; the cost."""
asked_by_many = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 150, 999, 1000, 2500]),
        st.sampled_from([0, 1, 100, 250]),
        st.sampled_from([0, 1, 100, 250]),
        st.integers(1, 3),
    ),
    max_size=25,
)


def decided(limit: Limit, made: list[Asked], *, believes: bool) -> list[tuple[int, int]]:
    """What was let in, (true time, cost); `believes`: each takes its clock for right."""
    book, at_us, let_in = Ledger(), START_US, []
    for lease, (step, doubt_us, behind_us, cost) in enumerate(made, 1):
        at_us += step
        now = Moment(at_us - min(behind_us, doubt_us), 0 if believes else doubt_us)
        at_us += (wait_us := ledger.unsure_us([limit], now))
        now = now._replace(us=now.us + wait_us)
        verdict, book = ledger.decide([limit], book, now=now, cost=cost, lease=lease)
        let_in += [(at_us, cost)] if verdict.allowed else []
    return let_in


def is_kept(limit: Limit, let_in: list[tuple[int, int]]) -> bool:
    """Whether what was let in is what the limit promises, by the true time."""
    if limit.algorithm is Algorithm.FIXED_WINDOW:
        used: dict[int, int] = {}
        for at, cost in let_in:
            used[at // limit.period_us] = used.get(at // limit.period_us, 0) + cost
        return max(used.values(), default=0) <= limit.amount
    for first, (begin, _) in enumerate(let_in):
        for last, (end, _) in enumerate(let_in[first:], first):
            took = sum(cost for _, cost in let_in[first : last + 1])
            if limit.algorithm is Algorithm.TOKEN_BUCKET:
                if took > limit.capacity + Fraction(limit.amount * (end - begin), limit.period_us):
                    return False
            elif end - begin < limit.period_us and took > limit.amount:
                return False  # of the log in a span, of leases at an instant: each is held for a period
    return True


EXACT = [Algorithm.TOKEN_BUCKET, Algorithm.FIXED_WINDOW, Algorithm.SLIDING_LOG, Algorithm.CONCURRENCY]


@pytest.mark.parametrize("algorithm", EXACT)
@given(data=st.data(), made=asked_by_many)
def test_who_knows_how_wrong_a_clock_may_be_keeps_the_limit(
    algorithm: Algorithm, data: st.DataObject, made: list[Asked]
) -> None:
    limit = data.draw(limits(algorithm))
    assert is_kept(limit, decided(limit, made, believes=False))


@pytest.mark.parametrize("algorithm", EXACT)
def test_who_believes_a_clock_that_is_behind_does_not(algorithm: Algorithm) -> None:
    limit = Limit(algorithm=algorithm, amount=2, period_us=1000)
    # One service is 250 us behind, the other is right.
    around_a_window = [(1100, 250, 250, 2), (100, 250, 0, 2)]
    made = [*around_a_window, (2700, 250, 250, 2), (950, 250, 0, 2), (150, 250, 250, 2), (900, 250, 0, 2)]
    assert not is_kept(limit, decided(limit, made, believes=True))
    assert is_kept(limit, decided(limit, made, believes=False))


@given(limits(), st.sampled_from([0, 1, 100, 250]))
def test_doubt_costs_nothing_of_what_may_be_taken_at_once(limit: Limit, doubt_us: int) -> None:
    book, now = Ledger(), Moment(START_US, doubt_us)
    for lease in range(limit.capacity):
        verdict, book = ledger.decide([limit], book, now=now, cost=1, lease=lease + 1)
        assert (verdict.allowed, verdict.remaining) == (True, limit.capacity - lease - 1)
        book = ledger.decode(ledger.encode(book))
    assert not ledger.decide([limit], book, now=now, cost=1, lease=99)[0].allowed


def test_doubt_takes_nothing_from_a_rate() -> None:
    limit = Limit(algorithm=Algorithm.TOKEN_BUCKET, amount=10, period_us=1000)
    book, let_in = Ledger(), 0
    for at_us in range(START_US, START_US + 100_000, 7):
        now = Moment(at_us - at_us % 250, 250)
        verdict, book = ledger.decide([limit], book, now=now, cost=1)
        let_in += verdict.allowed
    assert 985 <= let_in <= 1010


@given(
    st.sampled_from([Algorithm.FIXED_WINDOW, Algorithm.SLIDING_COUNTER]),
    st.integers(0, 3000),
    st.integers(0, 700),
)
def test_it_is_certain_in_which_window_now_is_after_a_pause(
    algorithm: Algorithm, into_us: int, doubt_us: int
) -> None:
    limit = Limit(algorithm=algorithm, amount=1, period_us=1000)
    now = Moment(START_US + into_us, doubt_us)
    wait_us = ledger.unsure_us([limit], now)
    assert wait_us <= doubt_us
    begin, end = now.us + wait_us, now.us + wait_us + doubt_us
    # Windows that are hardly longer than the doubt are never certain, so nobody waits for them.
    assert begin // 1000 == end // 1000 or doubt_us > 250
    assert not wait_us or doubt_us <= 250


# --- several at once ---------------------------------------------------------------------


@given(st.lists(limits(), min_size=1, max_size=4, unique_by=lambda each: each.fingerprint), calls)
def test_a_call_passes_all_limits_or_is_charged_to_none(several: list[Limit], made: list[Call]) -> None:
    together, apart = Ledger(), dict.fromkeys(several, FRESH)
    now_us = START_US
    for lease, (step, cost) in enumerate(made, 1):
        now_us += step
        asked = {
            limit: algorithms.decide(limit, state, now_us=now_us, cost=cost, lease=lease)
            for limit, state in apart.items()
        }
        verdict, after = ledger.decide(several, together, now=Moment(now_us), cost=cost, lease=lease)
        assert verdict.allowed == all(decision.allowed for decision, _ in asked.values())
        if verdict.allowed:
            apart = {limit: state for limit, (_, state) in asked.items()}
        else:
            assert after == together
        together = ledger.decode(ledger.encode(after))
        assert together == after
        for limit, state in apart.items():
            assert together.states.get(limit.fingerprint, FRESH) == state


@given(st.lists(limits(Algorithm.TOKEN_BUCKET), min_size=1, max_size=3), calls, st.integers(1, 5))
def test_a_grant_takes_as_much_as_there_is(several: list[Limit], made: list[Call], least: int) -> None:
    book, now_us = Ledger(), START_US
    for step, extra in made:
        now_us += step
        left = ledger.decide(several, book, now=Moment(now_us), cost=0)[0].remaining
        got, verdict, book = ledger.grant(several, book, now=Moment(now_us), least=least, most=least + extra)
        assert got == (min(left, least + extra) if left >= least else 0)
        assert verdict.allowed == (got > 0)


def test_a_slow_clock_is_judged_by_the_time_the_key_has_seen() -> None:
    one = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=1, period_us=1_000_000)
    verdict, book = ledger.decide([one], Ledger(), now=Moment(START_US + 1_000_000), cost=1)
    assert verdict.allowed
    # By this clock it is still the window before, which nobody has used.
    assert not ledger.decide([one], book, now=Moment(START_US + 999_999), cost=1)[0].allowed


def test_a_changed_limit_starts_anew_and_the_other_goes_on() -> None:
    kept, old, new = (
        Limit(algorithm=Algorithm.FIXED_WINDOW, amount=amount, period_us=1_000_000) for amount in (5, 3, 4)
    )
    _, book = ledger.decide([kept, old], Ledger(), now=Moment(START_US), cost=2)
    verdict, _ = ledger.decide([kept, new], book, now=Moment(START_US), cost=1)
    assert [each.remaining for each in verdict.decisions] == [2, 3]


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x02\x00\x00", b"\x01\x00\x01", b"\x01\x00\x00\x05", b"17"])
def test_what_is_no_ledger_is_refused(data: bytes) -> None:
    with pytest.raises(errors.BadOption):
        ledger.decode(data)


@pytest.mark.parametrize(
    ("algorithm", "amount", "period_us", "burst"),
    [
        (Algorithm.FIXED_WINDOW, 0, 1000, 0),
        (Algorithm.FIXED_WINDOW, 1, 999, 0),
        (Algorithm.FIXED_WINDOW, 1, 1000, 2),
        (Algorithm.SLIDING_LOG, 10_001, 1000, 0),
        (Algorithm.TOKEN_BUCKET, 1, 1000, -1),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    algorithm: Algorithm, amount: int, period_us: int, burst: int
) -> None:
    with pytest.raises(errors.BadOption):
        Limit(algorithm=algorithm, amount=amount, period_us=period_us, burst=burst)
