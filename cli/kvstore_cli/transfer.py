"""The shape of an entry in a file: what `kv export` writes and `kv import` reads. Pure.

    JSON lines   {"key": "user:1", "value": "Ada", "expires_at": 1798761600.5}
    CSV          key,value,expires_at,key_b64,value_b64

Rules kept here:
- bytes that are not UTF-8 stand as base64 under `key_b64` or `value_b64`;
- `expires_at` is absolute (seconds since 1970-01-01Z), so a file means the same whenever it is read;
  `ttl` (seconds from the import) is read as well;
- an unknown field is a mistake, because a misspelt `expires_at` would make a key immortal. `version`
  is known and left out: an import is a new write.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvstore import errors, limits
from kvstore.core.admission import check_key, check_value

FORMATS = ("jsonl", "csv")
COLUMNS = ("key", "value", "expires_at")
_FIELD_CHARS_MAX = 4 * (limits.VALUE_BYTES_CEILING // 3 + 1)
"""The largest value in base64. The csv module takes 128 KiB unless it is told."""
_KNOWN = {"key", "key_b64", "value", "value_b64", "expires_at", "ttl", "version"}


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a file."""

    line: int
    """Where it stands (its first line), from 1."""
    key: bytes
    value: bytes
    expires_at: float | None = None
    """Seconds since 1970-01-01Z."""
    ttl: float | None = None
    """Seconds from now."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A line that cannot be used."""

    line: int
    problem: str


def item_from(fields: Mapping[str, Any], line: int) -> Item | Mistake:
    """An entry from its fields."""
    unknown = sorted(str(name) for name in fields.keys() - _KNOWN)
    if unknown:
        return Mistake(line, f"there is no field {unknown[0]!r}")
    try:
        key, value = _bytes(fields, "key"), _bytes(fields, "value")
        check_key(key)
        check_value(value, limits.VALUE_BYTES_CEILING)
        ends, ttl = _seconds(fields, "expires_at"), _seconds(fields, "ttl")
    except errors.KVError as error:
        return Mistake(line, error.message)
    except ValueError as error:
        return Mistake(line, str(error))
    if ends is not None and ttl is not None:
        return Mistake(line, "both expires_at and ttl are given")
    return Item(line, key, value, ends, ttl)


def _bytes(fields: Mapping[str, Any], name: str) -> bytes:
    text, coded = fields.get(name), fields.get(f"{name}_b64")
    if coded:
        if text:
            raise ValueError(f"both {name} and {name}_b64 are given")
        try:
            return base64.b64decode(coded, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise ValueError(f"{name}_b64 is not base64") from None
    if text is None and coded is None:
        raise ValueError(f"it has neither {name} nor {name}_b64")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{name} is not text; JSON values go into quotes, bytes into {name}_b64")
    try:
        return (text or "").encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a character; give {name}_b64") from None


def _seconds(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not a number of seconds") from None
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds <= limits.EXPIRES_MS_MAX / 1000:
        raise ValueError(f"{name} {str(value)[:60]} is out of range")
    return seconds


class JsonLinesReader:
    """Items out of JSON lines, fed with physical lines."""

    def __init__(self) -> None:
        self._line = 0

    def read(self, lines: Iterable[bytes]) -> Iterator[Item | Mistake]:
        """Yield what further lines hold."""
        for raw in lines:
            self._line += 1
            if raw.strip():
                yield self._one(raw)

    def _one(self, raw: bytes) -> Item | Mistake:
        try:
            fields = json.loads(raw)
        except UnicodeDecodeError:
            return Mistake(self._line, "it is not UTF-8")
        except (ValueError, RecursionError) as error:
            return Mistake(self._line, f"it is not JSON: {str(error).split(':')[0].lower()}")
        if not isinstance(fields, dict):
            return Mistake(self._line, "it is not an object in braces")
        return item_from(fields, self._line)

    def end(self) -> Iterator[Item | Mistake]:
        """Nothing is held back."""
        yield from ()


class CsvReader:
    """Items out of CSV with a heading, fed with physical lines; a quoted field may span several."""

    def __init__(self) -> None:
        csv.field_size_limit(_FIELD_CHARS_MAX)
        self._line = 0
        self._heading: list[str] = []
        self._held: list[bytes] = []
        self._held_from = 0
        self._quotes = 0

    def read(self, lines: Iterable[bytes]) -> Iterator[Item | Mistake]:
        """Yield what further lines hold."""
        for raw in lines:
            self._line += 1
            if not self._held:
                self._held_from = self._line
            self._held.append(raw)
            self._quotes += raw.count(b'"')
            if self._quotes % 2 == 0:
                found = self._record()
                if found is not None:
                    yield found

    def end(self) -> Iterator[Item | Mistake]:
        """Yield a Mistake for a quote that was never closed."""
        if self._held:
            yield Mistake(self._held_from, "a quote is opened and never closed")

    def _record(self) -> Item | Mistake | None:
        raw, self._held, self._quotes = b"".join(self._held), [], 0
        at = self._held_from
        if not raw.strip():
            return None
        try:
            fields = next(csv.reader([raw.decode("utf-8-sig" if at == 1 else "utf-8")], strict=True))
        except UnicodeDecodeError:
            return Mistake(at, "it is not UTF-8")
        except csv.Error as error:
            return Mistake(at, f"it is not CSV: {error}")
        if not self._heading:
            self._heading = [name.strip() for name in fields]
            return self._heading_mistake(at)
        if len(fields) != len(self._heading):
            return Mistake(at, f"it has {len(fields)} fields, the heading {len(self._heading)}")
        return item_from(dict(zip(self._heading, fields, strict=True)), at)

    def _heading_mistake(self, at: int) -> Mistake | None:
        names = set(self._heading)
        if names <= _KNOWN and len(names) == len(self._heading) and names & {"key", "key_b64"}:
            return None
        return Mistake(at, f"the heading must name columns among {', '.join(sorted(_KNOWN))}, each once")


Reader = JsonLinesReader | CsvReader


def reader_for(form: str) -> Reader:
    """The reader of a format."""
    return CsvReader() if form == "csv" else JsonLinesReader()


def format_of(path: str, *asked: str | None) -> str:
    """The format somebody asked for, else that of the file's name, else JSON lines."""
    for form in asked:
        if form in FORMATS:
            return form
    return "csv" if path.lower().endswith(".csv") else "jsonl"
