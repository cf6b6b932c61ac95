"""What an option's value may be, how people write it, and how we write it back.

Rules kept here:
- a size is a whole number of bytes, or one with a unit: `64MiB`, `2MB`, `4096`;
- a time is a whole number of milliseconds, or one with a unit: `500ms`, `5s`, `2m`;
- from a file the type must be right, because TOML has types; from the environment and from flags
  everything is text and is read as the option's type says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

Value = str | int | float | bool
"""What an option holds. Text, numbers and switches; nothing nested."""


class Unit(Enum):
    """What a number counts."""

    NONE = "number"
    BYTES = "size"
    MILLIS = "time"


_SIZES = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_TIMES = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_EXAMPLE = {
    Unit.NONE: "a whole number",
    Unit.BYTES: "bytes, or text such as 64MiB",
    Unit.MILLIS: "milliseconds, or text such as 500ms or 5s",
}
_WITH_UNIT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")
_SWITCH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one option is for and what it may hold."""

    about: str
    unit: Unit = Unit.NONE
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[str], bool] | None = None
    """For text: whether it is allowed."""
    allowed: str = ""
    """What `check` allows, in words."""
    secret: bool = False
    """Shown masked, and may come from a file named by `<option>_file`."""

    def allows(self) -> str:
        """What a value may be, in words; empty when anything goes."""
        if self.choices:
            return ", ".join(self.choices[:-1]) + f" or {self.choices[-1]}"
        if self.low is not None and self.high is not None:
            return f"{written(self.low, self.unit)} to {written(self.high, self.unit)}"
        if self.low is not None:
            return f"{written(self.low, self.unit)} or more"
        return self.allowed


class Unfit(ValueError):
    """A value does not fit its option. Says what is wrong, and what would be right."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def from_text(text: str, kind: type[Value], rule: Rule) -> Value:
    """Read what stood in the environment or behind a flag. Raises Unfit."""
    value: object = text
    if kind is bool:
        value = _SWITCH.get(text.strip().lower(), text)
    elif kind is not str:
        value = _number(text, kind)
    return from_typed(value, kind, rule)


def from_typed(value: object, kind: type[Value], rule: Rule) -> Value:
    """Check what stood in a file, where `64MiB` is text and 4096 a number. Raises Unfit."""
    if isinstance(value, str) and kind is int and rule.unit is not Unit.NONE:
        value = _measure(value, rule.unit)
    elif isinstance(value, str) and kind is float:
        value = _share(value)
    elif isinstance(value, int) and kind is float and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise Unfit(f"{_said(value)} is not {_kind_in_words(kind, rule)}", _how_to_write(value, kind, rule))
    _check_range(value, rule)
    return value


def _number(text: str, kind: type[Value]) -> object:
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        return text


def _measure(text: str, unit: Unit) -> object:
    """`64MiB` as a number; the text itself when it is no measure."""
    units = _SIZES if unit is Unit.BYTES else _TIMES
    found = _WITH_UNIT.fullmatch(text)
    if found is None:
        return int(text) if text.isascii() and text.isdigit() else text
    factor = units.get(found[2].lower())
    if factor is None:
        return text
    exact = float(found[1]) * factor
    return int(exact) if exact.is_integer() else text


def _share(text: str) -> object:
    """`5%` as 0.05."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else text
    except ValueError:
        return text


def _check_range(value: Value, rule: Rule) -> None:
    hint = f"give {rule.allows()}"
    if isinstance(value, str):
        if rule.choices and value not in rule.choices:
            raise Unfit(
                f"{value!r} is not among {', '.join(rule.choices)}", nearest(value, rule.choices) or hint
            )
        if rule.check is not None and not rule.check(value):
            raise Unfit(f"{value!r} is not possible", hint)
    elif not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise Unfit(f"{value} is not possible", hint)
        if (rule.low is not None and value < rule.low) or (rule.high is not None and value > rule.high):
            raise Unfit(f"{written(value, rule.unit)} is out of range", hint)


def nearest(given: str, names: tuple[str, ...]) -> str:
    """The name most like the given one, or nothing when none is."""
    import difflib  # noqa: PLC0415  only mistakes need it

    return next(iter(difflib.get_close_matches(given, names, n=1, cutoff=0.6)), "")


def _said(value: object) -> str:
    """A value as TOML would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _kind_in_words(kind: type[Value], rule: Rule) -> str:
    if kind is bool:
        return "true or false"
    if kind is int:
        return _EXAMPLE[rule.unit]
    return "a number" if kind is float else "text"


def _how_to_write(value: object, kind: type[Value], rule: Rule) -> str:
    if kind is str and not isinstance(value, dict | list):
        return f'write it in quotes: "{value}"'
    if kind is int and isinstance(value, str) and value.isdigit():
        return f"write it without quotes: {value}"
    if kind is bool:
        return "give true or false"
    return f"give {rule.allows() or _kind_in_words(kind, rule)}"


def written(value: Value, unit: Unit) -> str:
    """A value as people write it: sizes and times with the largest unit that divides them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) or not float(value).is_integer() or unit is Unit.NONE:
        return str(value)
    names = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)) if unit is Unit.BYTES else ()
    names = names or (("m", 60_000), ("s", 1_000), ("ms", 1))
    for name, factor in names:
        if value and value % factor == 0:
            return f"{int(value) // factor}{name}"
    return str(value)
