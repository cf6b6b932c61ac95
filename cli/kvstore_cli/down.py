"""`kv down`: stop the cluster of a directory."""

from __future__ import annotations

from pathlib import Path

import click

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.output import Output
from kvstore_cli.session import Session
from kvstore_cli.settings import Duration


@click.command(cls=KvCommand)
@click.option("--dir", "directory", envvar="KV_DIR", default="./kv-data", metavar="DIR", show_default=True,
              help="The directory of `kv up`.")  # fmt: skip
@click.option("--wait", "wait_ms", type=Duration(), default=20_000, metavar="TIME", show_default="20s",
              help="How long to wait for the nodes.")  # fmt: skip
@pass_session
def down_command(session: Session, /, *, directory: str, wait_ms: int) -> None:
    r"""Stop the cluster of `kv up`.

    Requests in work are finished, everything is on disk, and the data stays. Only processes that `kv
    up` started in this directory are signalled, never one that merely has their number.

    \b
      kv down
      kv down --dir /var/tmp/kv5
    """
    from kvstore_cli.local_cluster import load_cluster
    from kvstore_cli.supervisor import stop_marked

    cluster = load_cluster(Path(directory))
    members = cluster.running()
    supervisor = cluster.supervisor()
    marks = [(member.name, mark) for member in members if (mark := cluster.process(member)) is not None]
    # The `kv up` that looks after them would start them again; it ends them itself.
    asked = [("kv up", supervisor)] if supervisor is not None else marks
    stop_marked(asked, timeout_s=wait_ms / 1000)
    if supervisor is not None:
        # Nodes that ran before that `kv up` are not its children.
        stop_marked([(name, mark) for name, mark in marks if mark.is_alive()], timeout_s=wait_ms / 1000)
    for member in members:
        cluster.mark_file(member).unlink(missing_ok=True)
    names = [member.name for member in members]
    sentence = f"stopped {', '.join(names)}" if names else f"nothing runs in {directory}"
    Output(session.settings).one({"directory": directory, "stopped": names}, sentence)
