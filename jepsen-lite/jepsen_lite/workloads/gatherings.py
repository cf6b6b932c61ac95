"""Things that grow: sets, counters, unique ids and lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from jepsen_lite.checks_append import check_append
from jepsen_lite.checks_counter import check_counter
from jepsen_lite.checks_session import check_versions
from jepsen_lite.checks_set import check_set, check_unique
from jepsen_lite.history import Operation, by_key
from jepsen_lite.seat import Seat
from jepsen_lite.verdict import Verdict, Word, guarded, illegal
from jepsen_lite.workloads.registers import LINEAR
from jepsen_lite.workloads.workload import KeyPool

_BATCH = 200


class Elements:
    """A set, one key an element, each added with put_if_absent; read key by key after healing."""

    linearizable = True
    keys_are_stored = False

    def __init__(self) -> None:
        self._added: list[str] = []

    async def step(self, seat: Seat) -> None:
        """Add an element that nobody else adds."""
        element = seat.unique()
        self._added.append(element)

        async def ask(op: Operation) -> None:
            done = await seat.kv.put_if_absent(f"element:{element}", b"there")
            op.version = done.version
            if not done:
                op.outcome = "fail"  # somebody holds it: nobody can

        op = await seat.call("add", "set", ask, value=element)
        if op.outcome == "fail" and not op.error:
            op.error = "already there"

    async def finish(self, seat: Seat) -> None:
        """Look for every element that was ever tried."""
        added = list(self._added)

        async def ask(op: Operation) -> None:
            found: list[str] = []
            for start in range(0, len(added), _BATCH):
                part = {f"element:{element}": element for element in added[start : start + _BATCH]}
                entries = await seat.kv.get_many(list(part), consistency=LINEAR, timeout=20.0)
                found += [part[str(key)] for key, entry in entries.items() if entry is not None]
            op.value = found

        await seat.call("read", "set", ask)

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """The final read through each node has all that was acknowledged, and nothing else."""
        reads = [op for op in operations if op.kind == "read" and op.outcome == "ok"]
        adds = [op for op in operations if op.kind == "add"]
        refused = [op for op in adds if op.error == "already there"]
        verdicts = [guarded("set", lambda one=read: check_set([*adds, one])) for read in reads]  # type: ignore[misc]
        if refused:
            verdicts.append(illegal("set", "was there before it was added", ("refused", refused)))
        return verdicts or [Verdict("set", Word.UNKNOWN, "no read succeeded")]


class Counters:
    """Increments of a few counters; each answer tells the sum, so it is judged as a read."""

    linearizable = True
    keys_are_stored = True
    counters = 3

    async def step(self, seat: Seat) -> None:
        """Add a little, seldom take away, or read."""
        key = f"counter:{seat.dice.randrange(self.counters)}"
        if seat.dice.random() < 0.4:
            await self._read(seat, key)
            return
        by = seat.dice.choice((1, 1, 2, 3, -1))

        async def ask(op: Operation) -> None:
            done = await seat.kv.incr(key, by)
            op.version = done.version
            if done:
                op.seen, op.observed = done.value, True
            else:
                op.outcome, op.error = "fail", "not applied"

        await seat.call("add", key, ask, value=by)

    async def _read(self, seat: Seat, key: str) -> None:
        async def ask(op: Operation) -> None:
            entry = await seat.kv.get(key, consistency=LINEAR)
            op.value, op.version = (int(entry.value), entry.version) if entry is not None else (0, 0)

        await seat.call("read", key, ask)

    async def finish(self, seat: Seat) -> None:
        """Read all counters."""
        for number in range(self.counters):
            await self._read(seat, f"counter:{number}")

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """Bounds of every read; each answered sum follows from the one before; one version has one sum."""
        told = [
            replace(op, kind="write", value=op.seen)
            for op in operations
            if op.kind == "add" and op.outcome == "ok" and op.observed
        ]
        reads = [op for op in operations if op.kind == "read"]
        return [
            guarded("counter", lambda: check_counter(operations)),
            guarded("sums", lambda: check_sums(operations)),
            guarded("versions", lambda: check_versions([*told, *reads])),
        ]


def check_sums(operations: Sequence[Operation]) -> Verdict:
    """In the order of versions every answered sum is the one before it and what was added.

    Additions of unknown outcome may stand between two of them; without any this is exact.
    """
    judged = 0
    for key, part in by_key(op for op in operations if op.kind == "add").items():
        unknown = [int(op.value) for op in part if op.outcome == "unknown"]
        low, high = sum(n for n in unknown if n < 0), sum(n for n in unknown if n > 0)
        before: Operation | None = None
        for op in sorted(
            (op for op in part if op.outcome == "ok" and op.observed), key=lambda op: op.version
        ):
            judged += 1
            gap = op.seen - op.value - (before.seen if before is not None else 0)
            if not low <= gap <= high:
                why = f"{gap:+d} came in between, and {low}..{high} may have"
                return illegal("sums", why, ("in order", [each for each in (before, op) if each]), key=key)
            before = op
    return Verdict("sums", Word.OK if judged else Word.UNKNOWN, "" if judged else "no sum was answered")


class UniqueIds:
    """Ids from one counter: whoever increments it gets a number that nobody else gets."""

    linearizable = True
    keys_are_stored = True

    async def step(self, seat: Seat) -> None:
        """Take an id."""

        async def ask(op: Operation) -> None:
            done = await seat.kv.incr("ids")
            op.version, op.value = done.version, done.value
            if not done:
                op.outcome, op.error = "fail", "not applied"

        await seat.call("generate", "ids", ask)

    async def finish(self, seat: Seat) -> None:
        """Take one more."""
        await self.step(seat)

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """No id twice; and later ids are greater, as they come from one counter."""
        return [
            guarded("unique-ids", lambda: check_unique(operations)),
            guarded("rising-ids", lambda: check_rising(operations)),
        ]


def check_rising(operations: Sequence[Operation]) -> Verdict:
    """An id that was asked for after another had been given is greater."""
    given = [op for op in operations if op.kind == "generate" and op.outcome == "ok"]
    by_end = sorted(given, key=lambda op: op.end)
    highest: Operation | None = None
    index = 0
    for op in sorted(given, key=lambda op: op.began):
        while index < len(by_end) and by_end[index].end < op.began:
            if highest is None or by_end[index].value > highest.value:
                highest = by_end[index]
            index += 1
        if highest is not None and op.value <= highest.value:
            return illegal("rising-ids", "a later id is not greater", ("both", [highest, op]))
    return Verdict("rising-ids", Word.OK if given else Word.UNKNOWN, "" if given else "no id was given out")


class Lists:
    """Lists that grow by read and compare-and-set, as `update` does it."""

    linearizable = True
    keys_are_stored = True

    def __init__(self) -> None:
        self._pool = KeyPool("list:", active=3, uses_max=80)

    async def step(self, seat: Seat) -> None:
        """Append an element that nobody else appends, or read."""
        key = self._pool.pick(seat.dice)
        if seat.dice.random() < 0.45:
            await self._read(seat, key)
            return
        element = seat.unique()

        def longer(data: bytes | None) -> bytes:
            return json.dumps([*json.loads(data or b"[]"), element]).encode()

        async def ask(op: Operation) -> None:
            op.version = (await seat.kv.update(key, longer)).version

        await seat.call("append", key, ask, value=element)

    async def _read(self, seat: Seat, key: str) -> None:
        async def ask(op: Operation) -> None:
            entry = await seat.kv.get(key, consistency=LINEAR)
            op.value, op.version = (json.loads(entry.value), entry.version) if entry is not None else ([], 0)

        await seat.call("read", key, ask)

    async def finish(self, seat: Seat) -> None:
        """Read the newest lists."""
        for key in self._pool.finals():
            await self._read(seat, key)

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """See check_append."""
        return [guarded("append", lambda: check_append(operations))]
