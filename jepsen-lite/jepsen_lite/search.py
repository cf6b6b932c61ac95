"""Search for a legal order of a history: exact for any model, and exponential at worst.

Algorithm: Wing and Gong 1993 as improved by Lowe 2017 ("Testing for linearizability"), in the shape that
Porcupine gave it: depth first over a doubly linked list of calls and returns, remembering which pairs of
(operations done, state) were tried. P-compositionality (Horn and Kroening 2015) splits by key.

Our additions:
- an operation of unknown outcome has no return: it may be taken at any later time, or never;
- what is done is remembered relative to the first completed operation not done, with open operations apart,
  so that a remembered pair stays small in a long history;
- a pure operation (it never changes the state) is taken as soon as it fits, and never given back alone:
  an order that takes it later is as good with it here.

Budget spent without an answer is `unknown`. What is illegal is shrunk to the operations that make it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from jepsen_lite import zones
from jepsen_lite.history import Operation, by_key, identity
from jepsen_lite.models import Model, Register
from jepsen_lite.verdict import Evidence, Verdict, Word

STEPS_MAX = 2_000_000
"""Steps of one check: seconds, and some hundred megabytes at worst."""

FIRST_STEPS = 20_000
"""Each key gets this much first, then ten times as much: one hard key does not hide an easy conviction."""

SHRINK_RUNS_MAX = 300
SHRINK_STEPS_MAX = 300_000
SHRINK_RUN_STEPS_MAX = 20_000


def check(
    operations: Sequence[Operation], model: Model, max_steps: int = STEPS_MAX, *, shrink: bool = True
) -> Verdict:
    """Whether some legal order of these operations agrees with their times and answers."""
    word, steps = search(operations, model, max_steps)
    key = operations[0].key if operations else ""
    counts = {"operations": len(operations), "steps": steps}
    if word is Word.UNKNOWN:
        return Verdict(model.name, word, f"no answer within {max_steps} steps", key, counts=counts)
    if word is Word.OK:
        return Verdict(model.name, word, key=key, counts=counts)
    failing = shortest_failing(operations, model) if shrink else tuple(operations)
    evidence = Evidence("no order of these fits their times and answers", failing)
    reason = f"{len(failing)} of {len(operations)} operations have no legal order"
    return Verdict(model.name, word, reason, key, (evidence,), counts)


def check_keys(operations: Sequence[Operation], model: Model, max_steps: int = STEPS_MAX) -> Verdict:
    """Check each key by itself, cheap ones first, and stop at the first illegal one.

    For a register the zone check goes first: where it applies it is exact, and needs no budget.
    `max_steps` is for each key.
    """
    counts = {"operations": len(operations), "keys": 0, "searched": 0, "steps": 0}
    hard: list[tuple[str, list[Operation]]] = []
    for key, part in sorted(by_key(operations).items(), key=lambda item: len(item[1])):
        counts["keys"] += 1
        if isinstance(model, Register) and model.failed_cas_constrains and model.nil_reads_constrain:
            verdict = zones.check(part, model.initial)
            if verdict.word is Word.ILLEGAL:
                return verdict
            if verdict.applicable:
                continue
        hard.append((key, part))
    counts["searched"] = len(hard)
    budget = min(FIRST_STEPS, max_steps)
    while hard:
        left: list[tuple[str, list[Operation]]] = []
        for key, part in hard:
            verdict = check(part, model, budget)
            counts["steps"] += verdict.counts["steps"]
            if verdict.word is Word.ILLEGAL:
                return verdict
            if verdict.word is Word.UNKNOWN:
                left.append((key, part))
        if left and budget >= max_steps:
            names = ", ".join(key for key, _ in left)
            reason = f"no answer within {max_steps} steps a key: {names}"
            return Verdict(model.name, Word.UNKNOWN, reason, left[0][0], counts=counts)
        hard, budget = left, min(budget * 10, max_steps)
    return Verdict(model.name, Word.OK, counts=counts)


class _Plan(NamedTuple):
    """A history taken apart. Items are operations; nodes of the list are their calls and returns."""

    item_at: list[int]
    """Node -> the item called there; -1 for a return, and for the head, node 0."""
    return_of: list[int]
    """Item -> node of its return; 0: none, its outcome is unknown."""
    number: list[int]
    """Item -> its bit. Those with a return and those without are numbered apart, in order of beginning."""
    applies: list[Callable[[object], object | None]]
    pures: list[bool]


def _plan(operations: Sequence[Operation], model: Model) -> _Plan:
    moves = model.moves(operations)
    parts = [(op, move) for op, move in zip(operations, moves, strict=True) if move is not None]
    parts.sort(key=lambda part: part[0].began)
    ends = [op.end for op, _ in parts]
    # Beginnings stand before ends of the same moment, as those are concurrent.
    events = [(op.began, 0, item) for item, (op, _) in enumerate(parts)]
    events += [(end, 1, item) for item, end in enumerate(ends) if end < math.inf]
    events.sort()
    return_of = [0] * len(parts)
    for node, (_, is_end, item) in enumerate(events, start=1):
        if is_end:
            return_of[item] = node
    number = [0] * len(parts)
    counts = [0, 0]
    for item, end in enumerate(ends):
        is_open = end == math.inf
        number[item] = counts[is_open]
        counts[is_open] += 1
    return _Plan(
        [-1] + [-1 if is_end else item for _, is_end, item in events],
        return_of,
        number,
        [move.apply for _, move in parts],
        [move.pure for _, move in parts],
    )


def search(  # noqa: PLR0915 - one loop over local variables: a call a step would double its time
    operations: Sequence[Operation], model: Model, max_steps: int
) -> tuple[Word, int]:
    """The bare search: its word, and the steps it took."""
    item_at, return_of, number, applies, pures = _plan(operations, model)
    state: object = model.start()
    size = len(item_at)
    after = [*range(1, size), 0]
    before = [size - 1, *range(size - 1)]
    seen: set[tuple[int, int, int, object]] = set()
    stack: list[tuple[int, object, int, int, int]] = []
    base = done = extra = steps = 0  # completed below base are done; bits of the rest; bits of open ones
    left = sum(node > 0 for node in return_of)
    here = after[0]
    while left:
        # While a completed operation is left its return is in the list, and is met before the end of it.
        item = item_at[here]
        if item >= 0:
            steps += 1
            if steps > max_steps:
                return Word.UNKNOWN, max_steps
            reached = applies[item](state)
            if reached is not None:
                ends = return_of[item]
                base_then, done_then, extra_then = base, done, extra
                if ends:
                    done_then |= 1 << (number[item] - base)
                    if done_then & 1:
                        run = (done_then ^ (done_then + 1)).bit_length() - 1
                        done_then >>= run
                        base_then += run
                else:
                    extra_then |= 1 << number[item]
                memo = (base_then, done_then, extra_then, reached)
                if memo not in seen:
                    seen.add(memo)
                    stack.append((here, state, base, done, extra))
                    state, base, done, extra = reached, base_then, done_then, extra_then
                    after[before[here]] = after[here]
                    before[after[here]] = before[here]
                    if ends:
                        left -= 1
                        after[before[ends]] = after[ends]
                        before[after[ends]] = before[ends]
                    here = after[0]
                    continue
        else:
            while True:
                if not stack:
                    return Word.ILLEGAL, steps
                here, state, base, done, extra = stack.pop()
                item = item_at[here]
                ends = return_of[item]
                if ends:
                    left += 1
                    after[before[ends]] = before[after[ends]] = ends
                after[before[here]] = before[after[here]] = here
                if not pures[item]:
                    break
        here = after[here]
    return Word.OK, steps


class _Shrinker:
    """Weakens an illegal history for as long as it stays illegal.

    To weaken is never to invent: whatever is legal stays legal. A pure operation is left out; any other is
    left open, so that it may have happened at any later time, or never.
    """

    def __init__(self, operations: Sequence[Operation], model: Model) -> None:
        self._model = model
        moves = model.moves(operations)
        self._parts = [
            (op, move.pure) for op, move in zip(operations, moves, strict=True) if move is not None
        ]
        self._runs = SHRINK_RUNS_MAX
        self._steps = SHRINK_STEPS_MAX
        self.closed = [index for index, (op, _) in enumerate(self._parts) if op.end < math.inf]
        self.closed.sort(key=lambda index: self._parts[index][0].end)

    def weakened(self, closed: Sequence[int], until: float = math.inf) -> list[tuple[Operation, Operation]]:
        """(weakened, original) operations that began by `until`, with all but `closed` weakened."""
        keep = set(closed)
        found: list[tuple[Operation, Operation]] = []
        for index, (op, pure) in enumerate(self._parts):
            if op.began > until:
                continue
            if index in keep or (op.end == math.inf and not pure):
                found.append((op, op))
            elif not pure:
                found.append((replace(op, outcome="unknown", ended=None), op))
        return found

    def is_illegal(self, closed: Sequence[int], until: float = math.inf) -> bool:
        """Whether it surely is; no answer in time counts as no."""
        if self._runs <= 0 or self._steps <= 0:
            return False
        self._runs -= 1
        part = [op for op, _ in self.weakened(closed, until)]
        word, steps = search(part, self._model, min(SHRINK_RUN_STEPS_MAX, self._steps))
        self._steps -= steps
        return word is Word.ILLEGAL

    def shortest_prefix(self) -> tuple[list[int], float]:
        """What had ended when the history became illegal: a prefix of a legal history is legal."""
        low, high = 0, len(self.closed)  # the prefix of `high` is illegal
        while high - low > 1:
            middle = (low + high) // 2
            if self.is_illegal(self.closed[:middle], self._end(middle)):
                high = middle
            else:
                low = middle
        return self.closed[:high], self._end(high)

    def _end(self, count: int) -> float:
        return self._parts[self.closed[count - 1]][0].end if count else -math.inf

    def thin(self, closed: list[int], until: float) -> list[int]:
        """Delta debugging (Zeller and Hildebrandt 2002): weaken ever smaller runs of operations."""
        size = max(1, len(closed) // 2)
        while True:
            start = 0
            shrunk = False
            while start < len(closed):
                fewer = closed[:start] + closed[start + size :]
                if fewer and self.is_illegal(fewer, until):
                    closed, shrunk = fewer, True
                else:
                    start += size
            if size == 1 and not shrunk:
                return closed
            size = max(1, size // 2)


def shortest_failing(operations: Sequence[Operation], model: Model) -> tuple[Operation, ...]:
    """A small part of an illegal history that is illegal by itself, as far as bounded effort gets."""
    shrinker = _Shrinker(operations, model)
    closed, until = shrinker.shortest_prefix()
    closed = shrinker.thin(closed, until)
    part = shrinker.weakened(closed, until)
    # Leaving out an open operation leaves less that is legal, so the rest stays illegal; but those that
    # brought a value that somebody saw belong to the story.
    told = {
        identity(value)
        for now, was in part
        if now is was and now.end < math.inf
        for value in (now.value, now.expected, now.seen)
        if value is not None
    }
    kept = [was for now, was in part if now.end < math.inf or identity(was.value) in told]
    return tuple(sorted(kept, key=lambda op: op.began))
