"""The async client: the verbs, and what they mean in messages.

Keys are str (UTF-8) or bytes; values are bytes, or what the client's codec takes. Every call has one
deadline, `timeout` seconds, whatever happens on the way; every mutation carries an operation id over all
its tries.
Errors are `errors.Refused` (definite) or `errors.Unresolved` (it may have happened).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from kvstore import errors, limits
from kvstore.client import batches
from kvstore.client.caller import ATTEMPTS_MAX, Caller
from kvstore.client.codecs import Codec, codec_named
from kvstore.client.nodes import Nodes, addresses_of
from kvstore.client.receipt import Entry, Location, Receipt
from kvstore.core import admission, hashing
from kvstore.core.retry import RetryBudget, RetryPolicy
from kvstore.core.topology import Topology
from kvstore.ports import Clock, Dice
from kvstore.types import Consistency, Durability, Partition
from kvstore.wire import messages

Key = str | bytes
SCAN_PAGE = 500


class Client:
    """A connection to a cluster. Make it with `kvstore.connect`; close it with `async with` or `close`."""

    def __init__(
        self,
        nodes: Nodes,
        caller: Caller,
        *,
        consistency: Consistency,
        timeout: float,
        codec: Codec,
        clock: Clock,
        dice: Dice,
    ) -> None:
        self._nodes = nodes
        self._caller = caller
        self._consistency = consistency
        self._timeout = timeout
        self._codec = codec
        self._clock = clock
        self._id_tail = dice.randbytes(6)
        self._id_count = 0

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
        """Reach any node and learn the others from it; `pinned`: ask no others than those of the url.

        Raises errors.CannotConnect and its kin, BadOption.
        """
        _check_timeout(timeout)
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise errors.BadOption(option="retries", given=retries, allowed="0 or more")
        seeds = addresses_of(url)
        nodes = Nodes(
            seeds, token=token or "", dice=dice, local_addr=local_addr, connect_timeout=timeout, pinned=pinned
        )
        caller = Caller(
            nodes,
            policy=RetryPolicy(base_ms=25, cap_ms=400),
            budget=RetryBudget(),
            attempts_max=retries + 1,
            dice=dice,
        )
        client = cls(
            nodes,
            caller,
            consistency=_level(consistency),
            timeout=timeout,
            codec=codec_named(codec),
            clock=clock,
            dice=dice,
        )
        try:
            plain, _, _ = await caller.call(
                "topology", lambda _ms: (), key=None, timeout=timeout, writes=False
            )
        except BaseException:
            nodes.close()
            raise
        nodes.adopt(plain)
        return client

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Drop the connections; unanswered calls fail."""
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
        raw, data = _key(key), self._codec.encode(value)
        options = self._options(consistency, None, w, durability)
        options |= self._ends(ttl, expires_at)
        operation = self._operation()
        return await self._write("put", raw, lambda t: (raw, data, operation, {**options, "t": t}), timeout)

    async def get(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> Entry | None:
        """The entry, or None when there is none (or it was deleted, or expired)."""
        raw = _key(key)
        options = self._options(consistency, r, None, None)
        result, node, attempts = await self._call("get", raw, lambda t: (raw, {**options, "t": t}), timeout)
        return self._entry(key, result, node, attempts)

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
        raw, operation = _key(key), self._operation()
        options = self._options(consistency, None, w, durability)
        return await self._write("delete", raw, lambda t: (raw, operation, {**options, "t": t}), timeout)

    async def exists(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> bool:
        """Whether there is a live record, without fetching its value."""
        found = await self._head(key, consistency, r, timeout)
        return bool(found[6])

    async def ttl(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> float | None:
        """Seconds left; infinity without expiry; None when there is no such key."""
        found = await self._head(key, consistency, r, timeout)
        if not found[6]:
            return None
        return max(found[2] - self._clock.wall_ms(), 0) / 1000 if found[2] else math.inf

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
        raw, operation = _key(key), self._operation()
        if ttl is None and expires_at is None:
            raise errors.BadTtl(given=None)
        options = self._options(consistency, None, w, durability) | self._ends(ttl, expires_at)
        return await self._retime("touch", raw, lambda t: (raw, operation, {**options, "t": t}), timeout)

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
        raw, operation = _key(key), self._operation()
        options = self._options(consistency, None, w, durability)
        return await self._retime("persist", raw, lambda t: (raw, operation, {**options, "t": t}), timeout)

    # --- many keys ----------------------------------------------------------------------

    async def get_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: str | None = None,
        r: int | None = None,
        timeout: float | None = None,
    ) -> dict[Key, Entry | None]:
        """Each key's entry or None. Raises the first error if a key cannot be read."""
        options = self._options(consistency, r, None, None)
        asked = {_key(key): key for key in keys}
        groups = batches.by_first_node(self._nodes, list(asked))

        async def ask(part: Sequence[bytes]) -> Sequence[Any]:
            result, node, attempts = await self._call(
                "get_many", part[0], lambda t: (list(part), {**options, "t": t}), timeout
            )
            return [(one, node, attempts) for one in result]

        async def again(raw: bytes) -> Any:
            return await self._call("get", raw, lambda t: (raw, {**options, "t": t}), timeout)

        found, failures = await batches.run(groups, ask, again)
        for error in failures.values():
            raise error
        return {
            key: self._entry(key, result, node, attempts)
            for raw, key in asked.items()
            for result, node, attempts in [found[raw]]
        }

    async def put_many(
        self,
        items: Mapping[Key, Any],
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
        asked = {_key(key): key for key in items}
        data = {raw: self._codec.encode(items[key]) for raw, key in asked.items()}
        options = self._options(consistency, None, w, durability) | self._ends(ttl, expires_at)
        operation = self._operation()

        async def ask(part: Sequence[bytes]) -> Sequence[Any]:
            pairs = [(raw, data[raw]) for raw in part]
            result, node, attempts = await self._call(
                "put_many", part[0], lambda t: (pairs, operation, {**options, "t": t}), timeout, writes=True
            )
            return [(one, node, attempts) for one in result]

        async def again(raw: bytes) -> Any:
            return await self._call(
                "put",
                raw,
                lambda t: (raw, data[raw], operation, {**options, "t": t}),
                timeout,
                writes=True,
            )

        sizes = {raw: len(raw) + len(value) for raw, value in data.items()}
        return await self._write_many(asked, sizes, ask, again)

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
        asked = {_key(key): key for key in keys}
        options = self._options(consistency, None, w, durability)
        operation = self._operation()

        async def ask(part: Sequence[bytes]) -> Sequence[Any]:
            result, node, attempts = await self._call(
                "delete_many",
                part[0],
                lambda t: (list(part), operation, {**options, "t": t}),
                timeout,
                writes=True,
            )
            return [(one, node, attempts) for one in result]

        async def again(raw: bytes) -> Any:
            return await self._call(
                "delete", raw, lambda t: (raw, operation, {**options, "t": t}), timeout, writes=True
            )

        return await self._write_many(asked, {}, ask, again)

    async def scan(
        self,
        prefix: Key = b"",
        *,
        limit: int | None = None,
        keys_only: bool = False,
        consistency: str | None = None,
        r: int | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Entry]:
        """Live entries whose keys begin with `prefix`, in ring order (by hash, not by key).

        Fetched page by page; `timeout` is for each page. A key that is there all along comes once.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise errors.BadOption(option="limit", given=limit, allowed="0 or more")
        options = self._options(consistency, r, None, None)
        options |= {"prefix": prefix.encode() if isinstance(prefix, str) else prefix, "keys_only": keys_only}
        cursor: bytes | None = None
        left = math.inf if limit is None else limit
        while left > 0:
            page = {**options, "limit": int(min(left, SCAN_PAGE))}
            position = cursor
            result, node, attempts = await self._call(
                "scan", None, lambda t, p=page, at=position: (at, {**p, "t": t}), timeout
            )
            rows, cursor, epoch, answered = result[:4]
            for raw, payload, version, expires_ms in rows:
                receipt = Receipt(version, epoch, answered, coordinator=node, attempts=attempts)
                value = None if payload is None else self._codec.decode(payload)
                yield Entry(_shown(raw), value, version, expires_ms / 1000 if expires_ms else None, receipt)
            left -= len(rows)
            if cursor is None:
                return

    # --- the cluster --------------------------------------------------------------------

    async def locate(self, key: Key) -> Location:
        """Where a key lives, by the topology the client has."""
        topology = await self.topology()
        raw = _key(key)
        partition = topology.partition(raw)
        owners = tuple(topology.node(number) for number in topology.owners_of(partition))
        return Location(hashing.slot_of(raw), Partition(partition), owners)

    async def topology(self) -> Topology:
        """The table of nodes and owners, as a node has it now."""
        plain, _, _ = await self._call("topology", None, lambda _t: (), None)
        self._nodes.adopt(plain)
        assert self._nodes.topology is not None
        return self._nodes.topology

    async def status(self, node: str | None = None, *, timeout: float | None = None) -> dict[str, Any]:
        """What a node says of itself; `node` is its `host:port`, any one by default."""
        result, _, _ = await self._call("status", None, lambda _t: (), timeout, node=node)
        return dict(result)

    async def ping(self, node: str | None = None, *, timeout: float | None = None) -> float:
        """Seconds a round trip takes."""
        began = self._clock.monotonic()
        await self._call("ping", None, lambda _t: (), timeout, node=node)
        return self._clock.monotonic() - began

    # --- inside -------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        key: bytes | None,
        params: Any,
        timeout: float | None,
        *,
        writes: bool = False,
        node: str | None = None,
    ) -> tuple[Any, int, int]:
        if timeout is not None:
            _check_timeout(timeout)
        return await self._caller.call(
            method,
            params,
            key=key,
            timeout=self._timeout if timeout is None else timeout,
            writes=writes,
            node=node,
        )

    async def _write(self, method: str, key: bytes, params: Any, timeout: float | None) -> Receipt:
        result, node, attempts = await self._call(method, key, params, timeout, writes=True)
        return _receipt(result, node, attempts)

    async def _retime(self, method: str, key: bytes, params: Any, timeout: float | None) -> Receipt | None:
        result, node, attempts = await self._call(method, key, params, timeout, writes=True)
        return None if result is None else _receipt(result, node, attempts)

    async def _head(self, key: Key, consistency: str | None, r: int | None, timeout: float | None) -> Any:
        raw = _key(key)
        options = self._options(consistency, r, None, None) | {"head": True}
        result, _, _ = await self._call("get", raw, lambda t: (raw, {**options, "t": t}), timeout)
        return result

    async def _write_many(
        self, asked: Mapping[bytes, Key], sizes: Mapping[bytes, int], ask: Any, again: Any
    ) -> dict[Key, Receipt]:
        groups = batches.by_first_node(self._nodes, list(asked), sizes)
        done, failures = await batches.run(groups, ask, again)
        receipts = {asked[raw]: _receipt(*outcome) for raw, outcome in done.items()}
        if failures:
            first = next(iter(failures.values()))
            failed = errors.BatchFailed(failed=len(failures), total=len(asked), first=first.message)
            failed.receipts = receipts
            failed.failures = {asked[raw]: error for raw, error in failures.items()}
            raise failed
        return {key: receipts[key] for key in asked.values()}

    def _options(
        self, consistency: str | None, r: int | None, w: int | None, durability: str | None
    ) -> dict[str, Any]:
        options: dict[str, Any] = {}
        level = self._consistency if consistency is None else _level(consistency)
        if level is not Consistency.QUORUM:
            options["c"] = level.value
        for name, count in (("r", r), ("w", w)):
            if count is not None:
                if (
                    isinstance(count, bool)
                    or not isinstance(count, int)
                    or not 1 <= count <= limits.REPLICAS_MAX
                ):
                    raise errors.BadConsistency(
                        given=repr(count), allowed=f"{name} from 1 to the number of replicas"
                    )
                options[name] = count
        if durability is not None:
            if durability != "always":
                raise errors.BadOption(
                    option="durability", given=durability, allowed='"always", or leave it out'
                )
            options["d"] = durability
        return options

    def _ends(self, ttl: float | None, expires_at: float | datetime | None) -> dict[str, int]:
        if ttl is not None and expires_at is not None:
            raise errors.BadOption(option="ttl and expires_at", given="both", allowed="one of them")
        now_ms = self._clock.wall_ms()
        if ttl is not None:
            if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not math.isfinite(ttl):
                raise errors.BadTtl(given=repr(ttl))
            admission.expires_from(ttl_ms=ttl * 1000, expires_ms=None, now_ms=now_ms)
            return {"ttl": math.ceil(ttl * 1000)}
        if expires_at is not None:
            if isinstance(expires_at, datetime):
                if expires_at.tzinfo is None:
                    raise errors.BadTtl(given=f"{expires_at!r}, a datetime without time zone")
                expires_at = expires_at.timestamp()
            if (
                isinstance(expires_at, bool)
                or not isinstance(expires_at, int | float)
                or not math.isfinite(expires_at)
            ):
                raise errors.BadTtl(given=repr(expires_at))
            return {
                "exp": int(
                    admission.expires_from(ttl_ms=None, expires_ms=int(expires_at * 1000), now_ms=now_ms)
                )
            }
        return {}

    def _operation(self) -> bytes:
        """Time of the first try, who we are, and a count: 6 + 6 + 4 bytes."""
        self._id_count = (self._id_count + 1) & 0xFFFFFFFF
        return self._clock.wall_ms().to_bytes(6, "big") + self._id_tail + self._id_count.to_bytes(4, "big")

    def _entry(self, key: Key, result: Any, node: int, attempts: int) -> Entry | None:
        payload, version, expires_ms, epoch, answered, repaired, exists = result[:7]
        if not exists:
            return None
        receipt = Receipt(version, epoch, answered, repaired, coordinator=node, attempts=attempts)
        value = self._codec.decode(payload)
        return Entry(key, value, version, expires_ms / 1000 if expires_ms else None, receipt)


def _key(key: Key) -> bytes:
    raw = key.encode() if isinstance(key, str) else key
    if not isinstance(raw, bytes):
        raise errors.BadOption(option="key", given=type(key).__name__, allowed="str or bytes")
    admission.check_key(raw)
    return raw


def _shown(raw: bytes) -> Key:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _level(consistency: str | Consistency) -> Consistency:
    try:
        level = Consistency(consistency)
    except ValueError:
        allowed = ", ".join(Consistency)
        raise errors.BadConsistency(given=repr(consistency), allowed=allowed) from None
    if level is Consistency.LINEARIZABLE:
        raise errors.Unsupported(what="consistency=linearizable")
    return level


def _check_timeout(timeout: object) -> None:
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float)
        or not 0.001 <= timeout <= limits.TIMEOUT_MS_MAX / 1000
    ):
        allowed = f"0.001 to {limits.TIMEOUT_MS_MAX // 1000} seconds"
        raise errors.BadOption(option="timeout", given=repr(timeout), allowed=allowed)


def _receipt(result: Any, node: int, attempts: int) -> Receipt:
    version, epoch, acked, flags, durability, repaired = result[:6]
    return Receipt(
        version,
        epoch,
        acked,
        repaired,
        superseded=bool(flags & messages.FLAG_SUPERSEDED),
        existed=bool(flags & messages.FLAG_EXISTED),
        durability=Durability(durability),
        coordinator=node,
        attempts=attempts,
    )
