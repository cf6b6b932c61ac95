"""Rules: named limits, how they are decided, and what happens when the store cannot be asked; from a file.

    [[rule]]
    name = "api"
    mode = "strict"                # or "local": decisions in memory, with a stated over-admission
    on_failure = "closed"          # or "open"
    limits = [
        { algorithm = "token_bucket", limit = 10, per = "1s", burst = 20 },
        { algorithm = "fixed_window", limit = 1000, per = "1h" },
    ]
    [rule.overrides]
    "customer:42" = [{ algorithm = "token_bucket", limit = 100, per = "1s" }]

or the same as YAML, in a file whose name ends in .yaml or .yml: `rule:` and a list. Every mistake of a file
is told at once, with its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from kvstore import errors
from kvstore.apps.ratelimit import documents
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.purses import over_admission_max

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
LIMITS_MAX = 16
_BITS_MAX = 64
"""Of a number; with thousands of digits it could not even be told what is wrong with it."""
_UNITS_US = {
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
_DURATION = re.compile(r"(\d{1,12})(ms|s|m|h|d)")
_NOT_LEASED = (Algorithm.LEAKY_BUCKET, Algorithm.CONCURRENCY)
"""A token of these cannot be held for later: one is a place in a queue, the other is held already."""


class Mode(StrEnum):
    """Where a decision is made."""

    STRICT = "strict"
    LOCAL = "local"


class OnFailure(StrEnum):
    """What is said when the store cannot tell."""

    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Limits under a name. Raises errors.BadOption."""

    name: str
    limits: tuple[Limit, ...]
    mode: Mode = Mode.STRICT
    on_failure: OnFailure = OnFailure.CLOSED
    overrides: Mapping[str, tuple[Limit, ...]] = field(default_factory=dict[str, tuple[Limit, ...]])
    """Limits of keys that have their own."""
    batch: int = 10
    """Local: tokens taken at once."""
    lease_us: int = 1_000_000
    """Local: what is not spent by then is forfeited."""
    instances: int = 1
    """Local: how many services share the rule; it enters the bound alone."""
    holds: bool = field(init=False, repr=False, compare=False)
    """Calls hold a lease that they give back."""

    def __post_init__(self) -> None:
        every = (limit for limits in (self.limits, *self.overrides.values()) for limit in limits)
        object.__setattr__(self, "holds", any(each.algorithm is Algorithm.CONCURRENCY for each in every))
        if not NAME.fullmatch(self.name):
            raise _bad("name", self.name, "a-z, 0-9, - and _, at most 64")
        if not 1 <= self.batch <= 1_000_000 or not 1 <= self.instances <= 10_000 or self.lease_us < 1:
            raise _bad("batch, instances, lease", "less than 1 or far more", "1 or more")
        for limits in (self.limits, *self.overrides.values()):
            self._check(limits)

    def _check(self, limits: Sequence[Limit]) -> None:
        if not 1 <= len(limits) <= LIMITS_MAX:
            raise _bad("limits", f"{len(limits)} limits", f"1 to {LIMITS_MAX}")
        if len({limit.fingerprint for limit in limits}) != len(limits):
            raise _bad("limits", "the same limit twice", "each once")
        if self.mode is Mode.LOCAL:
            for limit in limits:
                if limit.algorithm in _NOT_LEASED:
                    raise _bad("mode", f"local with {limit.algorithm}", "strict")
                if self.batch > limit.capacity:
                    raise _bad("batch", str(self.batch), f"at most what a limit gives: {limit.capacity}")

    def limits_of(self, key: str) -> tuple[Limit, ...]:
        """The limits of one key."""
        return self.overrides.get(key, self.limits)

    def over_admission_max(self, limit: Limit) -> int:
        """The most that one of the limits may be exceeded by, as long as the store can be asked."""
        if self.mode is Mode.STRICT:
            return 0
        return over_admission_max(limit, instances=self.instances, batch=self.batch, lease_us=self.lease_us)


Rules = Mapping[str, Rule]


def load(path: str | Path) -> Rules:
    """Read a file. Raises errors.ConfigInvalid with every mistake, OSError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(str(path), [f"it is not UTF-8: {error.reason}"]) from None
    return parse(text, source=str(path), yaml=documents.is_yaml(path))


def parse(text: str, *, source: str = "rules", yaml: bool = False) -> Rules:
    """Rules by name. Raises errors.ConfigInvalid with every mistake."""
    document = (documents.from_yaml if yaml else documents.from_toml)(text, source=source)
    if not isinstance(document, dict):
        raise _invalid(source, ["there is no [[rule]]"])
    mistakes = [f"unknown: {name}" for name in sorted(map(_shown, document.keys() - {"rule"}))]
    rules: dict[str, Rule] = {}
    tables = document.get("rule")
    if not isinstance(tables, list) or not tables or not all(isinstance(each, dict) for each in tables):
        raise _invalid(source, [*mistakes, "there is no [[rule]]"])
    for number, table in enumerate(tables, 1):
        named = table.get("name", number)
        place = f"rule {named!r}" if isinstance(named, str) else f"rule {_shown(named)}"
        try:
            rule = _rule(table)
        except errors.KVError as error:
            mistakes.append(f"{place}: {error.message}")
        else:
            mistakes += [f"{place}: there are two of this name"] if rule.name in rules else []
            rules[rule.name] = rule
    if mistakes:
        raise _invalid(source, mistakes)
    return rules


def _rule(table: Mapping[str, Any]) -> Rule:
    known = {"name", "limits", "mode", "on_failure", "overrides", "batch", "lease", "instances"}
    _only(table, known)
    overrides = table.get("overrides", {})
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise _bad("overrides", overrides, "a table of limits by key, a string")
    return Rule(
        name=_text(table, "name", ""),
        limits=_limits(table.get("limits")),
        mode=_one_of(Mode, table.get("mode", Mode.STRICT), "mode"),
        on_failure=_one_of(OnFailure, table.get("on_failure", OnFailure.CLOSED), "on_failure"),
        overrides={key: _limits(limits) for key, limits in overrides.items()},
        batch=_number(table, "batch", 10),
        lease_us=duration_us(table.get("lease", "1s"), "lease"),
        instances=_number(table, "instances", 1),
    )


def _limits(given: Any) -> tuple[Limit, ...]:
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise _bad("limits", given, "a list of { algorithm, limit, per }")
    found = []
    for table in given:
        _only(table, {"algorithm", "limit", "per", "burst"})
        found.append(
            Limit(
                algorithm=_one_of(Algorithm, table.get("algorithm"), "algorithm"),
                amount=_number(table, "limit", 0),
                period_us=duration_us(table.get("per"), "per"),
                burst=_number(table, "burst", 0),
            )
        )
    return tuple(found)


def duration_us(given: Any, name: str) -> int:
    """`10s` in microseconds. Raises errors.BadOption."""
    found = _DURATION.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        raise _bad(name, given, 'a time such as "500ms", "1s", "5m", "1h", "1d"')
    return int(found[1]) * _UNITS_US[found[2]]


def _one_of(kind: Any, given: Any, name: str) -> Any:
    try:
        return kind(given)
    except ValueError:
        raise _bad(name, given, ", ".join(kind)) from None


def _number(table: Mapping[str, Any], name: str, default: int) -> int:
    given = table.get(name, default)
    if isinstance(given, bool) or not isinstance(given, int):
        raise _bad(name, given, "an integer")
    if given.bit_length() > _BITS_MAX:
        raise _bad(name, given, "a number that one can read")
    return given


def _text(table: Mapping[str, Any], name: str, default: str) -> str:
    given = table.get(name, default)
    if not isinstance(given, str):
        raise _bad(name, given, "a string")
    return given


def _only(table: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(map(_shown, table.keys() - known))
    if unknown:
        raise _bad(", ".join(unknown), "this", f"only {', '.join(sorted(known))}")


def _bad(option: str, given: Any, allowed: str) -> errors.BadOption:
    return errors.BadOption(option=option, given=_shown(given)[:60], allowed=allowed)


def _shown(given: Any) -> str:
    try:
        return given if isinstance(given, str) else repr(given)
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return "something huge"


def _invalid(source: str, mistakes: Sequence[str]) -> errors.ConfigInvalid:
    return errors.ConfigInvalid(
        where=source, problem=" | ".join(mistakes), hint="see docs/ratelimit.md for what a rule may say"
    )
