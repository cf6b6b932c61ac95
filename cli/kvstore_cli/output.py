"""Print results in the form the user asked for.

Rules kept here:
- every command has every form; `table` is for people, `plain` for shells, the others for programs;
- rows stream: nothing here holds a whole scan;
- `raw` writes the exact bytes: of one value nothing else, of rows with tabs between fields and line ends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from kvstore_cli import rows
from kvstore_cli.encoding import printable
from kvstore_cli.rows import Row, Rows, as_json, cell
from kvstore_cli.settings import Settings


class Output:
    """Standard output in one form."""

    def __init__(self, settings: Settings) -> None:
        self.form = settings.form
        self._colour = settings.colour(sys.stdout)

    @property
    def for_people(self) -> bool:
        """Whether a person reads this."""
        return self.form == "table"

    @property
    def for_programs(self) -> bool:
        """Whether all that is known goes out, under names."""
        return self.form in ("json", "jsonl", "csv")

    def write(self, data: bytes) -> None:
        """Exact bytes."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def line(self, text: str) -> None:
        """A line of text."""
        self.write(f"{text}\n".encode(errors="backslashreplace"))

    def value(self, value: bytes, row: Row) -> None:
        """One value: itself for shells and people, `row` with all that is known of it for programs."""
        match self.form:
            case "raw":
                self.write(value)
            case "plain":
                self.write(value + b"\n")
            case "table":
                self.line(value.decode() if _is_harmless(value) else printable(value))
            case _:
                self.one(row, "")

    def one(self, row: Row, sentence: str) -> None:
        """One result: a sentence for people and shells, the row for programs."""
        match self.form:
            case "json" | "jsonl":
                self.line(as_json(row))
            case "csv":
                self.rows(list(row), [row], bytes_columns=[n for n in ("key", "value") if n in row])
            case _:
                self.line(sentence)

    def rows(self, columns: Sequence[str], found: Iterable[Row], *, bytes_columns: Sequence[str] = ()) -> int:
        """Any number of rows; returns how many."""
        into = self.sink(columns, bytes_columns=bytes_columns)
        for row in found:
            into.add(row)
        return into.end()

    def sink(self, columns: Sequence[str], *, bytes_columns: Sequence[str] = ()) -> Rows:
        """Where rows go one by one. `bytes_columns` get a `_b64` twin in CSV."""
        match self.form:
            case "json":
                return rows.JsonArray(self.write)
            case "jsonl":
                return rows.JsonLines(self.write)
            case "csv":
                return rows.Csv(self.write, columns, bytes_columns)
            case "table":
                return rows.Table(lambda piece, head: self._piece(columns, piece, head=head))
            case _:
                return rows.Fields(self.write, columns, exact=self.form == "raw")

    def _piece(self, columns: Sequence[str], piece: Sequence[Row], *, head: bool) -> None:
        from rich.console import Console  # costs more than a whole `kv get`
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=head, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for name in columns:
            numbers = all(isinstance(row.get(name), int | float | None) for row in piece)
            table.add_column(
                name.replace("_", " "),
                justify="right" if numbers else "left",
                overflow="fold",
                no_wrap=name not in _LONG,
            )
        for row in piece:
            table.add_row(*(Text(cell(row.get(name)), style=_style(row.get(name))) for name in columns))
        sys.stdout.flush()
        # Without colour there is no bold either: no escape sequence at all.
        console = Console(file=sys.stdout, force_terminal=self._colour, highlight=False)
        console.print(table)
        sys.stdout.flush()


_LONG = ("key", "value", "reason", "about", "meaning", "message", "origin")
"""Columns that may take several lines; the others are wanted whole."""
_STYLES = {"ready": "green", "down": "red", "failed": "red", "starting": "yellow", "draining": "yellow"}


def _style(value: object) -> str:
    return _STYLES.get(value, "") if isinstance(value, str) else ""


def _is_harmless(value: bytes) -> bool:
    """Whether a terminal may have it as it stands: UTF-8, no control characters but line ends and tabs."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\n\t" for c in text)
