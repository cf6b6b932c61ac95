"""The options map that ends the params of a call, both ways.

Options that we do not know are ignored, whatever they hold, so that an older node understands a newer
client. Those we know are checked here once; a refusal never repeats more of what was sent than fits a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvstore import errors, limits
from kvstore.types import Consistency, Durability


class Options(NamedTuple):
    """What any call may carry. None: not given. Times in milliseconds."""

    ttl_ms: int | None = None
    expires_ms: int | None = None
    consistency: Consistency | None = None
    r: int | None = None
    w: int | None = None
    timeout_ms: int | None = None
    durability: Durability | None = None
    head: bool = False
    prefix: bytes = b""
    limit: int | None = None
    keys_only: bool = False
    attempt: int | None = None
    """The how-manieth try of the operation this is; None: the first."""


_NONE = Options()
_CACHE_MAX = 512
_cache: dict[tuple[Any, ...], Options] = {}
_budgets: dict[int, Options] = {}
"""The map that most calls carry is `{"t": budget}` alone: cached by the budget."""
_LEVELS = {level.value: level for level in Consistency}
_FIELDS = {
    "ttl": "ttl_ms",
    "exp": "expires_ms",
    "c": "consistency",
    "r": "r",
    "w": "w",
    "t": "timeout_ms",
    "d": "durability",
    "head": "head",
    "prefix": "prefix",
    "limit": "limit",
    "keys_only": "keys_only",
    "n": "attempt",
}
_RANGES = {
    "r": (1, limits.REPLICAS_MAX),
    "w": (1, limits.REPLICAS_MAX),
    "t": (1, limits.TIMEOUT_MS_MAX),
    "limit": (1, limits.SCAN_LIMIT_MAX),
    "n": (1, 1_000),
}
_SHOWN_MAX = 60
_CONTAINERS = {"tuple": "an array", "dict": "a map"}


def shown(value: object) -> str:
    """A value from outside as an error may show it: short, and never what is inside a container."""
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value[:_SHOWN_MAX] if isinstance(value, str) else value)
        return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."
    return _CONTAINERS.get(type(value).__name__, type(value).__name__)


def decode_options(params: Sequence[Any], at: int) -> Options:
    """The trailing map of a call; may be missing, nil or empty. Raises errors.BadOption and its kin."""
    if len(params) <= at:
        return _NONE
    plain = params[at]
    if not plain:
        # Languages without a map of their own (PHP, Lua) write an empty one as an empty array.
        if plain is None or type(plain) is dict or type(plain) is tuple:
            return _NONE
        raise errors.BadOption(option="options", given=shown(plain), allowed="a map")
    if type(plain) is not dict:
        raise errors.BadOption(option="options", given=shown(plain), allowed="a map")
    if len(plain) == 1:
        budget = plain.get("t")
        if type(budget) is int:
            found = _budgets.get(budget)
            return _remember(_budgets, budget, _decode(plain)) if found is None else found
    # With their types, because True == 1 == 1.0 and only one of them is a number of replicas.
    known = (*plain.items(), *map(type, plain.values()))
    try:
        found = _cache.get(known)
    except TypeError:
        return _decode(plain)  # a container that no dict can find again: unknown, or refused
    if found is not None:
        return found
    # An option we do not know may be of any size: it must not stay here.
    return _remember(_cache, known, _decode(plain)) if plain.keys() <= _FIELDS.keys() else _decode(plain)


def _remember(cache: dict[Any, Options], key: Any, options: Options) -> Options:
    if len(cache) >= _CACHE_MAX:
        cache.clear()
    cache[key] = options
    return options


def _decode(plain: dict[Any, Any]) -> Options:
    return Options(
        **{_FIELDS[name]: _option(name, value) for name, value in plain.items() if name in _FIELDS}
    )


def _option(name: str, value: Any) -> Any:
    match name:
        case "ttl" | "exp":
            if type(value) is not int or value <= 0:
                raise errors.BadTtl(given=shown(value))
            return value
        case "c":
            level = _LEVELS.get(value) if type(value) is str else None
            if level is None:
                raise errors.BadConsistency(given=shown(value), allowed=", ".join(_LEVELS))
            return level
        case "d":
            if value != "always":
                raise errors.BadOption(option="d", given=shown(value), allowed='"always"')
            return Durability.ALWAYS
        case "head" | "keys_only":
            if type(value) is not bool:
                raise errors.BadOption(option=name, given=shown(value), allowed="true or false")
            return value
        case "prefix":
            if type(value) is not bytes or len(value) > limits.KEY_BYTES_MAX:
                raise errors.BadOption(option=name, given=shown(value), allowed="bytes no longer than a key")
            return value
        case _:
            low, high = _RANGES[name]
            if type(value) is not int or not low <= value <= high:
                kind = errors.BadConsistency if name in "rw" else errors.BadOption
                raise kind(option=name, given=shown(value), allowed=f"{low} to {high}")
            return value


def encode_options(options: Options) -> dict[str, Any]:
    """The other way; what was not given is left out."""
    plain: dict[str, Any] = {}
    for short, name in _FIELDS.items():
        value = getattr(options, name)
        if value is None or value is False or value == b"":
            continue
        if isinstance(value, Consistency):
            value = value.value
        elif isinstance(value, Durability):
            value = "always"
        plain[short] = value
    return plain
