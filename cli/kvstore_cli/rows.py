"""Rows on their way out, one class a form: pushed in one at a time, so that a scan of any size streams."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from kvstore_cli.encoding import printable

Row = Mapping[str, Any]
Write = Callable[[bytes], object]
TABLE_ROWS = 500
"""Rows a table looks at before it decides on its widths; a longer one goes on in further pieces."""
_BUFFER = 1 << 16


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON can carry it: bytes as text, or as base64 under the name with `_b64`."""
    made: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, bytes):
            try:
                made[name] = value.decode("utf-8")
            except UnicodeDecodeError:
                made[f"{name}_b64"] = base64.b64encode(value).decode()
        else:
            made[name] = value
    return made


def as_json(row: Row) -> str:
    """A row as one line of JSON."""
    return json.dumps(plain(row), ensure_ascii=False, separators=(", ", ": "))


def cell(value: Any) -> str:
    """A field for people and shells: one line, no control characters."""
    match value:
        case None:
            return ""
        case bytes() | str():
            return printable(value)
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".")
        case list() | tuple():
            return ",".join(cell(each) for each in value)
        case _:
            return str(value)


class Rows(Protocol):
    """Where rows go."""

    def add(self, row: Row) -> None:
        """Take one row."""
        ...

    def end(self) -> int:
        """Write what is left; returns how many rows there were."""
        ...


class _Counted:
    """What all forms share: a count, and a buffer that leaves when it is full."""

    __slots__ = ("_held", "_size", "_write", "count")

    def __init__(self, write: Write) -> None:
        self._write = write
        self._held: list[bytes] = []
        self._size = 0
        self.count = 0

    def put(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        if self._size >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._write(b"".join(self._held))
            self._held.clear()
            self._size = 0

    def end(self) -> int:
        """Write what is left."""
        self.flush()
        return self.count


class JsonLines(_Counted):
    """One object a line."""

    def add(self, row: Row) -> None:
        """Take one row."""
        self.count += 1
        self.put(as_json(row).encode() + b"\n")


class JsonArray(_Counted):
    """One array."""

    def add(self, row: Row) -> None:
        """Take one row."""
        self.put((b",\n " if self.count else b"[") + as_json(row).encode())
        self.count += 1

    def end(self) -> int:
        """Close the array."""
        self.put(b"]\n" if self.count else b"[]\n")
        return super().end()


class Fields(_Counted):
    """Fields between tabs, a row a line; `exact` leaves the bytes as they are."""

    def __init__(self, write: Write, columns: Sequence[str], *, exact: bool) -> None:
        super().__init__(write)
        self._columns = columns
        self._exact = exact

    def add(self, row: Row) -> None:
        """Take one row."""
        self.count += 1
        fields = (row.get(name) for name in self._columns)
        self.put(
            b"\t".join(f if self._exact and isinstance(f, bytes) else cell(f).encode() for f in fields)
            + b"\n"
        )


class Csv(_Counted):
    """RFC 4180 with a heading; columns of bytes have a `_b64` twin for what is not UTF-8.

    Written by hand because the csv module of Python 3.11 leaves a lone carriage return unquoted when
    lines end in a line feed, and then cannot read it back.
    """

    def __init__(self, write: Write, columns: Sequence[str], bytes_columns: Sequence[str]) -> None:
        super().__init__(write)
        self._names = [*columns, *(f"{name}_b64" for name in bytes_columns)]
        self.put((",".join(self._names) + "\n").encode())

    def add(self, row: Row) -> None:
        """Take one row."""
        self.count += 1
        flat = plain(row)
        self.put((",".join(_field(flat.get(name)) for name in self._names) + "\n").encode())


def _field(value: Any) -> str:
    """One field of CSV, in quotes where it must be."""
    if value is None:
        return ""
    text = json.dumps(value) if isinstance(value, list | dict | tuple) else str(value)
    if text.isalnum() or not (set(text) & _QUOTED):
        return text
    return '"' + text.replace('"', '""') + '"'


_QUOTED = frozenset('",\r\n')


class Table:
    """Columns for people. Widths are decided for some hundred rows at a time."""

    def __init__(self, show: Callable[[Sequence[Row], bool], None]) -> None:
        self._show = show
        self._held: list[Row] = []
        self.count = 0

    def add(self, row: Row) -> None:
        """Take one row."""
        self._held.append(row)
        if len(self._held) == TABLE_ROWS:
            self._leave()

    def end(self) -> int:
        """Print the last piece."""
        self._leave()
        return self.count

    def _leave(self) -> None:
        if self._held:
            self._show(self._held, self.count == 0)
            self.count += len(self._held)
            self._held = []
