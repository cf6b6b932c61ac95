"""`kv explain CODE`: what an error means, whether it happened, and what to do."""

from __future__ import annotations

import difflib
import inspect

import click

from kvstore import errors
from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.output import Output
from kvstore_cli.problems import EXIT_CODES, OWN, UsageProblem
from kvstore_cli.session import Session

EXIT_TOPIC = "exit-codes"


def known() -> dict[str, type[errors.KVError]]:
    """Every error a user can meet, by code; families are not met."""
    own = {kind.code: kind for kind in OWN}
    met = {kind.code: kind for kind in errors.ALL if kind.template != errors.KVError.template}
    return dict(sorted({**met, **own}.items()))


def find(word: str) -> type[errors.KVError]:
    """An error by code or name, in any case. Raises UsageProblem with the nearest."""
    table = known()
    names = {kind.name: kind for kind in table.values()}
    found = table.get(word.upper()) or names.get(word.lower().replace("-", "_"))
    if found is None:
        family = [code for code in table if code.startswith(word.upper()[:4])] if len(word) >= 4 else []
        near = family[-1:] or difflib.get_close_matches(
            word.upper(), [*table, *(n.upper() for n in names)], n=1, cutoff=0.5
        )
        hint = f"kv explain {near[0] if near[0] in table else near[0].lower()}" if near else "kv explain"
        raise UsageProblem(problem=f"no error is called {word}", hint=hint)
    return found


@click.command(cls=KvCommand)
@click.argument("code", required=False)
@pass_session
def explain_command(session: Session, /, *, code: str | None) -> None:
    r"""Explain an error code.

    What it means, whether the call took effect, and what to do. Without CODE all of them are listed;
    `exit-codes` explains those.

    \b
      kv explain KV-Q02
      kv explain exit-codes
    """
    out = Output(session.settings)
    if code is None:
        columns = ("code", "name", "took_effect", "exit_status")
        out.rows(columns, (row_of(kind) for kind in known().values()))
    elif code == EXIT_TOPIC:
        out.rows(
            ("status", "meaning"),
            ({"status": status, "meaning": text} for status, text in EXIT_CODES.items()),
        )
    else:
        row = row_of(find(code))
        if out.for_programs:
            out.one(row, "")
        else:
            out.line("\n".join(_in_words(row)))


def row_of(kind: type[errors.KVError]) -> dict[str, object]:
    """An error's entry in the table."""
    return {
        "code": kind.code,
        "name": kind.name,
        "message": kind.template,
        "took_effect": "no" if kind.definite else "unknown",
        "retryable": kind.retryable,
        "exit_status": kind.exit_status,
        "http": kind.http,
        "resp": kind.resp,
        "remedy": kind.remedy if kind.remedy != "{hint}" else "each mistake names its own",
        "about": _about(kind),
    }


def _about(kind: type[errors.KVError]) -> str:
    """What the docstring says beyond the fields."""
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    if text.startswith(("Fields:", "No fields:")):
        _, _, text = text.partition(". ")
    return text


def _in_words(row: dict[str, object]) -> list[str]:
    definite = row["took_effect"] == "no"
    effect = "no, it did not happen and will not" if definite else "unknown: it may have happened, or may yet"
    again = "the same call may succeed later or at another node" if row["retryable"] else "not as it stands"
    lines = [
        f"{row['code']} {row['name']}",
        f"  says         {row['message']}",
        f"  took effect  {effect}",
        f"  try again    {again}" if definite else f"  try again    {_again(row)}",
        f"  what to do   {row['remedy'] or 'see the message'}",
        f"  exit status  {row['exit_status']} ({EXIT_CODES[int(str(row['exit_status']))]})",
    ]
    if row["about"]:
        lines.insert(2, f"  about        {row['about']}")
    return lines


def _again(row: dict[str, object]) -> str:
    return "only what is safe to repeat; a plain put or delete is" if row["retryable"] else "look first"
