"""`kv import`: entries from a file, many in flight, in bounded memory.

Rules kept here:
- a later line wins over an earlier one with the same key: two batches in flight never share a key;
- a mistake names its line; what came before it is written, and importing again does no harm.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiofiles
import click

from kvstore import errors
from kvstore.io.clock import SystemClock
from kvstore_cli import transfer
from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.encoding import consistency_option
from kvstore_cli.output import Output
from kvstore_cli.problems import BadLine, FileProblem, UsageProblem
from kvstore_cli.progress import Progress
from kvstore_cli.session import Session
from kvstore_cli.transfer import Item, Mistake

if TYPE_CHECKING:
    from kvstore.client.client import Client

_READ_BYTES = 1 << 20
_BATCHES_IN_FLIGHT = 4
_BATCH = 1_000
_BATCH_BYTES = 1 << 20
_CALLS_AT_ONCE = 64
"""For items of which each has its own expiry."""
_TOLD_MAX = 20
_LINE_BYTES_MAX = 32 << 20
"""Above the largest value in base64; a longer line is no entry."""

Read = Callable[[int], Awaitable[bytes]]


@click.command(cls=KvCommand)
@click.argument("file", default="-")
@click.option("--format", "form", type=click.Choice(transfer.FORMATS), metavar="FORMAT",
              help="jsonl or csv; else as the file's name ends, else jsonl.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 1_000), default=_BATCH, show_default=True, metavar="N",
              help="Keys in one call.")  # fmt: skip
@click.option("--keep-going", is_flag=True, help="Tell of bad lines and refused keys, and go on.")
@click.option("--no-progress", is_flag=True, help="No bar on a terminal.")
@consistency_option
@pass_session
def import_command(
    session: Session,
    /,
    *,
    file: str,
    form: str | None,
    batch: int,
    keep_going: bool,
    no_progress: bool,
    consistency: str | None,
) -> int:
    r"""Write the entries of a file.

    Of FILE, or of standard input. Entries that have expired are left out.

    JSON lines: {"key": "user:1", "value": "Ada", "ttl": 60}, with expires_at (seconds since 1970)
    instead of ttl, key_b64 and value_b64 for bytes. CSV has these names in its heading.

    \b
      kv import backup.jsonl
      zcat users.csv.gz | kv import --format csv --keep-going
    """
    settings = session.settings
    form = transfer.format_of(file, form)
    if file == "-" and session.stdin_taken:
        raise UsageProblem(problem="standard input holds the commands here", hint="kv import FILE")
    typed = file == "-" and sys.stdin.isatty()
    if typed:
        click.echo("reading entries from the terminal; Ctrl-D ends them", err=True)
    size = Path(file).stat().st_size if file != "-" and Path(file).is_file() else None

    async def work(kv: Client) -> _Import:
        with Progress("importing", bytes_total=size, quiet=no_progress or typed) as progress:
            importing = _Import(kv, file, progress, batch, consistency, keep_going=keep_going)
            try:
                async with _source(file) as read:
                    await importing.run(read, transfer.reader_for(form))
            except BaseExceptionGroup as group:
                raise _first(group, file) from None
        return importing

    done = session.call(work)
    summary = {"file": file, **done.progress.summary(), "expired": done.expired, "failed": done.failed}
    sentence = done.progress.sentence("imported")
    sentence += f", {done.expired:,} had expired" if done.expired else ""
    sentence += f", {done.failed:,} failed" if done.failed else ""
    Output(settings).one(summary, sentence)
    return errors.KVError.exit_status if done.failed else 0


def _first(group: BaseExceptionGroup[BaseException], file: str) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return _unreadable(file, error) if isinstance(error, OSError) else error


def _unreadable(file: str, error: OSError) -> FileProblem:
    name = "standard input" if file == "-" else file
    return FileProblem(path=name, reason=error.strerror or str(error))


@asynccontextmanager
async def _source(file: str) -> AsyncIterator[Read]:
    """Read pieces of a file or of standard input. Raises FileProblem."""
    try:
        if file != "-":
            async with aiofiles.open(file, "rb") as opened:
                yield opened.read
        elif _can_block(sys.stdin):
            # On the loop and not in a thread: Ctrl-C must not wait for the next line.
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(loop=loop)
            own_end = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
            transport, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader, loop=loop), own_end
            )
            try:
                yield reader.read
            finally:
                # The shell shares this end with us, and does not expect it to have changed.
                os.set_blocking(sys.stdin.fileno(), True)
                transport.close()
        else:
            yield partial(asyncio.to_thread, sys.stdin.buffer.read)
    except OSError as error:
        raise _unreadable(file, error) from None


def _can_block(stream: Any) -> bool:
    """Whether reading may wait for somebody: a pipe, a socket or a terminal, not a file."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or bool(stream.isatty())


