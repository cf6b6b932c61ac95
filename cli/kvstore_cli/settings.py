"""The global flags: on `kv` itself, and hidden on every command so that they may stand at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from kvstore import errors
from kvstore.core.admission import parse_duration
from kvstore_cli.problems import FileProblem

FORMATS = ("auto", "table", "plain", "json", "jsonl", "csv", "raw")
COLOURS = ("auto", "always", "never")
URL = "kv://127.0.0.1:7401"
TIMEOUT_MS = 5_000
DIRECTORY = "kv-data"
CLUSTER_FILE = "cluster.json"


class Duration(click.ParamType[int]):
    """`90s`, `15m`, `12h`, `7d`, `250ms`, or seconds: milliseconds. Raises errors.BadTtl, BadOption."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, once: defaults are numbers already."""
        del ctx
        if isinstance(value, int):
            return value
        try:
            return parse_duration(str(value))
        except errors.BadTtl:
            if param is None or param.name == "ttl":
                raise
            allowed = "a time above 0, as 500ms, 5s, 2m"
            raise errors.BadOption(option=param.opts[0], given=repr(value), allowed=allowed) from None


@dataclass(frozen=True, slots=True)
class Settings:
    """What the global flags said; None where they said nothing."""

    url: str | None = None
    call_timeout_ms: int | None = None
    token: str | None = None
    output: str | None = None
    color: str | None = None

    def merged(self, given: Mapping[str, Any]) -> Settings:
        """The same with whatever a command was given replaced."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @property
    def address(self) -> str:
        """Where the cluster is: as told (a bare `host:port` will do), as `kv up` left it, or port 7401."""
        return self.named or _local_url() or URL

    @property
    def named(self) -> str | None:
        """The cluster that a flag or KV_URL named; a bare `host:port` will do."""
        if not self.url:
            return None
        return self.url if "://" in self.url else f"kv://{self.url}"

    @property
    def deadline_ms(self) -> int:
        """How long a call may take."""
        return self.call_timeout_ms or TIMEOUT_MS

    @property
    def form(self) -> str:
        """The output format, with `auto` decided: a table for people, plain text for pipes."""
        if self.output in (None, "auto"):
            return "table" if sys.stdout.isatty() else "plain"
        return str(self.output)

    def colour(self, stream: Any) -> bool:
        """Whether to colour what goes to a stream."""
        if self.color in ("always", "never"):
            return self.color == "always"
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _local_url() -> str | None:
    """The nodes of the cluster in ./kv-data (or KV_DIR), so that any one of them may be down."""
    path = Path(os.environ.get("KV_DIR") or DIRECTORY) / CLUSTER_FILE
    try:
        nodes = json.loads(path.read_bytes())["nodes"]
        return "kv://" + ",".join(f"{node['host']}:{int(node['client_port'])}" for node in nodes)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def token_of(settings: Settings) -> str | None:
    """The client token: a flag, KV_TOKEN, or the file KV_TOKEN_FILE names. Raises FileProblem."""
    if settings.token:
        return settings.token
    path = os.environ.get("KV_TOKEN_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise FileProblem(path=path, reason=f"the file of KV_TOKEN_FILE cannot be read: {reason}") from None


def global_options(*, hidden: bool) -> list[click.Option]:
    """The global flags. Hidden ones have no variables and no defaults: those of `kv` itself count."""

    def option(*names: str, env: str, **more: Any) -> click.Option:
        return click.Option(list(names), envvar=None if hidden else env, hidden=hidden, default=None, **more)

    return [
        option("--url", env="KV_URL", metavar="URL", help="The cluster: kv://host:port[,host:port...]."),
        option(
            "--timeout", "call_timeout_ms", env="KV_TIMEOUT", type=Duration(), metavar="TIME",
            help="How long a call may take: 500ms, 5s. Default 5s.",
        ),
        option("--token", env="KV_TOKEN", metavar="TOKEN", help="The client token; better: KV_TOKEN_FILE."),
        option(
            "-o", "--output", env="KV_OUTPUT", type=click.Choice(FORMATS), metavar="FORMAT",
            help=f"{', '.join(FORMATS)}. auto: a table on a terminal, plain text in a pipe.",
        ),
        option(
            "--color", env="KV_COLOR", type=click.Choice(COLOURS), metavar="WHEN",
            help="auto, always or never. NO_COLOR counts too.",
        ),
    ]  # fmt: skip


NAMES = ("url", "call_timeout_ms", "token", "output", "color")
