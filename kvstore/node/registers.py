"""Linearizable registers: rounds run here, changes forwarded to where rounds are run (DESIGN 6).

    client -> coordinator -> first live owner: queue of the key -> prepare, fold, accept -> outcomes

Rules kept here:
- one round at a time for each key, and all that waits for the key is folded into the next one;
- any owner may propose when the first is gone: safety never rests on who does;
- a change that was never sent in an accept was not applied: its failure is definite;
- once it was sent, a later round of ours takes the window's word for it, never the first try's privilege;
- a try whose time is over is not proposed, wherever it was held up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from kvstore import errors
from kvstore.core import changes, ring
from kvstore.core import record as records
from kvstore.core.changes import Request
from kvstore.core.quorum import Verdict, majority
from kvstore.core.register import Phase, Round
from kvstore.core.topology import Topology
from kvstore.core.version import HybridClock
from kvstore.core.window import Outcome
from kvstore.node.acceptor import Acceptor
from kvstore.node.ceiling import Ceiling
from kvstore.node.deadlines import Deadlines
from kvstore.node.link import Link
from kvstore.node.metrics import Counters
from kvstore.node.phase import PhaseWait
from kvstore.ports import Dice
from kvstore.types import NodeId, Version
from kvstore.wire import messages
from kvstore.wire.register_messages import ACCEPT, PREPARE

PHASE_S = 1.0
"""A majority that does not answer within this is asked again at a higher ballot."""
BACKOFF_S, BACKOFF_S_MAX = 0.004, 0.25
FORWARD_PART, FORWARD_S_MIN = 0.4, 0.3
"""How much of what is left an owner gets before the next one is asked."""

Settled = tuple[Outcome, tuple[NodeId, ...]]
"""What a change came to, and who holds it."""


class _Waiter:
    """One change that waits for a round."""

    __slots__ = ("deadline", "future", "proposed", "request")

    def __init__(self, request: Request, deadline: float, future: asyncio.Future[Settled]) -> None:
        self.request = request
        self.deadline = deadline
        self.future = future
        self.proposed = False
        """It was sent in an accept: it may have been applied."""


class Registers:
    """The proposers of this node."""

    def __init__(  # noqa: PLR0913  everything it uses, handed in by name
        self,
        *,
        number: NodeId,
        topology: Callable[[], Topology],
        links: Mapping[NodeId, Link],
        acceptor: Acceptor,
        versions_clock: HybridClock,
        ceiling: Ceiling,
        trusted_now: Callable[[], int],
        deadlines: Deadlines,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        dice: Dice,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
    ) -> None:
        self._number = number
        self._topology = topology
        self._links = links
        self._acceptor = acceptor
        self._versions = versions_clock
        self._ceiling = ceiling
        self._trusted_now = trusted_now
        self._deadlines = deadlines
        self._spawn = spawn
        self._dice = dice
        self._loop = loop
        self._counters = counters
        self._waiting: dict[bytes, deque[_Waiter]] = {}
        """By key; a key is here while a task runs its rounds."""

    # --- where a change goes ------------------------------------------------------------

    async def change(self, key: bytes, request: Request, deadline: float) -> Settled:
        """Have a change done, here or at another owner. `deadline` in the loop's time.

        Raises errors.Refused when it was certainly not applied, errors.Unresolved when nobody knows.
        """
        owners = self._topology().preference(key)
        self.check_alive(key)
        tried: set[NodeId] = set()
        unresolved: errors.KVError | None = None
        last: errors.KVError | None = None
        while (left := deadline - self._loop.time()) > 0:
            target = self._next_owner(owners, tried)
            if target is None:
                tried.clear()
                await asyncio.sleep(min(self._dice.random() * BACKOFF_S_MAX, left))
                continue
            tried.add(target)
            until = deadline if len(tried) == len(owners) else self._part(left) + self._loop.time()
            try:
                if target == self._number:
                    return await self.serve(key, request, until)
                return await self._forward(target, key, request, until)
            except errors.KVError as error:
                last = error
                if not error.definite:
                    unresolved = error
                    request = request._replace(first=False)
                elif not isinstance(error, errors.NotNow):
                    raise unresolved or error from None
        if unresolved is None:
            self.check_alive(key)
        raise unresolved or last or errors.NoMajority(operation=request.name)

    @staticmethod
    def _part(left: float) -> float:
        return min(left, max(left * FORWARD_PART, FORWARD_S_MIN))

    def check_alive(self, key: bytes) -> None:
        """Refuse while it is definite: no majority, no register. Raises errors.Unavailable."""
        owners = self._topology().preference(key)
        down = [n for n in owners if n != self._number and not self._links[n].up]
        if len(owners) - len(down) < majority(len(owners)):
            names = " ".join(self._topology().node(n).name for n in down)
            raise errors.Unavailable(
                operation="a linearizable call",
                needed=majority(len(owners)),
                alive=len(owners) - len(down),
                down=names,
            )

    def _next_owner(self, owners: tuple[NodeId, ...], tried: set[NodeId]) -> NodeId | None:
        for number in owners:
            if number not in tried and (number == self._number or self._links[number].up):
                return number
        return None

    async def _forward(self, target: NodeId, key: bytes, request: Request, until: float) -> Settled:
        link = self._links[target]
        answer: asyncio.Future[tuple[Any, Any]] = self._loop.create_future()

        def replied(error: Any, result: Any) -> None:
            if not answer.done():
                answer.set_result((error, result))

        budget = max(until - self._loop.time(), 0.001)
        self._counters.forwarded += 1
        params = messages.encode_forward(link.epoch, int(budget * 1000), key, request)
        link.call("change", params, replied)
        try:
            async with asyncio.timeout(budget):
                error, result = await answer
        except TimeoutError:
            raise errors.DeadlineExceeded(timeout_ms=int(budget * 1000)) from None
        if isinstance(error, errors.KVError):
            raise error
        if error is not None:
            raise errors.from_wire(list(error) if isinstance(error, tuple) else error)
        changed = messages.decode_changed(result)
        return messages.outcome_of(changed), tuple(map(NodeId, changed.acked))

    # --- the queue of a key -------------------------------------------------------------

    async def serve(self, key: bytes, request: Request, deadline: float) -> Settled:
        """Run a change in a round of ours. Raises as `change` does."""
        self._acceptor.check()
        waiter = _Waiter(request, deadline, self._loop.create_future())
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = deque([waiter])
            self._spawn(self._run(key))
        else:
            waiting.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter.future
        except TimeoutError:
            if waiter.proposed:
                raise errors.QuorumTimeout(
                    operation=request.name, needed="a majority of", acked="too few", missing="unknown"
                ) from None
            raise errors.NoMajority(operation=request.name) from None

    async def _run(self, key: bytes) -> None:
        waiting = self._waiting[key]
        try:
            while waiting:
                taken = [waiting.popleft() for _ in range(min(len(waiting), changes.FOLD_MAX))]
                try:
                    await self._rounds(key, taken)
                except errors.KVError as error:
                    for waiter in taken:
                        if not waiter.future.done():
                            waiter.future.set_exception(
                                errors.Unresolved(message=error.message)
                                if waiter.proposed and error.definite
                                else error
                            )
        finally:
            del self._waiting[key]
            for waiter in waiting:
                if not waiter.future.done():
                    waiter.future.set_exception(errors.NotReady(reason="it is stopping"))

    # --- rounds -------------------------------------------------------------------------

    async def _rounds(self, key: bytes, waiters: list[_Waiter]) -> None:
        """Rounds at rising ballots until one is accepted or nobody waits any more."""
        pause = BACKOFF_S
        while waiters := [w for w in waiters if not w.future.done() and w.deadline > self._loop.time()]:
            if await self._round(key, waiters):
                return
            self._counters.register_retries += 1
            await asyncio.sleep(self._dice.random() * pause)
            pause = min(pause * 2, BACKOFF_S_MAX)

    async def _round(self, key: bytes, waiters: list[_Waiter]) -> bool:
        topology = self._topology()
        owners = topology.preference(key)
        skey = ring.storage_key(topology.partition(key), key)
        now_ms = self._trusted_now()
        issued = [self._versions.next(now_ms) for _ in waiters]
        await self._until_issuable(issued[-1], now_ms)
        current = Round(owners, issued[-1])
        self._counters.register_rounds += 1
        if await self._ask(current, PREPARE, skey, int(issued[-1]), now_ms) is not Verdict.REACHED:
            return self._beaten(current)
        highest = current.highest
        if highest is not None and records.shown_version_of(highest) >= issued[0]:
            self._versions.observe(records.version_of(highest), now_ms)
            return False
        # Whoever has stopped waiting was told that nothing happened, and that must stay true.
        time = self._loop.time()
        waiters = [w for w in waiters if not w.future.done() and (w.proposed or w.deadline > time)]
        if not waiters:
            return True
        asked = [w.request._replace(first=w.request.first and not w.proposed) for w in waiters]
        record, outcomes = self._fold(highest, asked, issued[len(issued) - len(waiters) :], now_ms)
        current.begin_accept()
        for waiter in waiters:
            waiter.proposed = True
        if await self._ask(current, ACCEPT, skey, record, now_ms) is not Verdict.REACHED:
            return self._beaten(current)
        for waiter, outcome in zip(waiters, outcomes, strict=True):
            if not waiter.future.done():
                waiter.future.set_result((outcome, current.acked))
        return True

    @staticmethod
    def _fold(
        highest: bytes | None, asked: list[Request], issued: list[Version], now_ms: int
    ) -> tuple[bytes, list[Outcome]]:
        try:
            return changes.fold(highest, asked, versions=issued, now_ms=now_ms)
        except ValueError as error:
            raise errors.DamagedRecord(key=str(error)) from None

    async def _until_issuable(self, ballot: Version, now_ms: int) -> None:
        """No version leaves this node before the log holds a ceiling above it."""
        self._ceiling.keep_ahead(now_ms)
        if ballot <= self._ceiling.durable:
            return
        raised: asyncio.Future[bool] = self._loop.create_future()

        def answer(ok: bool) -> None:
            if not raised.done():
                raised.set_result(ok)

        self._ceiling.when_above(ballot, now_ms, answer)
        if not await raised:
            raise errors.NotReady(reason="its log failed")

    async def _ask(self, current: Round, kind: int, skey: bytes, what: Any, now_ms: int) -> Verdict:
        """Send one phase to all owners; returns when it is decided, or LOST when its time is over."""
        phase = Phase.PREPARE if kind == PREPARE else Phase.ACCEPT
        wait = PhaseWait(current, phase, self._loop)
        until = self._loop.time() + PHASE_S
        bucket = self._deadlines.add(until, wait)
        for number in current.owners:
            if number == self._number:
                self._acceptor.vote_local(kind, skey, what, wait, now_ms=now_ms)
            else:
                self._links[number].ask_vote(kind, skey, what, wait, deadline=until)
        try:
            return await wait.future
        finally:
            bucket.pop(id(wait), None)

    def _beaten(self, current: Round) -> bool:
        if current.beaten_by:
            self._versions.observe(current.beaten_by, self._trusted_now())
        return False
