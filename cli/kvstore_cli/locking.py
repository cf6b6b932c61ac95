"""`kv lock`: run a command while holding a lock, and stop it when the lock is lost.

Rules kept here:
- the command's exit status is ours; 1 without a command run says that the lock was not got in time;
- SIGINT, SIGTERM and SIGHUP go on to the command, and the lock is given back when it has ended;
- a lease that is lost ends the command: TERM, a grace, KILL; what it protects may be somebody else's by then;
- where no terminal is in play the command is a process group of its own, so that its children end too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.problems import FileProblem, LockLost, UsageProblem
from kvstore_cli.session import Session
from kvstore_cli.settings import Duration

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from kvstore.client.client import Client
    from kvstore.client.locks import Lock

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP)
"""A terminal sends these to everybody in its foreground group, the command too."""
_LOOK_PART = 0.05
"""Of the ttl: how often the lease's end is looked at by the clock, whatever became of its renewal."""


class Patience(Duration):
    """A time, or 0 for none at all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, once."""
        return 0 if value == "0" else super().convert(value, param, ctx)


@click.command(cls=KvCommand)
@click.argument("name")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
@click.option("--ttl", type=Duration(), default="10s", metavar="TIME",
              help="Free after this when we vanish: 10s. It is renewed meanwhile.")  # fmt: skip
@click.option("--wait", type=Patience(), default="30s", metavar="TIME",
              help="How long to wait for the lock: 30s. 0: do not wait.")  # fmt: skip
@click.option("--grace", type=Duration(), default="5s", metavar="TIME",
              help="Between TERM and KILL, when the lock is lost: 5s.")  # fmt: skip
@pass_session
def lock_command(
    session: Session, /, *, name: str, command: tuple[str, ...], ttl: int, wait: int, grace: int
) -> int:
    r"""Run a command while holding a lock.

    Its exit status is passed on; 1 when the lock was not got in time. KV_LOCK_TOKEN in its environment
    grows with every holder: let what the lock protects refuse a smaller one than it has seen, because
    no lock can stop a machine that slept. When the lock is lost the command is ended, with exit status 6.

    \b
      kv lock backup -- ./backup.sh --full
      kv lock deploy --wait 0 --ttl 1m -- make deploy
      kv lock job -- sh -c 'echo $KV_LOCK_NAME $KV_LOCK_TOKEN'
    """
    try:
        if not name.encode():
            raise UsageProblem(problem="a lock needs a name", hint="kv lock NAME -- COMMAND")
    except UnicodeEncodeError:
        raise UsageProblem(problem="the name is not UTF-8", hint="another name") from None
    if shutil.which(command[0]) is None:
        raise FileProblem(path=command[0], reason="there is no such command")

    async def work(kv: Client) -> int:
        return await _Run(command, grace_s=grace / 1000).under(
            kv.lock(name, ttl / 1000, wait=wait / 1000), look_s=ttl / 1000 * _LOOK_PART
        )

    return session.call(work)


class _Run:
    """One run of a command under a lock."""

    def __init__(self, command: tuple[str, ...], *, grace_s: float) -> None:
        self._command = command
        self._grace_s = grace_s
        self._shares_group = _in_foreground()
        self._process: Process | None = None
        self._caught = 0
        """The signal that ended us before there was a command to hand it to."""
        self._lost = False

    async def under(self, lock: Lock, *, look_s: float) -> int:
        """Returns the exit status. Raises errors.LockTaken, LockLost."""
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        assert me is not None
        for number in _FORWARDED:
            loop.add_signal_handler(number, self._signalled, number, me)
        try:
            async with lock:
                status = await self._to_the_end(lock, look_s)
        except asyncio.CancelledError:
            if not self._caught:
                raise
            return 128 + self._caught
        finally:
            for number in _FORWARDED:
                loop.remove_signal_handler(number)
        if self._lost:
            raise LockLost(what=lock.name)
        return status

    async def _to_the_end(self, lock: Lock, look_s: float) -> int:
        environment = {**os.environ, "KV_LOCK_NAME": lock.name, "KV_LOCK_TOKEN": str(lock.token)}
        sys.stdout.flush()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, env=environment, process_group=None if self._shares_group else 0
            )
        except OSError as error:
            raise FileProblem(path=self._command[0], reason=error.strerror or str(error)) from None
        self._process = process
        async with asyncio.TaskGroup() as tasks:
            guard = tasks.create_task(self._end_when_lost(lock, look_s))
            status = await process.wait()
            guard.cancel()
        if self._lost and not self._shares_group:
            # The first of the group has ended; whom it started must not go on either.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        return status if status >= 0 else 128 - status

    async def _end_when_lost(self, lock: Lock, look_s: float) -> None:
        while lock.held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(look_s):
                    await lock.lost.wait()
        self._lost = True
        self._send(signal.SIGTERM)
        await asyncio.sleep(self._grace_s)
        self._send(signal.SIGKILL)

    def _signalled(self, number: int, me: asyncio.Task[Any]) -> None:
        if self._process is None:
            self._caught = number
            me.cancel()
        elif not (self._shares_group and number in _FROM_TERMINAL):
            self._send(number)

    def _send(self, number: int) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._shares_group:
                process.send_signal(number)
            else:
                os.killpg(process.pid, number)


def _in_foreground() -> bool:
    """Whether a terminal sends its Ctrl-C to us, and so would to a command in our group."""
    try:
        with open("/dev/tty", "rb") as terminal:  # noqa: PTH123
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
