"""Put the sources together into one checked configuration, or say everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from kvstore import errors
from kvstore.config.options import OPTIONS
from kvstore.config.relations import broken
from kvstore.config.sections import NodeConfig
from kvstore.config.sources import Given, Origin, from_environment, from_file, from_flags
from kvstore.config.values import Value

DEFAULT = Origin("default")


@dataclass(slots=True)
class Examined:
    """What the sources amount to."""

    config: NodeConfig | None = None
    """None when there are mistakes."""
    origins: dict[str, Origin] = field(default_factory=dict[str, Origin])
    """Where each option's value came from, by option name."""
    mistakes: list[errors.ConfigInvalid] = field(default_factory=list[errors.ConfigInvalid])


def examine(
    path: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Value] | None = None,
) -> Examined:
    """Read all sources and check everything; mistakes are collected, not raised."""
    found: dict[str, Given] = {}
    examined = Examined()
    for source in (
        from_file(Path(path)) if path is not None else (),
        from_environment(environment or {}),
        from_flags(flags or {}),
    ):
        for finding in source:
            if isinstance(finding, errors.ConfigInvalid):
                examined.mistakes.append(finding)
            else:
                option, given = finding
                found[option.name] = given
    examined.origins = {name: found[name].origin if name in found else DEFAULT for name in OPTIONS}
    values = {
        name: found[name].value if name in found else option.default for name, option in OPTIONS.items()
    }
    for breach in broken(values):
        where = examined.origins[breach.option]
        if where is DEFAULT:
            # The option to change was not given; point at what made it matter.
            where = next((o for o in examined.origins.values() if o is not DEFAULT), DEFAULT)
        examined.mistakes.append(
            errors.ConfigInvalid(where=str(where), problem=breach.problem, hint=breach.hint)
        )
    if not examined.mistakes:
        examined.config = _build(values)
    return examined


def load(
    path: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Value] | None = None,
) -> NodeConfig:
    """The configuration from a file, then `KV_*` variables, then flags; the last one wins.

    `flags` go by option name and are also how code sets options: `load(flags={"data_dir": "d"})`.
    The environment is not read unless handed in. Raises errors.ConfigInvalid for the first mistake.
    """
    examined = examine(path, environment, flags)
    if examined.config is None:
        raise examined.mistakes[0]
    return examined.config


def _build(values: Mapping[str, Value]) -> NodeConfig:
    sections = {
        name: type(section)(**{each.name: values[each.name] for each in fields(section)})  # type: ignore[arg-type]
        for name, section in NodeConfig().sections().items()
    }
    return NodeConfig(**sections)  # type: ignore[arg-type]
