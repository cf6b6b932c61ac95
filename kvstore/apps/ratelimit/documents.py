"""Files of rules as plain data: TOML, or YAML when the name ends in .yaml or .yml. Keys may not repeat."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from kvstore import errors

YAML_SUFFIXES = (".yaml", ".yml")
_HINT = "see docs/ratelimit.md for what a rule may say"


def is_yaml(path: str | Path) -> bool:
    """Whether a file of this name is YAML."""
    return Path(path).suffix.lower() in YAML_SUFFIXES


def from_toml(text: str, *, source: str) -> Any:
    """What the text says. Raises errors.ConfigInvalid."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, and depths without end
        raise _invalid(source, error) from None


def from_yaml(text: str, *, source: str) -> Any:
    """What the text says. Raises errors.ConfigInvalid, also when PyYAML is not installed."""
    try:
        import yaml  # noqa: PLC0415  only who has YAML needs it
    except ModuleNotFoundError:
        raise errors.ConfigInvalid(
            where=source, problem="PyYAML is not installed", hint="pip install 'kvring[apps]'"
        ) from None

    class Strict(yaml.SafeLoader):
        """PyYAML lets the last of two equal keys win; here that is a mistake."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for name in names:
                if names.count(name) > 1:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{name!r} stands there twice", problem_mark=node.start_mark
                    )
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(text, Loader=Strict)  # noqa: S506  it is the safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(source, error) from None
    except (LookupError, AttributeError, TypeError, ArithmeticError):
        # PyYAML takes a value with a tag for one that the tag fits.
        raise _invalid(source, "a value is not what its tag (!!...) says") from None


def _invalid(source: str, problem: Exception | str) -> errors.ConfigInvalid:
    return errors.ConfigInvalid(where=source, problem=" ".join(str(problem).split()), hint=_HINT)
