"""Where values come from: a TOML file, the environment, flags. Each is read into the same shape.

Rules kept here:
- a later source replaces an earlier one, option by option: default, file, environment, flag;
- an unknown name is a mistake, never ignored, and the answer names the nearest right one;
- an empty environment variable counts as not set, as compose files write them;
- a secret may be kept in a file of its own, named by `<option>_file` in any source.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvstore import errors
from kvstore.config.options import OPTIONS, SECTIONS, Option
from kvstore.config.values import Unfit, Value, from_text, from_typed, nearest

CLIENT_ENVIRONMENT = frozenset(
    {
        "KV_URL", "KV_TOKEN", "KV_TOKEN_FILE", "KV_TIMEOUT", "KV_CONSISTENCY", "KV_OUTPUT", "KV_COLOR",
        "KV_DEBUG", "KV_CONFIG", "KV_DIR", "KV_HISTORY", "KV_TEST_LOOP",
    }
)  # fmt: skip
"""Variables of the `kv` command itself; a node passes them by."""
_FROM_KUBERNETES = re.compile(
    r"KV(_[A-Z0-9_]+)?_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_[0-9]+_(TCP|UDP)(_[A-Z]+)?)=.*"
    r"|KV(_[A-Z0-9_]+)?_PORT=[a-z]+://.*"
)
"""What Kubernetes sets in every container beside a service whose name begins with kv."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from."""

    source: str
    """default, file, environment or flag."""
    detail: str = ""
    """The file and line, the variable, the flag."""

    def __str__(self) -> str:
        return self.detail or self.source


@dataclass(frozen=True, slots=True)
class Given:
    """A value that somebody gave."""

    value: Value
    origin: Origin


Findings = Iterator[tuple[Option, Given] | errors.ConfigInvalid]
"""What a source holds: values of options, and mistakes."""


def _mistake(where: str, problem: str, hint: str) -> errors.ConfigInvalid:
    return errors.ConfigInvalid(where=where, problem=problem, hint=hint)


# --- the file ---------------------------------------------------------------------------


def from_file(path: Path) -> Findings:
    """Read a TOML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = "check the path; `kv config init` writes a commented file to start from"
        yield _mistake(str(path), f"cannot be read: {error.strerror}", hint)
        return
    except UnicodeDecodeError as error:
        yield _mistake(str(path), f"byte {error.start} is not UTF-8", "save the file as UTF-8")
        return
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        yield _syntax_mistake(path, str(error))
        return
    lines = _Lines(path, text)
    for name, table in tables.items():
        if name in SECTIONS and isinstance(table, dict):
            yield from _from_section(path, name, table, lines)
        elif name in SECTIONS:
            yield _mistake(lines.at(name), f"{name} is a section", f"write [{name}] on a line of its own")
        elif (owner := _owner(name)) is not None:
            yield _mistake(
                lines.at(name), "stands outside its section", f"move {name} below [{owner.section}]"
            )
        else:
            yield _unknown(lines.at(name), name, tuple(SECTIONS), "sections")


def _from_section(path: Path, section: str, table: Mapping[str, object], lines: _Lines) -> Findings:
    for name, value in table.items():
        where = lines.at(name, section)
        option = _owner(name)
        if option is None:
            known = tuple(each for each, its in OPTIONS.items() if its.section == section)
            yield _unknown(where, f"{section}.{name}", (*known, *OPTIONS), "options", bare=name)
        elif option.section != section:
            yield _mistake(where, f"{name} is no option of [{section}]", f"move it below [{option.section}]")
        elif name != option.name and table.get(option.name):
            yield _mistake(where, f"{option.name} is given as well", "keep one of the two")
        elif name != option.name:
            yield _from_secret_file(option, value, Origin("file", where), base=path.parent)
        elif not (option.rule.secret and value == ""):  # an empty secret is none: its file may have it
            try:
                yield option, Given(from_typed(value, option.kind, option.rule), Origin("file", where))
            except Unfit as unfit:
                yield _mistake(where, f"{name}: {unfit.problem}", unfit.hint)


def _owner(name: str) -> Option | None:
    """The option a key belongs to; `x_file` belongs to the secret `x`."""
    option = OPTIONS.get(name)
    if option is None and (secret := OPTIONS.get(name.removesuffix("_file"))) is not None:
        return secret if secret.rule.secret else None
    return option


def _syntax_mistake(path: Path, message: str) -> errors.ConfigInvalid:
    found = re.search(r" \(at line (\d+), column (\d+)\)", message)
    if found is None:
        return _mistake(str(path), f"not TOML: {message}", "see https://toml.io")
    problem = f"not TOML: {message[: found.start()]} (column {found[2]})"
    return _mistake(f"{path}:{found[1]}", problem, "a line is `name = value`, and text stands in quotes")


class _Lines:
    """Line numbers of keys, which `tomllib` does not tell. Good enough to point a person there."""

    _HEADER = re.compile(r"\s*\[\s*([^\]\"']+?)\s*\]")
    _KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_.-]+)[\"']?\s*=")

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._at: dict[tuple[str, str], int] = {}
        section = quotes = ""
        for number, line in enumerate(text.splitlines(), 1):
            if quotes:
                quotes = "" if quotes in line else quotes
                continue
            if header := self._HEADER.match(line):
                section = header[1]
                self._at.setdefault(("", section), number)
            elif key := self._KEY.match(line):
                table, _, name = f"{section}.{key[1]}".lstrip(".").rpartition(".")
                self._at.setdefault((table, name), number)
                self._at.setdefault(("", table), number)
                quotes = next((q for q in ('"""', "'''") if line.count(q) == 1), "")

    def at(self, key: str, section: str = "") -> str:
        """`file:line` of a key, or of its section, or the file."""
        number = self._at.get((section, key)) or self._at.get(("", section or key))
        return f"{self._path}:{number}" if number else str(self._path)


