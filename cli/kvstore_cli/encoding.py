"""Bytes on the command line and on the screen.

Rules kept here:
- an argument is the very bytes the shell passed, valid UTF-8 or not;
- hex and base64 name any key where a shell cannot;
- what a terminal shows has no control characters; what `-o raw` writes is exact.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvstore import errors, limits
from kvstore_cli.problems import FileProblem, UsageProblem

ENCODINGS = ("utf8", "hex", "base64")


def to_bytes(text: str, encoding: str, what: str) -> bytes:
    """An argument as bytes. Raises UsageProblem."""
    try:
        match encoding:
            case "hex":
                return bytes.fromhex(text)
            case "base64":
                return base64.b64decode(text, validate=True)
            case _:
                return os.fsencode(text)
    except (ValueError, binascii.Error):
        raise UsageProblem(
            problem=f"{what} {text!r} is not {encoding}", hint="give it in that encoding"
        ) from None


def key_from(text: str, encoding: str) -> bytes:
    """A key argument. Raises UsageProblem, errors.BadKey."""
    key = to_bytes(text, encoding, "the key")
    if not 0 < len(key) <= limits.KEY_BYTES_MAX:
        raise errors.BadKey(length=len(key), maximum=limits.KEY_BYTES_MAX)
    return key


def shown_key(key: bytes | str, encoding: str) -> bytes | str:
    """A key as output has it: in the encoding that keys are given in."""
    if isinstance(key, str):
        key = key.encode()
    match encoding:
        case "hex":
            return key.hex()
        case "base64":
            return base64.b64encode(key).decode()
        case _:
            return key


def printable(data: bytes | str) -> str:
    """For people: one line, no control characters; bytes that are not UTF-8 in hex behind a backslash."""
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char) or char.encode("unicode_escape").decode()


def value_from(
    argument: str | None, file: str | None, *, literal: bool, encoding: str, stdin_taken: bool
) -> bytes:
    """The value of a `set`: an argument, `-` or nothing for standard input, `@FILE`, or --file FILE.

    Raises UsageProblem, FileProblem, errors.BadValue.
    """
    if argument is not None and file is not None:
        raise UsageProblem(problem="both VALUE and --file are given", hint="give one of the two")
    if argument is not None and (literal or not (argument == "-" or argument.startswith("@"))):
        return to_bytes(argument, encoding, "the value")
    if argument is not None:
        file = "-" if argument == "-" else argument[1:]
    if file is None:
        if sys.stdin.isatty() or stdin_taken:
            raise UsageProblem(problem="no value is given", hint="give it, or pipe it in")
        file = "-"
    if file == "-" and stdin_taken:
        raise UsageProblem(
            problem="standard input holds the commands here", hint="give VALUE, or --file FILE"
        )
    data = _read(file)
    return (
        data
        if encoding == "utf8"
        else to_bytes(data.decode("ascii", "replace").strip(), encoding, "the value")
    )


def is_on_stdin(argument: str | None, file: str | None, *, literal: bool) -> bool:
    """Whether `value_from` would read standard input."""
    if argument is None:
        return file in (None, "-")
    return argument == "-" and not literal


def _read(file: str) -> bytes:
    """A whole file or standard input, as long as it can be a value at all."""
    enough = limits.VALUE_BYTES_CEILING + 1
    try:
        if file == "-":
            data = sys.stdin.buffer.read(enough)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(enough)
    except OSError as error:
        name = "standard input" if file == "-" else file
        raise FileProblem(path=name, reason=error.strerror or str(error)) from None
    if len(data) == enough:
        raise errors.BadValue(length=f"more than {enough - 1}", maximum=limits.VALUE_BYTES_CEILING)
    return data


def value_options(name: str) -> Callable[[Any], Any]:
    """`--file`, `--literal`, `--value-encoding`: other ways to give the value called `name`."""

    def add(function: Any) -> Any:
        for option in (
            click.option("--value-encoding", type=click.Choice(ENCODINGS), default="utf8", metavar="ENC",
                         help=f"How {name} is given: utf8, hex or base64."),
            click.option("--literal", is_flag=True,
                         help=f"Take {name} as it stands, with no meaning for - and @."),
            click.option("--file", "-f", metavar="FILE",
                         help="Take the value from a file; - is standard input."),
        ):  # fmt: skip
            function = option(function)
        return function

    return add


def key_encoding_option(function: Any) -> Any:
    """`--key-encoding`."""
    return click.option(
        "--key-encoding",
        type=click.Choice(ENCODINGS),
        default="utf8",
        metavar="ENC",
        help="How keys are given and shown: utf8, hex or base64.",
    )(function)


def consistency_option(function: Any) -> Any:
    """`--consistency`."""
    return click.option(
        "--consistency",
        "-c",
        envvar="KV_CONSISTENCY",
        metavar="LEVEL",
        help="one, quorum (the default), all or linearizable.",
    )(function)
