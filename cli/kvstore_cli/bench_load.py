"""The load generator: turns that ask, wait for the answer, and ask again.

Rules kept here:
- a *turn* has one request outstanding; a connection carries `depth` turns, so depth 1 is the plain
  client that waits for each answer, and nothing is pipelined behind its back;
- a closed loop (no rate) asks again at once; an open loop asks at fixed instants, and measures from the
  instant a request *should* have left. When the server stalls, the requests that could not leave
  are late, and count as late (coordinated omission, Gil Tene);
- what began during warm-up is not counted; throughput counts what finished inside the window, and
  latency everything that began inside it;
- it costs callbacks, no task and no future per request, because it shares the processors with the nodes.

It knows nothing of the wire: a `Channel` is handed in, and bench/ has channels for other stores.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

from kvstore import errors
from kvstore_cli.bench_histogram import Histogram
from kvstore_cli.bench_workload import GET, INSERT, PUT, Workload

OnReply = Callable[[Any, Any], None]
"""Called once with `(error, result)`: error is None, a KVError, or `[name, message, fields]` from a node."""

DISPATCH_S = 0.001
"""How often the open loop looks what is due."""
POLL_S = 0.005
"""How often a run looks whether it is over."""


class Channel(Protocol):
    """One connection to a store."""

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> object:
        """Ask; `get [key, options]`, `put [key, value, operation, options]` or `put_many`."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def as_error(error: Any) -> errors.KVError:
    """What a channel reported, as one of our errors."""
    return error if isinstance(error, errors.KVError) else errors.from_wire(error)


