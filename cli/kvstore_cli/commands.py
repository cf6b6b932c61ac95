"""Commands that load when they are called, and take the global flags anywhere.

`kv get` must start at once, so the group knows only names and modules; a module is imported when
its command is called (or listed by `kv --help`).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from kvstore_cli.problems import UsageProblem
from kvstore_cli.session import Session
from kvstore_cli.settings import NAMES, global_options

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class KvCommand(click.Command):
    """A command that takes the global flags too. Its function gets the `Session` first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *global_options(hidden=True)]
        self.context_settings = {**CONTEXT, **self.context_settings}

    def invoke(self, ctx: click.Context) -> Any:
        """Fold the flags given here into the session, then run."""
        given = {name: ctx.params.pop(name) for name in NAMES}
        ctx.obj = ctx.ensure_object(Session).with_flags(given)
        return super().invoke(ctx)


class ReaderGone(Exception):
    """Whoever read our output has gone. No OSError: click would exit with 1 for it, which means "no"."""


@contextmanager
def _telling_of_readers() -> Iterator[None]:
    """Raises ReaderGone for a pipe that broke, also where rich has made an exit of it."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            raise ReaderGone from None
        raise


class LazyGroup(click.Group):
    """A group that imports its commands when they are needed.

    `table` maps headings to commands, and commands to `module:attribute`.
    """

    def __init__(self, *args: Any, table: Mapping[str, Mapping[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = with_examples(self.help)
        self.context_settings = {**CONTEXT, **self.context_settings}
        self._table = table
        self._places = {name: place for commands in table.values() for name, place in commands.items()}

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the flags, which may print the help. Raises ReaderGone."""
        with _telling_of_readers():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises ReaderGone."""
        with _telling_of_readers():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help."""
        del ctx
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        place = self._places.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        command.help = with_examples(command.help)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and ctx.resilient_parsing:  # completion of a line that is not right yet
            return None, None, args[1:]
        if command is None:
            near = difflib.get_close_matches(name, list(self._places), n=2, cutoff=0.5)
            hint = " or ".join(f"{ctx.command_path} {each}" for each in near) or f"{ctx.command_path} --help"
            raise UsageProblem(problem=f"there is no command {name!r}", hint=hint)
        return name, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands under their headings."""
        for heading, commands in self._table.items():
            rows: list[tuple[str, str]] = []
            for name in commands:
                command = self.get_command(ctx, name)
                if command is not None and not command.hidden:
                    rows.append((name, command.get_short_help_str(limit=90)))
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=12)


def with_examples(text: str | None) -> str | None:
    """Click keeps line ends behind a backspace, which our docstrings write as two characters."""
    return text and inspect.cleandoc(text).replace("\\b\n", "\b\nExamples:\n")


def pass_session(function: Any) -> Any:
    """Hand the `Session` to a command as its first argument."""
    return click.make_pass_decorator(Session)(function)


def one_of(choices: Sequence[str]) -> str:
    """Names as people list them."""
    return ", ".join(choices[:-1]) + f" or {choices[-1]}" if len(choices) > 1 else choices[0]
