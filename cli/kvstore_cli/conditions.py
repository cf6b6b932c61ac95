"""Changes that depend on what is there: what the flags ask for, and what came of it.

Rules kept here:
- applied is exit status 0, not applied 1, in every form of output;
- what was found instead goes to stderr for people and shells, and into the row for programs;
- every row has the same columns, whatever the change and its outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.commands import one_of
from kvstore_cli.encoding import printable, shown_key, value_from
from kvstore_cli.output import Output
from kvstore_cli.problems import UsageProblem
from kvstore_cli.receipts import receipt_sentence

if TYPE_CHECKING:
    from kvstore.client.change import Applied, NotApplied

_SHOWN_CHARS_MAX = 60


def terms_of(
    flags: Mapping[str, Any], *, encoding: str = "utf8", literal: bool = False, stdin_taken: bool = False
) -> dict[str, Any]:
    """What `cas` and `delete_if` are to expect, by the flags given: True, a version, or a value as text.

    Raises UsageProblem unless exactly one was given, FileProblem, errors.BadValue.
    """
    given = [(flag, what) for flag, what in flags.items() if what is not None and what is not False]
    if len(given) != 1:
        problem = " and ".join(flag for flag, _ in given) + " do not go together"
        raise UsageProblem(
            problem=problem if given else "what to expect is not given", hint=f"give {one_of(list(flags))}"
        )
    match given[0][1]:
        case True:
            return {"expected_value": None}
        case int() as version:
            return {"expected_version": version}
        case value:
            old = value_from(value, None, literal=literal, encoding=encoding, stdin_taken=stdin_taken)
            return {"expected_value": old}


def outcome_row(key: bytes | str, outcome: Applied | NotApplied) -> dict[str, Any]:
    """What came of a change, as a row. `value` is what it answers with, or what was found instead."""
    applied = bool(outcome)
    return {
        "key": key,
        "applied": applied,
        "version": outcome.version,
        "value": outcome.value,
        "expires_at": getattr(outcome, "expires_at", None),
        "existed": getattr(outcome, "existed", outcome.version > 0),
        "answered": list(outcome.receipt.answered),
        "epoch": outcome.receipt.epoch,
    }


def told(out: Output, key: bytes, outcome: Applied | NotApplied, *, key_encoding: str = "utf8") -> int:
    """Print what came of a change that answers with yes or no; returns the exit status."""
    if not outcome:
        return told_not_applied(out, key, outcome, key_encoding=key_encoding)
    sentence = receipt_sentence(outcome.receipt, out)
    if out.for_people:
        sentence += f", version {outcome.version}"
    out.one(outcome_row(shown_key(key, key_encoding), outcome), sentence)
    return 0


def told_not_applied(
    out: Output, key: bytes, outcome: Applied | NotApplied, *, key_encoding: str = "utf8", why: str = ""
) -> int:
    """Say what was found instead; returns the exit status. `why` ends the sentence."""
    name = shown_key(key, key_encoding)
    if out.for_programs:
        out.one(outcome_row(name, outcome), "")
    else:
        click.echo(f"not applied: {_found(name, outcome)}{why}", err=True)
    return 1


def _found(name: bytes | str, outcome: Applied | NotApplied) -> str:
    if not outcome.version:
        return f"there is no {printable(name)}"
    if outcome.value is None:  # the answer to a retry: only that it was not applied is remembered
        return f"{printable(name)} holds something else (version {outcome.version})"
    value = outcome.value if isinstance(outcome.value, bytes) else str(outcome.value)
    shown = f"'{printable(value)}'"
    if len(shown) > _SHOWN_CHARS_MAX:
        shown = f"{shown[:_SHOWN_CHARS_MAX]}'... of {len(value)} bytes"
    return f"{printable(name)} holds {shown} (version {outcome.version})"
