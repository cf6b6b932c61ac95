"""A change of a register as data, sent alone or many at a time, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvstore import errors
from kvstore.client.receipt import Receipt, instant
from kvstore.core import window
from kvstore.types import Operation, OperationId
from kvstore.wire import messages


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
        """What the answer of `node` says.

        Raises errors.Unresolved for a change that was applied over a value that cannot be decoded (a definite
        error would say that it was not), errors.BadOption for one that was not.
        """
        receipt = Receipt(changed.version, changed.epoch, changed.acked, coordinator=node, attempts=attempts)
        applied = bool(changed.flags & window.APPLIED)
        value = None if changed.value is None else self._decoded(changed.value, applied=applied)
        if applied:
            existed = bool(changed.flags & window.EXISTED)
            return Applied(changed.version, value, instant(changed.expires_ms), existed, receipt)
        return NotApplied(changed.version, value, receipt)

    def _decoded(self, data: bytes, *, applied: bool) -> Any:
        try:
            return self.decode(data)
        except Exception as error:  # codecs are the callers' own too
            if not applied and isinstance(error, errors.KVError):
                raise
            reason = error.message if isinstance(error, errors.KVError) else repr(error)
            if not applied:
                raise errors.BadOption(
                    option="stored value", given=reason, allowed="what the codec can decode"
                ) from error
            unresolved = errors.Unresolved(
                message=f"the change was applied, but what was there before cannot be decoded ({reason}); "
                "a client without this codec can resolve the operation and see it"
            )
            unresolved.operation = self.named
            raise unresolved from error
