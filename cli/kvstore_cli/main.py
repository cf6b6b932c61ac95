"""The entry of `kv`: the command table, and the place where every error ends as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from kvstore import errors
from kvstore_cli import problems
from kvstore_cli.commands import LazyGroup, ReaderGone
from kvstore_cli.session import Session
from kvstore_cli.settings import global_options

_DATA = {
    "set": "single:set_command",
    "get": "single:get_command",
    "del": "single:del_command",
    "exists": "single:exists_command",
    "cas": "registers:cas_command",
    "incr": "registers:incr_command",
    "counter": "counting:counter_command",
    "getset": "registers:getset_command",
    "resolve": "registers:resolve_command",
    "ttl": "expiry:ttl_command",
    "expire": "expiry:expire_command",
    "persist": "expiry:persist_command",
    "mset": "many:mset_command",
    "mget": "many:mget_command",
    "scan": "many:scan_command",
    "locate": "many:locate_command",
    "lock": "locking:lock_command",
    "import": "importing:import_command",
    "export": "exporting:export_command",
    "shell": "shell:shell_command",
}
_CLUSTER = {
    "up": "up:up_command",
    "down": "down:down_command",
    "status": "status:status_command",
    "server": "server:server_command",
    "bench": "bench:bench",
}
_TOOLS = {
    "app": "apps:app_group",
    "config": "configuring:config_group",
    "wal": "wal:wal_group",
    "explain": "explain:explain_command",
    "completion": "completion:completion_command",
    "options": "about:options_command",
    "version": "about:version_command",
}
TABLE = {
    heading: {name: f"kvstore_cli.{place}" for name, place in commands.items()}
    for heading, commands in (("Data", _DATA), ("Cluster", _CLUSTER), ("Tools", _TOOLS))
}


@click.group(
    cls=LazyGroup,
    table=TABLE,
    params=[*global_options(hidden=False)],
    options_metavar="[FLAGS]",
    subcommand_metavar="COMMAND ...",
)
@click.version_option(package_name="kvring", prog_name="kv")
@click.pass_context
def cli(ctx: click.Context, /, **flags: Any) -> None:
    r"""kv: a replicated key-value store on your own machines.

    \b
      kv up                         start a durable cluster of three nodes here
      kv set user:1 Ada --ttl 7d    write
      kv get user:1                 read
      kv COMMAND --help             what a command does, with examples
    """
    session = ctx.obj if isinstance(ctx.obj, Session) else Session()
    ctx.obj = session.with_flags(flags)


def main(arguments: Sequence[str] | None = None, session: Session | None = None) -> NoReturn:
    """Run `kv` and end the process with the right status."""
    _open_what_is_closed()
    status = run(arguments, session)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _let_go_of_stdout()
    except OSError as error:
        status = status or _told(error, session or Session())
        _let_go_of_stdout()
    sys.exit(status)


def _open_what_is_closed() -> None:
    """`kv get k >&-`: Python has None in the place of a stream that its parent closed.

    Output goes nowhere, as was asked for. Input is opened for writing: reading it is an error still, and not
    an empty value.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), "r")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def run(arguments: Sequence[str] | None = None, session: Session | None = None) -> int:
    """Run `kv` and return its exit status; errors are printed."""
    session = session or Session()
    try:
        result = cli.main(
            list(arguments) if arguments is not None else None,
            prog_name="kv",
            standalone_mode=False,
            obj=session,
        )
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as asked:
        asked.show()
        return asked.exit_code
    except (KeyboardInterrupt, click.Abort):
        return problems.INTERRUPTED
    except (BrokenPipeError, ReaderGone):
        return _let_go_of_stdout()
    except Exception as error:  # noqa: BLE001  the last stop: it becomes one line
        return _told(error, session)


def _told(error: Exception, session: Session) -> int:
    if problems.debugging():
        import traceback

        traceback.print_exc()
    match error:
        case errors.KVError():
            told: errors.KVError = error
        case click.ClickException():
            told = problems.from_click(error)
        case BaseExceptionGroup() if (inner := _only_known(error)) is not None:
            told = inner
        case OSError(filename=str(path)):
            told = problems.FileProblem(path=path, reason=error.strerror or str(error))
        case OSError(errno=number) if number in problems.NO_ROOM:
            told = problems.OutputProblem(reason=error.strerror)
        case _:
            told = problems.Unexpected(what=f"{type(error).__name__}: {error}")
    try:
        sys.stdout.flush()
    except OSError:  # what it still holds can go nowhere, and would be tried again with every flush
        _let_go_of_stdout()
    problems.show(told, colour=session.settings.colour(sys.stderr))
    return problems.status_of(told)


def _only_known(group: BaseExceptionGroup[BaseException]) -> errors.KVError | None:
    """The error inside a TaskGroup's group, when it is one of ours."""
    known: BaseException | None = group.subgroup(errors.KVError)
    while isinstance(known, BaseExceptionGroup):
        known = known.exceptions[0]
    return known if isinstance(known, errors.KVError) else None


def _let_go_of_stdout() -> int:
    """`kv scan | head`: the reader has gone, and Python must not complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return problems.PIPE_CLOSED


if __name__ == "__main__":
    main()
