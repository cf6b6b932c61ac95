"""The verbs of registers, blocking. What they mean is in `kvstore.client.registers`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from kvstore import errors
from kvstore.client.change import Applied, Change, NotApplied
from kvstore.client.change_batch import Became, OnOutcome
from kvstore.client.changes import UNSET, ChangeMaker
from kvstore.client.terms import Key, check_timeout
from kvstore.io.entropy import system_dice
from kvstore.sync.locks import Lock
from kvstore.sync.verbs import Verbs
from kvstore.types import Consistency, Operation

_BACKOFF_S, _BACKOFF_S_MAX = 0.002, 0.25


class RegisterVerbs(Verbs):
    """What the blocking `Client` can do with registers."""

    def cas(
        self,
        key: Key,
        *,
        new: Any,
        expected_version: int | None = None,
        expected_value: Any = UNSET,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """See `kvstore.Client.cas`."""
        return self._run(
            self._client.cas(
                key,
                new=new,
                expected_version=expected_version,
                expected_value=expected_value,
                ttl=ttl,
                expires_at=expires_at,
                timeout=timeout,
            )
        )

    def put_if_absent(
        self,
        key: Key,
        value: Any,
        *,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """See `kvstore.Client.put_if_absent`."""
        return self._run(
            self._client.put_if_absent(key, value, ttl=ttl, expires_at=expires_at, timeout=timeout)
        )

    def delete_if(
        self,
        key: Key,
        *,
        expected_version: int | None = None,
        expected_value: Any = UNSET,
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """See `kvstore.Client.delete_if`."""
        return self._run(
            self._client.delete_if(
                key, expected_version=expected_version, expected_value=expected_value, timeout=timeout
            )
        )

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
        timeout: float | None = None,
    ) -> Applied | NotApplied:
        """See `kvstore.Client.incr`."""
        return self._run(
            self._client.incr(
                key,
                by,
                initial=initial,
                minimum=minimum,
                maximum=maximum,
                period=period,
                ttl=ttl,
                expires_at=expires_at,
                timeout=timeout,
            )
        )

    def get_and_set(
        self,
        key: Key,
        value: Any,
        *,
        ttl: float | None = None,
        expires_at: float | datetime | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """See `kvstore.Client.get_and_set`."""
        return self._run(
            self._client.get_and_set(key, value, ttl=ttl, expires_at=expires_at, timeout=timeout)
        )

    def extend(
        self, key: Key, ttl: float, *, expected_version: int = 0, timeout: float | None = None
    ) -> Applied | NotApplied:
        """See `kvstore.Client.extend`."""
        return self._run(self._client.extend(key, ttl, expected_version=expected_version, timeout=timeout))

    def update(
        self,
        key: Key,
        change: Callable[[Any], Any],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """See `kvstore.Client.update`. `change` runs in the caller's thread, and may use this client."""
        # Not the async update: `change` would hold up the private loop, and with it the renewal of locks.
        if timeout is not None:
            check_timeout(timeout)
        now, dice = self._thread.now, system_dice()
        whole = self._timeout if timeout is None else timeout
        deadline = now() + whole
        pause, left, needed = _BACKOFF_S, timeout, 0.0
        while left is None or left > max(0.001, needed):
            began = now()
            entry = self._run(self._client.get(key, consistency=Consistency.LINEARIZABLE, timeout=left))
            new = change(None if entry is None else entry.value)
            left = max(deadline - now(), 0.001)
            if left < needed:
                break
            expected = 0 if entry is None else entry.version
            done = self.cas(key, new=new, expected_version=expected, ttl=ttl, timeout=left)
            if isinstance(done, Applied):
                return done
            needed = min(needed or whole, 2 * (now() - began))
            time.sleep(dice.random() * pause)
            pause, left = min(pause * 2, _BACKOFF_S_MAX), deadline - now()
        raise errors.Contended(key=repr(key), timeout_ms=int(whole * 1000))

    def resolve(
        self, operation: Operation | str | None, *, timeout: float | None = None
    ) -> Applied | NotApplied:
        """See `kvstore.Client.resolve`."""
        return self._run(self._client.resolve(operation, timeout=timeout))

    @property
    def change(self) -> ChangeMaker:
        """See `kvstore.Client.change`."""
        return self._client.change

    def change_many(
        self,
        changes: Iterable[Change],
        *,
        timeout: float | None = None,
        on_outcome: OnOutcome | None = None,
    ) -> list[Became]:
        """See `kvstore.Client.change_many`. `on_outcome` runs on the client's own thread."""
        return self._run(self._client.change_many(changes, timeout=timeout, on_outcome=on_outcome))

    def lock(self, name: str, ttl: float = 10.0, *, wait: float | None = None) -> Lock:
        """A lease on a name: `with kv.lock("job", ttl=10) as lease: ... lease.token ...`."""
        return Lock(self._thread, self._client.lock(name, ttl, wait=wait))
