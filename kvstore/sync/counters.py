"""The verbs of counters, blocking. What they mean is in `kvstore.client.counters`."""

from __future__ import annotations

from kvstore.client.receipt import Receipt
from kvstore.client.terms import Key
from kvstore.sync.verbs import Verbs


class CounterVerbs(Verbs):
    """What the blocking `Client` can do with counters."""

    def counter_add(
        self,
        key: Key,
        by: int = 1,
        *,
        consistency: str | None = None,
        w: int | None = None,
        timeout: float | None = None,
        durability: str | None = None,
    ) -> Receipt:
        """See `kvstore.Client.counter_add`."""
        return self._run(
            self._client.counter_add(
                key, by, consistency=consistency, w=w, timeout=timeout, durability=durability
            )
        )

    def counter_get(
        self, key: Key, *, consistency: str | None = None, r: int | None = None, timeout: float | None = None
    ) -> int:
        """See `kvstore.Client.counter_get`."""
        return self._run(self._client.counter_get(key, consistency=consistency, r=r, timeout=timeout))
