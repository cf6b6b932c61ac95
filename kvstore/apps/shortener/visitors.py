"""What is told apart about a visitor: the site they came from, a country, a class of device. No addresses."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

from kvstore.apps.shortener.problems import BadUrl
from kvstore.apps.shortener.targets import host_of

DIRECT, UNKNOWN, OTHER = "direct", "--", "other"
DEVICES = ("desktop", "mobile", "tablet", "bot", "other")
_HEADER_MAX = 2048
_KNOWN_MAX = 2048
"""Headers whose meaning is remembered: most visitors send what others sent before."""
_BOT = re.compile(
    r"bot\b|bot/|crawl|spider|slurp|curl/|wget/|python-|httpx|go-http|preview|headless", re.IGNORECASE
)
_TABLET = re.compile(r"ipad|tablet|kindle|silk/|android(?!.*mobile)", re.IGNORECASE)
_MOBILE = re.compile(r"mobi|iphone|ipod|android|opera mini", re.IGNORECASE)
_DESKTOP = re.compile(r"windows|macintosh|x11|linux|cros", re.IGNORECASE)


def referrer_host(header: str | None) -> str:
    """The host a visitor came from."""
    return _referrer_host(header[:_HEADER_MAX]) if header else DIRECT


@lru_cache(_KNOWN_MAX)
def _referrer_host(text: str) -> str:
    try:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return OTHER
        return host_of(parts.hostname)
    except (ValueError, BadUrl):
        return OTHER


def country(header: str | None) -> str:
    """Two letters, as a proxy says."""
    text = (header or "").strip().upper()
    return text if len(text) == 2 and text.isascii() and text.isalpha() else UNKNOWN


def device(user_agent: str | None) -> str:
    """One of DEVICES."""
    return _device((user_agent or "")[:_HEADER_MAX])


@lru_cache(_KNOWN_MAX)
def _device(text: str) -> str:
    for name, pattern in (("bot", _BOT), ("tablet", _TABLET), ("mobile", _MOBILE), ("desktop", _DESKTOP)):
        if pattern.search(text):
            return name
    return "other"
