"""The verbs of linearizable registers: changes that happen once, completely, and in one order.

Each change carries its operation id over all tries; the register remembers what became of it, so a retry
after a lost answer is never applied twice. Three outcomes:

- `Applied`: it took effect; truthy;
- `NotApplied`: it did not and never will, because the register held something else; falsy, with what it held;
- `errors.Unresolved` is raised: nobody could tell in time; `await kv.resolve(error.operation)` makes it
  a fact.

`errors.Refused` is raised for what was certainly not done because the cluster could not take it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from kvstore import errors
from kvstore.client import steps
from kvstore.client.batches import Batch
from kvstore.client.change import Applied, Change, NotApplied
from kvstore.client.change_batch import Became, ChangeBatch, OnOutcome
from kvstore.client.changes import UNSET, ChangeMaker
from kvstore.client.locks import Lock
from kvstore.client.terms import Key, key_bytes
from kvstore.types import Consistency, Operation
from kvstore.wire import messages, results

if TYPE_CHECKING:
    from kvstore.client.caller import Caller
    from kvstore.client.codecs import Codec
    from kvstore.client.terms import Terms
    from kvstore.ports import Clock, Dice

_LINEAR: Final = {"c": Consistency.LINEARIZABLE.value}
_BACKOFF_S, _BACKOFF_S_MAX = 0.002, 0.25


class RegisterVerbs:
    """What `Client` can do with registers. Keys become registers by the first linearizable change."""

    _caller: Caller
    _terms: Terms
    _codec: Codec
    _clock: Clock
    _dice: Dice
    change: ChangeMaker
    """Makes the changes that `change_many` sends: `kv.change.incr(...)`, `kv.change.cas(...)` and so on."""

    async def cas(
        self,
        key: Key,
        *,
        new: Any,
        expected_version: int | None = None,
        expected_value: Any = UNSET,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """Store `new` if the key has this version (0: nothing there), or this value (None: nothing there).

        `new` None deletes. The version of an entry or an `Applied` is safe against a value that comes back.
        """
        return await self._change(
            self.change.cas(
                key,
                new=new,
                expected_version=expected_version,
                expected_value=expected_value,
                ttl=ttl,
                expires_at=expires_at,
            ),
            timeout,
        )

    async def put_if_absent(
        self,
        key: Key,
        value: Any,
        *,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """Store a value only if nothing is there; of many who try, exactly one wins."""
        return await self._change(
            self.change.put_if_absent(key, value, ttl=ttl, expires_at=expires_at), timeout
        )

    async def delete_if(
        self,
        key: Key,
        *,
        expected_version: int | None = None,
        expected_value: Any = UNSET,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """Delete only if the key has this version, or this value."""
        return await self._change(
            self.change.delete_if(key, expected_version=expected_version, expected_value=expected_value),
            timeout,
        )

    async def incr(
        self,
        key: Key,
        by: int = 1,
        *,
        initial: int = 0,
        minimum: int | None = None,
        maximum: int | None = None,
        period: int | None = None,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """Add to a decimal integer, exactly once; `.value` is the int after it.

        Not applied when the result would leave `minimum`..`maximum` (at most 64 bits, signed). A number
        that begins here gets the ttl, one that is there keeps its own. Raises errors.NotANumber.

        With a `period`, an int that grows with time, the number counts that period only: it begins again with
        a later one, and an earlier one is over, so that nothing is applied. The key holds `b"period:number"`.
        """
        return await self._change(
            self.change.incr(
                key,
                by,
                initial=initial,
                minimum=minimum,
                maximum=maximum,
                period=period,
                ttl=ttl,
                expires_at=expires_at,
            ),
            timeout,
        )

    async def get_and_set(
        self,
        key: Key,
        value: Any,
        *,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """Store a value (None deletes) and learn what it replaced: `.value`."""
        change = self.change.get_and_set(key, value, ttl=ttl, expires_at=expires_at)
        done = await self._change(change, timeout)
        assert isinstance(done, Applied)  # there is nothing it could depend on
        return done

    async def extend(
        self, key: Key, ttl: float, *, expected_version: int = 0, timeout: float | None = None
    ) -> Applied | NotApplied:
        """Give a live key a new expiry if it has this version (0: any). The version stays."""
        return await self._change(self.change.extend(key, ttl, expected_version=expected_version), timeout)

    async def update(
        self,
        key: Key,
        change: Callable[[Any], Any],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """Read, compute `change(value or None)`, and compare-and-set, until nobody came in between.

        `change` may run several times and must have no effects of its own; None deletes. Raises
        errors.Contended when others kept coming in between, or what a call raises. With less time left
        than twice the quickest try so far took none is begun: it would end `Unresolved`.
        """
        now, whole = self._clock.monotonic, self._terms.timeout(timeout)
        deadline = now() + whole
        pause, needed = _BACKOFF_S, 0.0
        while (left := deadline - now()) > max(0.001, needed):
            began = now()
            found = await self._read(key, left)
            new = change(found[0])
            left = max(deadline - now(), 0.001)
            if left < needed:
                break
            done = await self.cas(key, new=new, expected_version=found[1], ttl=ttl, timeout=left)
            if isinstance(done, Applied):
                return done
            needed = min(needed or whole, 2 * (now() - began))
            await asyncio.sleep(self._dice.random() * pause)
            pause = min(pause * 2, _BACKOFF_S_MAX)
        raise errors.Contended(key=repr(key), timeout_ms=int(whole * 1000))

    async def _read(self, key: Key, timeout: float) -> tuple[Any, int]:
        raw = key_bytes(key)
        found, node, attempts = await self._caller.call(
            "get",
            lambda t: messages.encode_get(raw, {**_LINEAR, "t": t}),
            key=raw,
            timeout=timeout,
            writes=False,
            decode=results.decode_found,
        )
        entry = steps.entry(self._codec, key, found, node, attempts)
        return (entry.value, entry.version) if entry is not None else (None, 0)

    async def resolve(
        self, operation: Operation | str | None, *, timeout: float | None = None
    ) -> Applied | NotApplied:
        """What became of a change that ended `Unresolved`; it will not change any more.

        If it had not been applied until now, it never will be. Raises errors.Forgotten when 128 other
        changes of the key came since, errors.BadOption for what is no operation.
        """
        return await self._change(self.change.resolve(operation), timeout)

    async def change_many(
        self,
        changes: Iterable[Change],
        *,
        timeout: float | None = None,
        on_outcome: OnOutcome | None = None,
    ) -> list[Became]:
        """Make many changes with one request to each node: `[kv.change.incr("a"), kv.change.incr("b"), ...]`.

        Each is its own: no order between them, and not all-or-nothing. Returns the outcomes in order; a
        change that failed has its error in its place, and one that is `Unresolved` names its `operation`.
        `on_outcome` is told each as soon as it is there: those of one node do not wait for another's.
        """
        changes = list(changes)
        made = ChangeBatch(changes, on_outcome)
        timeout = self._terms.timeout(timeout)
        batch = Batch(self._caller, made.request(), timeout=timeout, dice=self._dice, on_done=made.answered)
        batch.asked |= made.tried()
        try:
            await batch.run(list(made.changes))
        finally:
            made.asked(batch.asked)
        made.failed(batch.failures)
        return [made.became[change.operation] for change in changes]

    def lock(self, name: str, ttl: float = 10.0, *, wait: float | None = None) -> Lock:
        """A lease on a name: `async with kv.lock("job", ttl=10) as lease: ... lease.token ...`.

        `wait`: seconds to wait for it; None: as long as it takes. See `kvstore.client.locks.Lock`.
        """
        return Lock(self, name, ttl=ttl, wait=wait, clock=self._clock, dice=self._dice)

    async def _change(self, change: Change, timeout: float | None) -> Applied | NotApplied:
        """Make one change."""
        key, operation, ends = change.key, change.operation, change.ends
        with steps.naming(key, operation, _LINEAR):
            changed, node, attempts = await self._caller.call(
                "change",
                lambda t: messages.encode_change(
                    key, operation, change.name, change.args, {**ends, "t": t} if ends else {"t": t}
                ),
                key=key,
                timeout=self._terms.timeout(timeout),
                writes=True,
                decode=messages.decode_changed,
            )
        return change.outcome(changed, node, attempts)
