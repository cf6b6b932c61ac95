"""The table of options: one name for file, environment and command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from kvstore.config.sections import NodeConfig
from kvstore.config.values import Rule, Value


@dataclass(frozen=True, slots=True)
class Option:
    """One option, under the names it has everywhere."""

    name: str
    section: str
    default: Value
    rule: Rule

    @property
    def kind(self) -> type[Value]:
        """The type of its value."""
        return type(self.default)

    @property
    def environment(self) -> str:
        """Its environment variable."""
        return f"KV_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """Its command-line flag. A secret has none: command lines can be seen by everybody."""
        name = f"{self.name}_file" if self.rule.secret else self.name
        return "--" + name.replace("_", "-")


def _table() -> dict[str, Option]:
    defaults = NodeConfig()
    table: dict[str, Option] = {}
    for name, section in defaults.sections().items():
        for each in fields(section):
            assert each.name not in table, f"two options are called {each.name}"
            default: Value = getattr(section, each.name)
            table[each.name] = Option(each.name, name, default, each.metadata["rule"])
    return table


OPTIONS: Mapping[str, Option] = _table()
"""Every option by its name, in the order of the file."""
SECTIONS: Mapping[str, str] = {
    name: (type(section).__doc__ or "").strip() for name, section in NodeConfig().sections().items()
}
"""Sections and what they are about, in the order of the file."""
