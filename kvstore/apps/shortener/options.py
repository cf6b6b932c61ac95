"""What an operator of the service chooses; each option is checked once, with its relations."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from kvstore import errors
from kvstore.apps.shortener import codes
from kvstore.apps.shortener.targets import TargetRules, host_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortenerOptions:
    """Options of the service."""

    base_url: str = "http://127.0.0.1:8080"
    """What short links begin with, as people outside see it."""
    code_length: int = codes.LENGTH
    """Characters of a code; 7 are 41 bits."""
    allow_private: bool = False
    """Whether links may lead to private and local hosts."""
    blocked: frozenset[str] = frozenset()
    """Hosts that may not be linked to, with all below them."""
    web: bool = True
    """Whether anybody may make links on the web page, without an API key."""
    trust_proxy: bool = False
    """Whether the last address of `X-Forwarded-For` is the client: only behind a proxy that sets it."""
    country_header: str = "cf-ipcountry"
    """The request header that a proxy puts the visitor's country into."""
    creations_per_minute: int = 60
    """Links a client (an owner, or an address on the page) may make a minute, at all services together."""
    creations_burst: int = 100
    """Links a client may make at once."""
    cache_ttl_s: float = 5.0
    """How long a link is served from memory before it is read again."""
    verify_s: float = 10.0
    """How long reads from one replica are trusted before a quorum is asked again."""
    cache_links: int = 50_000
    """Links kept in memory."""
    permanent_age_s: int = 86_400
    """How long browsers may keep a 301: the longest that an edit of a permanent link takes to reach them."""
    flush_s: float = 0.5
    """Seconds between records of clicks; with the time a write may take, what `kill -9` can lose."""
    counters_per_s: int = 500
    """Additions to counters a second, a tenth of it in a rush: visitors are redirected first."""
    metrics: bool = True
    """Whether `GET /metrics` answers."""
    own_hosts: frozenset[str] = frozenset()
    """Further hosts that this service answers under."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise errors.BadOption(
                option="base_url", given=repr(self.base_url)[:60], allowed="http(s)://host[:port]"
            )
        if parts.path not in ("", "/"):
            raise errors.BadOption(option="base_url", given=parts.path[:60], allowed="no path")
        _within("code_length", self.code_length, codes.LENGTH_MIN, codes.LENGTH_MAX)
        _within("creations_per_minute", self.creations_per_minute, 1, 1_000_000)
        _within("creations_burst", self.creations_burst, 1, 1_000_000)
        _within("cache_ttl_s", self.cache_ttl_s, 0, 60)
        _within("verify_s", self.verify_s, self.cache_ttl_s, 300)
        _within("cache_links", self.cache_links, 1, 10_000_000)
        _within("permanent_age_s", self.permanent_age_s, 0, 31_536_000)
        _within("counters_per_s", self.counters_per_s, 1, 1_000_000)
        _within("flush_s", self.flush_s, 0.01, 1.0)

    @property
    def spread_s(self) -> float:
        """How long a change made elsewhere stays unseen at most, while a quorum can be reached."""
        return self.verify_s + self.cache_ttl_s

    def rules(self) -> TargetRules:
        """What may be linked to."""
        own = frozenset(host_of(host) for host in (urlsplit(self.base_url).hostname or "", *self.own_hosts))
        return TargetRules(
            own_hosts=own,
            blocked=frozenset(host_of(host) for host in self.blocked),
            allow_private=self.allow_private,
        )

    def short_url(self, code: str) -> str:
        """A link as people get it."""
        return f"{self.base_url.rstrip('/')}/{quote(code)}"


def _within(name: str, given: float, lowest: float, highest: float) -> None:
    if not lowest <= given <= highest:
        raise errors.BadOption(option=name, given=str(given), allowed=f"{lowest:g} to {highest:g}")
