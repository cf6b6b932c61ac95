"""`kv completion SHELL`: the script that completes commands, flags and their values."""

from __future__ import annotations

import warnings

import click
from click.shell_completion import get_completion_class

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.output import Output
from kvstore_cli.session import Session

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=KvCommand)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
@pass_session
def completion_command(session: Session, ctx: click.Context, /, *, shell: str) -> None:
    r"""Completion for bash, zsh and fish.

    Prints the script that the shell is to read.

    \b
      source <(kv completion bash)                      now
      kv completion fish > ~/.config/fish/completions/kv.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root().command
    with warnings.catch_warnings():
        # It looks for the shell's version, and warns when that shell is not installed here.
        warnings.simplefilter("ignore")
        script = kind(root, {}, "kv", "_KV_COMPLETE").source()
    Output(session.settings).line(script.rstrip())
