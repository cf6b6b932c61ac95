"""The rounds of this node's proposers: all that waits for a key is folded into one round after another.

    submit -> queue of the key -> [prepare ->] fold -> accept -> every change of the round is told

No task and no future for a change: these callbacks are the hot path of registers (DESIGN 13).

Rules kept here:
- one round at a time for each key, and all that waits for the key is folded into the next one;
- a key that we lead needs no prepare (core.leads), and a lead that was beaten is one no more;
- a change that was never sent in an accept was not applied: its failure is definite;
- once it was sent, a later round of ours takes the window's word for it, never the first try's privilege;
- a change whose time is over is not proposed, wherever it was held up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kvstore import errors
from kvstore.core import changes, ring
from kvstore.core import record as records
from kvstore.core.changes import Request
from kvstore.core.leads import Leads
from kvstore.core.quorum import Verdict, majority
from kvstore.core.register import Phase, Round
from kvstore.core.topology import Topology
from kvstore.core.version import HybridClock
from kvstore.core.window import Outcome
from kvstore.core.writing import no_space
from kvstore.node.acceptor import Acceptor
from kvstore.node.ceiling import Ceiling
from kvstore.node.deadlines import Bucket, Deadlines
from kvstore.node.link import Link
from kvstore.node.metrics import Counters
from kvstore.node.phase import PhaseWait
from kvstore.ports import Dice
from kvstore.types import NodeId, Version
from kvstore.wire.register_messages import ACCEPT, PREPARE

PHASE_S, PHASE_S_MAX = 1.0, 8.0
"""A majority silent for the first is asked again at a higher ballot if somebody refused, or nobody waits.
Else it is waited for, up to the second: asked anew each time, slow disks would never get a sync done."""
BACKOFF_S, BACKOFF_S_MAX = 0.004, 0.25

Settled = tuple[Outcome, tuple[NodeId, ...]]
"""What a change came to, and who holds it."""
OnSettled = Callable[[Settled | None, errors.KVError | None], None]
"""Told one of the two, once."""


async def awaited(start: Callable[..., None], *call: Any) -> Settled:
    """Await what `start(*call, done)` tells `done`. Raises the error it is told."""
    answer: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()

    def done(settled: Settled | None, error: errors.KVError | None) -> None:
        if answer.done():  # its waiter was cancelled
            return
        if error is not None:
            answer.set_exception(error)
        elif settled is not None:
            answer.set_result(settled)

    start(*call, done)
    return await answer


class Change:
    """One change that waits for a round."""

    __slots__ = ("_done", "bucket", "deadline", "ended", "proposed", "request")

    def __init__(self, request: Request, deadline: float, done: OnSettled) -> None:
        self.request = request
        self.deadline = deadline
        self._done = done
        self.bucket: Bucket | None = None
        self.ended = False
        self.proposed = 0
        """In how many rounds it was sent in an accept: it may have been applied."""

    def settle(self, settled: Settled) -> None:
        """It came to this."""
        if not self.ended:
            self._end(settled, None)

    def fail(self, error: errors.KVError) -> None:
        """It came to nothing that anybody knows of; what may have been applied is never told as refused."""
        if not self.ended:
            unsure = self.proposed > 0 and error.definite
            self._end(None, errors.Unresolved(message=error.message) if unsure else error)

    def expire(self) -> None:
        """Its deadline has passed."""
        name = self.request.name
        self.fail(
            errors.QuorumTimeout(operation=name, needed="a majority of", acked="too few", missing="unknown")
            if self.proposed
            else errors.NoMajority(operation=name)
        )

    def _end(self, settled: Settled | None, error: errors.KVError | None) -> None:
        self.ended = True
        if self.bucket is not None:
            self.bucket.pop(id(self), None)
        self._done(settled, error)


class _Queue:
    """What waits for one key, and the round that runs for it."""

    __slots__ = (
        "asking", "current", "issued", "key", "now_ms", "pause", "skey", "taken", "topology", "waiting",
    )  # fmt: skip

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.waiting: deque[Change] = deque()
        self.taken: list[Change] = []
        """The changes of the round."""
        self.pause = 0.0
        self.topology: Topology
        self.skey = b""
        self.current: Round
        self.asking: PhaseWait | None = None
        """The phase that is waited for; what is decided of another one is old."""
        self.issued: list[Version] = []
        """The versions of the changes."""
        self.now_ms = 0
        """The one instant by which the round judges expiry."""


class Proposers:
    """The queues of all keys for which this node runs rounds now."""

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
        dice: Dice,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        bug: Callable[[str, Exception], None],
    ) -> None:
        self._number = number
        self._topology = topology
        self._links = links
        self._acceptor = acceptor
        self._versions = versions_clock
        self._ceiling = ceiling
        self._trusted_now = trusted_now
        self._deadlines = deadlines
        self._dice = dice
        self._loop = loop
        self._counters = counters
        self._bug = bug
        self._leads = Leads()
        self._queues: dict[bytes, _Queue] = {}

    def submit(self, key: bytes, request: Request, deadline: float, done: OnSettled) -> None:
        """Have a change done in a round of ours; `deadline` in the loop's time.

        Raises errors.UnsafeRegisters. `done` is told errors.Refused when it was certainly not applied,
        errors.Unresolved when nobody knows.
        """
        self._acceptor.check()
        change = Change(request, deadline, done)
        change.bucket = self._deadlines.add(deadline, change)
        queue = self._queues.get(key)
        if queue is not None:
            queue.waiting.append(change)
            return
        queue = self._queues[key] = _Queue(key)
        queue.waiting.append(change)
        self._next(queue)

    def close(self) -> None:
        """This node stops: no round goes on, and all that waits fails."""
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            left = [*queue.taken, *queue.waiting]
            queue.taken, queue.asking = [], None
            queue.waiting.clear()
            for change in left:
                change.fail(errors.NotReady(reason="it is stopping"))

    def _next(self, queue: _Queue) -> None:
        """Begin with the next changes of a key, if any wait."""
        waiting = queue.waiting
        if not waiting:
            self._queues.pop(queue.key, None)
            return
        if len(waiting) == 1:
            queue.taken = [waiting.popleft()]
        else:
            queue.taken = [waiting.popleft() for _ in range(min(len(waiting), changes.FOLD_MAX))]
        queue.pause = BACKOFF_S
        self._round(queue)

    # --- a round ------------------------------------------------------------------------

    def _round(self, queue: _Queue) -> None:
        """One round for what is taken and still waited for."""
        time = self._loop.time()
        queue.taken = [change for change in queue.taken if not change.ended and change.deadline > time]
        if queue.taken:
            self._guarded(queue, self._begin)
        else:
            self._next(queue)

    def _guarded(self, queue: _Queue, step: Callable[[_Queue], None]) -> None:
        """A step of a round; what it raises ends the round and its changes."""
        error: errors.KVError
        try:
            step(queue)
        except errors.KVError as failure:
            error = failure
        except Exception as mistake:  # noqa: BLE001  ours: the log has it, and other keys go on
            self._bug("a round", mistake)
            error = errors.Unresolved(message="the node made a mistake; its log has the details")
        else:
            return
        taken, queue.taken, queue.asking = queue.taken, [], None
        for change in taken:
            change.fail(error)
        self._next(queue)

    def _begin(self, queue: _Queue) -> None:
        topology = queue.topology = self._topology()
        partition = topology.partition(queue.key)
        queue.skey = ring.storage_key(partition, queue.key)
        now_ms = queue.now_ms = self._trusted_now()
        owners = topology.owners[partition]
        accepted = self._led(queue)
        if accepted is not None:
            queue.current = Round.succeeding(owners, accepted)
            # Never again, whatever becomes of it: two records at one ballot would both be chosen.
            self._versions.observe(queue.current.ballot, now_ms)
        issued = queue.issued = [self._versions.next(now_ms) for _ in queue.taken]
        if accepted is None:
            queue.current = Round(owners, issued[-1])
        self._counters.register_rounds += 1
        self._ceiling.keep_ahead(now_ms)
        if issued[-1] <= self._ceiling.durable:
            self._issued(queue)
        else:
            # No version leaves this node before the log holds a ceiling above it.
            self._ceiling.when_above(
                issued[-1], now_ms, lambda ok: self._guarded(queue, self._issued if ok else _log_failed)
            )

    def _led(self, queue: _Queue) -> bytes | None:
        """Our last record of the key, if a majority accepted it and nothing newer is known here."""
        ballot = self._leads.take(queue.key, queue.topology.epoch)
        held = self._acceptor.latest(queue.skey) if ballot is not None else None
        if held is None or records.version_of(held) != ballot or not records.is_whole(held):
            return None
        return held

    def _issued(self, queue: _Queue) -> None:
        current = queue.current
        if current.phase is Phase.PREPARE:
            self._counters.register_prepares += 1
            self._ask(queue, PREPARE, int(current.ballot))
        else:
            self._propose(queue)

    def _propose(self, queue: _Queue) -> None:
        """What is known of the register is known: fold the changes onto it."""
        current, issued, now_ms = queue.current, queue.issued, queue.now_ms
        highest = current.highest
        if highest is not None and (shown := records.shown_version_of(highest)) >= issued[0]:
            self._versions.observe(max(shown, records.version_of(highest)), now_ms)
            self._again(queue)
            return
        # Whoever has stopped waiting was told that nothing happened, and that must stay true.
        time = self._loop.time()
        taken = [c for c in queue.taken if not c.ended and (c.proposed or c.deadline > time)]
        queue.taken = taken
        if not taken:
            self._next(queue)
            return
        asked = [c.request._replace(first=False) if c.proposed else c.request for c in taken]
        try:
            record, outcomes = changes.fold(
                highest,
                asked,
                ballot=current.ballot,
                versions=issued[len(issued) - len(taken) :],
                now_ms=now_ms,
            )
        except ValueError as error:
            raise errors.DamagedRecord(key=str(error)) from None
        for change in taken:
            change.proposed += 1
        self._ask(queue, ACCEPT, record, outcomes)

    def _ask(self, queue: _Queue, kind: int, what: Any, outcomes: list[Outcome] | None = None) -> None:
        """Send one phase to all owners."""
        current = queue.current

        def decided(verdict: Verdict) -> None:
            if queue.asking is wait:
                queue.asking = None
                if wait.full and verdict is not Verdict.REACHED:
                    self._no_space(queue, len(wait.full))
                self._decided(queue, current, verdict, outcomes)

        time = self._loop.time()
        until = time + PHASE_S
        wait = queue.asking = PhaseWait(
            current,
            decided,
            overtaken=partial(self._leads.drop, queue.key),
            wait_on=partial(self._wait_on, queue, time + PHASE_S_MAX),
        )
        wait.bucket = self._deadlines.add(until, wait)
        for number in current.owners:
            if number == self._number:
                self._acceptor.vote_local(kind, queue.skey, what, wait, now_ms=queue.now_ms)
            else:
                self._links[number].ask_vote(kind, queue.skey, what, wait, deadline=until)

    def _wait_on(self, queue: _Queue, until: float, wait: PhaseWait) -> bool:
        """Whether a phase whose time is over gets some more, at most up to `until`."""
        time = self._loop.time()
        if queue.asking is not wait or queue.current.beaten_by or time >= until:
            return False
        if all(change.ended for change in queue.taken):
            return False
        wait.bucket = self._deadlines.add(time + PHASE_S, wait)
        return True

    def _decided(
        self, queue: _Queue, current: Round, verdict: Verdict, outcomes: list[Outcome] | None
    ) -> None:
        """A phase is over."""
        if verdict is not Verdict.REACHED:
            self._guarded(queue, self._beaten)
        elif outcomes is None:
            current.begin_accept()
            self._guarded(queue, self._propose)
        else:
            if not current.beaten_by:
                self._leads.won(queue.key, current.ballot, queue.topology.epoch)
            acked, taken = current.acked, queue.taken
            queue.taken = []
            for change, outcome in zip(taken, outcomes, strict=True):
                change.settle((outcome, acked))
            self._next(queue)

    def _no_space(self, queue: _Queue, full: int) -> None:
        """So many owners have no space: ends what no majority can store, for another round finds the same."""
        owners = len(queue.current.owners)
        if owners - full >= majority(owners):
            return
        for change in queue.taken:
            if full == owners and change.proposed == 1:
                change.proposed = 0  # nobody holds it
            change.fail(no_space())

    def _beaten(self, queue: _Queue) -> None:
        number = queue.current.beaten_by
        if number:
            self._versions.observe(number, self._trusted_now())
        self._again(queue)

    def _again(self, queue: _Queue) -> None:
        """Another round, at a higher ballot, after a pause."""
        self._counters.register_retries += 1
        self._loop.call_later(self._dice.random() * queue.pause, self._round, queue)
        queue.pause = min(queue.pause * 2, BACKOFF_S_MAX)


def _log_failed(_queue: _Queue) -> None:
    raise errors.NotReady(reason="its log failed")
