"""The configuration as text: the commented reference file, and a node's values with their origins."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from kvstore.config.loading import Examined
from kvstore.config.options import OPTIONS, SECTIONS, Option
from kvstore.config.values import Unit, Value, written

_HEAD = """\
# Configuration of one kvstore node, with every option at its default: keep what you change.
#
#   kv server --config node.toml        kv config check node.toml        kv config show --origin
#
# Each option is also an environment variable and a flag: client_port = KV_CLIENT_PORT = --client-port.
# Flags win over the environment, the environment over this file. Sizes: 4096 or "64MiB". Times: 500 or "5s".
"""
MASK = "********"


def as_toml(value: Value, option: Option) -> str:
    """A value as it stands in the file: sizes and times with their unit."""
    text = written(value, option.rule.unit)
    is_text = isinstance(value, str) or (option.rule.unit is not Unit.NONE and not text.isdigit())
    return json.dumps(text, ensure_ascii=False) if is_text else text


def reference() -> str:
    """The text of `configs/node.toml`."""
    return "\n".join(_reference_lines()) + "\n"


def _reference_lines() -> Iterator[str]:
    yield _HEAD.rstrip()
    for section, about in SECTIONS.items():
        yield ""
        yield f"# {'-' * 98}"
        yield from _comment(about)
        yield f"[{section}]"
        for option in OPTIONS.values():
            if option.section == section:
                yield ""
                yield from _comment(_about(option))
                yield f"{option.name} = {as_toml(option.default, option)}"


def _about(option: Option) -> str:
    allowed = option.rule.allows()
    return f"{option.rule.about} ({allowed})" if allowed and not option.rule.choices else option.rule.about


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, width=100, initial_indent="# ", subsequent_indent="# ")


def shown(examined: Examined) -> Iterator[tuple[str, str, str, str]]:
    """Yield (section, option, value as in the file, origin); secrets are masked."""
    assert examined.config is not None
    for name, value in examined.config.flat().items():
        option = OPTIONS[name]
        text = as_toml(MASK if option.rule.secret and value else value, option)
        yield option.section, name, text, str(examined.origins[name])