class Tally:
    """What came back, since the last time somebody looked."""

    __slots__ = ("errors", "inside", "latency")

    def __init__(self) -> None:
        self.latency = {GET: Histogram(), PUT: Histogram(), INSERT: Histogram()}
        self.errors: Counter[str] = Counter()
        self.inside = 0
        """Successes that finished inside the window."""

    def add(self, other: Tally) -> None:
        """Take over what another one counted."""
        for kind, histogram in other.latency.items():
            self.latency[kind].add(histogram)
        self.errors.update(other.errors)
        self.inside += other.inside

    def to_plain(self) -> dict[str, Any]:
        """What JSON can carry."""
        return {
            "latency": {kind: histogram.to_plain() for kind, histogram in self.latency.items()},
            "errors": dict(self.errors),
            "inside": self.inside,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Tally:
        """Rebuild what `to_plain` gave."""
        made = cls()
        made.latency = {kind: Histogram.from_plain(each) for kind, each in plain["latency"].items()}
        made.errors = Counter(plain["errors"])
        made.inside = plain["inside"]
        return made


class Requests:
    """Turns what a workload draws into calls."""

    __slots__ = ("_next", "_operation", "_options", "_prefix", "_value")

    def __init__(
        self, workload: Workload, *, value: bytes, options: dict[str, Any], operation_prefix: bytes
    ) -> None:
        assert len(operation_prefix) == 12, operation_prefix
        self._next = workload.next
        self._value = value
        self._options = options
        self._prefix = operation_prefix
        self._operation = 0

    def draw(self) -> tuple[str, str, list[Any]]:
        """The next call: `(kind, method, params)`."""
        kind, key = self._next()
        if kind == GET:
            return GET, "get", [key, self._options]
        self._operation += 1
        operation = self._prefix + self._operation.to_bytes(4, "big")
        return kind, "put", [key, self._value, operation, self._options]


class _Turn:
    """One request at a time on one channel."""

    __slots__ = ("_began", "_kind", "_run", "_send")

    def __init__(self, run: Run, channel: Channel) -> None:
        self._run = run
        self._send = channel.send
        self._began = 0.0
        self._kind = GET

    def ask(self, began: float) -> None:
        """Send one request whose time counts from `began`."""
        self._began = began
        self._kind, method, params = self._run.draw()
        self._send(method, params, self._answered)

    def _answered(self, error: Any, _result: Any) -> None:
        run = self._run
        run.outstanding -= 1
        run.answered_at = now = perf_counter()
        if self._began >= run.measure_from:
            if error is None:
                run.fresh.latency[self._kind].record(int((now - self._began) * 1_000_000))
                run.fresh.inside += now <= run.stop_at
            else:
                run.fresh.errors[as_error(error).name] += 1
        if error is None:
            run.free(self, now)
        elif as_error(error).name in BROKEN:
            run.turns_lost += 1
        else:
            # A refused turn pauses: asking again at once would only measure how fast we are refused.
            run.later(PAUSE_AFTER_ERROR_S, lambda: run.free(self, perf_counter()))


async def _until(condition: Callable[[], bool], give_up_at: float) -> None:
    """Wait for `condition`, looking now and then: an event would cost every request a check."""
    while not condition() and perf_counter() < give_up_at:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


BROKEN = frozenset({"connection_lost", "cannot_connect"})
"""Errors after which a channel answers nothing any more; its turns end."""
PAUSE_AFTER_ERROR_S = 0.01


class Run:
    """One measured stretch over a set of channels.

    `rate` is requests a second for all channels together, or 0 for a closed loop; `count` ends the
    run after so many requests, 0 means after `warmup_s + duration_s`.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        draw: Callable[[], tuple[str, str, list[Any]]],
        *,
        depth: int,
        warmup_s: float,
        duration_s: float,
        rate: float = 0.0,
        count: int = 0,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.draw = draw
        self.later = loop.call_later
        self.free = self._free_open if rate else self._free_closed
        self.fresh = Tally()
        self.outstanding = 0
        self.turns_lost = 0
        self.measure_from = 0.0
        self.stop_at = 0.0
        self.answered_at = 0.0
        self._turns = [_Turn(self, channel) for _ in range(depth) for channel in channels]
        self._warmup_s = warmup_s
        self._duration_s = duration_s
        self._rate = rate
        self._left = count or -1
        self._idle: list[_Turn] = []
        self._late: deque[float] = deque()
        self._scheduled = 0
        self._began = 0.0

    async def drive(self, *, grace_s: float) -> None:
        """Run to the end; wait up to `grace_s` for the last answers."""
        by_count = self._left > 0
        self._began = now = perf_counter()
        self.measure_from = now + self._warmup_s
        # A run by count ends with its last answer; only then is its window known.
        self.stop_at = float("inf") if by_count else self.measure_from + self._duration_s
        if self._rate:
            self._idle = self._turns[::-1]
            self._dispatch()
        else:
            for turn in self._turns:
                self._free_closed(turn, now)
        await _until(lambda: not self._left or self._all_lost, self.stop_at)
        give_up_at = perf_counter() + grace_s
        await _until(lambda: not self.outstanding and not (by_count and self._late), give_up_at)
        if self.outstanding:
            self.fresh.errors["no_answer"] += self.outstanding
        if self._late:
            self.fresh.errors["never_sent"] += len(self._late)
        if by_count or self._all_lost:
            self.stop_at = max(self.answered_at, self.measure_from)

    @property
    def _all_lost(self) -> bool:
        return self.turns_lost == len(self._turns)

    @property
    def window_s(self) -> float:
        """How long the counted part took."""
        return self.stop_at - self.measure_from

    def take(self) -> Tally:
        """Hand over what was counted since the last call."""
        taken, self.fresh = self.fresh, Tally()
        return taken

    def _free_closed(self, turn: _Turn, now: float) -> None:
        """Closed loop: ask again at once, until the end."""
        if now < self.stop_at and self._left:
            self._left -= 1
            self.outstanding += 1
            turn.ask(now)

    def _free_open(self, turn: _Turn, now: float) -> None:
        """Open loop: take the oldest request that is late, else wait to be called."""
        if self._late and now < self.stop_at:
            self.outstanding += 1
            turn.ask(self._late.popleft())
        else:
            self._idle.append(turn)

    def _dispatch(self) -> None:
        """Send what is due by now; what finds no idle turn waits in line, and its clock runs."""
        now = perf_counter()
        if now >= self.stop_at or not self._left:
            return
        due = int((now - self._began) * self._rate)
        if self._left > 0:
            due = min(due, self._scheduled + self._left)
            self._left -= due - self._scheduled
        for number in range(self._scheduled, due):
            intended = self._began + number / self._rate
            if self._idle:
                self.outstanding += 1
                self._idle.pop().ask(intended)
            else:
                self._late.append(intended)
        self._scheduled = due
        self.later(DISPATCH_S, self._dispatch)
