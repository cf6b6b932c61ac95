"""An asyncio loop that owns its clock.

Nothing sleeps: when every task waits, the clock jumps to the next timer. There are no sockets,
threads or signals, so a run depends on its inputs alone. Connections are given by the network of
`kvstore.sim.network`.

Rules kept here:
- every callback belongs to the incarnation in whose context it was scheduled, and runs only while that lives;
- equal deadlines are not first-in-first-out in asyncio; whoever needs order keeps a queue of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import selectors
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

from kvstore.sim.host import INCARNATION, Incarnation

_T = TypeVar("_T")


class DeadlockError(Exception):
    """Every task waits, and no timer is armed to wake one."""


class _Clock(selectors.BaseSelector):
    """Stands where the OS would wait for sockets, and moves time instead."""

    def __init__(self) -> None:
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Jump to the next timer."""
        if timeout is None:
            raise DeadlockError
        self.now += max(timeout, 0.0)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> NoReturn:
        """Nothing to wait for."""
        raise NotImplementedError

    def unregister(self, fileobj: Any) -> NoReturn:
        """Nothing to forget."""
        raise NotImplementedError

    def get_map(self) -> Mapping[Any, Any]:
        """Nobody is registered."""
        return {}


class SimLoop(asyncio.SelectorEventLoop):
    """The stock loop, with simulated time and an imagined network."""

    def __init__(self) -> None:
        self._sim_clock = _Clock()
        super().__init__(self._sim_clock)
        self.network: Any = None
        self.slow_callback_duration = 1e9

    def time(self) -> float:
        """Say what time it is in here."""
        return self._sim_clock.now

    def _make_self_pipe(self) -> None:
        """No other thread ever wakes this loop."""

    def _close_self_pipe(self) -> None:
        """There is none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def run_in_executor(self, *_: Any) -> NoReturn:  # type: ignore[override]
        """Refuse: threads would bring an order that no seed chooses."""
        raise RuntimeError("no threads in the simulator")

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Schedule, on behalf of the incarnation whose context this is."""
        owner = _owner(context)
        if owner is None:
            return super().call_soon(callback, *args, context=context)
        return super().call_soon(owner.run, callback, args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Schedule for later, likewise."""
        owner = _owner(context)
        if owner is None:
            return super().call_at(when, callback, *args, context=context)
        return super().call_at(when, owner.run, callback, args, context=context)

    async def create_connection(
        self,
        protocol_factory: Callable[[], Any],
        host: str | None = None,
        port: int | None = None,
        *,
        local_addr: tuple[str, int] | None = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        """Connect through the simulated network, from `local_addr` or the current machine."""
        owner = INCARNATION.get()
        source = local_addr[0] if local_addr is not None else owner.host if owner is not None else "outside"
        return await self.network.connect(source, owner, host, port, protocol_factory)  # type: ignore[no-any-return]

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str | None = None, port: int | None = None, **_: Any
    ) -> Any:
        """Listen on the simulated network."""
        return self.network.listen(INCARNATION.get(), host, port, protocol_factory)

    def resume(self, incarnation: Incarnation) -> None:
        """Let a paused process go on, with everything that happened meanwhile in order."""
        incarnation.paused = False
        held, incarnation.held = incarnation.held, []
        for context, callback, args in held:
            self.call_soon(callback, *args, context=context)


def _owner(context: contextvars.Context | None) -> Incarnation | None:
    return INCARNATION.get() if context is None else context.get(INCARNATION)


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` to its end in simulated time; what it left behind is dropped without a word."""
    # Coroutines of crashed processes are dropped in the middle of things. What they say then is of no
    # interest, and must be said now, not in the middle of somebody else's work.
    before, sys.unraisablehook = sys.unraisablehook, lambda _unraisable: None
    try:
        return _run(main)
    finally:
        gc.collect()
        sys.unraisablehook = before


def _run(main: Coroutine[Any, Any, _T]) -> _T:
    loop = SimLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        _drop_tasks(loop)
        loop.close()


def _drop_tasks(loop: SimLoop) -> None:
    """End what still waits, and what that begins in ending: the collector comes when it likes."""
    dropped: set[asyncio.Task[Any]] = set()
    while left := asyncio.all_tasks(loop) - dropped:
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  crashed on purpose
            with contextlib.suppress(Exception, asyncio.CancelledError):
                task.get_coro().close()
        dropped |= left
