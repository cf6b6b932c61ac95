"""`kv export`: every entry into a file, as it comes."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiofiles
import click

from kvstore_cli import rows, transfer
from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.encoding import consistency_option, to_bytes
from kvstore_cli.output import Output
from kvstore_cli.problems import FileProblem
from kvstore_cli.progress import Progress
from kvstore_cli.session import Session

if TYPE_CHECKING:
    from kvstore.client.client import Client

Write = Callable[[bytes], Awaitable[Any]]


@click.command(cls=KvCommand)
@click.argument("file", default="-")
@click.option("--prefix", "-p", default="", metavar="PREFIX", help="Only keys that begin with this.")
@click.option("--format", "form", type=click.Choice(transfer.FORMATS), metavar="FORMAT",
              help="jsonl or csv; else as the file's name ends, else jsonl.")  # fmt: skip
@click.option("--no-progress", is_flag=True, help="No bar on a terminal.")
@consistency_option
@pass_session
def export_command(
    session: Session,
    /,
    *,
    file: str,
    prefix: str,
    form: str | None,
    no_progress: bool,
    consistency: str | None,
) -> None:
    r"""Write all entries to a file.

    To FILE, or to standard output. Expiry goes along as an absolute time. A file appears under its name
    only when it is whole. Keys written meanwhile may or may not be in it.

    \b
      kv export backup.jsonl
      kv export --prefix user: --format csv > users.csv
    """
    settings = session.settings
    form = transfer.format_of(file, form, settings.output)
    start = to_bytes(prefix, "utf8", "the prefix")
    to_stdout = file == "-"

    async def work(kv: Client) -> Progress:
        with Progress("exporting", quiet=no_progress) as progress:
            async with _destination(file) as write:
                await _copy(kv, write, form, progress, prefix=start, consistency=consistency)
        return progress

    progress = session.call(work)
    if to_stdout:
        if sys.stderr.isatty():
            click.echo(progress.sentence("exported"), err=True)
        return
    out = Output(settings.merged({"output": "plain"}) if settings.output in transfer.FORMATS else settings)
    out.one({"file": file, **progress.summary()}, progress.sentence("exported"))


async def _copy(
    kv: Client, write: Write, form: str, progress: Progress, *, prefix: bytes, consistency: str | None
) -> None:
    held: list[bytes] = []
    sink: rows.Csv | rows.JsonLines = (
        rows.Csv(held.append, transfer.COLUMNS, ("key", "value"))
        if form == "csv"
        else rows.JsonLines(held.append)
    )
    async for entry in kv.scan(prefix=prefix, consistency=consistency):
        row: dict[str, Any] = {"key": entry.key, "value": entry.value}
        if entry.expires_at is not None:
            row["expires_at"] = entry.expires_at
        sink.add(row)
        progress.moved(keys=1)
        if held:  # the sink let go of a piece
            await write(b"".join(held))
            held.clear()
    sink.end()
    await write(b"".join(held))


@asynccontextmanager
async def _destination(file: str) -> AsyncIterator[Write]:
    """Standard output, or a file that gets its name when all is in it. Raises FileProblem."""
    if file == "-":

        async def to_stdout(data: bytes) -> None:
            sys.stdout.buffer.write(data)

        yield to_stdout
        sys.stdout.buffer.flush()
        return
    part = f"{file}.part"
    try:
        async with aiofiles.open(part, "wb") as opened:
            yield opened.write
            await opened.flush()
            os.fsync(opened.fileno())
        Path(part).replace(file)  # noqa: ASYNC240  one rename
    except OSError as error:
        _discard(part)
        raise FileProblem(path=file, reason=error.strerror or str(error)) from None
    except BaseException:
        _discard(part)
        raise


def _discard(path: str) -> None:
    with suppress(OSError):
        Path(path).unlink()
