"""What one register holds of one key: the states of all limits of its rule, decided together.

    ledger := 0x01, seen_us, count, count * (fingerprint, length, length * number)    (all LEB128 varints)

Rules kept here:
- a call passes all limits or is charged to none;
- time never goes back for a key: `seen_us` is the latest `now` that changed it, and a caller with a slower
  clock is judged by it. It is never ahead of the time, for each `now` is the earliest that it can have been;
- a state is found again by the fingerprint of its limit, so that a changed limit starts anew and the
  unchanged ones beside it go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvstore import errors
from kvstore.apps.ratelimit import algorithms
from kvstore.apps.ratelimit.limit import FRESH, NEVER, Algorithm, Decision, Limit, State
from kvstore.apps.ratelimit.machine import Moment

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Ledger:
    """States by the fingerprints of their limits."""

    seen_us: int = 0
    states: dict[int, State] = field(default_factory=dict[int, State])


class Verdict(NamedTuple):
    """What all limits say together."""

    allowed: bool
    decisions: tuple[Decision, ...]
    """In the order of the limits."""

    @property
    def remaining(self) -> int:
        """What the tightest limit has left."""
        return min(each.remaining for each in self.decisions)

    @property
    def retry_after_us(self) -> int:
        """Until all limits would let this call in, if nobody comes in between; or NEVER."""
        waits = [each.retry_after_us for each in self.decisions]
        return NEVER if NEVER in waits else max(waits)

    @property
    def reset_after_us(self) -> int:
        """Until nothing is remembered any more."""
        return max([each.reset_after_us for each in self.decisions])

    @property
    def delay_us(self) -> int:
        """How long an allowed call must wait for its turn."""
        return max(each.delay_us for each in self.decisions)


def decide(
    limits: Sequence[Limit], ledger: Ledger, *, now: Moment, cost: int, lease: int = 0
) -> tuple[Verdict, Ledger]:
    """Ask all limits. Refused: the ledger that came in is returned, and nobody is charged."""
    now_us = max(now.us, ledger.seen_us)
    doubt_us = max(now.us + now.doubt_us - now_us, 0)
    if len(limits) == 1:  # as most rules have it, and then there is nothing to compare
        limit = limits[0]
        state = ledger.states.get(limit.fingerprint, FRESH)
        decision, after = algorithms.decide(
            limit, state, now_us=now_us, cost=cost, lease=lease, doubt_us=doubt_us
        )
        if not decision.allowed:
            return Verdict(False, (decision,)), ledger
        return Verdict(True, (decision,)), Ledger(now_us, {limit.fingerprint: after} if after else {})
    found = [ledger.states.get(limit.fingerprint, FRESH) for limit in limits]
    asked = [
        algorithms.decide(limit, state, now_us=now_us, cost=cost, lease=lease, doubt_us=doubt_us)
        for limit, state in zip(limits, found, strict=True)
    ]
    if all(decision.allowed for decision, _ in asked):
        states = {limit.fingerprint: state for limit, (_, state) in zip(limits, asked, strict=True) if state}
        return Verdict(True, tuple(decision for decision, _ in asked)), Ledger(now_us, states)
    # What a limit that would have allowed it has left, without this call in it.
    told = tuple(
        algorithms.decide(limit, state, now_us=now_us, cost=0)[0] if decision.allowed else decision
        for limit, state, (decision, _) in zip(limits, found, asked, strict=True)
    )
    return Verdict(False, told), ledger


def grant(
    limits: Sequence[Limit], ledger: Ledger, *, now: Moment, least: int, most: int
) -> tuple[int, Verdict, Ledger]:
    """Take as much as there is, from `least` to `most`; 0 when there is less than that."""
    seen, _ = decide(limits, ledger, now=now, cost=0)
    amount = max(min(most, seen.remaining), least)
    verdict, after = decide(limits, ledger, now=now, cost=amount)
    return (amount if verdict.allowed else 0), verdict, after


def unsure_us(limits: Sequence[Limit], now: Moment) -> int:
    """How long until it is certain in which windows `now` is; 0: it is."""
    if not now.doubt_us:
        return 0
    waits = [algorithms.unsure_us(limit, now_us=now.us, doubt_us=now.doubt_us) for limit in limits]
    return max(waits, default=0)


def released(limits: Sequence[Limit], ledger: Ledger, *, now: Moment, lease: int) -> Ledger:
    """The ledger after a holder has let go."""
    now_us = max(now.us, ledger.seen_us)
    states = dict(ledger.states)
    for limit in limits:
        if limit.algorithm is Algorithm.CONCURRENCY and limit.fingerprint in states:
            left = algorithms.released(states.pop(limit.fingerprint), now_us=now_us, lease=lease)
            states |= {limit.fingerprint: left} if left else {}
    return Ledger(now_us, states)


# --- bytes -------------------------------------------------------------------------------


def encode(ledger: Ledger) -> bytes:
    """The bytes of a register."""
    numbers = [_FORMAT, ledger.seen_us, len(ledger.states)]
    for fingerprint, state in sorted(ledger.states.items()):
        numbers += [fingerprint, len(state), *state]
    return b"".join(map(_varint, numbers))


def decode(data: bytes) -> Ledger:
    """The other way. Raises errors.BadOption for what is no ledger."""
    numbers = _numbers(data)
    try:
        tag, seen_us, count, *rest = numbers
        states, at = {}, 0
        for _ in range(count):
            fingerprint, length = rest[at : at + 2]
            states[fingerprint] = tuple(rest[at + 2 : at + 2 + length])
            at += 2 + length
    except ValueError:
        tag, seen_us, states, at, rest = 0, 0, {}, 0, []
    if tag != _FORMAT or at != len(rest):
        raise errors.BadOption(
            option="register", given=repr(data[:20]), allowed="a ledger of the rate limiter"
        )
    return Ledger(seen_us, states)


def _varint(number: int) -> bytes:
    assert number >= 0, number
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _numbers(data: bytes) -> list[int]:
    found, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            found.append(number)
            number = shift = 0
    return [] if shift else found
