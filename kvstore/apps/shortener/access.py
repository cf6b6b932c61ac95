"""Who asks: API keys with owners, visitors of the web page, and how much each may create.

API keys are kept as SHA-256 only; they are long and random, so nothing slower is needed. On the web page an
owner is a random cookie that nobody else knows; forms carry a token made from it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import kvstore
from kvstore import errors
from kvstore.apps.ratelimit import Algorithm, Limit, Limiter, Mode, OnFailure, Rule
from kvstore.apps.shortener.problems import TooMany

COOKIE = "kv_shortener"
_KEY_LENGTH_MIN = 16
_RULE = "shortener-create"
BATCH_MAX = 50
_LEASE_US = 10_000_000
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


class Creations:
    """How much each client may create: a token bucket of the rate limiter, one for all services together.

    Exact up to a limit of two a second. Above that each service takes what a client may make in a second at
    once, up to BATCH_MAX, and the limit may be exceeded by that much for each service.
    """

    def __init__(self, kv: kvstore.Client, *, per_minute: int, burst: int) -> None:
        limit = Limit(algorithm=Algorithm.TOKEN_BUCKET, amount=per_minute, period_us=60_000_000, burst=burst)
        batch = min(per_minute // 60, burst, BATCH_MAX)
        rule = Rule(
            name=_RULE,
            limits=(limit,),
            mode=Mode.LOCAL if batch > 1 else Mode.STRICT,
            batch=max(batch, 1),
            lease_us=_LEASE_US,
            # Without the store nothing can be created anyway, and that is better told as such.
            on_failure=OnFailure.OPEN,
        )
        self._burst = burst
        self._limiter = Limiter(kv, {_RULE: rule})

    async def admit(self, client: str, count: int = 1) -> None:
        """Let a client create, or not now. Raises TooMany."""
        if count > self._burst:
            raise TooMany(f"at most {self._burst} links at once", retry_after=60)
        outcome = await self._limiter.check(_RULE, client, count)
        if not outcome:
            raise TooMany("wait a moment", retry_after=outcome.retry_after_s or 60)

    async def close(self) -> None:
        """End what the limiter does beside its callers."""
        await self._limiter.close()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
