"""Counters of the eventual path: they count on both sides of a partition, and nothing is counted twice.

`counter_add` works wherever a write of its level works, and all additions meet again in one sum. A client
keeps the total of what it has added to each key and sends that, so the library's own retries are free. The
price: a read may miss what was added elsewhere a moment ago, and there is no maximum to enforce; for that
there is `incr`, which is linearizable.

An addition that ends `Unresolved` is not lost: its amount stays in this client's total and counts with the
next addition that succeeds, so do not add it again; a client keeps the totals of SHARES_MAX keys. One that
ends `Refused` does not count; so does every one that was never sent, whatever kept it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from kvstore import errors
from kvstore.client.receipt import Receipt, receipt_of
from kvstore.client.terms import Key, key_bytes
from kvstore.core.counters import ID_BYTES, TOTAL_MAX
from kvstore.wire import messages, results

if TYPE_CHECKING:
    from kvstore.client.caller import Caller
    from kvstore.client.terms import Terms
    from kvstore.ports import Dice

SHARES_MAX = 10_000
"""Keys whose totals a client keeps; of one that is let go, the next addition begins a part of its own."""
_ROUNDS_MAX = 5


class _Share:
    """This client's part of one counter."""

    def __init__(self, part: bytes) -> None:
        self.part = part
        self.generation: int | None = None
        self.plus = 0
        self.minus = 0
        self.lock = asyncio.Lock()


class CounterVerbs:
    """What `Client` can do with counters."""

    _caller: Caller
    _terms: Terms
    _dice: Dice
    _shares: OrderedDict[bytes, _Share]

    async def counter_add(
        self,
        key: Key,
        by: int = 1,
        *,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> Receipt:
        """Add to a counter; below zero subtracts.

        Raises errors.NotACounter, errors.NeedsRegister, errors.NoMajority when it was never sent.
        """
        if isinstance(by, bool) or not isinstance(by, int) or not -TOTAL_MAX <= by <= TOTAL_MAX:
            raise errors.BadOption(option="by", given=repr(by)[:60], allowed="an integer of 64 bits")
        raw = key_bytes(key)
        options = self._terms.write(consistency, w, durability)
        seconds = self._terms.timeout(timeout)
        share = self._share(raw)
        is_counted = False
        try:
            async with asyncio.timeout(seconds), share.lock:
                if share.generation is None:
                    share.generation = (await self._counter(raw, {}, seconds)).generation
                is_counted = True
                return await self._add(raw, share, by, options, seconds)
        except (errors.Unresolved, TimeoutError) as error:
            if not is_counted:
                raise errors.NoMajority(operation="counter_add") from error
            if isinstance(error, errors.Unresolved):
                raise
            raise errors.DeadlineExceeded(timeout_ms=int(seconds * 1000)) from None

    async def counter_get(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> int:
        """What a counter says; 0 when there is none. Raises errors.NotACounter."""
        options = self._terms.read(consistency, r)
        state = await self._counter(key_bytes(key), options, self._terms.timeout(timeout))
        return state.total

    def _share(self, raw: bytes) -> _Share:
        share = self._shares.get(raw)
        if share is None:
            share = self._shares[raw] = _Share(self._dice.randbytes(ID_BYTES))
            while len(self._shares) > SHARES_MAX:
                self._shares.popitem(last=False)
        self._shares.move_to_end(raw)
        return share

    async def _add(
        self, raw: bytes, share: _Share, by: int, options: dict[str, Any], seconds: float
    ) -> Receipt:
        """One at a time for each key: totals must leave in the order in which they grow."""
        for _ in range(_ROUNDS_MAX):
            before = share.plus, share.minus
            share.plus, share.minus = share.plus + max(by, 0), share.minus + max(-by, 0)
            if max(share.plus, share.minus) > TOTAL_MAX:
                share.plus, share.minus = before
                raise errors.BadOption(option="by", given=str(by), allowed="totals of 63 bits")
            generation = share.generation
            try:
                written, node, attempts = await self._send(raw, share, options, seconds)
            except errors.Refused:
                share.plus, share.minus = before
                raise
            if not written.flags & results.FLAG_SUPERSEDED:
                return receipt_of(written, node, attempts)
            # Deleted meanwhile, or our part is known already: begin anew after the deletion.
            state = await self._counter(raw, {}, seconds)
            if state.generation == generation:
                return receipt_of(written, node, attempts)
            share.generation, share.plus, share.minus = state.generation, 0, 0
        raise errors.Contended(key=repr(raw), timeout_ms=int(seconds * 1000))

    async def _send(
        self, raw: bytes, share: _Share, options: dict[str, Any], seconds: float
    ) -> tuple[results.Written, int, int]:
        operation = self._terms.operation()
        part, generation, plus, minus = share.part, share.generation or 0, share.plus, share.minus
        return await self._caller.call(
            "counter_add",
            lambda t: messages.encode_counter_add(
                raw, operation, part, generation, plus, minus, {**options, "t": t}
            ),
            key=raw,
            timeout=seconds,
            writes=True,
            decode=results.decode_receipt,
        )

    async def _counter(self, raw: bytes, options: dict[str, Any], seconds: float) -> messages.CounterState:
        state, _, _ = await self._caller.call(
            "counter_get",
            lambda t: messages.encode_get(raw, {**options, "t": t}),
            key=raw,
            timeout=seconds,
            writes=False,
            decode=messages.decode_counter_state,
        )
        assert isinstance(state, messages.CounterState)
        return state
