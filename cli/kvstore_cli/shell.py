"""`kv shell`: the commands of `kv` without the `kv`, over one connection.

On a terminal with history and completion; from a pipe line by line. Lines beginning with a backslash
are for the shell itself.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, TextIO

import click

from kvstore import errors
from kvstore.types import Consistency
from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.problems import FileProblem, UsageProblem, show
from kvstore_cli.session import Session
from kvstore_cli.settings import FORMATS

NOT_HERE = ("shell", "server", "up", "bench", "completion", "lock")
"""Commands that take the terminal or the process for themselves."""
LEVELS = tuple(level.value for level in Consistency)

HELP = """\
Type a command as after `kv`: get user:1 · set user:1 Ada --ttl 1h · scan user: · COMMAND --help · help
  \\consistency [LEVEL]           one, quorum, all or linearizable, for the calls that name none
  \\output [FORMAT]                auto, table, plain, json, jsonl, csv, raw
  \\timing                         how long each command takes, on or off
  \\help  \\quit"""


@click.command(cls=KvCommand)
@click.option("--keep-going", is_flag=True, help="From a pipe: go on after an error.")
@pass_session
def shell_command(session: Session, /, *, keep_going: bool) -> int:
    r"""Type commands, over one connection.

    With history and completion; also reads commands from a pipe.

    \b
      kv shell
      printf 'set a 1\nget a\n' | kv shell
    """
    with session.kept_open() as kept:
        kept.stdin_taken = True
        shell = Shell(kept)
        if sys.stdin.isatty():
            from kvstore_cli.prompt import prompted_lines

            click.echo("kv shell: \\help shows what can be typed, Ctrl-D ends", err=True)
            for line in prompted_lines(shell.prompt):
                shell.run(line)
                if shell.ended:
                    break
            return 0
        return _run_piped(shell, _lines_of(sys.stdin), keep_going=keep_going)


def _lines_of(stream: TextIO) -> Iterator[str]:
    """Raises FileProblem when it cannot be read."""
    try:
        yield from stream
    except OSError as error:
        raise FileProblem(path="standard input", reason=error.strerror or str(error)) from None


def _run_piped(shell: Shell, lines: Iterator[str] | Any, *, keep_going: bool) -> int:
    """The exit status is that of the first line that failed; a mere "no" is no failure."""
    first_failure = 0
    for line in lines:
        status = shell.run(line)
        if status > 1:
            first_failure = first_failure or status
            if not keep_going:
                break
        if shell.ended:
            break
    return first_failure


class Shell:
    """What is typed, one line at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._timing = False
        self.ended = False
        """Whether somebody typed quit."""
        self._own: dict[str, Callable[[list[str]], None]] = {
            "\\consistency": self._set_consistency,
            "\\output": self._set_output,
            "\\timing": self._set_timing,
            "\\help": lambda _rest: click.echo(HELP),
            "\\quit": self._quit,
            "\\q": self._quit,
        }

    def prompt(self) -> str:
        """What stands before the cursor."""
        level = self._session.consistency
        return f"kv {level}> " if level else "kv> "

    def run(self, line: str) -> int:
        """Do one line and return its exit status; errors are printed."""
        try:
            words = shlex.split(line, comments=True)
            if line.lstrip().startswith("\\"):
                words = line.split()  # the backslash is ours, not an escape
            if not words:
                return 0
            return self._do(words)
        except ValueError as error:
            show(
                UsageProblem(problem=f"that line cannot be read: {error}", hint="close the quote"),
                colour=False,
            )
        except errors.KVError as error:
            show(error, colour=self._session.settings.colour(sys.stderr))
            return error.exit_status
        return UsageProblem.exit_status

    def _do(self, words: list[str]) -> int:
        from kvstore_cli.main import run

        name, rest = words[0], words[1:]
        if name in ("quit", "exit"):
            name = "\\quit"
        if name.startswith("\\"):
            own = self._own.get(name)
            if own is None:
                raise UsageProblem(problem=f"there is no {name}", hint="\\help")
            own(rest)
            return 0
        if name == "kv" and rest:
            words, name = rest, rest[0]
        if name in ("help", "?"):
            words = [*words[1:2], "--help"]
        elif name in NOT_HERE:
            raise UsageProblem(
                problem=f"{name} does not work in the shell", hint=f"kv {name} in another terminal"
            )
        began = perf_counter()
        status = run(words, self._session)
        if self._timing:
            click.echo(f"({(perf_counter() - began) * 1000:.2f} ms)", err=True)
        return status

    def _set_consistency(self, rest: list[str]) -> None:
        if rest and rest[0] not in LEVELS:
            raise errors.BadConsistency(given=rest[0], allowed=", ".join(LEVELS))
        if rest:
            self._session.consistency = rest[0]
        click.echo(f"consistency is {self._session.consistency or 'quorum'}", err=True)

    def _set_output(self, rest: list[str]) -> None:
        if rest and rest[0] not in FORMATS:
            raise errors.BadOption(option="output", given=rest[0], allowed=", ".join(FORMATS))
        if rest:
            self._session.settings = self._session.settings.merged({"output": rest[0]})
        click.echo(f"output is {self._session.settings.output or 'auto'}", err=True)

    def _set_timing(self, rest: list[str]) -> None:
        self._timing = rest[0] == "on" if rest else not self._timing
        click.echo(f"timing is {'on' if self._timing else 'off'}", err=True)

    def _quit(self, _rest: list[str]) -> None:
        self.ended = True
