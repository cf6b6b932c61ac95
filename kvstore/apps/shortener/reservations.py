"""Promises to make one link: what stands behind `Idempotency-Key` and behind `dedupe`.

A reservation is a register that names the link *before* it is made, with its code and its id. Whoever comes
with the same key, at whatever node and however often, finds that draft and makes the same link: claiming a
code with an id that already stands there is a success. `made` is noted afterwards, so that a retry after
the link was deleted does not make it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import kvstore
from kvstore import errors
from kvstore.apps.shortener import link as links
from kvstore.apps.shortener.link import Link
from kvstore.apps.shortener.problems import BadIdempotencyKey, KeyReused

KEY_LENGTH_MAX = 255
REPLAY_S = 86_400.0
"""How long an Idempotency-Key is remembered."""
_ROUNDS_MAX = 10
Make = Callable[[Link], Awaitable[Link]]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A promised link."""

    fingerprint: str
    """Of the request; another request under the same key is refused."""
    link: Link
    made: bool

    def encode(self) -> bytes:
        """The bytes of the register."""
        plain = [self.fingerprint, links.encode(self.link).decode(), self.made]
        return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes) -> Reservation:
        """The other way."""
        fingerprint, link, made = json.loads(data)
        return cls(fingerprint, links.decode(link), made)


async def settled(
    kv: kvstore.Client, change: Awaitable[kvstore.Applied | kvstore.NotApplied]
) -> kvstore.Applied | kvstore.NotApplied:
    """A change, its unknown outcome made a fact. Raises errors.Unresolved when even that cannot be had."""
    try:
        return await change
    except errors.Unresolved as unknown:
        if unknown.operation is None:
            raise
        try:
            return await kv.resolve(unknown.operation)
        except errors.KVError:
            # Not what came of asking: a refusal of the question is no refusal of the change.
            raise unknown from None


async def found_at(kv: kvstore.Client, key: str) -> tuple[bytes, int] | None:
    """What a register holds now, and its version."""
    entry = await kv.get(key, consistency="linearizable")
    return None if entry is None else (bytes(entry.value), entry.version)


class Reservations:
    """All promises, in the store."""

    def __init__(self, kv: kvstore.Client) -> None:
        self._kv = kv

    async def once(self, owner: str, key: str, draft: Link, fingerprint: str, make: Make) -> Link:
        """Make the link of a retried request once. Raises KeyReused, BadIdempotencyKey, what `make` does."""
        if not 1 <= len(key) <= KEY_LENGTH_MAX or not (key.isascii() and key.isprintable()):
            raise BadIdempotencyKey(f"1 to {KEY_LENGTH_MAX} printable ASCII characters")
        where = links.reservation_key(owner, _digest("retry", key))
        mine = Reservation(fingerprint, draft, made=False)
        held, version = await self._reserve(where, mine, ttl=REPLAY_S)
        if held.fingerprint != fingerprint:
            raise KeyReused("send another request with another key")
        if held.made:
            return held.link
        return await self._keep(where, held, version, make, ttl=REPLAY_S)

    async def same(
        self, owner: str, draft: Link, make: Make, is_live: Callable[[Link], Awaitable[bool]]
    ) -> Link:
        """The owner's link for a url: the one that is there, or a new one that all who ask now share."""
        where = links.reservation_key(owner, _digest("same", draft.url))
        mine = Reservation("", draft, made=False)
        held, version = await self._reserve(where, mine, ttl=None)
        for _ in range(_ROUNDS_MAX):
            if not held.made:
                return await self._keep(where, held, version, make, ttl=None)
            if await is_live(held.link):
                return held.link
            change = self._kv.cas(where, new=mine.encode(), expected_version=version)
            done = await settled(self._kv, change)
            held, version = (mine, done.version) if done else await self._reserve(where, mine, ttl=None)
        raise errors.Contended(key=where, timeout_ms=0)

    async def _reserve(self, where: str, mine: Reservation, *, ttl: float | None) -> tuple[Reservation, int]:
        for _ in range(_ROUNDS_MAX):
            done = await settled(self._kv, self._kv.put_if_absent(where, mine.encode(), ttl=ttl))
            if done:
                return mine, done.version
            found = await found_at(self._kv, where)
            if found is not None:
                return Reservation.decode(found[0]), found[1]
        raise errors.Contended(key=where, timeout_ms=0)

    async def _keep(
        self, where: str, held: Reservation, version: int, make: Make, *, ttl: float | None
    ) -> Link:
        link = await make(held.link)
        kept = replace(held, link=link, made=True).encode()
        # Not noted: a retry makes the same link again, which changes nothing while it stands.
        with suppress(errors.KVError):
            await self._kv.cas(where, new=kept, expected_version=version, ttl=ttl)
        return link


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
