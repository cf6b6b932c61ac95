"""The blocking client: each verb hands its coroutine to the private loop and waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from kvstore import api
from kvstore.client import client as asynchronous
from kvstore.client.codecs import Codec
from kvstore.client.pages import Scan
from kvstore.client.receipt import Entry, Location, Receipt
from kvstore.client.terms import Key
from kvstore.core.topology import Topology
from kvstore.sync.counters import CounterVerbs
from kvstore.sync.registers import RegisterVerbs
from kvstore.sync.resident import Resident


class Client(RegisterVerbs, CounterVerbs):
    """A blocking connection to a cluster. Make it with `kvstore.sync.connect`."""

    def __init__(self, url: str | Sequence[str], options: Mapping[str, Any]) -> None:
        self._timeout = options["timeout"]
        self._resident = Resident(lambda: api.connect(url, **options), asynchronous.Client.close)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop the connections and end the thread; harmless when repeated."""
        self._resident.end()

    def put(
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
        """See `kvstore.Client.put`."""
        return self._run(
            self._client.put(
                key,
                value,
                ttl=ttl,
                expires_at=expires_at,
                consistency=consistency,
                w=w,
                timeout=timeout,
                durability=durability,
            )
        )

    def get(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> Entry | None:
        """See `kvstore.Client.get`."""
        return self._run(self._client.get(key, consistency=consistency, r=r, timeout=timeout))

    def delete(
        self,
        key: Key,
        *,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> Receipt:
        """See `kvstore.Client.delete`."""
        return self._run(
            self._client.delete(key, consistency=consistency, w=w, timeout=timeout, durability=durability)
        )

    def exists(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> bool:
        """See `kvstore.Client.exists`."""
        return self._run(self._client.exists(key, consistency=consistency, r=r, timeout=timeout))

    def ttl(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> float | None:
        """See `kvstore.Client.ttl`."""
        return self._run(self._client.ttl(key, consistency=consistency, r=r, timeout=timeout))

    def touch(
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
        """See `kvstore.Client.touch`."""
        return self._run(
            self._client.touch(
                key,
                ttl,
                expires_at=expires_at,
                consistency=consistency,
                w=w,
                timeout=timeout,
                durability=durability,
            )
        )

    def persist(
        self,
        key: Key,
        *,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> Receipt | None:
        """See `kvstore.Client.persist`."""
        return self._run(
            self._client.persist(key, consistency=consistency, w=w, timeout=timeout, durability=durability)
        )

    def get_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: str | None = None,
        r: int | None = None,
        timeout: float | None = None,
    ) -> dict[Key, Entry | None]:
        """See `kvstore.Client.get_many`."""
        return self._run(self._client.get_many(keys, consistency=consistency, r=r, timeout=timeout))

    def put_many(
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
        """See `kvstore.Client.put_many`."""
        return self._run(
            self._client.put_many(
                items,
                ttl=ttl,
                expires_at=expires_at,
                consistency=consistency,
                w=w,
                timeout=timeout,
                durability=durability,
            )
        )

    def delete_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> dict[Key, Receipt]:
        """See `kvstore.Client.delete_many`."""
        return self._run(
            self._client.delete_many(
                keys, consistency=consistency, w=w, timeout=timeout, durability=durability
            )
        )

    def scan(
        self,
        prefix: Key = b"",
        *,
        limit: int | None = None,
        keys_only: bool = False,
        consistency: str | None = None,
        r: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Entry]:
        """See `kvstore.Client.scan`."""
        entries = self._client.scan(
            prefix, limit=limit, keys_only=keys_only, consistency=consistency, r=r, timeout=timeout
        )
        # Not a generator: one error, of an entry that cannot be decoded perhaps, would end it.
        return iter(lambda: self._next(entries), None)

    def _next(self, scan: Scan) -> Entry | None:
        # A page, not an entry, for each way to the other thread and back.
        while (entry := scan.take()) is None and self._run(scan.fetch()):
            pass
        return entry

    def locate(self, key: Key, *, timeout: float | None = None) -> Location:
        """See `kvstore.Client.locate`."""
        return self._run(self._client.locate(key, timeout=timeout))

    def topology(self, *, timeout: float | None = None) -> Topology:
        """See `kvstore.Client.topology`."""
        return self._run(self._client.topology(timeout=timeout))

    def status(self, node: str | None = None, *, timeout: float | None = None) -> dict[str, Any]:
        """See `kvstore.Client.status`."""
        return self._run(self._client.status(node, timeout=timeout))

    def ping(self, node: str | None = None, *, timeout: float | None = None) -> float:
        """See `kvstore.Client.ping`."""
        return self._run(self._client.ping(node, timeout=timeout))


def connect(
    url: str | Sequence[str] = api.DEFAULT_URL,
    *,
    consistency: str = "quorum",
    timeout: float = 5.0,
    codec: str | Codec | None = None,
    token: str | None = None,
    **options: Any,
) -> Client:
    """A blocking client; options and errors as in `kvstore.connect`."""
    return Client(
        url, {"consistency": consistency, "timeout": timeout, "codec": codec, "token": token, **options}
    )
