"""Changes of registers as data: made and checked here, sent alone or many at a time; what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from kvstore import errors
from kvstore.client import steps
from kvstore.client.codecs import Codec
from kvstore.client.receipt import Receipt, instant
from kvstore.client.terms import Key, Terms, key_bytes
from kvstore.core import window
from kvstore.types import Durability, Operation, OperationId
from kvstore.wire import messages


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


@dataclass(slots=True, eq=False)
class Change:
    """One change of one register. It is one operation: sent again, it is still done once."""

    key: bytes
    operation: bytes
    """Its id, 16 bytes."""
    name: str
    args: Sequence[Any]
    ends: dict[str, int] = field(default_factory=dict[str, int])
    decode: Callable[[bytes], Any] = bytes
    is_tried: bool = False
    """It was sent, and may have been applied."""

    @property
    def named(self) -> Operation:
        """By which it can be resolved, whatever happens to its answer."""
        return Operation(self.key, OperationId(self.operation))

    @property
    def size(self) -> int:
        """About as many bytes as it takes in a request."""
        return len(self.key) + sum(len(each) for each in self.args if isinstance(each, bytes))

    def outcome(self, changed: messages.Changed, node: int, attempts: int) -> Applied | NotApplied:
        """What the answer of `node` says."""
        receipt = Receipt(
            changed.version,
            changed.epoch,
            changed.acked,
            durability=Durability.ALWAYS,
            coordinator=node,
            attempts=attempts,
        )
        value = None if changed.value is None else self.decode(changed.value)
        if changed.flags & window.APPLIED:
            existed = bool(changed.flags & window.EXISTED)
            return Applied(changed.version, value, instant(changed.expires_ms), existed, receipt)
        return NotApplied(changed.version, value, receipt)


class ChangeMaker:
    """`kv.change`: makes what `kv.change_many` sends. Arguments are those of the verbs of the same name."""

    def __init__(self, terms: Terms, codec: Codec) -> None:
        self._terms = terms
        self._codec = codec

    def cas(
        self,
        key: Key,
        *,
        new: Any,
        expected_version: int | None = None,
        expected_value: Any = UNSET,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
    ) -> Change:
        """Store `new` if the key has this version (0: nothing there), or this value (None: nothing there)."""
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
            return self._make(key, "cas_version", (expected_version, value), ttl, expires_at)
        expected = None if expected_value is None else steps.encoded(self._codec, expected_value)
        return self._make(key, "cas_value", (expected, value), ttl, expires_at)

    def put_if_absent(
        self, key: Key, value: Any, *, ttl: float | None = None, expires_at: float | datetime | None = None
    ) -> Change:
        """Store a value only if nothing is there."""
        data = steps.encoded(self._codec, value)
        return self._make(key, "cas_value", (None, data), ttl, expires_at)

    def delete_if(
        self, key: Key, *, expected_version: int | None = None, expected_value: Any = UNSET
    ) -> Change:
        """Delete only if the key has this version, or this value."""
        return self.cas(key, new=None, expected_version=expected_version, expected_value=expected_value)

    def incr(
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
    ) -> Change:
        """Add to a decimal integer."""
        args = (by, initial, minimum, maximum)
        for each in (*args, period):
            if each is not None and (isinstance(each, bool) or not isinstance(each, int)):
                raise errors.BadOption(
                    option="by, initial, minimum, maximum, period", given=repr(each)[:60], allowed="integers"
                )
            if each is not None and not -(1 << 63) <= each < 1 << 63:
                raise errors.BadOption(
                    option="by, initial, minimum, maximum, period", given="more", allowed="64 bits"
                )
        if period is None:
            return self._make(key, "incr", args, ttl, expires_at, decode=_number)
        return self._make(key, "incr_in", (period, *args), ttl, expires_at, decode=_number)

    def get_and_set(
        self, key: Key, value: Any, *, ttl: float | None = None, expires_at: float | datetime | None = None
    ) -> Change:
        """Store a value (None deletes) and learn what it replaced."""
        data = None if value is None else steps.encoded(self._codec, value)
        return self._make(key, "get_and_set", (data,), ttl, expires_at)

    def extend(self, key: Key, ttl: float, *, expected_version: int = 0) -> Change:
        """Give a live key a new expiry if it has this version (0: any)."""
        return self._make(key, "retime", (expected_version,), ttl, None)

    def resolve(self, operation: Operation | str | None) -> Change:
        """Find out what became of an operation; it will not change any more."""
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
        return Change(named.key, named.id, "resolve", (), decode=self._codec.decode)

    def claim(self, key: bytes, owner: bytes, *, ttl: float) -> Change:
        """`put_if_absent` past the codec: what locks are made of."""
        return self._make(key, "cas_value", (None, owner), ttl, None, decode=bytes)

    def _make(
        self,
        key: Key,
        name: str,
        args: Sequence[Any],
        ttl: float | None,
        expires_at: float | datetime | None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> Change:
        terms = self._terms
        ends = terms.ends(ttl, expires_at)
        return Change(key_bytes(key), terms.operation(), name, args, ends, decode or self._codec.decode)


def _number(data: bytes) -> int | bytes:
    """What incr answers: a number, unless something else was found."""
    try:
        return int(data)
    except ValueError:
        return data
