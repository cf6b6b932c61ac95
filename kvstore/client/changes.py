"""`kv.change`: changes of registers, made and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from kvstore import errors
from kvstore.client import steps
from kvstore.client.change import Change
from kvstore.client.codecs import Codec
from kvstore.client.terms import Key, Terms, key_bytes
from kvstore.types import Operation


class _Unset:
    """No value given; None means "nothing there"."""


UNSET: Final = _Unset()
_OPERATION_BYTES = 16


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
            _check_version(expected_version)
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
        _check_version(expected_version)
        return self._make(key, "retime", (expected_version,), ttl, None)

    def resolve(self, operation: Operation | str | None) -> Change:
        """Find out what became of an operation; it will not change any more."""
        try:
            named = Operation.parse(operation) if isinstance(operation, str) else operation
        except ValueError:
            named = None
        if not isinstance(named, Operation) or len(named.id) != _OPERATION_BYTES:
            raise errors.BadOption(
                option="operation",
                given=repr(operation)[:60],
                allowed="the `operation` of an Unresolved error",
            )
        return Change(key_bytes(named.key), named.id, "resolve", (), decode=self._codec.decode)

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


def _check_version(version: object) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 1 << 64:
        raise errors.BadOption(
            option="expected_version", given=repr(version)[:60], allowed="a version as reads tell it"
        )


def _number(data: bytes) -> int | bytes:
    """What incr answers: a number, unless something else was found."""
    try:
        return int(data)
    except ValueError:
        return data
