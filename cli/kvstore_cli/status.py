"""`kv status`: the nodes in a table, and a verdict."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from kvstore import errors
from kvstore_cli import health
from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.expiry import in_words
from kvstore_cli.output import Output
from kvstore_cli.problems import Unhealthy
from kvstore_cli.session import Session
from kvstore_cli.settings import Duration

if TYPE_CHECKING:
    from kvstore.client.client import Client

_ASK_S = 1.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def in_bytes(count: int | None) -> str:
    """`12.3 MiB`, for people."""
    if count is None:
        return ""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit and size < 10 else f"{size:.0f} {_UNITS[unit]}"


@click.command(cls=KvCommand)
@click.option("--watch", is_flag=False, flag_value="2s", type=Duration(), metavar="[TIME]",
              help="Again and again, every two seconds or so often.")  # fmt: skip
@pass_session
def status_command(session: Session, /, *, watch: int | None) -> int:
    r"""How the nodes and the cluster are.

    Exit status 5 when not all is well.

    \b
      kv status
      kv status --watch 1s
    """
    if watch is None:
        return _show(session)
    while True:
        if Output(session.settings).for_people:
            click.clear()
        try:
            _show(session)
        except errors.KVError as error:
            click.echo(error.one_line(), err=True)
        time.sleep(watch / 1000)


def _show(session: Session) -> int:
    async def work(kv: Client) -> tuple[list[health.NodeHealth], health.Verdict]:
        topology = await kv.topology()
        limit = min(_ASK_S, session.settings.deadline_ms / 1000)
        nodes = await health.examine(kv, topology, timeout_s=limit)
        return nodes, health.verdict(topology, nodes)

    nodes, verdict = session.call(work)
    out = Output(session.settings)
    rows = [node.row() for node in nodes]
    if out.form in ("json", "jsonl"):
        out.one({"healthy": verdict.healthy, "verdict": verdict.sentence, "nodes": rows}, "")
    elif out.for_people:
        columns = [
            "node",
            "state",
            "address",
            "keys",
            "disk",
            "memory",
            "epoch",
            "uptime",
            "version",
            "reason",
        ]
        out.rows(
            [c for c in columns if c != "reason" or any(r["reason"] for r in rows)], map(_for_people, rows)
        )
        out.line(verdict.sentence)
    else:
        out.rows(list(rows[0]), rows)
    return 0 if verdict.healthy else Unhealthy.exit_status


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    uptime = row["uptime_s"]
    return {
        **row,
        "disk": in_bytes(row["disk_bytes"]),
        "memory": in_bytes(row["memory_bytes"]),
        "uptime": "" if uptime is None else in_words(uptime),
    }