@dataclass(slots=True)
class _Batch:
    """Items that are written together."""

    items: dict[bytes, Item] = field(default_factory=dict[bytes, Item])
    size: int = 0

    def add(self, item: Item) -> None:
        self.items[item.key] = item
        self.size += len(item.key) + len(item.value)


class _Import:
    """One import on its way."""

    def __init__(
        self,
        kv: Client,
        file: str,
        progress: Progress,
        batch: int,
        consistency: str | None,
        *,
        keep_going: bool,
    ) -> None:
        self.progress = progress
        self.expired = 0
        self.failed = 0
        self._kv = kv
        self._name = "standard input" if file == "-" else file
        self._batch_max = batch
        self._consistency = consistency
        self._keep_going = keep_going
        self._queue: asyncio.Queue[_Batch] = asyncio.Queue(_BATCHES_IN_FLIGHT)
        self._in_flight: set[bytes] = set()
        self._position = 0
        self._clock = SystemClock()

    async def run(self, read: Read, reader: transfer.Reader) -> None:
        """Read, parse, and write until the end."""
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._work()) for _ in range(_BATCHES_IN_FLIGHT)]
            batch = _Batch()
            async for lines in self._lines(read):
                batch = await self._take(reader.read(lines), batch)
            batch = await self._take(reader.end(), batch)
            await self._hand_over(batch)
            await self._queue.join()
            for worker in workers:
                worker.cancel()

    async def _lines(self, read: Read) -> AsyncIterator[list[bytes]]:
        """Whole lines, a piece at a time."""
        rest = b""
        while data := await read(_READ_BYTES):
            self._position += len(data)
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if len(rest) > _LINE_BYTES_MAX:
                raise BadLine(where=self._name, problem="a line is too long to be an entry")
            yield [line + b"\n" for line in lines]
        if rest:
            yield [rest]

    async def _take(self, found: Iterator[Item | Mistake], batch: _Batch) -> _Batch:
        """Put items into batches, and hand over those that are full."""
        now = self._clock.wall_ms() / 1000
        for item in found:
            if isinstance(item, Mistake):
                error = BadLine(where=f"{self._name}:{item.line}", problem=item.problem)
                if not self._keep_going:
                    await self._hand_over(batch)
                    await self._queue.join()
                    raise error
                self._count_failure(error)
            elif item.expires_at is not None and item.expires_at <= now:
                self.expired += 1
            else:
                batch.add(item)
                if len(batch.items) >= self._batch_max or batch.size >= _BATCH_BYTES:
                    await self._hand_over(batch)
                    batch = _Batch()
        return batch

    def _count_failure(self, error: errors.KVError) -> None:
        self.failed += 1
        if self.failed <= _TOLD_MAX:
            click.echo(error.one_line(), err=True)
        if self.failed == _TOLD_MAX:
            click.echo("further failures are only counted", err=True)

    async def _hand_over(self, batch: _Batch) -> None:
        if not batch.items:
            return
        if not self._in_flight.isdisjoint(batch.items):
            await self._queue.join()
        self._in_flight.update(batch.items)
        await self._queue.put(batch)

    async def _work(self) -> None:
        while True:
            batch = await self._queue.get()
            try:
                await self._write(batch.items)
            finally:
                self._in_flight.difference_update(batch.items)
                self._queue.task_done()

    async def _write(self, items: Mapping[bytes, Item]) -> None:
        """Write a batch: a call takes one expiry, so items go by their expiry."""
        groups: dict[tuple[float | None, float | None], dict[str | bytes, bytes]] = {}
        for item in items.values():
            groups.setdefault((item.expires_at, item.ttl), {})[item.key] = item.value
        slots = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def write(ends: tuple[float | None, float | None], part: dict[str | bytes, bytes]) -> None:
            async with slots:
                await self._put(part, items, expires_at=ends[0], ttl=ends[1])

        async with asyncio.TaskGroup() as group:
            for ends, part in groups.items():
                group.create_task(write(ends, part))
        self.progress.moved(position=self._position)

    async def _put(
        self,
        part: dict[str | bytes, bytes],
        items: Mapping[bytes, Item],
        *,
        expires_at: float | None,
        ttl: float | None,
    ) -> None:
        failures: Mapping[Any, errors.KVError] = {}
        try:
            if len(part) == 1:
                ((key, value),) = part.items()
                await self._kv.put(key, value, ttl=ttl, expires_at=expires_at, consistency=self._consistency)
            else:
                await self._kv.put_many(part, ttl=ttl, expires_at=expires_at, consistency=self._consistency)
        except errors.BatchFailed as failed:
            failures = failed.failures
        except errors.KVError as error:
            failures = dict.fromkeys(part, error)
        self.progress.moved(keys=len(part) - len(failures))
        for key, failure in failures.items():
            if not self._keep_going:
                click.echo(f"{self._name}:{items[key].line}: this entry was not written", err=True)
                raise failure
            self._count_failure(failure)
