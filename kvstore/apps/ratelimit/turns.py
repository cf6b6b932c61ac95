"""Calls of one key take turns: those that come while a change is under way share the next one.

A change is a durable write on most replicas, so one for each call would make a key as slow as a disk. Calls
that share one are decided one after another in memory, in the order they came, and what they add up to is
stored at once or not at all; a call that nobody else waits behind has a change of its own. Changes of many
keys that are made at the same moment travel together.

A turn is a generator: it yields a `kvstore.Change` or a `Read`, and is sent what came of it, which may be an
error, or a `Pause`. So it says what to do and never waits; all the waiting is here, and no call has a task.

Rules kept here:
- one turn of a key at a time; whoever stopped waiting before a turn began is not in it;
- a turn for which nobody waits any more asks for nothing more;
- a caller that goes away takes nobody with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, NamedTuple, TypeVar, cast

from kvstore import Applied, Change, Client, NotApplied, errors
from kvstore.apps.ratelimit.background import Background

TURN_MAX = 1000
"""Calls in one turn; the others wait for the next."""
CHANGE_PART = 0.7
"""Of the time left, for a change: the rest is for finding out what became of it."""
_LOOK_S = 0.05
"""How often it is looked at who has waited long enough."""
_STALL_S = 0.02
"""How long changes wait for those under way, to travel together after them. Not longer: a node may hang."""
LINEAR = "linearizable"


class Read(NamedTuple):
    """What is in a register now? Answered with a `kvstore.Entry` or None."""

    key: bytes


class Pause(NamedTuple):
    """Go on after so many microseconds."""

    us: int


Steps = Generator[Change | Read | Pause, Any, None]


class Call:
    """A call, and where its answer goes."""

    __slots__ = ("told", "until")

    def __init__(self) -> None:
        self.told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.until = 0.0
        """How long it waits, in the loop's time."""

    def tell(self, answer: object) -> None:
        """Answer it, if it still waits."""
        if not self.told.done():
            self.told.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Answer with an error, if it still waits."""
        if not self.told.done():
            self.told.set_exception(error)


_Call = TypeVar("_Call", bound=Call)


class _Queue(Generic[_Call]):
    """The calls of one key."""

    __slots__ = ("key", "steps", "taken", "until", "waiting")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.waiting: list[_Call] = []
        self.taken: list[_Call] = []
        """Those of the turn."""
        self.steps: Steps | None = None
        self.until = 0.0
        """The end of the turn."""


class Turns(Generic[_Call]):
    """The queues, by key."""

    def __init__(
        self,
        kv: Client,
        turn: Callable[[bytes, list[_Call]], Steps],
        background: Background,
        *,
        timeout_s: float,
    ) -> None:
        self._kv = kv
        self._turn = turn
        self._background = background
        self._timeout_s = timeout_s
        self._queues: dict[bytes, _Queue[_Call]] = {}
        self._due: list[_Queue[_Call]] = []
        """Those without a turn, to be looked at soon."""
        self._changes: list[tuple[_Queue[_Call], Change]] = []
        """What the turns want next."""
        self._under_way = 0
        """Requests with changes that were sent and are not answered."""
        self._sent_at = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._is_soon = False
        self._looking: asyncio.TimerHandle | None = None

    async def ask(self, key: bytes, call: _Call) -> Any:
        """Wait for the answer of a turn.

        Raises errors.KVError: Contended when no turn came in time, DeadlineExceeded when one came and nobody
        knows yet what became of it.
        """
        loop = call.told.get_loop()
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(key)
            self._due.append(queue)
            self._soon(loop)
        queue.waiting.append(call)
        call.until = loop.time() + self._timeout_s
        if self._looking is None:
            self._looking = loop.call_later(_LOOK_S, self._look, loop)
        return await call.told

    async def close(self) -> None:
        """Cancel all who wait."""
        queues, self._queues = self._queues, {}
        self._due, self._changes = [], []
        for queue in queues.values():
            for call in (*queue.taken, *queue.waiting):
                call.told.cancel()
        for timer in (self._looking, self._later):
            if timer is not None:
                timer.cancel()
        self._looking = self._later = None

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_soon:
            self._is_soon = True
            loop.call_soon(self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """The next turn of each key that has none."""
        self._is_soon = False
        due, self._due = self._due, []
        for queue in due:
            taken = [call for call in queue.waiting[:TURN_MAX] if not call.told.done()]
            del queue.waiting[:TURN_MAX]
            if taken:
                queue.taken, queue.until = taken, loop.time() + self._timeout_s
                queue.steps = self._turn(queue.key, taken)
                self._go_on(queue, None)
            elif queue.waiting:
                self._due.append(queue)
            else:
                self._queues.pop(queue.key, None)
        self._send(loop)

    def _go_on(self, queue: _Queue[_Call], came: object) -> None:
        """One step of a turn."""
        steps = queue.steps
        assert steps is not None
        try:
            step = steps.send(came)
            if all(call.told.done() for call in queue.taken):
                steps.close()
            elif isinstance(step, Read):
                self._background.start(self._read(queue, step))
                return
            elif isinstance(step, Pause):
                self._background.start(self._pause(queue, step))
                return
            else:
                self._changes.append((queue, step))
                return
        except StopIteration:
            pass
        except Exception as error:  # noqa: BLE001  whatever it is, it is each caller's to raise
            for call in queue.taken:
                call.fail(error)
        queue.taken, queue.steps = [], None
        self._due.append(queue)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask for what the turns want. Whoever was told meanwhile has its say before the next turns begin."""
        if self._changes:
            now = loop.time()
            if now - self._sent_at >= _STALL_S or not self._under_way:
                changes, self._changes = self._changes, []
                self._under_way += 1
                self._sent_at = now
                self._background.start(self._make(changes))
            elif self._later is None:
                self._later = loop.call_later(_STALL_S, self._overtake, loop)
        if self._due:
            self._soon(loop)

    def _overtake(self, loop: asyncio.AbstractEventLoop) -> None:
        """What is under way takes long; others do not wait for it."""
        self._later = None
        self._send(loop)

    async def _make(self, asked: list[tuple[_Queue[_Call], Change]]) -> None:
        loop = asyncio.get_running_loop()
        left = max(queue.until for queue, _ in asked) - loop.time()
        queues = {id(change): queue for queue, change in asked}

        def told(change: Change, came: Applied | NotApplied | errors.KVError) -> None:
            self._go_on(queues.pop(id(change)), came)
            self._soon(loop)

        changes = [change for _, change in asked]
        try:
            await self._kv.change_many(changes, timeout=max(left * CHANGE_PART, 0.001), on_outcome=told)
        except errors.KVError as error:
            for queue in list(queues.values()):
                self._go_on(queue, error)
        finally:
            self._under_way -= 1
        self._soon(loop)

    async def _read(self, queue: _Queue[_Call], read: Read) -> None:
        loop = asyncio.get_running_loop()
        came: object
        try:
            left = max(queue.until - loop.time(), 0.001)
            came = await self._kv.get(read.key, consistency=LINEAR, timeout=left)
        except errors.KVError as error:
            came = error
        self._go_on(queue, came)
        self._send(loop)

    async def _pause(self, queue: _Queue[_Call], pause: Pause) -> None:
        await asyncio.sleep(pause.us / 1_000_000)
        self._go_on(queue, None)
        self._send(asyncio.get_running_loop())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell those who have waited long enough."""
        self._looking = loop.call_later(_LOOK_S, self._look, loop) if self._queues else None
        now, timeout_ms = loop.time(), int(self._timeout_s * 1000)
        for queue in self._queues.values():
            for call in queue.waiting:
                if call.until <= now:
                    call.fail(errors.Contended(key=repr(queue.key), timeout_ms=timeout_ms))
            for call in queue.taken:
                if call.until <= now:
                    call.fail(errors.DeadlineExceeded(timeout_ms=timeout_ms))


def settled(kv: Client, change: Change) -> Generator[Change, Any, Applied | NotApplied | None]:
    """A step that knows its outcome; None: it was not done and never will be, though nothing forbids it.

    Raises what was answered: errors.Unresolved when it could not be found out.
    """
    came = yield change
    if isinstance(came, errors.Unresolved) and came.operation is not None:
        came = (yield kv.change.resolve(came.operation)) or None
    if isinstance(came, errors.KVError):
        raise came
    return cast("Applied | NotApplied | None", came)


def read(key: bytes) -> Generator[Read, Any, Any]:
    """A step that reads: the entry, or None. Raises errors.KVError."""
    came = yield Read(key)
    if isinstance(came, errors.KVError):
        raise came
    return came
