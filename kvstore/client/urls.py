"""Where a cluster is: `kv://host[:port][,host[:port]...]`, or several such."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from kvstore import errors

DEFAULT_PORT = 7401
_PORT, _PORT_MAX = re.compile(r"[0-9]{1,5}"), 65_535
_SHAPE = "kv://host:port[,host:port...]"


def addresses_of(url: str | Sequence[str]) -> list[str]:
    """`host:port` each, in the given order, each once. Raises errors.BadOption."""
    found: list[str] = []
    if not isinstance(url, Iterable):
        raise errors.BadOption(option="url", given=repr(url)[:200], allowed=_SHAPE)
    for each in [url] if isinstance(url, str) else url:
        scheme, marker, rest = each.partition("://") if isinstance(each, str) else ("", "", "")
        if not marker or scheme != "kv":
            raise errors.BadOption(option="url", given=repr(each)[:200], allowed=_SHAPE)
        for part in rest.rstrip("/").split(","):
            address = _address(part)
            if address is None:
                raise errors.BadOption(option="url", given=repr(each)[:200], allowed=_SHAPE)
            found.append(address)
    if not found:
        raise errors.BadOption(option="url", given="nothing", allowed=_SHAPE)
    return list(dict.fromkeys(found))


def check_node(node: object) -> None:
    """Raises errors.BadOption unless it is `host:port`."""
    host, _, port = node.rpartition(":") if isinstance(node, str) else ("", "", "")
    if not _PORT.fullmatch(port) or int(port) > _PORT_MAX or not _is_host(host.strip("[]")):
        raise errors.BadOption(option="node", given=repr(node)[:200], allowed="host:port")


def _is_host(host: str) -> bool:
    """Whether it can be looked up at all: no empty label, none above 63 characters."""
    try:
        return len(host.encode("idna")) > 0 and "\0" not in host
    except UnicodeError:
        return False


def _address(part: str) -> str | None:
    try:
        split = urlsplit(f"//{part}")
        host, port = split.hostname, split.port
    except ValueError:
        return None
    if (
        not host
        or not _is_host(host)
        or split.username is not None
        or split.path
        or split.query
        or split.fragment
        or port == 0
    ):
        return None
    return f"[{host}]:{port or DEFAULT_PORT}" if ":" in host else f"{host}:{port or DEFAULT_PORT}"
