"""Histories of other people's checkers: Porcupine's test data and Knossos' EDN files.

Both are lists of events: a process invokes, and later completes with ok, fail or info. An event has no use
for its time here: its place in the file is its moment. Formats: tests/jepsen/oracles/*/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from jepsen_lite.history import Operation

_TOKEN = re.compile(
    r"""[\s,]+ | ;[^\n]* | (?P<string>"(?:\\.|[^"\\])*") | (?P<open>\#?\{|\#?\[|\(|\[) | (?P<close>[)\]}])
      | (?P<atom>[^\s,;"()\[\]{}]+)""",
    re.VERBOSE,
)
_LOG_LINE = re.compile(
    r"^INFO\s+jepsen\.util\s+-\s+(\d+)\s+:(invoke|ok|fail|info)\s+:(read|write|cas)\s+(.*)$"
)
_CLOSES = {"(": ")", "[": "]", "#[": "]", "{": "}", "#{": "}"}
_KINDS = {"get": "read", "put": "write"}
_OUTCOMES = {"ok": "ok", "fail": "fail", "info": "unknown"}


class ForeignError(ValueError):
    """Text that is not in the format it should be in."""


class Keyword(str):
    """`:word` of EDN, without its colon."""

    __slots__ = ()


def parse_edn(text: str) -> Iterator[Any]:
    """Yield each top-level value of a text in EDN: the part of it that histories use."""
    # One frame an open bracket; the bottom one never closes.
    frames: list[tuple[str, list[Any]]] = [("", [])]
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise ForeignError(f"no EDN at character {place}: {text[place : place + 20]!r}")
        place = token.end()
        match token.lastgroup:
            case "open":
                frames.append((token[0], []))
                continue
            case "close":
                opened, parts = frames.pop()
                if not frames or _CLOSES[opened] != token[0]:
                    raise ForeignError(f"a {token[0]} too many at character {place - 1}")
                value: Any = dict(zip(parts[::2], parts[1::2], strict=True)) if opened == "{" else parts
            case "string":
                value = re.sub(r"\\(.)", r"\1", token[0][1:-1])
            case "atom":
                value = _atom(token[0])
            case _:
                continue
        if len(frames) == 1:
            yield value
        else:
            frames[-1][1].append(value)
    if len(frames) > 1:
        raise ForeignError(f"{len(frames) - 1} brackets are never closed")


def _atom(word: str) -> Any:
    if word.startswith(":"):
        return Keyword(word[1:])
    if word in ("nil", "true", "false"):
        return {"nil": None, "true": True, "false": False}[word]
    try:
        return int(word)
    except ValueError:
        try:
            return float(word)
        except ValueError:
            return Keyword(word)


def parse_log(text: str) -> list[Operation]:
    """Operations of a Jepsen log, as Porcupine keeps them: one register."""
    events = []
    for line in text.splitlines():
        found = _LOG_LINE.match(line)
        if found is not None:
            process, kind, name, value = found.groups()
            events.append({"process": int(process), "type": kind, "f": name, "value": next(parse_edn(value))})
    return _operations(events)


def parse_events(text: str) -> list[Operation]:
    """Operations of EDN events: Knossos' (one list) or Porcupine's key-value files (one map a line)."""
    events: list[dict[str, Any]] = []
    for value in parse_edn(text):
        events.extend(value if isinstance(value, list) else [value])
    return _operations(events)


def _operations(events: Iterable[dict[str, Any]]) -> list[Operation]:
    """Pair invocations with completions. What is never completed is of unknown outcome."""
    operations: list[Operation] = []
    open_of: dict[int, Operation] = {}
    for moment, event in enumerate(events):
        process = event["process"]
        if not isinstance(process, int):
            continue  # the nemesis is no client
        if event["type"] == "invoke":
            open_of[process] = _invoked(process, float(moment), event)
            operations.append(open_of[process])
            continue
        if process not in open_of:
            raise ForeignError(f"event {moment}: process {process} completes what it never began")
        operation = open_of.pop(process)
        operation.ended = float(moment)
        operation.outcome = _OUTCOMES[event["type"]]
        operation.error = str(event.get("error", ""))
        if operation.outcome == "ok" and operation.kind in ("read", "txn"):
            operation.value = event.get("value")
    return operations


def _invoked(process: int, moment: float, event: dict[str, Any]) -> Operation:
    kind = str(event["f"])
    operation = Operation(process, _KINDS.get(kind, kind), event.get("key", ""), moment)
    value = event.get("value")
    if kind == "cas":
        if not isinstance(value, list) or len(value) != 2:
            raise ForeignError(f"a cas of {value!r}; it takes [expected new]")
        operation.expected, operation.value = value
    else:
        operation.value = value
    return operation
