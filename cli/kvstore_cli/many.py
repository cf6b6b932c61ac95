"""`kv mset`, `mget`, `scan`, `locate`: several keys, and where a key lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.encoding import consistency_option, key_encoding_option, key_from, shown_key, to_bytes
from kvstore_cli.output import Output
from kvstore_cli.problems import UsageProblem
from kvstore_cli.receipts import receipt_row
from kvstore_cli.session import Session
from kvstore_cli.settings import Duration

if TYPE_CHECKING:
    from kvstore.client.client import Client


@click.command(cls=KvCommand)
@click.argument("pairs", nargs=-1, required=True, metavar="KEY VALUE [KEY VALUE]...")
@click.option("--ttl", type=Duration(), metavar="TIME", help="All of them end after this.")
@consistency_option
@key_encoding_option
@pass_session
def mset_command(
    session: Session,
    /,
    *,
    pairs: tuple[str, ...],
    ttl: int | None,
    consistency: str | None,
    key_encoding: str,
) -> None:
    r"""Write several keys in one call. Each is written or refused by itself.

    \b
      kv mset user:1 Ada user:2 Grace
      kv mset a 1 b 2 --ttl 1h
    """
    if len(pairs) % 2:
        raise UsageProblem(problem=f"{pairs[-1]!r} has no value", hint="kv mset KEY VALUE KEY VALUE")
    items: dict[str | bytes, bytes] = {
        key_from(key, key_encoding): to_bytes(value, "utf8", "the value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True)
    }

    async def work(kv: Client) -> Any:
        return await kv.put_many(
            items, ttl=None if ttl is None else ttl / 1000, consistency=consistency or session.consistency
        )

    receipts = session.call(work)
    rows = [receipt_row(shown_key(key, key_encoding), receipt) for key, receipt in receipts.items()]
    out = Output(session.settings)
    if out.for_programs:
        out.rows(list(rows[0]), rows)
    else:
        out.line(f"OK, {len(rows)} keys" if out.for_people else "OK")


@click.command(cls=KvCommand)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 although a key was not there.")
@consistency_option
@key_encoding_option
@pass_session
def mget_command(
    session: Session,
    /,
    *,
    keys: tuple[str, ...],
    missing_ok: bool,
    consistency: str | None,
    key_encoding: str,
) -> int:
    r"""Read several keys in one call. Missing ones are left out, and make the exit status 1.

    In a pipe a line for each: key, tab, value. With -o raw both are the exact bytes.

    \b
      kv mget user:1 user:2
      kv mget user:1 user:2 -o jsonl
    """
    names = list(dict.fromkeys(key_from(key, key_encoding) for key in keys))

    async def work(kv: Client) -> Any:
        return await kv.get_many(names, consistency=consistency or session.consistency)

    entries = session.call(work)
    found = [(name, entries[name]) for name in names if entries.get(name) is not None]
    out = Output(session.settings)
    rows = [{"key": shown_key(name, key_encoding), **_entry_row(entry)} for name, entry in found]
    people = ("key", "value") if not out.for_programs else _ENTRY
    out.rows(people, rows, bytes_columns=("key", "value"))
    if out.for_people and len(found) < len(names):
        click.echo(f"{len(names) - len(found)} of {len(names)} keys are not there", err=True)
    return 0 if missing_ok or len(found) == len(names) else 1


_ENTRY = ("key", "value", "version", "expires_at")


def _entry_row(entry: Any) -> dict[str, Any]:
    return {"value": entry.value, "version": entry.version, "expires_at": entry.expires_at}


@click.command(cls=KvCommand)
@click.argument("prefix", required=False)
@click.option("--prefix", "-p", "flag", metavar="PREFIX", help="Only keys that begin with this.")
@click.option("--limit", "-n", type=click.IntRange(1), metavar="N", help="At most this many.")
@click.option("--keys-only", "-k", is_flag=True, help="Without values.")
@consistency_option
@key_encoding_option
@pass_session
def scan_command(
    session: Session,
    /,
    *,
    prefix: str | None,
    flag: str | None,
    limit: int | None,
    keys_only: bool,
    consistency: str | None,
    key_encoding: str,
) -> None:
    r"""List keys and values.

    In the order of the ring, page by page, however many there are.

    \b
      kv scan user: --limit 20
      kv scan --keys-only -o jsonl | wc -l
    """
    if prefix is not None and flag is not None:
        raise UsageProblem(problem="the prefix is given twice", hint="kv scan PREFIX")
    start = to_bytes(prefix if prefix is not None else flag or "", key_encoding, "the prefix")
    out = Output(session.settings)
    columns = ("key",) if keys_only else ("key", "value") if not out.for_programs else _ENTRY
    level = consistency or session.consistency

    async def work(kv: Client) -> int:
        pages = out.sink(columns, bytes_columns=("key",) if keys_only else ("key", "value"))
        async for entry in kv.scan(prefix=start, limit=limit, keys_only=keys_only, consistency=level):
            row = {"key": shown_key(entry.key, key_encoding)}
            pages.add(row if keys_only else row | _entry_row(entry))
        return pages.end()

    count = session.call(work)
    if out.for_people:
        more = " (there may be more)" if limit is not None and count == limit else ""
        click.echo(f"{count} key{'s' if count != 1 else ''}{more}", err=True)


@click.command(cls=KvCommand)
@click.argument("key")
@key_encoding_option
@pass_session
def locate_command(session: Session, /, *, key: str, key_encoding: str) -> None:
    r"""Which nodes hold a key.

    Its slot, its partition, and the owners, the first choice first.

    \b
      kv locate user:1
      kv locate '{cart:7}:items' -o json
    """
    name = key_from(key, key_encoding)

    async def work(kv: Client) -> Any:
        return await kv.locate(name)

    place = session.call(work)
    owners = [
        {
            "node": node.name,
            "number": node.number,
            "address": f"{node.host}:{node.client_port}",
            "zone": node.zone,
        }
        for node in place.owners
    ]
    row = {
        "key": shown_key(name, key_encoding),
        "slot": place.slot,
        "partition": place.partition,
        "owners": owners,
    }
    out = Output(session.settings)
    if out.for_people:
        out.line(f"slot {place.slot}, partition {place.partition}")
        out.rows(
            ("node", "address", "zone") if any(o["zone"] for o in owners) else ("node", "address"), owners
        )
    else:
        out.one(row, f"{place.slot}\t{place.partition}\t{','.join(o['address'] for o in owners)}")
