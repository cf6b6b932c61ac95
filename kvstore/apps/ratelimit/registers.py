"""Strict decisions: one register of the store holds a key's ledger, and one change of it is one decision.

The decision is computed here from the ledger and `now`, and stored with `cas(expected_version=...)`. The
algorithms need no place in the store that way, several limits are one value and so one change, and an
operation id makes the change happen once however often its answer is lost. The price is a second round
when somebody came in between; what was found comes with the refusal, so there is no read in the loop, and
a process that is alone with its key needs one round. Calls of one key that wait in one process share a change
(see `turns`): all of them are decided by the ledger that is stored, or none is.

A rule of one fixed window needs no ledger: see `windows`.

Rules kept here:
- a refusal is told only from what the store has said in this call, never from memory;
- an outcome nobody could tell is resolved before another change is tried, so no call is charged twice;
- registers end by themselves when there is nothing to remember, with a minute to spare for clocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from kvstore import Applied, Client, Entry
from kvstore.apps.ratelimit import ledger
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.ledger import Ledger, Verdict
from kvstore.apps.ratelimit.limit import Limit
from kvstore.apps.ratelimit.machine import Moment, Moments
from kvstore.apps.ratelimit.turns import LINEAR, Call, Pause, Steps, Turns, read, settled

_T = TypeVar("_T")
TTL_SPARE_S = 60.0
"""Registers outlive what they are about by this much, for clocks that differ."""
_SLOTS_MAX = 10_000
"""Keys whose last version is remembered; beyond it a call costs one round more."""

Step = Callable[[Ledger, Moment], tuple[Any, Ledger]]


class _Call(Call):
    """A pure step over a ledger, which may run several times, and who waits for what it says."""

    __slots__ = ("kept_s", "limits", "step")

    def __init__(self, step: Step, kept_s: Callable[[Any], float], limits: Sequence[Limit]) -> None:
        super().__init__()
        self.step = step
        self.limits = limits
        self.kept_s = kept_s
        """For how long the ledger matters, by what the step said."""


@dataclass(slots=True)
class _Slot:
    """What this process remembers of a register."""

    version: int = 0
    book: Ledger = field(default_factory=Ledger)


class Ledgers:
    """Keys whose limits are kept in one ledger each."""

    def __init__(self, kv: Client, *, moments: Moments, timeout_s: float, background: Background) -> None:
        self._kv = kv
        self._moments = moments
        self._timeout_s = timeout_s
        self._slots: OrderedDict[bytes, _Slot] = OrderedDict()
        self._turns: Turns[_Call] = Turns(kv, self._turn, background, timeout_s=timeout_s)

    async def take(self, key: bytes, limits: Sequence[Limit], cost: int, *, lease: int = 0) -> Verdict:
        """Decide one call. Raises errors.KVError when the store cannot tell."""

        def step(book: Ledger, now: Moment) -> tuple[Verdict, Ledger]:
            return ledger.decide(limits, book, now=now, cost=cost, lease=lease)

        return await self.change(key, step, _kept_s, limits)

    async def grant(
        self, key: bytes, limits: Sequence[Limit], *, least: int, most: int
    ) -> tuple[int, Verdict]:
        """Take as much as there is, from `least` to `most`, or 0."""

        def step(book: Ledger, now: Moment) -> tuple[tuple[int, Verdict], Ledger]:
            got, verdict, after = ledger.grant(limits, book, now=now, least=least, most=most)
            return (got, verdict), after

        return await self.change(key, step, lambda told: _kept_s(told[1]), limits)

    async def release(self, key: bytes, limits: Sequence[Limit], *, lease: int) -> None:
        """Let go of what a lease holds; harmless when it holds nothing."""

        def step(book: Ledger, now: Moment) -> tuple[float, Ledger]:
            after = ledger.released(limits, book, now=now, lease=lease)
            if after.states == book.states:
                return 0.0, book
            left, _ = ledger.decide(limits, after, now=now, cost=0)
            return _kept_s(left), after

        await self.change(key, step, lambda kept_s: kept_s)

    async def peek(self, key: bytes, limits: Sequence[Limit]) -> Verdict:
        """What is left now; nothing is charged."""
        book = await self.book(key)
        return ledger.decide(limits, book, now=self._moments(), cost=0)[0]

    async def book(self, key: bytes) -> Ledger:
        """The ledger as it is."""
        return _found(await self._kv.get(key, consistency=LINEAR, timeout=self._timeout_s))[1]

    async def reset(self, key: bytes) -> None:
        """Forget the key."""
        await self._kv.delete(key, consistency=LINEAR, timeout=self._timeout_s)
        self._slots.pop(key, None)

    async def change(
        self,
        key: bytes,
        step: Callable[[Ledger, Moment], tuple[_T, Ledger]],
        kept_s: Callable[[_T], float],
        limits: Sequence[Limit] = (),
    ) -> _T:
        """Apply a pure step, which may run several times; `kept_s` says for how long the ledger matters.

        It is not applied before it is certain in which windows of `limits` it is.
        """
        return cast("_T", await self._turns.ask(key, _Call(step, kept_s, limits)))

    async def close(self) -> None:
        """Cancel all who wait."""
        await self._turns.close()

    def _turn(self, key: bytes, calls: list[_Call]) -> Steps:
        """Take all steps, one after the other, and store what they come to."""
        slot = self._slot(key)
        certain = False
        while True:
            # Who was told that nobody could tell is not charged any more, where that can be helped.
            calls = [call for call in calls if not call.told.done()]
            now = self._moments()
            while unsure_us := _unsure_us(calls, now):
                yield Pause(unsure_us)
                now = self._moments()
            answers, after = _stepped(calls, slot.book, now)
            if after is slot.book:
                if certain:
                    break
                slot.version, slot.book = _found((yield from read(key)))
                certain = True
                continue
            kept_s = max(call.kept_s(answer) for call, answer in zip(calls, answers, strict=True))
            new = ledger.encode(after)
            store = self._kv.change.cas(key, new=new, expected_version=slot.version, ttl=kept_s)
            done = yield from settled(self._kv, store)
            if isinstance(done, Applied):
                slot.version, slot.book = done.version, after
                break
            if done is None or (done.value is None and done.version):
                slot.version, slot.book = _found((yield from read(key)))
            else:
                slot.version, slot.book = (
                    (done.version, ledger.decode(done.value)) if done.value else (0, Ledger())
                )
            # At once: what was found grows stale while one waits, and then the next try is lost as well. A
            # process has one change of a key under way, so there are as many to contend with as processes.
            certain = True
        for call, answer in zip(calls, answers, strict=True):
            call.tell(answer)

    def _slot(self, key: bytes) -> _Slot:
        slots = self._slots
        slot = slots.get(key)
        if slot is not None:
            slots.move_to_end(key)
            return slot
        slot = slots[key] = _Slot()
        if len(slots) > _SLOTS_MAX:
            slots.popitem(last=False)
        return slot


def _found(entry: Entry | None) -> tuple[int, Ledger]:
    """What a register holds: its version and its ledger."""
    return (0, Ledger()) if entry is None else (entry.version, ledger.decode(entry.value))


def _unsure_us(calls: Sequence[_Call], now: Moment) -> int:
    """Calls of a key have the same limits, but while rules are exchanged."""
    longest = 0
    seen: Sequence[Limit] | None = None
    for call in calls:
        if call.limits is not seen:
            seen = call.limits
            longest = max(longest, ledger.unsure_us(seen, now))
    return longest


def _stepped(calls: Sequence[_Call], book: Ledger, now: Moment) -> tuple[list[Any], Ledger]:
    answers = []
    for call in calls:
        answer, book = call.step(book, now)
        answers.append(answer)
    return answers, book


def _kept_s(verdict: Verdict) -> float:
    return verdict.reset_after_us / 1_000_000 + TTL_SPARE_S
