"""What several verbs share: one read or rewrite of a key, and answers as callers get them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kvstore import errors, limits
from kvstore.client.batches import Batch
from kvstore.client.caller import Caller
from kvstore.client.codecs import Codec
from kvstore.client.receipt import Entry, Receipt, instant, receipt_of, receipt_of_read
from kvstore.client.terms import Key, Terms, key_bytes
from kvstore.core import admission
from kvstore.types import Consistency, Operation, OperationId
from kvstore.wire import messages, results


def encoded(codec: Codec, value: Any) -> bytes:
    """A value as the store has it. Raises errors.BadValue, errors.BadOption."""
    data = codec.encode(value)
    admission.check_value(data, limits.VALUE_BYTES_CEILING)
    return data


@contextmanager
def naming(raw: bytes, operation: bytes, options: Mapping[str, Any]) -> Iterator[None]:
    """An unresolved linearizable change leaves with the name under which it can be resolved."""
    try:
        yield
    except errors.Unresolved as error:
        if options.get("c") == Consistency.LINEARIZABLE.value:
            raise named(error, Operation(raw, OperationId(operation))) from None
        raise


def named(error: errors.Unresolved, operation: Operation) -> errors.Unresolved:
    """The same error as an object of its own, since many calls may have got this one, with its operation."""
    own = type(error)(**error.fields)
    own.operation = operation
    return own


async def head(
    caller: Caller, terms: Terms, key: Key, consistency: str | None, r: int | None, timeout: float | None
) -> results.Found:
    """A key's expiry and whether it is there, without its value."""
    raw = key_bytes(key)
    options = terms.read(consistency, r) | {"head": True}
    found, _, _ = await caller.call(
        "get",
        lambda t: messages.encode_get(raw, {**options, "t": t}),
        key=raw,
        timeout=terms.timeout(timeout),
        writes=False,
        decode=results.decode_found,
    )
    assert isinstance(found, results.Found)
    return found


async def rewrite(
    caller: Caller, terms: Terms, method: str, key: Key, options: Mapping[str, Any], timeout: float | None
) -> Receipt | None:
    """delete, touch, persist: the same shape; the last two answer nil when there is no such key."""
    raw, operation = key_bytes(key), terms.operation()
    with naming(raw, operation, options):
        written, node, attempts = await caller.call(
            method,
            lambda t: messages.encode_retime(raw, operation, {**options, "t": t}),
            key=raw,
            timeout=terms.timeout(timeout),
            writes=True,
            decode=results.decode_receipt if method == "delete" else results.decode_receipt_or_nil,
        )
    return None if written is None else receipt_of(written, node, attempts)


async def write_many(batch: Batch, asked: Sequence[tuple[Key, bytes]]) -> dict[Key, Receipt]:
    """Receipts in the order asked for. Raises errors.BatchFailed."""
    await batch.run(list(dict.fromkeys(raw for _, raw in asked)))
    receipts = {key: receipt_of(*batch.done[raw]) for key, raw in asked if raw in batch.done}
    if batch.failures:
        first = next(iter(batch.failures.values()))
        failed = errors.BatchFailed(failed=len(batch.failures), total=len(asked), first=first.message)
        failed.receipts = receipts
        failed.failures = {key: batch.failures[raw] for key, raw in asked if raw in batch.failures}
        raise failed
    return receipts


def entry(codec: Codec, key: Key, found: results.Found, node: int, attempts: int) -> Entry | None:
    """What a reader gets; None when nothing is there."""
    if not found.exists:
        return None
    if found.payload is None:
        raise errors.Malformed(reason="an entry without its value")
    receipt = receipt_of_read(found, node, attempts)
    return Entry(key, codec.decode(found.payload), found.version, instant(found.expires_ms), receipt)
