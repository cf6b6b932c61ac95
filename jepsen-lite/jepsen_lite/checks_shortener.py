"""Short links: each code leads where its maker said, for as long as was promised; clicks add up. Linear.

Every `make` asks for a URL that no other request asks for, unless it repeats that request under its key.

    make     key: the alias, or "new"; value: the URL; seen: the code it got; ttl: how long it lives
    resolve  key: the code; value: the URL; failed with "no-such-link" or "link-gone"
    click    as resolve, and it was counted in the memory of the service `expected`
    unmake   key: the code
    gone     key: the code, which was unmade: looked for again after the time a deletion needs; value: the URL
    flush    key: a service; ok: what it had counted until then is in the store
    crash    key: a service; it forgets what is in its memory
    total    key: the code; value: its clicks, by the store

What a crash may lose: clicks since the last flush that was ok began, and one portion of those before, which
is never of more than one flush.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from jepsen_lite.history import Operation
from jepsen_lite.verdict import Verdict, Word, illegal

CLOCK_S = 0.1
"""Ends are told by the wall clock, and histories by another one."""
_MISSES = ("no-such-link", "link-gone")
_TAKEN = "alias-taken"


def check_targets(operations: Sequence[Operation]) -> Verdict:
    """No code leads to a URL that was not asked for under it, and none to two."""
    name = "targets"
    makes = _by_value(op for op in operations if op.kind == "make")
    first: dict[str, Operation] = {}
    for op in _followed(operations):
        known = makes.get(op.value, [])
        if not any(_may_have_made(make, op) for make in known):
            why = f"{op.key} leads to what was not asked for under it"
            return illegal(name, why, ("the visit", [op]), ("who asked for that", known), key=op.key)
        before = first.setdefault(op.key, op)
        if before.value != op.value:
            return illegal(name, f"{op.key} leads to two", ("visits", [before, op]), key=op.key)
    return _done(name, len(first), "no link was followed")


def _may_have_made(make: Operation, visit: Operation) -> bool:
    if make.outcome == "fail" or make.began > visit.end:
        return False
    if make.outcome == "ok":
        return bool(make.seen == visit.key)
    return make.key in ("new", visit.key)


def check_lives(operations: Sequence[Operation]) -> Verdict:
    """An acknowledged link is there until it is unmade or its time is over, and not after that."""
    name = "lives"
    made = _made(operations)
    # A link ends by the time of the request that was the first to ask for it, whatever came of that.
    asked: dict[str, float] = {}
    for op in operations:
        if op.kind == "make":
            asked[op.value] = min(asked.get(op.value, op.began), op.began)
    unmade: dict[str, Operation] = {}
    for op in operations:
        if op.kind == "unmake" and op.outcome != "fail":
            unmade.setdefault(op.key, op)
    judged = 0
    for op in operations:
        makes = made.get(op.key)
        if op.kind not in ("resolve", "click", "gone") or makes is None:
            continue
        judged += 1
        wrong = _wrong_life(op, makes, asked[makes[0].value], unmade.get(op.key))
        if wrong:
            return illegal(name, wrong, ("made", makes), ("the visit", [op]), key=op.key)
    return _done(name, judged, "no link that was made was visited")


def _wrong_life(visit: Operation, makes: Sequence[Operation], asked: float, unmade: Operation | None) -> str:
    """Why this cannot be; empty when it can."""
    if visit.kind == "gone":
        is_back = visit.value is not None and unmade is not None and unmade.outcome == "ok"
        return "it is there after it was unmade" if is_back else ""
    ttl = makes[0].ttl
    if visit.outcome == "fail" and visit.error in _MISSES:
        is_owed = visit.began > min(make.end for make in makes)
        is_owed = is_owed and (unmade is None or unmade.began > visit.end)
        is_over = ttl > 0 and visit.end >= asked + ttl - CLOCK_S
        return f"missed: {visit.error}" if is_owed and not is_over else ""
    is_late = ttl > 0 and visit.began > max(make.end for make in makes) + ttl + CLOCK_S
    return "it is there after its end" if visit.outcome == "ok" and is_late else ""


def check_claims(operations: Sequence[Operation]) -> Verdict:
    """One winner for each alias, and one link for each request, however often it was repeated."""
    loser = _refused_for_nobody(operations)
    if loser is not None:
        return illegal(
            "claims", "taken, and nobody else had asked for it", ("refused", [loser]), key=loser.key
        )
    made = [op for op in operations if op.kind == "make" and op.outcome == "ok"]
    for op in made:
        if op.key not in ("new", op.seen):
            return illegal("claims", "it got another code than its alias", ("made", [op]), key=op.key)
    for code, makes in _made(operations).items():
        if len({make.value for make in makes}) > 1:
            return illegal("claims", "two won one code", ("winners", makes), key=code)
    for url, makes in _by_value(made).items():
        if len({make.seen for make in makes}) > 1:
            return illegal("claims", "one request made two links", ("made", makes), key=url)
    return _done("claims", len(made), "nothing was made")


def _refused_for_nobody(operations: Sequence[Operation]) -> Operation | None:
    """A claim of an alias that lost to nobody: no request that may have won had begun."""
    claims = [op for op in operations if op.kind == "make"]
    losers = [op for op in claims if op.outcome == "fail" and op.error == _TAKEN]
    began: dict[str, float] = {}
    for op in claims:
        if op.outcome == "fail" and op.error == _TAKEN:
            continue
        # A code that was drawn is no alias, unless it is told to be the same.
        code = str(op.seen) if op.key == "new" else op.key
        began[code] = min(began.get(code, op.began), op.began)
    return next((op for op in losers if began.get(op.key, math.inf) > op.end), None)


def check_clicks(operations: Sequence[Operation]) -> Verdict:
    """A total is never more than the visits, and in the end less only by what crashes may have lost."""
    name = "clicks"
    visits: dict[str, list[Operation]] = {}
    for op in operations:
        if op.kind == "click" and op.outcome == "ok":
            visits.setdefault(op.key, []).append(op)
    totals = [op for op in operations if op.kind == "total" and op.outcome == "ok"]
    for op in totals:
        mine = visits.get(op.key, [])
        most = sum(visit.began <= op.end for visit in mine)
        least = len(mine) - _losable(operations, mine) if op.final else 0
        if not least <= op.value <= most:
            why = f"{op.value} counted, of {most} visits at least {least}"
            return illegal(name, why, ("the total", [op]), ("visits", mine), key=op.key)
    return _done(name, sum(op.final for op in totals), "no final total was read")


def _losable(operations: Sequence[Operation], visits: Sequence[Operation]) -> int:
    """How many of these visits crashes may have lost."""
    lost = 0
    for crash in (op for op in operations if op.kind == "crash"):
        mine = [visit for visit in visits if visit.expected == crash.key]
        flushes = sorted(
            (op for op in operations if op.kind == "flush" and op.outcome == "ok" and op.key == crash.key),
            key=lambda op: op.began,
        )
        since = flushes[-1].began if flushes else 0.0
        begins = [0.0, *(op.began for op in flushes)]
        one = max(
            (
                sum(since_before <= visit.end and visit.began <= op.end for visit in mine)
                for since_before, op in zip(begins, flushes, strict=False)
            ),
            default=0,
        )
        lost += one + sum(visit.end >= since for visit in mine)
    return lost


def _followed(operations: Iterable[Operation]) -> list[Operation]:
    return [
        op
        for op in operations
        if op.kind in ("resolve", "click") and op.outcome == "ok" and op.value is not None
    ]


def _made(operations: Iterable[Operation]) -> Mapping[str, list[Operation]]:
    """Acknowledged links by their code."""
    found: dict[str, list[Operation]] = {}
    for op in operations:
        if op.kind == "make" and op.outcome == "ok":
            found.setdefault(str(op.seen), []).append(op)
    return found


def _by_value(operations: Iterable[Operation]) -> Mapping[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for op in operations:
        found.setdefault(str(op.value), []).append(op)
    return found


def _done(name: str, judged: int, nothing: str) -> Verdict:
    return Verdict(
        name, Word.OK if judged else Word.UNKNOWN, "" if judged else nothing, counts={"judged": judged}
    )
