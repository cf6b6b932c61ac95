"""`kv server`: be one node, until a signal says stop."""

from __future__ import annotations

import os
from typing import Any

import click

from kvstore.config import OPTIONS, NodeConfig, Option, examine
from kvstore.config.values import Unit
from kvstore_cli.commands import KvCommand
from kvstore_cli.problems import show
from kvstore_cli.session import Session

_METAVARS = {Unit.BYTES: "SIZE", Unit.MILLIS: "TIME", Unit.NONE: "N"}


def _flag(option: Option) -> click.Option:
    """A flag for an option. The configuration parses and checks it, so that all sources agree."""
    name = option.flag.removeprefix("--").replace("-", "_")
    if option.kind is bool:
        switch = f"{option.flag}/--no-{option.flag.removeprefix('--')}"
        return click.Option([switch, name], default=None, help=option.rule.about)
    if option.rule.secret:
        return click.Option([option.flag, name], metavar="FILE", help=f"A file that holds the {option.name}.")
    metavar = "TEXT" if option.kind is str else _METAVARS[option.rule.unit]
    metavar = "|".join(option.rule.choices) or metavar
    return click.Option([option.flag, name], metavar=metavar, help=option.rule.about)


class ServerCommand(KvCommand):
    """A command with one flag for every option of a node."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {param.name for param in self.params}
        flags = (_flag(option) for option in OPTIONS.values())
        self.params = [*self.params, *(flag for flag in flags if flag.name not in taken)]


def examined_or_raise(config: str | None, flags: dict[str, Any]) -> NodeConfig:
    """The configuration of file, environment and flags; every mistake is told, the first one raised."""
    found = examine(config, os.environ, {name: value for name, value in flags.items() if value is not None})
    if found.config is not None:
        return found.config
    for mistake in found.mistakes[1:]:
        show(mistake, colour=False)
    raise found.mistakes[0]


@click.command(cls=ServerCommand)
@click.option("--config", envvar="KV_CONFIG", metavar="FILE", help="TOML; `kv config init` writes one.")
@click.pass_obj
def server_command(session: Session, /, *, config: str | None, **flags: Any) -> int:
    r"""Run one node.

    It runs until Ctrl-C or SIGTERM. Without a file: durable, on loopback, data in ./kv-data. Every
    option is also a KV_* variable; flags win over variables, variables over the file.

    \b
      kv server
      kv server --config node.toml --client-port 7411 --peer-port 7511
    """
    del session
    chosen = examined_or_raise(config, flags)
    from kvstore.server import run_server

    return run_server(chosen)
