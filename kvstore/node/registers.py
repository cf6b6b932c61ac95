"""Where a change of a register goes: to the first live owner of its key, which runs the rounds (DESIGN 6).

    client -> coordinator -> first live owner -> node.proposers

Rules kept here:
- any owner may propose when the first is gone: safety never rests on who does;
- what may have been applied by one owner is a retry for the next, and its failure is never told as definite;
- what is forwarded names the instant, on the owner's steady clock, after which it is void: a register
  remembers 128 outcomes, and a cut network may hold a message up for longer than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from kvstore import errors
from kvstore.core.changes import Request
from kvstore.core.quorum import majority
from kvstore.core.topology import Topology
from kvstore.node.link import Link
from kvstore.node.metrics import Counters
from kvstore.node.proposers import BACKOFF_S_MAX, OnSettled, Proposers, Settled, awaited
from kvstore.ports import Dice
from kvstore.types import NodeId
from kvstore.wire import messages

FORWARD_PART, FORWARD_S_MIN = 0.4, 0.3
"""How much of what is left an owner gets before the next one is asked."""


class Registers:
    """The way of every change."""

    def __init__(
        self,
        *,
        number: NodeId,
        topology: Callable[[], Topology],
        links: Mapping[NodeId, Link],
        proposers: Proposers,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        dice: Dice,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
    ) -> None:
        self._number = number
        self._topology = topology
        self._links = links
        self._proposers = proposers
        self._spawn = spawn
        self._dice = dice
        self._loop = loop
        self._counters = counters

    def start(self, key: bytes, request: Request, deadline: float, done: OnSettled) -> None:
        """Have a change done, here or at another owner. `deadline` in the loop's time.

        `done` is told errors.Refused when it was certainly not applied, errors.Unresolved when nobody
        knows. Raises errors.Unavailable, errors.UnsafeRegisters when it cannot begin.
        """
        owners = self._topology().preference(key)
        self._check_alive(owners)
        if self._next_owner(owners, set()) != self._number:
            self._spawn(self._tell(done, key, request, deadline, owners))
            return
        # The usual case has no task: a client that knows the topology asks the first owner.
        time = self._loop.time()
        until = deadline if len(owners) == 1 else time + self._part(deadline - time)

        def here(settled: Settled | None, error: errors.KVError | None) -> None:
            if error is None or _is_final(error):
                done(settled, error)
            else:
                self._spawn(self._tell(done, key, request, deadline, owners, self._number, error))

        self._proposers.submit(key, request, until, here)

    async def change(self, key: bytes, request: Request, deadline: float) -> Settled:
        """As `start`, awaited. Raises what `done` would be told."""
        return await awaited(self.start, key, request, deadline)

    async def _tell(
        self,
        done: OnSettled,
        key: bytes,
        request: Request,
        deadline: float,
        owners: tuple[NodeId, ...],
        tried: NodeId | None = None,
        error: errors.KVError | None = None,
    ) -> None:
        try:
            settled = await self._try_owners(key, request, deadline, owners, tried, error)
        except errors.KVError as failure:
            done(None, failure)
        else:
            done(settled, None)

    async def _try_owners(
        self,
        key: bytes,
        request: Request,
        deadline: float,
        owners: tuple[NodeId, ...],
        tried: NodeId | None,
        error: errors.KVError | None,
    ) -> Settled:
        """One owner after another, from the one after `tried`, which failed with `error`."""
        asked = set() if tried is None else {tried}
        last = error
        unresolved: errors.KVError | None = None
        if error is not None and not error.definite:
            unresolved, request = error, request._replace(first=False)
        while (left := deadline - self._loop.time()) > 0:
            target = self._next_owner(owners, asked)
            if target is None:
                asked.clear()
                await asyncio.sleep(min(self._dice.random() * BACKOFF_S_MAX, left))
                continue
            asked.add(target)
            until = deadline if len(asked) == len(owners) else self._part(left) + self._loop.time()
            try:
                if target == self._number:
                    return await awaited(self._proposers.submit, key, request, until)
                return await self._forward(target, key, request, until)
            except errors.KVError as failure:
                last = failure
                if not failure.definite:
                    unresolved, request = failure, request._replace(first=False)
                elif _is_final(failure):
                    raise unresolved or failure from None
        if unresolved is None:
            self._check_alive(self._topology().preference(key))
        raise unresolved or last or errors.NoMajority(operation=request.name)

    @staticmethod
    def _part(left: float) -> float:
        return min(left, max(left * FORWARD_PART, FORWARD_S_MIN))

    def check_alive(self, key: bytes) -> None:
        """Refuse while it is definite: no majority, no register. Raises errors.Unavailable."""
        self._check_alive(self._topology().preference(key))

    def _check_alive(self, owners: tuple[NodeId, ...]) -> None:
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
        params = messages.encode_forward(
            link.epoch, link.clock.instant_ms(self._loop.time() + budget), key, request
        )
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


def _is_final(error: errors.KVError) -> bool:
    """Whether another owner would say the same: of a full disk, an owner speaks for all of them."""
    return error.definite and (not isinstance(error, errors.NotNow) or isinstance(error, errors.DiskFull))
