"""Which addresses may be linked to. Decided by parsing alone: nothing is ever fetched or looked up.

A target is `http` or `https` with a real host, no credentials, no control characters; not this service
itself (a loop), not a blocked host or one below it, and not a private one unless that is allowed. Numbers
are taken the way browsers take them, so `http://2130706433`, `0x7f.1` and `[::ffff:127.0.0.1]` are all
127.0.0.1; so are names (UTS 46, nothing transitional): `faß.de` is not `fass.de`. A public *name* may still
point to a private address: only who follows the link would know.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

import idna

from kvstore.apps.shortener.problems import BadUrl

LENGTH_MAX = 4096
_HOST_MAX = 253
_SCHEMES = ("http", "https")
_PRIVATE_SUFFIXES = (
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "lan",
    "home.arpa",
    "corp",
    "home",
)
_SAFE = "%/:?#[]@!$&'()*+,;=-._~"
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = tuple(ipaddress.IPv6Network(each) for each in ("::/96", "fec0::/10", "64:ff9b:1::/48"))
"""IPv4-compatible, site-local (both given up, still routed here and there), and NAT64 of a network's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRules:
    """What the operator allows."""

    own_hosts: frozenset[str] = frozenset()
    """Hosts of this service: a link to them could go in circles."""
    blocked: frozenset[str] = frozenset()
    """Hosts that may not be linked to, with all below them."""
    allow_private: bool = False
    """Loopback, private networks and names without a dot; for development and intranets."""


def check_url(text: str, rules: TargetRules) -> str:
    """The address as it is stored, in ASCII. Raises BadUrl."""
    if not 1 <= len(text) <= LENGTH_MAX:
        raise BadUrl(f"an address has 1 to {LENGTH_MAX} characters, this one has {len(text)}")
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs") for char in text):
        raise BadUrl("an address has no blanks and no control or invisible characters")
    if "\\" in text:
        raise BadUrl("an address has no backslashes")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise BadUrl("this is no address") from None
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES or not parts.hostname:
        raise BadUrl("an address begins with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise BadUrl("an address carries no user name and no password")
    host = host_of(parts.hostname)
    _check_host(host, rules)
    shown = f"[{host}]" if ":" in host else host
    netloc = shown if port is None else f"{shown}:{port}"
    path, query, fragment = (quote(part, safe=_SAFE) for part in (parts.path, parts.query, parts.fragment))
    stored = urlunsplit((scheme, netloc, path or "/", query, fragment))
    if len(stored) > LENGTH_MAX:
        raise BadUrl(f"an address has at most {LENGTH_MAX} characters when it is encoded")
    return stored


def host_of(text: str) -> str:
    """A host in one form: an address as numbers, a name in lower case and ASCII. Raises BadUrl."""
    if ":" in text:
        return _numbered(text)
    if len(text.removesuffix(".")) > _HOST_MAX:  # before encoding, whose cost grows with the square
        raise BadUrl("this is no host name")
    try:
        mapped = idna.uts46_remap(text, std3_rules=False).removesuffix(".")
    except idna.IDNAError:
        raise BadUrl("this is no host name") from None
    labels = [_ascii_of(label) for label in mapped.split(".")]
    name = ".".join(labels)
    if _NUMBER.match(labels[-1]):  # WHATWG: who ends in a number is an IPv4 address
        try:
            return str(ipaddress.IPv4Address(socket.inet_aton(name)))
        except OSError:
            raise BadUrl("this is no IPv4 address") from None
    if len(name) > _HOST_MAX or not all(_LABEL.match(label) for label in labels):
        raise BadUrl("this is no host name")
    return name


def _numbered(text: str) -> str:
    """An IPv6 address in one form; an IPv4 address that is only written as one, as what it is."""
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise BadUrl("this is no IPv6 address") from None
    if address.scope_id is not None:
        raise BadUrl("an address has no zone: it would mean something else on each machine")
    return str(address.ipv4_mapped or address)


def _ascii_of(label: str) -> str:
    return label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"


def _check_host(host: str, rules: TargetRules) -> None:
    for each in _names_of(host):
        if each in rules.own_hosts:
            raise BadUrl("a link to this service itself could go in circles")
        labels = each.split(".")
        if any(".".join(labels[at:]) in rules.blocked for at in range(len(labels))):
            raise BadUrl("links to this host are blocked here")
    if not rules.allow_private and _is_private(host):
        raise BadUrl("links to private and local hosts are not allowed here")


def _names_of(host: str) -> list[str]:
    """What rules may call it: itself, and the IPv4 address that it carries through a gateway."""
    inner = _carried(ipaddress.IPv6Address(host)) if ":" in host else None
    return [host] if inner is None else [host, str(inner)]


def _is_private(host: str) -> bool:
    try:
        address: _Address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or any(host == name or host.endswith(f".{name}") for name in _PRIVATE_SUFFIXES)
    return not _is_public(address)


def _is_public(address: _Address) -> bool:
    """Also of the IPv4 address that some IPv6 addresses carry."""
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _NOT_PUBLIC):
            return False
        inner = _carried(address)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour
