"""`kv set`, `get`, `del`, `exists`: one key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.encoding import (
    consistency_option,
    is_on_stdin,
    key_encoding_option,
    key_from,
    shown_key,
    value_from,
    value_options,
)
from kvstore_cli.output import Output
from kvstore_cli.problems import UsageProblem
from kvstore_cli.receipts import absent, note_superseded, receipt_row, receipt_sentence
from kvstore_cli.session import Session
from kvstore_cli.settings import Duration

if TYPE_CHECKING:
    from kvstore.client.client import Client


@click.command(cls=KvCommand)
@click.argument("key")
@click.argument("value", required=False)
@click.option("--ttl", type=Duration(), metavar="TIME", help="Ends after this: 90s, 15m, 12h, 7d, 250ms.")
@click.option("--if-absent", is_flag=True, help="Only if nothing is there.")
@click.option("--if-version", type=click.IntRange(0), metavar="N", help="Only if it has this version.")
@click.option("--if-value", metavar="OLD", help="Only if it holds this; - and @FILE as for VALUE.")
@value_options("VALUE")
@click.option("-w", "w", type=click.IntRange(1, 7), metavar="N", help="Acknowledgements to wait for.")
@click.option("--durability", type=click.Choice(("always",)), metavar="always",
              help="Sync to disk before the answer, whatever the node's mode.")  # fmt: skip
@consistency_option
@key_encoding_option
@pass_session
def set_command(
    session: Session,
    /,
    *,
    key: str,
    value: str | None,
    ttl: int | None,
    if_absent: bool,
    if_version: int | None,
    if_value: str | None,
    file: str | None,
    literal: bool,
    value_encoding: str,
    w: int | None,
    durability: str | None,
    consistency: str | None,
    key_encoding: str,
) -> int:
    r"""Write a key.

    VALUE is text, - for standard input, or @FILE. Without it the value is read from a pipe, byte for
    byte. Writing again replaces value and ttl. With --if-... exit status 1 when it was not written.

    \b
      kv set user:1 Ada --ttl 7d
      tar c notes | kv set backup:notes
      kv set leader "$HOSTNAME" --if-absent --ttl 30s
    """
    name = key_from(key, key_encoding)
    data = value_from(value, file, literal=literal, encoding=value_encoding, stdin_taken=session.stdin_taken)
    if if_absent or if_version is not None or if_value is not None:
        from kvstore_cli.registers import change_if

        if w is not None or durability is not None:
            raise UsageProblem(
                problem="-w and --durability do not go with a condition",
                hint="leave them out: a majority syncs such a write",
            )
        flags = {"--if-absent": if_absent, "--if-version": if_version, "--if-value": if_value}
        taken = session.stdin_taken or is_on_stdin(value, file, literal=literal)
        return change_if(
            session, name, data, flags, ttl=ttl, key_encoding=key_encoding,
            literal=literal, encoding=value_encoding, stdin_taken=taken,
        )  # fmt: skip

    async def work(kv: Client) -> Any:
        return await kv.put(
            name,
            data,
            ttl=None if ttl is None else ttl / 1000,
            consistency=consistency or session.consistency,
            w=w,
            durability=durability,
        )

    receipt = session.call(work)
    out = Output(session.settings)
    out.one(receipt_row(shown_key(name, key_encoding), receipt), receipt_sentence(receipt, out))
    note_superseded(receipt)
    return 0


@click.command(cls=KvCommand)
@click.argument("key")
@click.option("-r", "r", type=click.IntRange(1, 7), metavar="N", help="Answers to wait for.")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 when there is no such key.")
@consistency_option
@key_encoding_option
@pass_session
def get_command(
    session: Session,
    /,
    *,
    key: str,
    r: int | None,
    missing_ok: bool,
    consistency: str | None,
    key_encoding: str,
) -> int:
    r"""Read a key.

    Exit status 1 when there is none. In a pipe the value is followed by a line end; -o raw writes the
    exact bytes. -o json adds version, expiry and who answered.

    \b
      kv get user:1
      kv get backup:notes -o raw | tar t
    """
    name = key_from(key, key_encoding)

    async def work(kv: Client) -> Any:
        return await kv.get(name, consistency=consistency or session.consistency, r=r)

    entry = session.call(work)
    out = Output(session.settings)
    if entry is None:
        return absent(out, key, missing_ok=missing_ok)
    row = {
        "key": shown_key(name, key_encoding),
        "value": entry.value,
        "version": entry.version,
        "expires_at": entry.expires_at,
        "answered": list(entry.receipt.answered),
        "repaired": list(entry.receipt.repaired),
        "epoch": entry.receipt.epoch,
    }
    out.value(entry.value, row)
    return 0


@click.command(cls=KvCommand)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 although a key was not there.")
@click.option("--if-version", type=click.IntRange(1), metavar="N", help="Only if it has this version.")
@click.option("--if-value", metavar="OLD", help="Only if it holds this; - is standard input, @FILE a file.")
@consistency_option
@key_encoding_option
@pass_session
def del_command(
    session: Session,
    /,
    *,
    keys: tuple[str, ...],
    missing_ok: bool,
    if_version: int | None,
    if_value: str | None,
    consistency: str | None,
    key_encoding: str,
) -> int:
    r"""Delete keys. Exit status 1 when one of them was not there, or not as --if-... says.

    \b
      kv del user:1
      kv del session:1 session:2 --missing-ok
      kv del leader --if-value "$HOSTNAME"
    """
    names = [key_from(key, key_encoding) for key in keys]
    if if_version is not None or if_value is not None:
        from kvstore_cli.registers import change_if

        if len(names) > 1:
            raise UsageProblem(problem="a condition is for one key", hint="kv del KEY --if-value OLD")
        flags = {"--if-version": if_version, "--if-value": if_value}
        return change_if(
            session, names[0], None, flags, key_encoding=key_encoding, stdin_taken=session.stdin_taken
        )

    async def work(kv: Client) -> Any:
        level = consistency or session.consistency
        return [await kv.delete(name, consistency=level) for name in names]

    receipts = session.call(work)
    gone = sum(receipt.existed for receipt in receipts)
    out = Output(session.settings)
    rows = [
        {**receipt_row(shown_key(name, key_encoding), receipt), "existed": receipt.existed}
        for name, receipt in zip(names, receipts, strict=True)
    ]
    if out.for_programs and len(rows) > 1:
        out.rows(list(rows[0]), rows)
    else:
        out.one(rows[0], f"deleted {gone} of {len(rows)}" if out.for_people else str(gone))
    return 0 if missing_ok or gone == len(rows) else 1


@click.command(cls=KvCommand)
@click.argument("key")
@consistency_option
@key_encoding_option
@pass_session
def exists_command(session: Session, /, *, key: str, consistency: str | None, key_encoding: str) -> int:
    r"""Whether a key is there.

    Says yes or no, and exits with 0 or 1.

    \b
      kv exists user:1 && echo known
      kv exists 00ff --key-encoding hex
    """
    name = key_from(key, key_encoding)

    async def work(kv: Client) -> bool:
        return bool(await kv.exists(name, consistency=consistency or session.consistency))

    there = session.call(work)
    row = {"key": shown_key(name, key_encoding), "exists": there}
    Output(session.settings).one(row, "yes" if there else "no")
    return 0 if there else 1
