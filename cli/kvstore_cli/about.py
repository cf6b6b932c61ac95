"""`kv version` and `kv options`."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.output import Output
from kvstore_cli.problems import EXIT_CODES
from kvstore_cli.session import Session
from kvstore_cli.settings import FORMATS, global_options

DISTRIBUTION = "kvring"
_PARTS = ("click", "lmdb", "msgpack", "uvloop")
_FORMATS = {
    "auto": "table on a terminal, plain in a pipe",
    "table": "columns and sentences for people",
    "plain": "one line a row, fields between tabs, no headings",
    "json": "one document; bytes that are not UTF-8 stand as base64 under NAME_b64",
    "jsonl": "one JSON object a line, as it comes",
    "csv": "a heading and rows, for spreadsheets and `kv import`",
    "raw": "one value: its exact bytes and nothing else; rows: exact bytes between tabs, a row a line",
}
assert tuple(_FORMATS) == FORMATS


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def is_compiled() -> bool:
    """Whether this is the build whose hot path is compiled (docs/decisions/0005-a-compiled-build.md)."""
    from kvstore.core import record

    return not str(record.__file__).endswith(".py")


@click.command(cls=KvCommand)
@pass_session
def version_command(session: Session, /) -> None:
    r"""Versions of kv and what it runs on.

    `kv status` shows those of the nodes.

    \b
      kv version
      kv version -o json
    """
    row = {
        "kv": _version(DISTRIBUTION),
        "build": "compiled" if is_compiled() else "python",
        "protocol": 1,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PARTS},
    }
    Output(session.settings).one(row, " ".join(f"{name} {value}" for name, value in row.items()))


@click.command(cls=KvCommand)
@pass_session
def options_command(session: Session, /) -> None:
    r"""Flags of every command, formats, exit codes.

    With the variables that stand for the flags.

    \b
      kv options
      kv get user:1 --url kv://db1:7401,db2:7401 -o json
    """
    rows = [
        {"flag": ", ".join(option.opts), "variable": option.envvar, "about": option.help}
        for option in global_options(hidden=False)
    ]
    rows.append({"flag": "", "variable": "KV_TOKEN_FILE", "about": "A file that holds the client token."})
    rows.append({"flag": "-c, --consistency", "variable": "KV_CONSISTENCY", "about": "Of the data commands."})
    rows.append(
        {
            "flag": "",
            "variable": "KV_DIR",
            "about": "The directory of `kv up`; its nodes are the default URL.",
        }
    )
    rows.append({"flag": "", "variable": "KV_DEBUG", "about": "1 prints tracebacks."})
    out = Output(session.settings)
    out.rows(("flag", "variable", "about"), rows)
    if out.for_programs:
        return
    out.line("\nOutput formats (-o)")
    out.rows(("format", "about"), ({"format": f"  {name}", "about": text} for name, text in _FORMATS.items()))
    out.line("\nExit codes")
    out.rows(("status", "meaning"), ({"status": str(s), "meaning": text} for s, text in EXIT_CODES.items()))
