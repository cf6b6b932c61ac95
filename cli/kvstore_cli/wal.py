"""`kv wal dump` and `verify`: look at a node's log without touching it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from kvstore import errors
from kvstore.storage.promises import KIND as PROMISE
from kvstore.types import Kind
from kvstore_cli.commands import KvCommand, LazyGroup, pass_session
from kvstore_cli.encoding import key_encoding_option, shown_key
from kvstore_cli.output import Output
from kvstore_cli.session import Session

_HERE = "kvstore_cli.wal"
_COLUMNS = ("segment", "offset", "sequence", "partition", "key", "version", "kind", "expires_ms", "bytes")
_EXIT_CORRUPT = 3


def _directory(path: str) -> str:
    if not Path(path).is_dir():
        raise errors.DataDirUnusable(path=path, reason="it is no directory")
    return path


@click.command(cls=KvCommand)
@click.argument("directory", metavar="DIR")
@key_encoding_option
@pass_session
def dump_command(session: Session, /, *, directory: str, key_encoding: str) -> int:
    r"""Print every entry of a log, in order. DIR is a data directory or its wal folder.

    The node may be running; the record it is writing then shows as torn.

    \b
      kv wal dump kv-data/n1
      kv wal dump kv-data/n1 -o jsonl | grep user:1
    """
    from kvstore.io.disk import SystemFiles
    from kvstore.storage import inspect

    ends: list[inspect.EndSeen] = []

    def entries() -> Iterator[dict[str, Any]]:
        for seen in inspect.dump(SystemFiles(), _directory(directory)):
            match seen:
                case inspect.RecordSeen():
                    for entry in seen.entries:
                        yield {
                            "segment": Path(seen.path).name,
                            "offset": seen.offset,
                            "sequence": seen.sequence,
                            "partition": entry.partition,
                            "key": shown_key(entry.key, key_encoding),
                            "version": entry.version,
                            "kind": "promise" if entry.kind == PROMISE else Kind(entry.kind).name.lower(),
                            "expires_ms": entry.expires_ms or None,
                            "bytes": entry.payload_bytes,
                        }
                case inspect.EndSeen():
                    ends.append(seen)

    out = Output(session.settings)
    count = out.rows(_COLUMNS, entries(), bytes_columns=("key",))
    if out.for_people:
        click.echo(f"{count} entries in {len(ends)} segments", err=True)
    bad = [end for end in ends if end.verdict == "corrupt"]
    for end in bad:
        click.echo(f"{end.path} at byte {end.offset}: {end.reason}", err=True)
    return _EXIT_CORRUPT if bad else 0


@click.command(cls=KvCommand)
@click.argument("directory", metavar="DIR")
@pass_session
def verify_command(session: Session, /, *, directory: str) -> int:
    r"""Check every record of a log. Exit status 3 when acknowledged writes may be missing.

    `torn` is a write that a crash cut short: nobody was told it succeeded, and the next start cuts it
    off. `corrupt` is anything else.

    \b
      kv wal verify kv-data/n1
      kv wal verify kv-data/n1 -o json
    """
    from kvstore.io.disk import SystemFiles
    from kvstore.storage import inspect

    report = inspect.verify(SystemFiles(), _directory(directory))
    out = Output(session.settings)
    columns = ("segment", "records", "entries", "first", "last", "end", "verdict", "reason")
    rows = [
        {
            "segment": Path(each.path).name,
            "records": each.records,
            "entries": each.entries,
            "first": each.first_sequence,
            "last": each.last_sequence,
            "end": each.end,
            "verdict": str(each.verdict),
            "reason": each.reason,
        }
        for each in report.segments
    ]
    out.rows(columns, rows)
    if out.for_people:
        out.line(f"{report.directory} is {report.verdict}")
    for problem in report.problems:
        click.echo(problem, err=True)
    return _EXIT_CORRUPT if report.verdict == "corrupt" else 0


@click.group(
    cls=LazyGroup,
    table={"Commands": {name: f"{_HERE}:{name}_command" for name in ("dump", "verify")}},
    subcommand_metavar="COMMAND ...",
)
def wal_group() -> None:
    r"""Look at a node's write-ahead log.

    \b
      kv wal verify kv-data/n1
      kv wal dump kv-data/n1 -o jsonl
    """
