"""The async client: the verbs, and what they mean in messages.

Keys are str (UTF-8) or bytes; values are bytes, or what the client's codec takes. Every call has one
deadline, `timeout` seconds, whatever happens on the way. Every mutation carries one operation id over all
its tries and is safe to repeat: a put or delete repeated after a try whose outcome is unknown takes effect
at the latest by the repetition, as if it had been slow; a delete that is repeated may say of its own first
try that nothing `existed`.

Errors are `errors.Refused` (definite) or `errors.Unresolved` (it may have happened).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from kvstore import errors, limits
from kvstore.client import steps
from kvstore.client.batches import Batch, Request
from kvstore.client.caller import ATTEMPTS_MAX, Caller
from kvstore.client.changes import ChangeMaker
from kvstore.client.codecs import Codec, codec_named
from kvstore.client.counters import CounterVerbs
from kvstore.client.nodes import Nodes
from kvstore.client.pages import Scan
from kvstore.client.receipt import Entry, Location, Receipt, receipt_of
from kvstore.client.registers import RegisterVerbs
from kvstore.client.terms import Key, Terms, check_timeout, key_bytes, keys_bytes, level_of
from kvstore.client.urls import addresses_of, check_node
from kvstore.core import hashing
from kvstore.core.retry import RetryBudget, RetryPolicy
from kvstore.core.topology import Topology
from kvstore.ports import Clock, Dice
from kvstore.types import Consistency, Partition
from kvstore.wire import messages, results

_RETRY_RESERVE = 200
"""Retries at once, beyond a fifth of the calls: what may hang on a node at the moment when it stops."""


class Client(RegisterVerbs, CounterVerbs):
    """A connection to a cluster. Make it with `kvstore.connect`; close it with `async with` or `close`."""

    def __init__(self, caller: Caller, terms: Terms, *, codec: Codec, clock: Clock, dice: Dice) -> None:
        self._caller = caller
        self._nodes = caller.nodes
        self._terms = terms
        self._codec = codec
        self.change = ChangeMaker(terms, codec)
        self._clock = clock
        self._dice = dice
        self._shares = OrderedDict()

    @classmethod
    async def connect(
        cls,
        url: str | Sequence[str],
        *,
        clock: Clock,
        dice: Dice,
        consistency: str | Consistency = Consistency.QUORUM,
        timeout: float = limits.TIMEOUT_MS / 1000,
        codec: str | Codec | None = None,
        token: str | None = None,
        retries: int = ATTEMPTS_MAX - 1,
        local_addr: tuple[str, int] | None = None,
        pinned: bool = False,
    ) -> Client:
        """Reach any node and learn the others from it; `pinned`: ask none but those of the url.

        Raises errors.CannotConnect and its kin, BadOption.
        """
        check_timeout(timeout)
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise errors.BadOption(option="retries", given=repr(retries)[:60], allowed="0 or more")
        _check_token(token)
        nodes = Nodes(
            addresses_of(url),
            token=token or "",
            dice=dice,
            local_addr=local_addr,
            connect_timeout=timeout,
            pinned=pinned,
        )
        caller = Caller(
            nodes,
            policy=RetryPolicy(base_ms=25, cap_ms=400),
            budget=RetryBudget(reserve=_RETRY_RESERVE),
            attempts_max=retries + 1,
            dice=dice,
        )
        terms = Terms(consistency=level_of(consistency), timeout=timeout, clock=clock, dice=dice)
        client = cls(caller, terms, codec=codec_named(codec), clock=clock, dice=dice)
        try:
            await client.topology()
        except BaseException:
            nodes.close()
            raise
        return client

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Drop the connections; unanswered calls fail. Raises errors.WrongLoop."""
        self._caller.here()
        self._nodes.close()
        await asyncio.sleep(0)  # the transports end in the loop's next turn

    # --- one key ------------------------------------------------------------------------

    async def put(
        self,
        key: Key,
        value: Any,
        *,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> Receipt:
        """Store a value. `ttl` in seconds from now, or `expires_at` in seconds since 1970 (or a datetime)."""
        raw, data, terms = key_bytes(key), steps.encoded(self._codec, value), self._terms
        options = terms.write(consistency, w, durability) | terms.ends(ttl, expires_at)
        operation = terms.operation()
        with steps.naming(raw, operation, options):
            written, node, attempts = await self._caller.call(
                "put",
                lambda t: messages.encode_put(raw, data, operation, {**options, "t": t}),
                key=raw,
                timeout=terms.timeout(timeout),
                writes=True,
                decode=results.decode_receipt,
            )
        return receipt_of(written, node, attempts)

    async def get(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> Entry | None:
        """The entry, or None when there is none (or it was deleted, or expired)."""
        raw, terms = key_bytes(key), self._terms
        options = terms.read(consistency, r)
        found, node, attempts = await self._caller.call(
            "get",
            lambda t: messages.encode_get(raw, {**options, "t": t}),
            key=raw,
            timeout=terms.timeout(timeout),
            writes=False,
            decode=results.decode_found,
        )
        return steps.entry(self._codec, key, found, node, attempts)

    async def delete(
        self,
        key: Key,
        *,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> Receipt:
        """Delete; `receipt.existed` says whether a replica held a live record."""
        options = self._terms.write(consistency, w, durability)
        receipt = await steps.rewrite(self._caller, self._terms, "delete", key, options, timeout)
        assert receipt is not None  # decode_receipt takes no nil for a delete
        return receipt

    async def exists(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> bool:
        """Whether there is a live record, without fetching its value."""
        found = await steps.head(self._caller, self._terms, key, consistency, r, timeout)
        return found.exists

    async def ttl(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> float | None:
        """Seconds left, by this machine's clock; infinity without expiry; None when there is no such key."""
        found = await steps.head(self._caller, self._terms, key, consistency, r, timeout)
        return self._terms.seconds_left(found.expires_ms) if found.exists else None

    async def touch(
        self,
        key: Key,
        ttl: float | None = None,
        *,
        expires_at: float | datetime | None = None,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> Receipt | None:
        """Give a live key a new expiry; None when there is no such key."""
        if ttl is None and expires_at is None:
            raise errors.BadTtl(given=None)
        options = self._terms.write(consistency, w, durability) | self._terms.ends(ttl, expires_at)
        return await steps.rewrite(self._caller, self._terms, "touch", key, options, timeout)

    async def persist(
        self,
        key: Key,
        *,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> Receipt | None:
        """Take a live key's expiry away; None when there is no such key."""
        options = self._terms.write(consistency, w, durability)
        return await steps.rewrite(self._caller, self._terms, "persist", key, options, timeout)

    # --- many keys ----------------------------------------------------------------------

    async def get_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: str | None = None,
        r: int | None = None,
        timeout: float | None = None,
    ) -> dict[Key, Entry | None]:
        """Each key's entry or None, in the order asked for. Raises the first error of a key that failed."""
        options = self._terms.read(consistency, r)
        asked = keys_bytes(keys)
        request = Request(
            method="get_many",
            params=lambda part, t: messages.encode_get_many(part, {**options, "t": t}),
            decode=results.decode_found,
            writes=False,
            sizes={},
        )
        batch = Batch(self._caller, request, timeout=self._terms.timeout(timeout), dice=self._dice)
        await batch.run(list(dict.fromkeys(raw for _, raw in asked)))
        for error in batch.failures.values():
            raise error
        return {key: steps.entry(self._codec, key, *batch.done[raw]) for key, raw in asked}

    async def put_many(
        self,
        items: Mapping[str, Any] | Mapping[bytes, Any] | Mapping[Key, Any],
        *,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> dict[Key, Receipt]:
        """Store each value under its key; no order between them, and not all-or-nothing.

        Raises errors.BatchFailed when some keys failed; it says which, and the others are done.
        """
        terms = self._terms
        asked = keys_bytes(items)
        data = {key_bytes(key): steps.encoded(self._codec, value) for key, value in items.items()}
        options = terms.write(consistency, w, durability) | terms.ends(ttl, expires_at)
        operation = terms.operation()
        request = Request(
            method="put_many",
            params=lambda part, t: messages.encode_put_many(
                [(raw, data[raw]) for raw in part], operation, {**options, "t": t}
            ),
            decode=results.decode_receipt,
            writes=True,
            sizes={raw: len(raw) + len(value) for raw, value in data.items()},
        )
        batch = Batch(self._caller, request, timeout=terms.timeout(timeout), dice=self._dice)
        return await steps.write_many(batch, asked)

    async def delete_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> dict[Key, Receipt]:
        """Delete each key. Raises errors.BatchFailed as `put_many` does."""
        terms = self._terms
        asked = keys_bytes(keys)
        options, operation = terms.write(consistency, w, durability), terms.operation()
        request = Request(
            method="delete_many",
            params=lambda part, t: messages.encode_delete_many(part, operation, {**options, "t": t}),
            decode=results.decode_receipt,
            writes=True,
            sizes={},
        )
        batch = Batch(self._caller, request, timeout=terms.timeout(timeout), dice=self._dice)
        return await steps.write_many(batch, asked)

    def scan(
        self,
        prefix: Key = b"",
        *,
        limit: int | None = None,
        keys_only: bool = False,
        consistency: str | None = None,
        r: int | None = None,
        timeout: float | None = None,
    ) -> Scan:
        """Live entries whose keys begin with `prefix`, in ring order (by hash, not by key): `async for`.

        Fetched page by page; `timeout` is for each page. A key that is there all along comes once.
        """
        return Scan(
            self._caller,
            self._codec,
            options=self._terms.read(consistency, r),
            prefix=prefix,
            limit=limit,
            keys_only=keys_only,
            timeout=self._terms.timeout(timeout),
        )

    # --- the cluster --------------------------------------------------------------------

    async def locate(self, key: Key, *, timeout: float | None = None) -> Location:
        """Where a key lives, by the topology as a node has it now."""
        raw = key_bytes(key)
        topology = await self.topology(timeout=timeout)
        partition = topology.partition(raw)
        owners = tuple(topology.node(number) for number in topology.owners_of(partition))
        return Location(hashing.slot_of(raw), Partition(partition), owners)

    async def topology(self, *, timeout: float | None = None) -> Topology:
        """The table of nodes and owners, as a node has it now."""
        topology, _, _ = await self._caller.call(
            "topology",
            lambda _t: (),
            key=None,
            timeout=self._terms.timeout(timeout),
            writes=False,
            decode=Topology.from_plain,
        )
        assert isinstance(topology, Topology)
        self._nodes.adopt(topology)
        return topology

    async def status(self, node: str | None = None, *, timeout: float | None = None) -> dict[str, Any]:
        """What a node says of itself; `node` is its `host:port`, any one by default."""
        if node is not None:
            check_node(node)
        status, _, _ = await self._caller.call(
            "status",
            lambda _t: (),
            key=None,
            timeout=self._terms.timeout(timeout),
            writes=False,
            node=node,
            decode=results.decode_map,
        )
        return dict(status)

    async def ping(self, node: str | None = None, *, timeout: float | None = None) -> float:
        """Seconds a round trip takes; `node` as in `status`."""
        if node is not None:
            check_node(node)
        began = self._clock.monotonic()
        await self._caller.call(
            "ping", lambda _t: (), key=None, timeout=self._terms.timeout(timeout), writes=False, node=node
        )
        return self._clock.monotonic() - began


def _check_token(token: object) -> None:
    """Raises errors.BadOption, which does not show it."""
    # The only text that is no UTF-8 has halves of characters in it.
    is_text = isinstance(token, str) and not any("\ud800" <= char <= "\udfff" for char in token)
    if token is not None and not is_text:
        raise errors.BadOption(option="token", given="what is no text", allowed="str that is UTF-8")
