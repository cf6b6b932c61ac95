"""Who asks: API keys with owners, visitors of the web page, and how much each may create.

API keys are kept as SHA-256 only; they are long and random, so nothing slower is needed. On the web page an
owner is a random cookie that nobody else knows; forms carry a token made from it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvstore import errors

COOKIE = "kv_shortener"
_KEY_LENGTH_MIN = 16
_CLIENTS_MAX = 50_000
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_COOKIE = re.compile(r"[A-Za-z0-9_-]{43}\Z")


class ApiKeys:
    """Which key belongs to which owner."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        """`owners` by key, in the clear; it is not kept."""
        for key, owner in owners.items():
            if not _OWNER.match(owner) or owner.startswith("web-"):
                raise errors.BadOption(
                    option="owner", given=repr(owner)[:60], allowed="letters, digits, _ . -, not web-..."
                )
            if len(key) < _KEY_LENGTH_MIN:
                raise errors.BadOption(
                    option="API key", given=f"{len(key)} characters", allowed=f"at least {_KEY_LENGTH_MIN}"
                )
        self._owners = {_digest(key): owner for key, owner in owners.items()}

    def owner(self, key: str) -> str | None:
        """Whose key this is."""
        return self._owners.get(_digest(key))


def new_key() -> str:
    """An API key, or a visitor's cookie."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody on the web page."""

    cookie: str
    new: bool
    """The browser does not have the cookie yet."""

    @classmethod
    def of(cls, cookie: str | None) -> Visitor:
        """The one with this cookie, or a new one."""
        if cookie is not None and _COOKIE.match(cookie):
            return cls(cookie, new=False)
        return cls(new_key(), new=True)

    @property
    def owner(self) -> str:
        """As whom they own links."""
        return f"web-{_digest('owner ' + self.cookie)[:32]}"

    @property
    def form_token(self) -> str:
        """What their forms carry."""
        return hmac.new(self.cookie.encode(), b"form", "sha256").hexdigest()

    def gave_out(self, token: str) -> bool:
        """Whether a form is from us to them."""
        return not self.new and hmac.compare_digest(token.encode(), self.form_token.encode())


class Limiter:
    """Token buckets by client: a rate a minute, half of it at once. A large request leaves a debt."""

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._per_s = per_minute / 60
        self._burst = max(per_minute / 2, 1.0)
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, count: int) -> float:
        """0 when it may go on, else the seconds to wait."""
        now = self._monotonic()
        tokens, seen = self._buckets.get(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - seen) * self._per_s)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - count if allowed else tokens, now)
        self._buckets.move_to_end(client)
        while len(self._buckets) > _CLIENTS_MAX:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_s


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
