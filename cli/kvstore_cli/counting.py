"""`kv counter`: counters of the eventual path, which count on both sides of a partition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.encoding import key_encoding_option, key_from, shown_key
from kvstore_cli.output import Output
from kvstore_cli.session import Session

if TYPE_CHECKING:
    from kvstore.client.client import Client


@click.command(cls=KvCommand, context_settings={"ignore_unknown_options": True})  # BY may be -5
@click.argument("key")
@click.argument("by", type=int, required=False)
@click.option("--consistency", metavar="LEVEL", help="one, quorum (the default) or all.")
@key_encoding_option
@pass_session
def counter_command(
    session: Session, /, *, key: str, by: int | None, consistency: str | None, key_encoding: str
) -> int:
    r"""Add to a counter that never refuses for others' sake, or print it.

    Without BY it prints the sum. Additions made on both sides of a partition meet again; for bounds, or the
    exact number after an addition, there is `kv incr`.

    \b
      kv counter clicks:7 1
      kv counter clicks:7 -1 --consistency one
      kv counter clicks:7
    """
    name = key_from(key, key_encoding)

    async def work(kv: Client) -> int:
        if by is not None:
            await kv.counter_add(name, by, consistency=consistency)
        return await kv.counter_get(name, consistency=consistency)

    total = session.call(work)
    row = {"key": shown_key(name, key_encoding), "value": total}
    Output(session.settings).value(b"%d" % total, row)
    return 0
