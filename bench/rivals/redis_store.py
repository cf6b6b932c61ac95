"""Redis under the shortener: what the app needs of a store, over redis-py, as a user would write it.

`pip install redis hiredis`, which nothing else here needs.

A value carries its version in front, so that compare-and-set is a short script; counters are plain numbers.
What kvstore promises beyond one Redis (a majority holds what was acknowledged) has no counterpart here.
"""

from __future__ import annotations

import importlib
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from kvstore import Applied, Change, NotApplied, Receipt

_VERSION = struct.Struct(">Q")
_CHANGE = """
local held = redis.call('GET', KEYS[1])
local version = 0
if held and #held >= 8 then version = struct.unpack('>I8', held) end
local found = held and string.sub(held, 9)
if ARGV[1] == 'version' and version ~= tonumber(ARGV[2]) then return {0, version, found} end
if ARGV[1] == 'value' and found ~= ARGV[2] then return {0, version, found} end
if ARGV[3] == '' then redis.call('DEL', KEYS[1]) return {1, version} end
redis.call('SET', KEYS[1], struct.pack('>I8', version + 1) .. string.sub(ARGV[3], 2))
if ARGV[4] ~= '0' then redis.call('PEXPIREAT', KEYS[1], ARGV[4]) end
return {1, version + 1}
"""
_SPEND = """
local n = tonumber(redis.call('GET', KEYS[1]) or '0')
if n + 1 > tonumber(ARGV[1]) then return 0 end
redis.call('INCR', KEYS[1])
if ARGV[2] ~= '0' then redis.call('PEXPIREAT', KEYS[1], ARGV[2]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A value that is there."""

    value: bytes
    version: int


class _Changes:
    """Of all changes the limiter makes one kind."""

    @staticmethod
    def cas(key: bytes, *, new: bytes, expected_version: int, ttl: float | None = None) -> Change:
        """By version."""
        return Change(key, bytes(16), "cas", (new, expected_version, ttl))


def _done(version: int, *, is_applied: bool, found: bytes | None = None) -> Applied | NotApplied:
    receipt = Receipt(version, 1, (1,))
    return Applied(version, None, None, False, receipt) if is_applied else NotApplied(version, found, receipt)


def _entry(data: bytes | None) -> Entry | None:
    if data is None:
        return None
    # A plain number is what INCR has made.
    return Entry(data[8:], _VERSION.unpack_from(data)[0]) if len(data) >= 8 else Entry(data, 0)


def _ends_ms(expires_at: float | None, ttl: float | None) -> int:
    if ttl is not None:
        return int((time.time() + ttl) * 1000)  # noqa: TID251  a benchmark has the real clock
    return 0 if expires_at is None else int(expires_at * 1000)


class RedisStore:
    """One Redis, by its address."""

    def __init__(self, url: str) -> None:
        client = importlib.import_module("redis.asyncio")
        self._redis: Any = client.Redis.from_url(url)
        self._change_script = self._redis.register_script(_CHANGE)
        self._spend_script = self._redis.register_script(_SPEND)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._redis.aclose()

    async def get(self, key: str | bytes, **_levels: Any) -> Entry | None:
        """One value."""
        return _entry(await self._redis.get(key))

    async def get_many(self, keys: Iterable[str], **_levels: Any) -> dict[str, Entry | None]:
        """Several."""
        asked = list(keys)
        found = await self._redis.mget(asked) if asked else []
        return {key: _entry(data) for key, data in zip(asked, found, strict=True)}

    async def put(self, key: str, value: bytes, **_options: Any) -> None:
        """Without a condition."""
        await self._redis.set(key, _VERSION.pack(1) + value)

    async def put_many(self, items: Mapping[str, bytes], **_options: Any) -> None:
        """Several."""
        await self._redis.mset({key: _VERSION.pack(1) + value for key, value in items.items()})

    async def delete(self, key: str, **_options: Any) -> None:
        """Without a condition."""
        await self._redis.delete(key)

    async def delete_many(self, keys: Iterable[str], **_options: Any) -> None:
        """Several."""
        await self._redis.delete(*keys)

    async def put_if_absent(
        self,
        key: str | bytes,
        value: bytes,
        *,
        expires_at: float | None = None,
        ttl: float | None = None,
        **_options: Any,
    ) -> Applied | NotApplied:
        """SET NX."""
        ends_ms = _ends_ms(expires_at, ttl) or None
        done = await self._redis.set(key, _VERSION.pack(1) + value, nx=True, pxat=ends_ms)
        return _done(1, is_applied=bool(done))

    async def cas(
        self,
        key: str | bytes,
        *,
        new: bytes,
        expected_version: int,
        expires_at: float | None = None,
        ttl: float | None = None,
        **_options: Any,
    ) -> Applied | NotApplied:
        """By version."""
        return await self._change("version", key, expected_version, new, _ends_ms(expires_at, ttl))

    async def get_and_set(self, key: str | bytes, value: bytes, *, ttl: float, **_options: Any) -> Applied:
        """Of it the limiter's clock wants only when it ends, by the server's time."""
        seconds, micros = await self._redis.time()
        await self._redis.set(key, _VERSION.pack(1) + value, px=int(ttl * 1000))
        return Applied(1, None, seconds + micros / 1e6 + ttl, False, Receipt(1, 1, (1,)))

    @property
    def change(self) -> type[_Changes]:
        """Makes what `change_many` sends."""
        return _Changes

    async def change_many(
        self,
        changes: Iterable[Change],
        *,
        on_outcome: Callable[[Change, Applied | NotApplied], None],
        **_options: Any,
    ) -> None:
        """One after the other: seldom is there more than one."""
        for change in changes:
            new, expected, ttl = change.args
            on_outcome(change, await self.cas(change.key, new=new, expected_version=expected, ttl=ttl))

    async def delete_if(
        self, key: str, *, expected_version: int | None = None, expected_value: bytes | None = None
    ) -> Applied | NotApplied:
        """By version or by value."""
        if expected_value is not None:
            return await self._change("value", key, expected_value, None, 0)
        return await self._change("version", key, expected_version or 0, None, 0)

    async def update(
        self, key: str, change: Callable[[bytes | None], bytes], *, timeout: float | None = None
    ) -> Applied | NotApplied:
        """Read and compare-and-set until nobody came in between."""
        del timeout
        while True:
            entry = _entry(await self._redis.get(key))
            value, version = (None, 0) if entry is None else (entry.value, entry.version)
            done = await self._change("version", key, version, change(value), 0)
            if done:
                return done

    async def incr(
        self, key: str, by: int = 1, *, maximum: int, expires_at: float | None = None
    ) -> Applied | NotApplied:
        """By one, up to a maximum."""
        assert by == 1
        done = await self._spend_script(keys=[key], args=[maximum, _ends_ms(expires_at, None)])
        return _done(0, is_applied=bool(done))

    async def counter_add(self, key: str, by: int = 1, **_options: Any) -> None:
        """INCRBY."""
        await self._redis.incrby(key, by)

    async def counter_get(self, key: str, **_options: Any) -> int:
        """What a counter says."""
        return int(await self._redis.get(key) or 0)

    async def _change(
        self, how: str, key: str | bytes, expected: int | bytes, new: bytes | None, ends: int
    ) -> Applied | NotApplied:
        done, version, *found = await self._change_script(
            keys=[key], args=[how, expected, b"" if new is None else b"=" + new, ends]
        )
        return _done(version, is_applied=bool(done), found=found[0] if found else None)