def _unknown(
    where: str, name: str, known: tuple[str, ...], what: str, *, bare: str = ""
) -> errors.ConfigInvalid:
    best = nearest(bare or name, known)
    hint = best or f"`kv config init` shows all {what}"
    return _mistake(where, f"there is no {name}", hint)


# --- the environment --------------------------------------------------------------------


def from_environment(environment: Mapping[str, str]) -> Findings:
    """Read `KV_*` variables."""
    by_variable = {option.environment: option for option in OPTIONS.values()}
    files = {f"{v}_FILE": option for v, option in by_variable.items() if option.rule.secret}
    for variable in sorted(environment):
        text = environment[variable]
        if not variable.startswith("KV_") or not text or variable in CLIENT_ENVIRONMENT:
            continue
        origin = Origin("environment", variable)
        if variable in files:
            # The plain variable wins over its file only by being an error: two truths are one too many.
            option = files[variable]
            if environment.get(option.environment):
                yield _mistake(variable, f"{option.environment} is set as well", "keep one of the two")
            else:
                yield _from_secret_file(option, text, origin, base=Path())
        elif variable in by_variable:
            yield _from_text(by_variable[variable], text, origin)
        elif not _FROM_KUBERNETES.fullmatch(f"{variable}={text}"):
            yield _unknown(variable, "such variable", (*by_variable, *files), "variables", bare=variable)


def _from_text(option: Option, text: str, origin: Origin) -> tuple[Option, Given] | errors.ConfigInvalid:
    try:
        return option, Given(from_text(text, option.kind, option.rule), origin)
    except Unfit as unfit:
        return _mistake(origin.detail, unfit.problem, unfit.hint)


# --- flags ------------------------------------------------------------------------------


def from_flags(flags: Mapping[str, Value]) -> Findings:
    """Read flags, by option name (or `<secret>_file`); text is read as in the environment.

    Also the way for code to set options: `load(flags={"data_dir": "d"})`.
    """
    for name, value in flags.items():
        option = _owner(name)
        assert option is not None, f"no option is called {name}"
        origin = Origin("flag", "--" + name.replace("_", "-"))
        if name != option.name:
            yield _from_secret_file(option, value, origin, base=Path())
        elif isinstance(value, str):
            yield _from_text(option, value, origin)
        else:
            try:
                yield option, Given(from_typed(value, option.kind, option.rule), origin)
            except Unfit as unfit:
                yield _mistake(origin.detail, unfit.problem, unfit.hint)


# --- secrets ----------------------------------------------------------------------------


def _from_secret_file(
    option: Option, path: object, origin: Origin, *, base: Path
) -> tuple[Option, Given] | errors.ConfigInvalid:
    if not isinstance(path, str) or not path:
        return _mistake(origin.detail, f"{path!r} is no path", "give the path of a file that holds the token")
    try:
        secret = (base / path).read_text(encoding="utf-8").strip()
    except OSError as error:
        return _mistake(
            origin.detail, f"{path} cannot be read: {error.strerror}", "check the path and its rights"
        )
    except UnicodeDecodeError:
        return _mistake(origin.detail, f"{path} is not text", "make a token: openssl rand -hex 32")
    if not secret:
        return _mistake(origin.detail, f"{path} is empty", "make a token: openssl rand -hex 32")
    return option, Given(secret, Origin(origin.source, f"{origin.detail} ({path})"))
