"""Keeps one link alive: dial, greet, probe, and dial again.

The pause between tries grows to two seconds with full jitter, so that a node that comes back
is not met by all its peers in the same instant. Every probe also tells how far the peer's
clock is from ours (half the round trip assumed each way).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from kvstore import errors, limits
from kvstore.core.retry import RetryPolicy
from kvstore.core.skew import ClockGuard
from kvstore.core.witness import Told, Witness
from kvstore.node.link import Link
from kvstore.ports import Clock, Dice
from kvstore.wire import messages, results

_STEADY_MS = 50
"""More than a clock is slewed by within one round trip."""


class Keeper:
    """Owns the connection of one link for as long as the node runs."""

    def __init__(  # noqa: PLR0913  everything it uses, handed in by name
        self,
        *,
        link: Link,
        hello: Callable[[], dict[str, Any]],
        expected_uuid: str,
        cluster_id: str,
        local_host: str,
        clock: Clock,
        guard: ClockGuard,
        witness: Witness,
        told: Callable[[], Told | None],
        dice: Dice,
        on_epoch: Callable[[Link, int], None],
        on_amnesia: Callable[[errors.Amnesiac], None],
        log: Any,
    ) -> None:
        self._link = link
        self._hello = hello
        self._expected_uuid = expected_uuid
        self._cluster_id = cluster_id
        self._local_host = local_host
        self._clock = clock
        self._guard = guard
        self._witness = witness
        self._told = told
        self._dice = dice
        self._on_epoch = on_epoch
        self._on_amnesia = on_amnesia
        self._log = log

    async def keep(self) -> None:
        """Run until cancelled."""
        retry = RetryPolicy(base_ms=limits.RECONNECT_MS_MIN, cap_ms=limits.RECONNECT_MS_MAX)
        attempt = 0
        link = self._link
        try:
            while True:
                try:
                    await self._dial()
                except (OSError, errors.KVError, TimeoutError) as error:
                    reason = error.message if isinstance(error, errors.KVError) else str(error) or "no answer"
                    if reason != link.reason:
                        self._log.info("peer_down", peer=link.info.name, reason=reason)
                    link.shut(reason)
                    attempt += 1
                else:
                    attempt = 0
                    self._log.info("peer_up", peer=link.info.name)
                    await self._probe()
                    self._guard.forget(link.number)
                    self._log.warning("peer_down", peer=link.info.name, reason=link.reason)
                await asyncio.sleep(retry.delay_ms(attempt, self._dice) / 1000)
        finally:
            link.shut("this node stops")

    async def _dial(self) -> None:
        link, info = self._link, self._link.info
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(limits.PROBE_TIMEOUT_MS / 1000):
            await loop.create_connection(
                link.protocol, info.host, info.peer_port, local_addr=(self._local_host, 0)
            )
            asked_at = loop.time()
            try:
                answer = await self._call("hello", [self._hello()])
            except errors.Amnesiac as error:
                self._on_amnesia(error)  # it speaks of us
                raise
        self._check(answer)
        link.clock.learn(answer.get("steady_ms"), asked_at=asked_at, now=loop.time())
        link.peer_epoch = int(answer.get("epoch", 0))
        link.reason = ""
        link.up = True
        self._on_epoch(link, link.peer_epoch)

    def _check(self, answer: Any) -> None:
        if not isinstance(answer, Mapping):
            raise errors.Malformed(reason="hello was not answered with a map")
        if answer.get("cluster") != self._cluster_id:
            raise errors.WrongCluster(expected=self._cluster_id, got=str(answer.get("cluster")))
        if answer.get("uuid") != self._expected_uuid or answer.get("node") != self._link.number:
            raise errors.NotReady(
                reason=f"{self._link.info.host}:{self._link.info.peer_port} is node "
                f"{answer.get('node')} ({answer.get('uuid')}), expected {self._link.number}"
            )
        if not self._witness.believes(self._link.number, messages.told_of(answer.get("told"))):
            raise errors.Amnesiac(node=self._link.info.name)

    async def _probe(self) -> None:
        """Beat once a second until the link is lost; silence for three loses it."""
        link = self._link
        loop = asyncio.get_running_loop()
        while link.up:
            self._beat()
            try:
                async with asyncio.timeout(limits.PROBE_INTERVAL_MS / 1000):
                    await link.lost.wait()
            except TimeoutError:
                silence = loop.time() - link.last_heard
                if silence > limits.PROBE_TIMEOUT_MS / 1000:
                    link.shut(f"silent for {silence:.1f} s")

    def _beat(self) -> None:
        sent_wall, sent = self._clock.wall_ms(), self._clock.monotonic()
        link, loop = self._link, asyncio.get_running_loop()
        asked_at = loop.time()

        def replied(error: Any, result: Any) -> None:
            took_ms = (self._clock.monotonic() - sent) * 1000
            wall_moved_ms = self._clock.wall_ms() - sent_wall - took_ms
            # A slow round trip says little about the clock; one in which our clock was set says nothing.
            steady = took_ms < limits.DRIFT_MS_MAX and abs(wall_moved_ms) < _STEADY_MS
            clocks = results.clocks_of(result) if error is None and steady else None
            if clocks is not None:
                wall_ms, steady_ms = clocks
                self._guard.peer(link.number, int(wall_ms - sent_wall - took_ms / 2))
                link.clock.learn(steady_ms, asked_at=asked_at, now=loop.time())

        link.call("ping", [sent_wall, self._told()], replied)

    async def _call(self, method: str, params: list[Any]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def replied(error: Any, result: Any) -> None:
            if future.done():
                return
            if error is not None:
                kv_error = error if isinstance(error, errors.KVError) else errors.from_wire(error)
                future.set_exception(kv_error)
            else:
                future.set_result(result)

        self._link.call(method, params, replied)
        return await future
