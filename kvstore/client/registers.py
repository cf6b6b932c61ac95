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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from kvstore import errors
from kvstore.client import steps
from kvstore.client.locks import Lock
from kvstore.client.receipt import Receipt, instant
from kvstore.client.terms import Key, key_bytes
from kvstore.core import window
from kvstore.types import Consistency, Durability, Operation, OperationId
from kvstore.wire import messages, results

if TYPE_CHECKING:
    from kvstore.client.caller import Caller
    from kvstore.client.codecs import Codec
    from kvstore.client.terms import Terms
    from kvstore.ports import Clock, Dice

_LINEAR: Final = {"c": Consistency.LINEARIZABLE.value}
_BACKOFF_S, _BACKOFF_S_MAX = 0.002, 0.25


class _Unset:
    """No value given; None means "nothing there"."""


UNSET: Final = _Unset()


@dataclass(frozen=True, slots=True)
class Applied:
    """The change took effect. Truthy."""

    version: int
    """Of the change; the fencing token of a lock. Greater for every later change of the key."""
    value: Any
    """incr: the number after it; get_and_set: what was there before; else None."""
    expires_at: float | None
    existed: bool
    """Something live was there before."""
    receipt: Receipt

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class NotApplied:
    """The change did not take effect and never will. Falsy."""

    version: int
    """Of what was found; 0: nothing."""
    value: Any
    """What was found; None: nothing, or the answer to a retry, which remembers only the outcome."""
    receipt: Receipt

    def __bool__(self) -> bool:
        return False


class RegisterVerbs:
    """What `Client` can do with registers. Keys become registers by the first linearizable change."""

    _caller: Caller
    _terms: Terms
    _codec: Codec
    _clock: Clock
    _dice: Dice

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
        if (expected_version is None) == isinstance(expected_value, _Unset):
            raise errors.BadOption(
                option="expected_version, expected_value", given="both or none", allowed="one of them"
            )
        value = None if new is None else steps.encoded(self._codec, new)
        if expected_version is not None:
            if isinstance(expected_version, bool) or not isinstance(expected_version, int):
                raise errors.BadOption(
                    option="expected_version", given=repr(expected_version)[:60], allowed="a number"
                )
            return await self._change(key, "cas_version", (expected_version, value), ttl, expires_at, timeout)
        expected = None if expected_value is None else steps.encoded(self._codec, expected_value)
        return await self._change(key, "cas_value", (expected, value), ttl, expires_at, timeout)

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
        data = steps.encoded(self._codec, value)
        return await self._change(key, "cas_value", (None, data), ttl, expires_at, timeout)

    async def delete_if(
        self,
        key: Key,
        *,
        expected_version: int | None = None,
        expected_value: Any = UNSET,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """Delete only if the key has this version, or this value."""
        return await self.cas(
            key,
            new=None,
            expected_version=expected_version,
            expected_value=expected_value,
            timeout=timeout,
        )

    async def incr(
        self,
        key: Key,
        by: int = 1,
        *,
        initial: int = 0,
        minimum: int | None = None,
        maximum: int | None = None,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """Add to a decimal integer, exactly once; `.value` is the int after it.

        Not applied when the result would leave `minimum`..`maximum` (at most 64 bits, signed). A number
        that begins here gets the ttl, one that is there keeps its own. Raises errors.NotANumber.
        """
        args = (by, initial, minimum, maximum)
        for each in args:
            if each is not None and (isinstance(each, bool) or not isinstance(each, int)):
                raise errors.BadOption(
                    option="by, initial, minimum, maximum", given=repr(each)[:60], allowed="integers"
                )
            if each is not None and not -(1 << 63) <= each < 1 << 63:
                raise errors.BadOption(
                    option="by, initial, minimum, maximum", given="more", allowed="64 bits"
                )
        return await self._change(key, "incr", args, ttl, expires_at, timeout, decode=_number)

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
        data = None if value is None else steps.encoded(self._codec, value)
        done = await self._change(key, "get_and_set", (data,), ttl, expires_at, timeout)
        assert isinstance(done, Applied)  # there is nothing it could depend on
        return done

    async def extend(
        self, key: Key, ttl: float, *, expected_version: int = 0, timeout: float | None = None
    ) -> Applied | NotApplied:
        """Give a live key a new expiry if it has this version (0: any). The version stays."""
        return await self._change(key, "retime", (expected_version,), ttl, None, timeout)

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
        errors.Contended when others kept coming in between, or what a call raises.
        """
        whole = self._terms.timeout(timeout)
        deadline = self._clock.monotonic() + whole
        pause = _BACKOFF_S
        while (left := deadline - self._clock.monotonic()) > 0.001:
            found = await self._read(key, left)
            new = change(found[0])
            left = max(deadline - self._clock.monotonic(), 0.001)
            done = await self.cas(key, new=new, expected_version=found[1], ttl=ttl, timeout=left)
            if isinstance(done, Applied):
                return done
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
        try:
            named = Operation.parse(operation) if isinstance(operation, str) else operation
        except ValueError:
            named = None
        if named is None:
            raise errors.BadOption(
                option="operation",
                given=repr(operation)[:60],
                allowed="the `operation` of an Unresolved error",
            )
        return await self._change(named.key, "resolve", (), None, None, timeout, operation=named.id)

    def lock(self, name: str, ttl: float = 10.0, *, wait: float | None = None) -> Lock:
        """A lease on a name: `async with kv.lock("job", ttl=10) as lease: ... lease.token ...`.

        `wait`: seconds to wait for it; None: as long as it takes. See `kvstore.client.locks.Lock`.
        """
        return Lock(self, name, ttl=ttl, wait=wait, clock=self._clock, dice=self._dice)

    def _name_operation(self, key: Key) -> Operation:
        """A name for a change that is yet to be made, for who must be able to resolve it whatever happens."""
        return Operation(key_bytes(key), OperationId(self._terms.operation()))

    async def _claim(
        self, named: Operation, owner: bytes, *, ttl: float, timeout: float | None = None
    ) -> Applied | NotApplied:
        """`put_if_absent` past the codec, under an operation named before: what locks are made of."""
        return await self._change(
            named.key, "cas_value", (None, owner), ttl, None, timeout, operation=named.id, decode=bytes
        )

    async def _change(
        self,
        key: Key,
        name: str,
        args: Sequence[Any],
        ttl: float | None,
        expires_at: float | datetime | None,
        timeout: float | None,
        *,
        operation: bytes | None = None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> Applied | NotApplied:
        raw, terms = key_bytes(key), self._terms
        options = terms.ends(ttl, expires_at)
        named = operation if operation is not None else terms.operation()
        with steps.naming(raw, named, _LINEAR):
            changed, node, attempts = await self._caller.call(
                "change",
                lambda t: messages.encode_change(raw, named, name, args, {**options, "t": t}),
                key=raw,
                timeout=terms.timeout(timeout),
                writes=True,
                decode=messages.decode_changed,
            )
        receipt = Receipt(
            changed.version,
            changed.epoch,
            changed.acked,
            durability=Durability.ALWAYS,
            coordinator=node,
            attempts=attempts,
        )
        value = None if changed.value is None else (decode or self._codec.decode)(changed.value)
        if changed.flags & window.APPLIED:
            existed = bool(changed.flags & window.EXISTED)
            return Applied(changed.version, value, instant(changed.expires_ms), existed, receipt)
        return NotApplied(changed.version, value, receipt)


def _number(data: bytes) -> int | bytes:
    """What incr answers: a number, unless something else was found."""
    try:
        return int(data)
    except ValueError:
        return data
