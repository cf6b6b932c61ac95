"""Every interleaving of a few register calls over three acceptors, up to a bound, against brute-force order.

One step is one of: a call begins, a request reaches an acceptor and its answer comes back or is lost, a
proposer tries again, a merge copies a record, an acceptor restarts. Requests never delivered are lost
requests; proposers that never move again have crashed. Answers come back at once: a late one only delays
what the proposer does next, which every interleaving of its next requests covers.

The rules come from `kvstore.core`; a `Rules` with one of them replaced is a mutant that must be convicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from register_orders import Call, has_order

from kvstore.core import changes, register
from kvstore.core import record as records
from kvstore.core.changes import Request
from kvstore.core.quorum import Verdict
from kvstore.core.register import Glance
from kvstore.core.version import NODE_BITS, pack
from kvstore.types import Kind, NodeId, OperationId, Version

NOW_MS = 1_800_000_000_000
OWNERS = (NodeId(1), NodeId(2), NodeId(3))


class Held(NamedTuple):
    """An acceptor."""

    promised: int = 0
    record: bytes | None = None


class Actor(NamedTuple):
    """A call on its way. `stage`: idle, plain, peek, prepare, accept, done, stuck."""

    stage: str = "idle"
    attempt: int = 0
    ballot: int = 0
    asked: int = 0
    """Acceptors that were asked in this stage, as bits."""
    granted: int = 0
    refused: bool = False
    seen: bytes | None = None
    """The highest record of the promises; the record of a peek."""
    record: bytes | None = None
    result: Any = None
    before: frozenset[int] = frozenset()
    """Calls that had ended when this one began."""
    proposed: bool = False


class World(NamedTuple):
    """One state."""

    acceptors: tuple[Held, ...]
    actors: tuple[Actor, ...]
    merges: int
    restarts: int


@dataclass(frozen=True)
class Rules:
    """What the explorer takes from the production code, and what a mutant replaces."""

    on_prepare: Callable[[int, bytes | None, int], int] = register.on_prepare
    on_accept: Callable[[int, bytes | None, bytes], int] = register.on_accept
    glance: Callable[[tuple[NodeId, ...]], Glance] = Glance
    adopt: Callable[[bytes | None], bytes | None] = lambda record: record
    retry_operation: Callable[[int, int], int] = lambda actor, _attempt: actor
    keeps_promises: bool = True
    collects_tombstones: bool = False
    quorum: int = 2
    """Grants that decide."""
    succeeds_once: bool = True
    """A proposer goes on from a record of its own once."""
    next_ballot: Callable[[int], int] = lambda ballot: ballot + (1 << NODE_BITS)
    """At which ballot it does so."""
    tells_failures_early: bool = False
    """A change that does not apply is answered after its prepare."""


def operation(number: int) -> OperationId:
    """The id of a call."""
    return OperationId((NOW_MS - 10).to_bytes(6, "big") + bytes(9) + bytes((number + 1,)))


def _ballot(actor: int, attempt: int, seen: int, *, close: bool) -> int:
    base = int(pack(NOW_MS, 4 * attempt + (0 if close else actor), NodeId(actor + 1)))
    return max(base, (seen >> 10) + 1 << 10 | actor + 1)


class Explorer:
    """Depth-first over all states reachable from the calls."""

    def __init__(
        self,
        calls: tuple[Call, ...],
        *,
        rules: Rules | None = None,
        attempts: int = 1,
        merges: int = 0,
        restarts: int = 0,
        lost_answers: bool = True,
        close: bool = False,
        states_max: int = 400_000,
    ) -> None:
        self.calls = calls
        self.rules = rules or Rules()
        self.attempts = attempts
        self.merges = merges
        self.restarts = restarts
        self.lost_answers = lost_answers
        self.close = close
        """Ballots of different proposers lie between a ballot and its successor."""
        self.states_max = states_max
        self.states = 0
        self.completed = 0
        self.exhausted = False
        self.violation: str | None = None
        self._orders: dict[Any, bool] = {}

    def run(self) -> str | None:
        """The first violation, or None when every reachable state within the bound is sound."""
        start = World((Held(),) * 3, (Actor(),) * len(self.calls), self.merges, self.restarts)
        stack, known = [start], {start}
        while stack:
            world = stack.pop()
            self.states += 1
            if self.states > self.states_max:
                self.exhausted = True
                return None
            for step in self._steps(world):
                after = self._canonical(step)
                if after in known:
                    continue
                known.add(after)
                if not self._is_sound(after):
                    self.violation = self._tell(after)
                    return self.violation
                stack.append(after)
        return None

    @staticmethod
    def _canonical(world: World) -> World:
        """Acceptors are alike: states that differ only in their names are one."""
        actors = world.actors
        columns = [
            (
                held.promised,
                held.record or b"",
                tuple((actor.asked >> at & 1, actor.granted >> at & 1) for actor in actors),
                held,
            )
            for at, held in enumerate(world.acceptors)
        ]
        if columns[0][:3] <= columns[1][:3] <= columns[2][:3]:
            return world
        columns.sort(key=lambda column: column[:3])
        renamed = tuple(
            actor._replace(
                asked=sum(column[2][number][0] << at for at, column in enumerate(columns)),
                granted=sum(column[2][number][1] << at for at, column in enumerate(columns)),
            )
            for number, actor in enumerate(actors)
        )
        return world._replace(acceptors=tuple(column[3] for column in columns), actors=renamed)

    # --- steps --------------------------------------------------------------------------

    def _steps(self, world: World) -> Iterator[World]:
        for number, actor in enumerate(world.actors):
            yield from self._actor_steps(world, number, actor)
        if world.merges:
            yield from self._merge_steps(world)
        if world.restarts and not self.rules.keeps_promises:
            for at, held in enumerate(world.acceptors):
                if held.promised:
                    yield self._with(world, at, held._replace(promised=0))._replace(
                        restarts=world.restarts - 1
                    )
        if self.rules.collects_tombstones:
            for at, held in enumerate(world.acceptors):
                if held.record is not None and records.kind_of(held.record) == Kind.TOMBSTONE:
                    yield self._with(world, at, Held())

    def _actor_steps(self, world: World, number: int, actor: Actor) -> Iterator[World]:
        call = self.calls[number]
        match actor.stage:
            case "idle":
                ended = frozenset(n for n, other in enumerate(world.actors) if other.stage == "done")
                if call.after < 0 or call.after in ended:
                    begun = actor._replace(before=ended)
                    if call.plain:
                        yield self._set(
                            world, number, begun._replace(stage="plain", ballot=self._fresh(number, begun))
                        )
                    elif call.succeeds >= 0:
                        yield from self._succeed(world, number, begun)
                    elif call.name == "get":
                        yield self._set(world, number, begun._replace(stage="peek"))
                    else:
                        yield self._set(world, number, self._begin(number, begun))
            case "plain" | "peek" | "prepare" | "accept":
                for at in range(3):
                    if not actor.asked >> at & 1:
                        yield from self._deliver(world, number, actor, at)
                if actor.stage in ("prepare", "accept") and actor.attempt < self.attempts and actor.asked:
                    yield self._set(world, number, self._begin(number, actor))

    def _succeed(self, world: World, number: int, begun: Actor) -> Iterator[World]:
        """Accept right after a round of the same proposer."""
        source = self.calls[number].succeeds
        before = world.actors[source]
        if before.stage != "done":
            return
        others = (n for n, call in enumerate(self.calls) if call.succeeds == source and n != number)
        if self.rules.succeeds_once and any(world.actors[n].stage != "idle" for n in others):
            yield self._set(world, number, self._begin(number, begun))
        else:
            assert before.record is not None
            ballot = self.rules.next_ballot(before.ballot)
            went = begun._replace(ballot=ballot, attempt=1)
            yield self._set(world, number, self._proposing(number, went, before.record))

    def _fresh(self, number: int, actor: Actor) -> int:
        return _ballot(number, actor.attempt, actor.ballot, close=self.close)

    def _begin(self, number: int, actor: Actor) -> Actor:
        attempt = actor.attempt + 1
        return actor._replace(
            stage="prepare", attempt=attempt, ballot=_ballot(number, attempt, actor.ballot, close=self.close),
            asked=0, granted=0, refused=False, seen=None, record=None,
        )  # fmt: skip

    def _deliver(self, world: World, number: int, actor: Actor, at: int) -> Iterator[World]:
        held = world.acceptors[at]
        asked = actor._replace(asked=actor.asked | 1 << at)
        granted = asked._replace(granted=asked.granted | 1 << at)
        match actor.stage:
            case "plain":
                after, answered = self._deliver_plain(number, held, asked, granted)
            case "peek":
                yield self._set(world, number, self._peeked(number, asked, granted, held, at))
                return
            case "prepare":
                beaten = self.rules.on_prepare(held.promised, held.record, actor.ballot)
                if beaten:
                    after, answered = held, asked._replace(refused=True)
                else:
                    after = held._replace(promised=actor.ballot)
                    answered = self._promised(number, granted, held.record)
            case _:
                assert actor.record is not None
                if self.rules.on_accept(held.promised, held.record, actor.record):
                    after, answered = held, asked._replace(refused=True)
                else:
                    newest = held.record is None or records.is_newer(actor.record, held.record)
                    after = held._replace(record=actor.record if newest else held.record)
                    answered = self._accepted(number, granted)
        reached = self._with(world, at, after)
        yield self._set(reached, number, answered)
        if self.lost_answers and answered != asked:
            yield self._set(reached, number, asked)

    def _deliver_plain(self, number: int, held: Held, asked: Actor, granted: Actor) -> tuple[Held, Actor]:
        call = self.calls[number]
        strong = held.record is not None and records.flags_of(held.record) & records.FLAG_STRONG
        version = records.version_of(held.record) if held.record is not None else 0
        if strong or held.promised > version:
            # needs_register: run it as a change under the same operation id, as a retry.
            return held, self._begin(number, asked._replace(proposed=True))
        record = records.encode(
            Version(asked.ballot), 0, Kind.VALUE, call.args[0], operation=operation(number)
        )
        newer = held.record is None or records.is_newer(record, held.record)
        after = held._replace(record=record) if newer else held
        if granted.granted.bit_count() >= 2:
            return after, granted._replace(stage="done", result=(True, None))
        return after, granted

    def _peeked(self, number: int, asked: Actor, granted: Actor, held: Held, at: int) -> Actor:
        glance = self.rules.glance(OWNERS)
        verdict = Verdict.PENDING
        if asked.granted:
            verdict = glance.shown(OWNERS[(asked.granted.bit_length() - 1)], 0, asked.seen)
        if verdict is Verdict.PENDING:
            verdict = glance.shown(OWNERS[at], held.promised, held.record)
        if verdict is Verdict.LOST:
            return self._begin(number, asked)
        if verdict is Verdict.REACHED:
            record = glance.record
            live = record is not None and records.kind_of(record) != Kind.TOMBSTONE
            value = records.payload_of(record) if live and record is not None else None
            return granted._replace(stage="done", result=(True, value))
        return granted._replace(seen=held.record)

    def _promised(self, number: int, granted: Actor, record: bytes | None) -> Actor:
        if record is not None and (granted.seen is None or records.is_newer(record, granted.seen)):
            granted = granted._replace(seen=record)
        if granted.granted.bit_count() < self.rules.quorum:
            return granted
        return self._proposing(number, granted, granted.seen)

    def _proposing(self, number: int, granted: Actor, seen: bytes | None) -> Actor:
        call = self.calls[number]
        name = "put" if call.plain else call.name
        args = (call.args[0], 0) if call.plain else call.args
        asked = Request(
            operation(self.rules.retry_operation(number, granted.attempt)), not granted.proposed, name, args
        )
        record, (outcome,) = changes.fold(
            self.rules.adopt(seen),
            [asked],
            ballot=Version(granted.ballot),
            versions=[Version(granted.ballot)],
            now_ms=NOW_MS,
        )
        early = self.rules.tells_failures_early and not outcome.applied
        return granted._replace(
            stage="done" if early else "accept", asked=0, granted=0, record=record, proposed=True,
            result=(outcome.applied, outcome.value),
        )  # fmt: skip

    def _accepted(self, number: int, granted: Actor) -> Actor:
        del number
        return granted._replace(stage="done") if granted.granted.bit_count() >= self.rules.quorum else granted

    def _merge_steps(self, world: World) -> Iterator[World]:
        for src in world.acceptors:
            for at, dst in enumerate(world.acceptors):
                if src.record is not None and (
                    dst.record is None or records.is_newer(src.record, dst.record)
                ):
                    after = self._with(world, at, dst._replace(record=src.record))
                    yield after._replace(merges=world.merges - 1)

    @staticmethod
    def _with(world: World, at: int, held: Held) -> World:
        # A promise is over once a record of at least its ballot is held.
        if held.record is not None and records.version_of(held.record) >= held.promised:
            held = held._replace(promised=0)
        return world._replace(acceptors=(*world.acceptors[:at], held, *world.acceptors[at + 1 :]))

    @staticmethod
    def _set(world: World, number: int, actor: Actor) -> World:
        return world._replace(actors=(*world.actors[:number], actor, *world.actors[number + 1 :]))

    # --- the verdict --------------------------------------------------------------------

    def _is_sound(self, world: World) -> bool:
        history = tuple(
            (actor.result, actor.before) if actor.stage == "done" else None for actor in world.actors
        )
        begun = tuple(actor.stage != "idle" for actor in world.actors)
        if all(ended is None for ended in history):
            return True
        known = self._orders.get((history, begun))
        if known is None:
            known = self._orders[history, begun] = has_order(self.calls, history, begun)
            self.completed += 1
        return known

    def _tell(self, world: World) -> str:
        parts = [
            f"{call.name}{call.args} -> {actor.result if actor.stage == 'done' else actor.stage}"
            f" (after {sorted(actor.before)})"
            for call, actor in zip(self.calls, world.actors, strict=True)
        ]
        return "; ".join(parts)
