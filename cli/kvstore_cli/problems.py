"""What can go wrong in the command itself, and how any error reaches the person: one line on stderr.

Rules kept here:
- no traceback reaches a user; `KV_DEBUG=1` asks for one;
- every line has a stable code that `kv explain` knows, and says what to try;
- the exit status tells scripts the kind of failure (`kv explain exit-codes`).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping

import click

from kvstore import errors

INTERRUPTED = 130
PIPE_CLOSED = 141
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a write says of a disk, in an OSError that names no file."""

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "no: the key is missing, the answer is no, the condition did not hold, the lock is taken",
    2: "usage: the command or its configuration is wrong",
    3: "refused: the server, or this machine, said no",
    4: "no connection, or no answer in time: of a named operation `kv resolve` tells what became",
    5: "no quorum, or the cluster is not healthy",
    6: "conflict: the key changed meanwhile, or the lock was lost",
    INTERRUPTED: "interrupted (Ctrl-C)",
    PIPE_CLOSED: "whoever read our output stopped reading",
}


class Told(errors.KVError):
    """An error of the command itself; its remedy may name fields too."""

    name = "command_error"
    code = "KV-U00"

    def one_line(self) -> str:
        """Code, sentence, and the remedy that fits this case."""
        remedy = self.remedy.format_map(self.fields) if self.remedy else ""
        return f"error[{self.code}]: {self.message}" + (f". Try: {remedy}" if remedy else "")


class UsageProblem(Told, errors.BadRequest):
    """Fields: problem, hint. The command line is wrong."""

    name = "usage"
    code = "KV-U01"
    template = "{problem}"
    remedy = "{hint}"


class FileProblem(Told, errors.Refused):
    """Fields: path, reason. A file of the caller cannot be read or written."""

    name = "file_problem"
    code = "KV-U02"
    template = "{path}: {reason}"
    remedy = "check the path and its rights"


class BadLine(Told, errors.BadRequest):
    """Fields: where, problem. A line of an import cannot be used; what came before it is written."""

    name = "bad_line"
    code = "KV-U03"
    template = "{where}: {problem}"
    remedy = "mend the line and import again: writing a line twice does no harm"


class NotConfirmed(Told, errors.Refused):
    """Fields: what. Nobody said yes."""

    name = "not_confirmed"
    code = "KV-U04"
    template = "{what} was not confirmed, and nothing was done"
    remedy = "answer y, or give --yes"


class LockLost(Told, errors.Unresolved):
    """Fields: what. Its lease ended, by the clock or because another took it; the command was ended."""

    name = "lock_lost"
    code = "KV-U05"
    exit_status = 6
    template = "the lock {what} was lost while the command ran, and the command was ended"
    remedy = "see that the nodes are up and this machine is not overloaded; a longer --ttl bears more"


class OutputProblem(Told):
    """Fields: reason. What the command was to do may be done all the same."""

    name = "output_problem"
    code = "KV-U06"
    template = "the output cannot be written: {reason}"
    remedy = "make room where it goes (a full disk, a quota), or send it elsewhere"


class NoCluster(Told, errors.StartError):
    """Fields: directory."""

    name = "no_cluster"
    code = "KV-C10"
    template = "there is no cluster in {directory}"
    remedy = "`kv up --dir {directory}` makes one; --dir names another"


class ClusterRuns(Told, errors.StartError):
    """Fields: directory, what."""

    name = "cluster_runs"
    code = "KV-C11"
    template = "the cluster in {directory} is running, so {what} is not possible"
    remedy = "stop it first: kv down --dir {directory}"


class NodeDidNotStart(Told, errors.StartError):
    """Fields: node, reason, log."""

    name = "node_did_not_start"
    code = "KV-C12"
    template = "{node} did not start: {reason}"
    remedy = "see the end of {log}"


class NodeDidNotStop(Told, errors.Unresolved):
    """Fields: nodes, seconds, pids."""

    name = "node_did_not_stop"
    code = "KV-C13"
    template = "{nodes} did not stop within {seconds} s"
    remedy = "wait and run `kv down` again; `kill -9 {pids}` ends them at once and loses nothing acknowledged"


class Unhealthy(Told):
    """Fields: verdict."""

    name = "unhealthy"
    code = "KV-Q10"
    exit_status = 5
    template = "{verdict}"


class Unexpected(Told):
    """Fields: what. A bug of ours."""

    name = "unexpected"
    code = "KV-X09"
    template = "kv stumbled over a mistake of its own: {what}"
    remedy = "run it again with KV_DEBUG=1 and report what it prints, with the command"


OWN: tuple[type[errors.KVError], ...] = (
    UsageProblem,
    FileProblem,
    BadLine,
    NotConfirmed,
    LockLost,
    OutputProblem,
    NoCluster,
    ClusterRuns,
    NodeDidNotStart,
    NodeDidNotStop,
    Unhealthy,
    Unexpected,
)


def from_click(error: click.ClickException) -> errors.KVError:
    """A usage error of click, as one line of ours."""
    ctx = getattr(error, "ctx", None)
    hint = f"{ctx.command_path} --help" if ctx is not None else "kv --help"
    message = error.format_message().rstrip(".").replace("\n", " ")
    if isinstance(error, click.FileError):
        return FileProblem(path=error.ui_filename, reason=error.message)
    return UsageProblem(problem=message[:1].lower() + message[1:], hint=hint)


def unresolved_operation(error: errors.KVError) -> str:
    """The name under which `kv resolve` finds out what became of a change; empty when it cannot."""
    if isinstance(error, errors.Unresolved) and not isinstance(error, errors.Forgotten) and error.operation:
        return str(error.operation)
    return ""


def status_of(error: errors.KVError) -> int:
    """What `kv` exits with. A change that may have happened is 4, though a quorum was missing too."""
    return errors.Unresolved.exit_status if unresolved_operation(error) else error.exit_status


def _line(error: errors.KVError) -> str:
    operation = unresolved_operation(error)
    if not operation:
        return error.one_line()
    return (
        f"error[{error.code}]: {error.message}; nobody knows yet whether it was applied. "
        f"Try: kv resolve {operation}"
    )


def show(error: errors.KVError, *, colour: bool) -> None:
    """Print an error as one line on stderr."""
    line = _line(error).replace("\r", " ").replace("\n", " ")
    head, colon, rest = line.partition(":")
    sys.stdout.flush()
    click.echo(
        click.style(head, fg="red", bold=True) + colon + rest if colour else line, err=True, color=colour
    )


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("KV_DEBUG", "") not in ("", "0")
