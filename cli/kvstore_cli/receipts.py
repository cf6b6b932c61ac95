"""What came of a call, for people and for programs."""

from __future__ import annotations

import sys
from typing import Any

import click

from kvstore_cli.output import Output


def receipt_row(key: bytes | str, receipt: Any) -> dict[str, Any]:
    """A receipt as a row."""
    return {
        "key": key,
        "version": receipt.version,
        "answered": list(receipt.answered),
        "durability": receipt.durability.name.lower(),
        "superseded": receipt.superseded,
        "epoch": receipt.epoch,
    }


_DURABLE = {"always": "synced on", "interval": "written on", "os": "written on", "memory": "in memory on"}


def receipt_sentence(receipt: Any, out: Output) -> str:
    """`OK` for shells; for people also where it is."""
    if not out.for_people:
        return "OK"
    count = len(receipt.answered)
    return f"OK, {_DURABLE[receipt.durability.name.lower()]} {count} node{'s' if count != 1 else ''}"


def note_superseded(receipt: Any) -> None:
    """Say that somebody else wrote something newer meanwhile: written, and replaced at once."""
    if receipt.superseded:
        click.echo("note: a newer write was already there, and it stands", file=sys.stderr)


def absent(out: Output, key: str, *, missing_ok: bool) -> int:
    """There is no such key: `null` for programs, a word for people, nothing for shells."""
    if out.form in ("json", "jsonl"):
        out.line("null")
    elif out.for_people:
        click.echo(f"no such key: {key}", file=sys.stderr)
    return 0 if missing_ok else 1
