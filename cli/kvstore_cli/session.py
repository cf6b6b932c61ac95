"""A command's way to the cluster: connect, do one thing, close. The shell keeps one connection open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from kvstore_cli.settings import Settings, token_of

if TYPE_CHECKING:
    from kvstore.client.client import Client

_T = TypeVar("_T")
Connect = Callable[[Settings], "Awaitable[Client]"]
Work = Callable[["Client"], Coroutine[Any, Any, _T]]


async def connect(settings: Settings) -> Client:
    """A client as the global flags say. Raises errors.CannotConnect and its kin."""
    from kvstore.api import connect as api_connect  # after `--help` and usage errors are out of the way

    return await api_connect(settings.address, timeout=settings.deadline_ms / 1000, token=token_of(settings))


class Session:
    """The global flags and the connection they lead to."""

    __slots__ = ("_client", "_connect", "_runner", "consistency", "settings", "stdin_taken")

    def __init__(self, settings: Settings | None = None, connect: Connect = connect) -> None:
        self.settings = settings or Settings()
        self._connect = connect
        self._client: Client | None = None
        self._runner: asyncio.Runner | None = None
        self.consistency: str | None = None
        """What the shell's `\\consistency` set; a command's own flag wins."""
        self.stdin_taken = False
        """Whether standard input holds commands, so that no value may be read from it."""

    def with_flags(self, given: Mapping[str, Any]) -> Session:
        """The same connection under a command's own flags."""
        other = Session(self.settings.merged(given), self._connect)
        if other.settings.url == self.settings.url and other.settings.token == self.settings.token:
            other._client, other._runner = self._client, self._runner
        other.consistency, other.stdin_taken = self.consistency, self.stdin_taken
        return other

    def call(self, work: Work[_T]) -> _T:
        """Do `work` with a client, on the shell's connection or on one for this call alone."""
        if self._client is not None and self._runner is not None:
            return self._runner.run(work(self._client))
        return asyncio.run(self._once(work))

    async def _once(self, work: Work[_T]) -> _T:
        async with await self._connect(self.settings) as client:
            return await work(client)

    @contextmanager
    def kept_open(self) -> Iterator[Session]:
        """Hold one connection for all calls inside the block."""
        with asyncio.Runner() as runner:
            client = runner.run(self._opened())
            self._client, self._runner = client, runner
            try:
                yield self
            finally:
                self._client = self._runner = None
                runner.run(client.__aexit__(None, None, None))

    async def _opened(self) -> Client:
        client = await self._connect(self.settings)
        return await client.__aenter__()
