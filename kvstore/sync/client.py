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
from kvstore.sync.loop_thread import LoopThread
from kvstore.sync.registers import RegisterVerbs


class Client(RegisterVerbs, CounterVerbs):
    """A blocking connection to a cluster. Make it with `kvstore.sync.connect`."""

    def __init__(self, url: str | Sequence[str], options: Mapping[str, Any]) -> None:
        self._thread = LoopThread()
        self._run = self._thread.run
        self._timeout = options["timeout"]
        try:
            self._client: asynchronous.Client = self._run(api.connect(url, **options))
        except BaseException:
            self._thread.end()
            raise

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop the connections and end the thread; harmless when repeated."""
        if not self._thread.ended:
            self._run(self._client.close())
            self._thread.end()

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
        return self._entries(entries)

    def _entries(self, scan: Scan) -> Iterator[Entry]:
        # A page, not an entry, for each way to the other thread and back.
        while (page := self._run(scan.next_page())) is not None:
            yield from page

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
