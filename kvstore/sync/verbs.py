"""What the blocking verbs stand on: an async client, and the thread where it lives."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from kvstore.client.client import Client
from kvstore.sync.loop_thread import LoopThread
from kvstore.sync.resident import Resident

_T = TypeVar("_T")


class Verbs:
    """Both are those of the process that asks."""

    _resident: Resident[Client]
    _timeout: float

    @property
    def _thread(self) -> LoopThread:
        return self._resident.thread

    @property
    def _client(self) -> Client:
        return self._resident.it

    def _run(self, steps: Coroutine[Any, Any, _T]) -> _T:
        return self._resident.thread.run(steps)
