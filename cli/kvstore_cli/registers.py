"""`kv cas`, `incr`, `getset`, `resolve`: changes of a register, each done once and wholly, or not at all.

They are linearizable whatever `--consistency` says elsewhere. `kv set --if-...` and `kv del --if-...` end
here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.conditions import outcome_row, terms_of, told, told_not_applied
from kvstore_cli.encoding import (
    is_on_stdin,
    key_encoding_option,
    key_from,
    shown_key,
    value_from,
    value_options,
)
from kvstore_cli.output import Output
from kvstore_cli.session import Session
from kvstore_cli.settings import Duration

if TYPE_CHECKING:
    from kvstore.client.client import Client


def _seconds(ttl: int | None) -> float | None:
    return None if ttl is None else ttl / 1000


@click.command(cls=KvCommand)
@click.argument("key")
@click.argument("new", required=False)
@click.option(
    "--expect-version",
    type=click.IntRange(0),
    metavar="N",
    help="Only if it has this version; 0: if nothing is there.",
)
@click.option("--expect", metavar="VALUE", help="Only if it holds this; - and @FILE as for NEW.")
@click.option("--expect-absent", is_flag=True, help="Only if nothing is there.")
@click.option("--ttl", type=Duration(), metavar="TIME", help="Ends after this: 90s, 15m, 12h, 7d, 250ms.")
@value_options("NEW")
@key_encoding_option
@pass_session
def cas_command(
    session: Session,
    /,
    *,
    key: str,
    new: str | None,
    expect_version: int | None,
    expect: str | None,
    expect_absent: bool,
    ttl: int | None,
    file: str | None,
    literal: bool,
    value_encoding: str,
    key_encoding: str,
) -> int:
    r"""Write a key if it still is what it was.

    Exit status 0 when it was written, 1 when something else was there; stderr, or the row of -o json,
    says what. The version is that of `kv get -o json` or of an earlier change.

    \b
      kv cas stock:7 41 --expect 42
      kv cas user:1 @new.json --expect-version 7431208943616000
      kv cas leader me --expect-absent --ttl 30s
    """
    name = key_from(key, key_encoding)
    data = value_from(new, file, literal=literal, encoding=value_encoding, stdin_taken=session.stdin_taken)
    flags = {"--expect-version": expect_version, "--expect": expect, "--expect-absent": expect_absent}
    taken = session.stdin_taken or is_on_stdin(new, file, literal=literal)
    return change_if(
        session, name, data, flags, ttl=ttl, key_encoding=key_encoding,
        literal=literal, encoding=value_encoding, stdin_taken=taken,
    )  # fmt: skip


def change_if(
    session: Session,
    name: bytes,
    data: bytes | None,
    flags: Mapping[str, Any],
    *,
    key_encoding: str,
    ttl: int | None = None,
    **given: Any,
) -> int:
    """Store (or with None delete) if the key is as the flags expect; returns the exit status.

    `given` says how the flags' values are given, as `terms_of` has it. Raises as that does.
    """
    terms = terms_of(flags, **given)

    async def work(kv: Client) -> Any:
        return await kv.cas(name, new=data, ttl=_seconds(ttl), **terms)

    return told(Output(session.settings), name, session.call(work), key_encoding=key_encoding)


@click.command(cls=KvCommand, context_settings={"ignore_unknown_options": True})  # BY may be -5
@click.argument("key")
@click.argument("by", type=int, default=1)
@click.option("--initial", type=int, default=0, metavar="N", help="Where a key begins that is not there: 0.")
@click.option("--min", "minimum", type=int, metavar="N", help="Not applied when it would fall below this.")
@click.option("--max", "maximum", type=int, metavar="N", help="Not applied when it would rise above this.")
@click.option("--period", type=int, metavar="N", help="Count this period; a later one begins again.")
@click.option(
    "--ttl",
    type=Duration(),
    metavar="TIME",
    help="For a number that begins here; one that is there keeps its own.",
)
@key_encoding_option
@pass_session
def incr_command(
    session: Session,
    /,
    *,
    key: str,
    by: int,
    initial: int,
    minimum: int | None,
    maximum: int | None,
    period: int | None,
    ttl: int | None,
    key_encoding: str,
) -> int:
    r"""Add to a number, exactly once.

    Prints the number after it; BY is 1, and may be negative. Exit status 1 when it would leave --min or
    --max, or when a later --period has begun.

    \b
      kv incr visits
      kv incr stock:7 -1 --min 0
      kv incr quota:ada 10 --max 100 --ttl 1h
      kv incr visits:today --period $(date +%Y%m%d)
    """
    name = key_from(key, key_encoding)

    async def work(kv: Client) -> Any:
        return await kv.incr(
            name,
            by,
            initial=initial,
            minimum=minimum,
            maximum=maximum,
            period=period,
            ttl=_seconds(ttl),
        )

    outcome = session.call(work)
    out = Output(session.settings)
    if not outcome:
        if period is not None and outcome.value is None:
            why = f", and period {period} is over"
            return told_not_applied(out, name, outcome, key_encoding=key_encoding, why=why)
        bounds = f"{'' if minimum is None else minimum}..{'' if maximum is None else maximum}"
        why = f", and {by:+} would leave {bounds if bounds != '..' else 'the 64 bits of a number'}"
        return told_not_applied(out, name, outcome, key_encoding=key_encoding, why=why)
    out.value(b"%d" % outcome.value, outcome_row(shown_key(name, key_encoding), outcome))
    return 0


@click.command(cls=KvCommand)
@click.argument("key")
@click.argument("value", required=False)
@click.option("--ttl", type=Duration(), metavar="TIME", help="Ends after this: 90s, 15m, 12h, 7d, 250ms.")
@value_options("VALUE")
@key_encoding_option
@pass_session
def getset_command(
    session: Session,
    /,
    *,
    key: str,
    value: str | None,
    ttl: int | None,
    file: str | None,
    literal: bool,
    value_encoding: str,
    key_encoding: str,
) -> int:
    r"""Write a key and print what it replaced.

    Nothing is printed when there was nothing; -o json says so with `existed`.

    \b
      kv getset token:api "$(uuidgen)"
      kv getset state @new.bin -o raw > old.bin
    """
    name = key_from(key, key_encoding)
    data = value_from(value, file, literal=literal, encoding=value_encoding, stdin_taken=session.stdin_taken)

    async def work(kv: Client) -> Any:
        return await kv.get_and_set(name, data, ttl=_seconds(ttl))

    outcome = session.call(work)
    out = Output(session.settings)
    row = outcome_row(shown_key(name, key_encoding), outcome)
    if outcome.value is not None or out.for_programs:
        out.value(outcome.value, row)
    elif out.for_people:
        click.echo("there was nothing before", err=True)
    return 0


@click.command(cls=KvCommand)
@click.argument("operation")
@pass_session
def resolve_command(session: Session, /, *, operation: str) -> int:
    r"""What became of a change whose answer was lost.

    OPERATION is what the error named. Says `applied` or `not applied`, with exit status 0 or 1, and that
    does not change any more: what was not applied by now never will be.

    \b
      kv resolve 0199c1d26a8f5d0e...:757365723a31
      kv resolve "$OPERATION" -o json
    """

    async def work(kv: Client) -> Any:
        return await kv.resolve(operation)

    outcome = session.call(work)
    out = Output(session.settings)
    key = bytes.fromhex(operation.partition(":")[2])
    answer = "applied" if outcome else "not applied"
    if out.for_people:
        answer += f", as version {outcome.version}" if outcome else ", and it never will be"
    out.one({"operation": operation, **outcome_row(key, outcome)}, answer)
    return 0 if outcome else 1
