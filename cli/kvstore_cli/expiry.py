"""`kv ttl`, `expire`, `persist`: when a key ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.encoding import consistency_option, key_encoding_option, key_from, shown_key
from kvstore_cli.output import Output
from kvstore_cli.receipts import absent, receipt_row, receipt_sentence
from kvstore_cli.session import Session
from kvstore_cli.settings import Duration

if TYPE_CHECKING:
    from kvstore.client.client import Client

_DAY_S = 86_400


def in_words(seconds: float) -> str:
    """`2 d 03:04:05` or `59.5 s`, for people."""
    if math.isinf(seconds):
        return "never"
    if seconds < 60:
        return f"{seconds:.1f} s"
    days, rest = divmod(int(seconds), _DAY_S)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


@click.command(cls=KvCommand)
@click.argument("key")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 when there is no such key.")
@key_encoding_option
@pass_session
def ttl_command(session: Session, /, *, key: str, missing_ok: bool, key_encoding: str) -> int:
    r"""How long a key still lives.

    In seconds; `never` when it has no ttl. Exit status 1 when there is no such key.

    \b
      kv ttl session:1
      kv ttl session:1 -o json
    """
    name = key_from(key, key_encoding)

    async def work(kv: Client) -> float | None:
        return await kv.ttl(name)

    seconds = session.call(work)
    out = Output(session.settings)
    if seconds is None:
        return absent(out, key, missing_ok=missing_ok)
    endless = math.isinf(seconds)
    row = {"key": shown_key(name, key_encoding), "ttl": None if endless else round(seconds, 3)}
    out.one(row, in_words(seconds) if endless or out.for_people else f"{seconds:.3f}")
    return 0


@click.command(cls=KvCommand)
@click.argument("key")
@click.argument("ttl", type=Duration(), metavar="TIME")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 when there is no such key.")
@consistency_option
@key_encoding_option
@pass_session
def expire_command(
    session: Session, /, *, key: str, ttl: int, missing_ok: bool, consistency: str | None, key_encoding: str
) -> int:
    r"""Give a key a new ttl.

    It ends after TIME, whatever its ttl was; the value stays.

    \b
      kv expire session:1 30m
      kv expire cart:7 1.5
    """
    name = key_from(key, key_encoding)

    async def work(kv: Client) -> Any:
        return await kv.touch(name, ttl / 1000, consistency=consistency or session.consistency)

    return _told(session, name, key, session.call(work), missing_ok=missing_ok, key_encoding=key_encoding)


@click.command(cls=KvCommand)
@click.argument("key")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 when there is no such key.")
@consistency_option
@key_encoding_option
@pass_session
def persist_command(
    session: Session, /, *, key: str, missing_ok: bool, consistency: str | None, key_encoding: str
) -> int:
    r"""Take a key's ttl away.

    It then stays until it is deleted.

    \b
      kv persist session:1
      kv persist cart:7 --missing-ok
    """
    name = key_from(key, key_encoding)

    async def work(kv: Client) -> Any:
        return await kv.persist(name, consistency=consistency or session.consistency)

    return _told(session, name, key, session.call(work), missing_ok=missing_ok, key_encoding=key_encoding)


def _told(
    session: Session, name: bytes, key: str, receipt: Any, *, missing_ok: bool, key_encoding: str
) -> int:
    out = Output(session.settings)
    if receipt is None:
        return absent(out, key, missing_ok=missing_ok)
    out.one(receipt_row(shown_key(name, key_encoding), receipt), receipt_sentence(receipt, out))
    return 0
