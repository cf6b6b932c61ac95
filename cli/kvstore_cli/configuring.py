"""`kv config show`, `check`, `init`: what a node would be told, and what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kvstore.config import examine, reference, shown
from kvstore_cli.commands import KvCommand, LazyGroup, pass_session
from kvstore_cli.output import Output
from kvstore_cli.problems import FileProblem, UsageProblem, show
from kvstore_cli.session import Session

_HERE = "kvstore_cli.configuring"


@click.command(cls=KvCommand)
@click.option(
    "--config", envvar="KV_CONFIG", metavar="FILE", help="The file; without it only KV_* variables count."
)
@click.option(
    "--origin", is_flag=True, help="Where each value comes from: file and line, variable, or default."
)
@pass_session
def show_command(session: Session, /, *, config: str | None, origin: bool) -> None:
    r"""Show every option as `kv server` would have it now. Secrets are masked.

    \b
      kv config show --origin
      KV_SYNC=os kv config show --config node.toml -o json
    """
    found = examine(config, os.environ)
    if found.config is None:
        for mistake in found.mistakes[:-1]:
            show(mistake, colour=False)
        raise found.mistakes[-1]
    out = Output(session.settings)
    columns = ("section", "option", "value", "origin") if origin else ("section", "option", "value")
    out.rows(columns, (dict(zip(columns, row, strict=False)) for row in shown(found)))


@click.command(cls=KvCommand)
@click.argument("file")
@pass_session
def check_command(session: Session, /, *, file: str) -> int:
    r"""Check a file: every mistake, with its line and what to do. Exit status 2 if there is one.

    Variables are left out, so that the same file gives the same answer everywhere.

    \b
      kv config check node.toml
      kv config check configs/node.toml && kv server --config configs/node.toml
    """
    found = examine(file)
    out = Output(session.settings)
    if out.for_programs:
        columns = ("where", "problem", "hint")
        out.rows(columns, ({name: m.fields[name] for name in columns} for m in found.mistakes))
    elif not found.mistakes:
        out.line(f"{file} is fine")
    else:
        for mistake in found.mistakes:
            show(mistake, colour=False)
    return 2 if found.mistakes else 0


@click.command(cls=KvCommand)
@click.argument("file", default="node.toml")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@pass_session
def init_command(session: Session, /, *, file: str, force: bool) -> None:
    r"""Write a file with every option, its default and its reason. `-` prints it.

    \b
      kv config init node.toml
      kv config init - | less
    """
    out = Output(session.settings)
    if file == "-":
        out.write(reference().encode())
        return
    try:
        with Path(file).open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(reference())
    except FileExistsError:
        raise UsageProblem(problem=f"{file} is there already", hint="another name, or --force") from None
    except OSError as error:
        raise FileProblem(path=file, reason=error.strerror or str(error)) from None
    out.one({"file": file}, f"wrote {file}")


@click.group(
    cls=LazyGroup,
    table={"Commands": {name: f"{_HERE}:{name}_command" for name in ("show", "check", "init")}},
    subcommand_metavar="COMMAND ...",
)
def config_group() -> None:
    r"""Show, check and write a node's configuration.

    \b
      kv config show --origin
      kv config check node.toml
    """
