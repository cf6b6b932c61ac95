"""Calls with many keys: grouped by the node that owns them, run together, failures tried again in rounds.

Rules kept here:
- one deadline for the whole call, however many requests it takes;
- a request holds at most BATCH_KEYS_MAX keys and BYTES_MAX of keys and values, an eighth of that many keys
  after each round in which a request broke as a whole, and no more than were told when an answer had no room
  for all: what does not fit in one answer fits in parts;
- each key has its own outcome. One that may be tried again is, at the next best node; once one of its
  tries was indefinite the key's outcome is, whatever later tries say;
- a round in which some keys were done costs no attempt: it was progress.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvstore import errors, limits
from kvstore.client.caller import Caller
from kvstore.core.retry import RetryPolicy
from kvstore.ports import Dice
from kvstore.wire import results

GROUPS_AT_ONCE = 8
BYTES_MAX = 4 << 20
"""Of keys and values in one request: well below a frame."""
ROUNDS_MAX = 4
_CALL_ATTEMPTS = 3
_PAUSES = RetryPolicy(base_ms=25, cap_ms=400)

Outcome = tuple[Any, int, int]
"""(decoded result, number of the node that answered, tries)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call with many keys, as one piece of it is asked."""

    method: str
    params: Callable[[Sequence[bytes], int], Sequence[Any]]
    """From a piece's keys and a try's budget in milliseconds."""
    decode: Callable[[Any], Any]
    """The outcome of one key."""
    writes: bool
    sizes: Mapping[bytes, int]
    """Bytes that a key brings into the request; its own length when it is not there."""
    key_of: Callable[[bytes], bytes] | None = None
    """The key that something is about which is not named by its key."""


class Batch:
    """One call with many keys."""

    def __init__(
        self,
        caller: Caller,
        request: Request,
        *,
        timeout: float,
        dice: Dice,
        on_done: Callable[[Mapping[bytes, Outcome]], None] | None = None,
    ) -> None:
        self._caller = caller
        self._request = request
        self._timeout = timeout
        self._deadline = asyncio.get_running_loop().time() + timeout
        self._dice = dice
        self._on_done = on_done
        self._keys_max = limits.BATCH_KEYS_MAX
        self._broke = False
        self._again: dict[bytes, errors.KVError] = {}
        self._doubts: dict[bytes, errors.KVError] = {}
        self._tries: dict[bytes, int] = {}
        self.asked: set[bytes] = set()
        """Of writes: what was sent at least once, now or by an earlier call."""
        self.done: dict[bytes, Outcome] = {}
        self.failures: dict[bytes, errors.KVError] = {}

    async def run(self, keys: Sequence[bytes]) -> None:
        """Fill `done` and `failures`; raises none of the errors."""
        left: Sequence[bytes] = keys
        wasted = 0
        for round_number in range(len(keys) + ROUNDS_MAX):
            before = len(self.done)
            reasons, self._again = self._again, {}
            self._broke = False
            await self._round(list(self._pieces(left, round_number)), reasons)
            left = list(self._again)
            if self._broke:
                self._keys_max = max(self._keys_max >> 3, 1)
            wasted += len(self.done) == before
            if not left or wasted >= ROUNDS_MAX:
                break
            pause = _PAUSES.delay_ms(wasted, self._dice) / 1000 if wasted else 0.0
            if self._left() <= pause:
                break
            await asyncio.sleep(pause)
        for key, error in self._again.items():
            self.failures[key] = self._doubts.get(key, error)

    def _left(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()

    def _pieces(self, keys: Sequence[bytes], round_number: int) -> Iterator[tuple[str, list[bytes]]]:
        """Keys that go to one node together, and its address."""
        candidates, sizes, key_of = self._caller.nodes.candidates, self._request.sizes, self._request.key_of
        groups: dict[str, list[bytes]] = {}
        for key in keys:
            order = candidates(key if key_of is None else key_of(key))
            groups.setdefault(order[round_number % len(order)], []).append(key)
        for address, group in groups.items():
            piece: list[bytes] = []
            filled = 0
            for key in group:
                size = sizes.get(key, len(key))
                if piece and (len(piece) >= self._keys_max or filled + size > BYTES_MAX):
                    yield address, piece
                    piece, filled = [], 0
                piece.append(key)
                filled += size
            yield address, piece

    async def _round(
        self, pieces: Sequence[tuple[str, Sequence[bytes]]], reasons: Mapping[bytes, errors.KVError]
    ) -> None:
        waiting = iter(pieces)

        async def work() -> None:
            for address, piece in waiting:
                left = self._left()
                if left > 0:
                    await self._ask(address, piece, left)
                else:
                    late = errors.DeadlineExceeded(timeout_ms=int(self._timeout * 1000))
                    self._again.update((key, reasons.get(key, late)) for key in piece)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(GROUPS_AT_ONCE, len(pieces))):
                tasks.create_task(work())

    async def _ask(self, address: str, keys: Sequence[bytes], left: float) -> None:
        request = self._request

        def params(budget_ms: int) -> Sequence[Any]:
            asked = request.params(keys, budget_ms)
            if request.writes:
                if not self.asked.isdisjoint(keys):
                    # A register must know that an earlier try may have been applied.
                    asked = (*asked[:-1], {**asked[-1], "n": 2})
                self.asked.update(keys)
            return asked

        try:
            outcomes, node, attempts = await self._caller.call(
                request.method,
                params,
                key=keys[0] if request.key_of is None else request.key_of(keys[0]),
                timeout=left,
                writes=request.writes,
                prefer=address,
                decode=lambda result: results.decode_many(result, len(keys), request.decode),
                attempts_max=_CALL_ATTEMPTS,
            )
        except errors.KVError as error:
            self._broke = self._broke or isinstance(error, errors.ConnectionLost)
            for key in keys:
                self._failed(key, error)
            return
        epoch = 0
        full = False
        settled: dict[bytes, Outcome] = {}
        for key, outcome in zip(keys, outcomes, strict=True):
            tries = self._tries[key] = self._tries.get(key, 0) + attempts
            if isinstance(outcome, errors.KVError):
                full = full or isinstance(outcome, errors.Overloaded | errors.ConnectionLost)
                self._failed(key, outcome)
            else:
                settled[key] = (outcome, node, tries)
                epoch = max(epoch, outcome.epoch)
        self.done.update(settled)
        if full and settled:
            self._keys_max = min(self._keys_max, len(settled))
        self._caller.nodes.saw_epoch(epoch)
        if self._on_done is not None:
            self._on_done(settled)

    def _failed(self, key: bytes, error: errors.KVError) -> None:
        if self._request.writes and not error.definite:
            self._doubts.setdefault(key, error)
        if error.retryable:
            self._again[key] = error
        else:
            self.failures[key] = self._doubts.get(key, error)
