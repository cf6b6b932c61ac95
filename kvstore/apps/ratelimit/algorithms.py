"""The algorithms: pure functions of a limit, a state, `now` and a cost.

Each returns (decision, next state); a refused call leaves no trace in the state. Who does not know the time
for certain gives the earliest that it can be, and how much later it may be (`doubt_us`): what is remembered
of a call begins at the latest, and is over by the earliest. Windows have no such two sides; who counts by
them waits until it is certain which one it is (`unsure_us`). What each promises, for a `now` that never goes
back, is what tests/apps/test_ratelimit_algorithms.py holds it to:

- token bucket: in any span of w: at most burst + amount * w / period (GCRA: one number, the theoretical
  arrival time, ITU-T I.371);
- leaky bucket: the same queue, but a call is told to wait for its turn, so that departures are even;
- fixed window: at most amount in each window, windows being counted from 1970;
- sliding counter: as fixed window, and at most amount by the estimate current + previous * part left;
- sliding log: at most amount in any span of one period;
- concurrency: at most amount held at any instant.

Rates are exact: buckets count in ticks of 1/amount microseconds, in which one unit costs `period_us` ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from kvstore.apps.ratelimit.limit import FRESH, NEVER, Algorithm, Decision, Limit, State

Decided = tuple[Decision, State]
_BY_WINDOWS = (Algorithm.FIXED_WINDOW, Algorithm.SLIDING_COUNTER)
_DOUBTS_MIN = 4


def decide(
    limit: Limit, state: State, *, now_us: int, cost: int, lease: int = 0, doubt_us: int = 0
) -> Decided:
    """Ask one limit. `lease` names the holder, for concurrency alone."""
    assert cost >= 0, cost
    if limit.algorithm is Algorithm.CONCURRENCY:
        return _concurrency(limit, state, now_us, now_us + doubt_us, cost, lease)
    return _DECIDE[limit.algorithm](limit, state, now_us, now_us + doubt_us, cost)


def unsure_us(limit: Limit, *, now_us: int, doubt_us: int) -> int:
    """How long until it is certain in which window `now` is; 0: it is, or the limit has none."""
    # A window that is hardly longer than the doubt never is.
    if limit.algorithm not in _BY_WINDOWS or doubt_us * _DOUBTS_MIN > limit.period_us:
        return 0
    left = limit.period_us - now_us % limit.period_us
    return left if left <= doubt_us else 0


def _up(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _bucket(limit: Limit, state: State, now_us: int, late_us: int, cost: int) -> Decided:
    """GCRA in ticks: the queue is how far the theoretical arrival time is ahead of now."""
    now, late, unit = now_us * limit.amount, late_us * limit.amount, limit.period_us
    most, queued = limit.capacity * unit, _queued(state, now)
    after = queued + cost * unit
    if after > most:
        wait = NEVER if cost > limit.capacity else _up(after - most, limit.amount)
        return Decision(False, (most - queued) // unit, wait, _up(queued, limit.amount)), state
    decision = Decision(True, (most - after) // unit, 0, _up(after, limit.amount))
    if not cost:
        return decision, (state if queued else FRESH)
    # Who is let in when nobody waits comes at the latest; and the queue is no longer than it was found.
    arrival = min(max(state[0] if state else 0, late) + cost * unit, late + after)
    return decision, ((arrival,) if late == now else (arrival, arrival - late, after))


def _queued(state: State, now: int) -> int:
    """The queue at the most, in ticks.

    While the time is in doubt, a state is the arrival time, how far it is ahead of the latest that the last
    call can have come, and the queue that this one left: calls that come at once are no burst that is larger
    than it is, which by the two ends of the doubt alone it would be.
    """
    if not state:
        return 0
    arrival = state[0]
    if len(state) == 1:
        return max(arrival - now, 0)
    last = arrival - state[1]
    return max(min(arrival - now, state[2] - max(now - last, 0)), 0)


def _leaky_bucket(limit: Limit, state: State, now_us: int, late_us: int, cost: int) -> Decided:
    """Whoever is let in leaves when all before have left."""
    decision, after = _bucket(limit, state, now_us, late_us, cost)
    if decision.allowed and state:
        ahead = _queued(state, now_us * limit.amount)
        decision = decision._replace(delay_us=_up(ahead, limit.amount))
    return decision, after


def _fixed_window(limit: Limit, state: State, now_us: int, late_us: int, cost: int) -> Decided:
    del late_us
    index, into = divmod(now_us, limit.period_us)
    used = state[1] if state and state[0] == index else 0
    left = limit.period_us - into
    if used + cost > limit.amount:
        wait = NEVER if cost > limit.amount else left
        return Decision(False, limit.amount - used, wait, left if used else 0), state
    used += cost
    return Decision(True, limit.amount - used, 0, left if used else 0), ((index, used) if used else FRESH)


def _sliding_counter(limit: Limit, state: State, now_us: int, late_us: int, cost: int) -> Decided:
    """The window before counts for the part of it that the last period still covers."""
    del late_us
    period = limit.period_us
    index, into = divmod(now_us, period)
    current = previous = 0
    if state:
        at, *counts = state
        current, previous = counts if at == index else (0, counts[0]) if at == index - 1 else (0, 0)
    room = limit.amount * period - current * period - previous * (period - into)
    if cost * period > room:
        wait = NEVER if cost > limit.amount else _counter_wait(limit, current, previous, into, cost)
        reset = (2 * period if current else period if previous else into) - into
        return Decision(False, max(room // period, 0), wait, reset), state
    current += cost
    reset = (2 * period if current else period if previous else into) - into
    after = (index, current, previous) if current or previous else FRESH
    return Decision(True, (room - cost * period) // period, 0, reset), after


def _counter_wait(limit: Limit, current: int, previous: int, into: int, cost: int) -> int:
    """Until the estimate lets `cost` in: still in this window, or in the next."""
    period, spare = limit.period_us, limit.amount - current - cost
    if spare >= 0 and previous:
        then = period - spare * period // previous
        if then < period:
            return then - into
    then = max(period - (limit.amount - cost) * period // current, 0) if current else 0
    return period - into + then


def _sliding_log(limit: Limit, state: State, now_us: int, late_us: int, cost: int) -> Decided:
    """All calls of the last period, as a first time and then differences."""
    # By sums and slices: a loop over thousands of calls for each decision would be most of its time.
    log = _trimmed(state, now_us - limit.period_us)
    used, last = sum(log[1::2]), sum(log[::2])
    if used + cost > limit.amount:
        wait = NEVER
        if cost <= limit.amount:
            wait = _freed(_parts(log), used + cost - limit.amount) + limit.period_us - now_us
        reset = last + limit.period_us - now_us if log else 0
        return Decision(False, limit.amount - used, wait, reset), state
    if cost:
        at = max(late_us, last)
        log = (*log[:-1], log[-1] + cost) if log and last == at else (*log, at - last, cost)
        last = at
    reset = min(last - now_us, 0) + limit.period_us if log else 0
    return Decision(True, limit.amount - used - cost, 0, reset), log


def _trimmed(log: State, until_us: int) -> State:
    """Without the calls up to a time."""
    at = index = 0
    while index < len(log):
        at += log[index]
        if at > until_us:
            return (at, *log[index + 1 :]) if index else log
        index += 2
    return FRESH


def _parts(log: State) -> Iterator[tuple[int, int]]:
    """When, and how much."""
    return zip(accumulate(log[::2]), log[1::2], strict=True)


def logged(period_us: int, state: State, *, now_us: int) -> list[tuple[int, int]]:
    """What a sliding log remembers of the last period: (when, how much), the oldest first."""
    return list(_parts(_trimmed(state, now_us - period_us)))


def _freed(parts: Iterable[tuple[int, int]], needed: int) -> int:
    """The time in `parts`, which are in order, by which `needed` has gone."""
    for at, cost in parts:
        needed -= cost
        if needed <= 0:
            return at
    raise AssertionError(parts)


def packed(log: list[tuple[int, int]]) -> State:
    """The state of a sliding log: a first time, then differences."""
    flat, before = [], 0
    for at, cost in log:
        flat += [at - before, cost]
        before = at
    return tuple(flat)


# --- concurrency -------------------------------------------------------------------------

_Lease = tuple[int, int, int]
"""Who, until when, how much."""


def _leases(state: State, now_us: int) -> list[_Lease]:
    return [each for each in zip(state[::3], state[1::3], state[2::3], strict=True) if each[1] > now_us]


def _flat(leases: list[_Lease]) -> State:
    return tuple(part for lease in leases for part in lease)


def _concurrency(limit: Limit, state: State, now_us: int, late_us: int, cost: int, lease: int) -> Decided:
    """Holding already is holding anew: the lease is renewed, and its cost is what it says now."""
    others = [each for each in _leases(state, now_us) if each[0] != lease]
    used = sum(each for _, _, each in others)
    ends = sorted((until, each) for _, until, each in others)
    if used + cost > limit.amount:
        wait = NEVER
        if cost <= limit.amount:
            wait = _freed(ends, used + cost - limit.amount) - now_us
        held = sum(each for _, _, each in _leases(state, now_us))
        reset = max(until for _, until, _ in _leases(state, now_us)) - now_us if held else 0
        return Decision(False, limit.amount - held, wait, reset), state
    if cost:
        others.append((lease, late_us + limit.period_us, cost))
    reset = min(max((until for _, until, _ in others), default=now_us) - now_us, limit.period_us)
    return Decision(True, limit.amount - used - cost, 0, reset), _flat(others)


def released(state: State, *, now_us: int, lease: int) -> State:
    """The leases without this one, and without those that ended."""
    return _flat([each for each in _leases(state, now_us) if each[0] != lease])


_DECIDE: dict[Algorithm, Callable[[Limit, State, int, int, int], Decided]] = {
    Algorithm.TOKEN_BUCKET: _bucket,
    Algorithm.LEAKY_BUCKET: _leaky_bucket,
    Algorithm.FIXED_WINDOW: _fixed_window,
    Algorithm.SLIDING_COUNTER: _sliding_counter,
    Algorithm.SLIDING_LOG: _sliding_log,
}
