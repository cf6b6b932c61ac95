"""Rate limits: what was admitted fits every promise, and what was refused did not. O(n^2) for each key.

A `check` carries its promises in `expected`, a list of them, all of which hold at once:

    {"kind": "log" | "window" | "bucket" | "slots", "amount": n, "period": seconds, "burst": n, "beyond": n}

    log      at most `amount` in any span of one period
    window   at most `amount` in each window; windows are counted from the moment 0 of the history
    bucket   at most `burst` + `amount` * w / period in any span of w
    slots    at most `amount` held at any instant: from an ok `check` to the `release` of the same lease
             (`seen` of the one, `value` of the other), or to the end of one period

`beyond` is what the limiter says it may exceed that by; where it is not 0, nothing is promised of refusals.
`value` of a check is its cost; of a `peek`, what is left. The limiter's clock is the history's, and it
decides at some moment between begin and end of a call: one convicts only where that moment does not matter.

A call of unknown outcome may have been charged, until a while after it was told so; a refused one was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jepsen_lite.history import Operation, by_key
from jepsen_lite.verdict import Verdict, Word, illegal

LINGERS_S = 5.0
"""How long after its end a call of unknown outcome may still be charged."""
_NOISE_S = 1e-6
"""Times are whole microseconds: to fit by less than one proves nothing."""

Promise = Mapping[str, Any]


def check_admitted(operations: Sequence[Operation]) -> Verdict:
    """No promise is broken by what was admitted: for each key and each promise."""
    name, admitted = "admitted", 0
    for key, part in by_key(operations).items():
        ok = [op for op in part if op.kind == "check" and op.outcome == "ok"]
        admitted += len(ok)
        for promise in promises_of(part):
            if promise["kind"] == "slots":
                found = _held_too_many(promise, ok, part)
            else:
                found = _worst_span(promise, ok)
            if found is not None:
                why = f"{sum(_cost(op) for op in found)} admitted, against {_shown(promise)}"
                return illegal(name, why, ("admitted", found), key=key)
    if not admitted:
        return Verdict(name, Word.UNKNOWN, "nothing was admitted")
    return Verdict(name, Word.OK, counts={"admitted": admitted})


def check_refused(operations: Sequence[Operation]) -> Verdict:
    """Whoever was refused did not fit, by all that may have been charged: so nothing is charged twice."""
    name, refused = "refused", 0
    for key, part in by_key(operations).items():
        promises = promises_of(part)
        if not promises or any(promise.get("beyond") for promise in promises):
            continue
        charges = [op for op in part if op.kind == "check" and op.outcome != "fail"]
        for op in part:
            if op.kind != "check" or op.outcome != "fail" or op.error != "refused":
                continue
            refused += 1
            might = [[c for c in charges if _may_count(promise, c, op, part)] for promise in promises]
            if all(
                _cost(op) + sum(map(_cost, charged)) <= _most(promise)
                for promise, charged in zip(promises, might, strict=True)
            ):
                why = "refused, though all that may have been charged leaves room for it"
                return illegal(name, why, ("refused", [op]), ("may have been charged", might[0]), key=key)
    if not refused:
        return Verdict(name, Word.UNKNOWN, "nothing was refused")
    return Verdict(name, Word.OK, counts={"refused": refused})


def check_peeked(operations: Sequence[Operation]) -> Verdict:
    """What a peek says is left lies between what surely and what possibly was charged."""
    name, peeked = "peeked", 0
    for key, part in by_key(operations).items():
        promises = promises_of(part)
        if len(promises) != 1 or promises[0]["kind"] not in ("log", "window") or promises[0].get("beyond"):
            continue
        (promise,) = promises
        charges = [op for op in part if op.kind == "check" and op.outcome != "fail"]
        for op in part:
            if op.kind != "peek" or op.outcome != "ok":
                continue
            peeked += 1
            surely = [c for c in charges if _must_count(promise, c, op)]
            maybe = [c for c in charges if _may_count(promise, c, op, part)]
            used = promise["amount"] - op.value
            low, high = sum(map(_cost, surely)), sum(map(_cost, maybe))
            if not low <= used <= high:
                why = f"{op.value} left of {promise['amount']}, when {low} to {high} were used"
                return illegal(name, why, ("the peek", [op]), ("may have been charged", maybe), key=key)
    return Verdict(name, Word.OK, "" if peeked else "nothing to look at", counts={"peeked": peeked})


def promises_of(operations: Sequence[Operation]) -> list[Promise]:
    """What the checks of one key say that they were promised."""
    for op in operations:
        if op.kind == "check" and op.expected:
            return list(op.expected)
    return []


def _cost(op: Operation) -> int:
    return int(op.value)


def _most(promise: Promise) -> int:
    """The most at once."""
    return int(promise.get("burst") or promise["amount"])


def _shown(promise: Promise) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(promise.items()))


def _window(promise: Promise, moment: float) -> int:
    # In microseconds, as the limiter has it: a quotient of floats may fall on the wrong side.
    return round(moment * 1_000_000) // round(float(promise["period"]) * 1_000_000)


# --- admitted ----------------------------------------------------------------------------


def _worst_span(promise: Promise, admitted: Sequence[Operation]) -> list[Operation] | None:
    """Calls that lie wholly in one span, and are more than it may have."""
    most = _spans[promise["kind"]]
    by_end = sorted(admitted, key=lambda op: op.end)
    for first in admitted:
        inside: list[Operation] = []
        total = 0
        for op in by_end:
            if op.began < first.began:
                continue
            allowed = most(promise, first.began, op.end)
            if allowed is None:
                break
            inside.append(op)
            total += _cost(op)
            if total > allowed + promise.get("beyond", 0):
                return inside
    return None


def _log_allows(promise: Promise, begin: float, end: float) -> float | None:
    return float(promise["amount"]) if end - begin < promise["period"] - _NOISE_S else None


def _window_allows(promise: Promise, begin: float, end: float) -> float | None:
    return float(promise["amount"]) if _window(promise, begin) == _window(promise, end) else None


def _bucket_allows(promise: Promise, begin: float, end: float) -> float | None:
    return _most(promise) + float(promise["amount"]) * (end - begin + _NOISE_S) / float(promise["period"])


_spans: Mapping[str, Callable[[Promise, float, float], float | None]] = {
    "log": _log_allows,
    "window": _window_allows,
    "bucket": _bucket_allows,
}


def _held_too_many(
    promise: Promise, admitted: Sequence[Operation], part: Sequence[Operation]
) -> list[Operation] | None:
    """Who surely held at one instant: from the answer to the beginning of the release, one period at most."""
    released = {op.value: op.began for op in part if op.kind == "release"}
    spans = [
        (op.end, min(released.get(op.seen, math.inf), op.began + promise["period"]), op) for op in admitted
    ]
    for since, until, _ in spans:
        if since < until:
            held = [op for begin, end, op in spans if begin <= since < end]
            if sum(map(_cost, held)) > promise["amount"] + promise.get("beyond", 0):
                return held
    return None


# --- refused and peeked ------------------------------------------------------------------


def _last(charge: Operation) -> float:
    """The last moment at which it may have been charged."""
    if charge.outcome == "ok":
        return charge.end
    return (charge.ended if charge.ended is not None else math.inf) + LINGERS_S


def _may_count(promise: Promise, charge: Operation, op: Operation, part: Sequence[Operation]) -> bool:
    """Whether a charge may count against a call."""
    assert op.ended is not None
    if charge.began > op.ended:
        return False
    last, period = _last(charge), promise["period"]
    match promise["kind"]:
        case "window":
            return last == math.inf or _window(promise, last) >= _window(promise, op.began)
        case "slots":
            ends = [
                each.end
                for each in part
                if each.kind == "release" and each.outcome == "ok" and each.value == charge.seen
            ]
            return bool(min(last + period, *ends, math.inf) >= op.began)
        case "bucket":
            # What was taken longer ago than a whole bucket needs to fill is forgotten.
            return bool(last + _most(promise) * period / promise["amount"] + _NOISE_S >= op.began)
        case _:
            return bool(last + period + _NOISE_S >= op.began)


def _must_count(promise: Promise, charge: Operation, op: Operation) -> bool:
    """Whether a charge surely counts against a call."""
    assert op.ended is not None
    if charge.outcome != "ok" or charge.end >= op.began:
        return False
    if promise["kind"] == "window":
        return _window(promise, charge.began) == _window(promise, op.ended) >= _window(promise, charge.end)
    return bool(charge.began + promise["period"] - _NOISE_S > op.ended)
