"""A decorator: a function that may be called so often and no more.

    @limited(limiter, "mails", key=lambda user, *_: user.id)
    async def send_mail(user, text): ...

With a `Limiter` the function is a coroutine function, with a `BlockingLimiter` a plain one. A call that is
refused raises `RateLimited`, and the function is not called.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from kvstore import errors
from kvstore.apps.ratelimit.blocking import BlockingLimiter
from kvstore.apps.ratelimit.limiter import Limiter, Outcome

_P = ParamSpec("_P")
_R = TypeVar("_R")


class RateLimited(errors.NotNow):
    """Fields: rule, key, wait. `outcome` has the rest."""

    name = "rate_limited"
    code = "KV-L02"
    http = 429
    template = "rule {rule!r} refuses {key!r} for now; {wait}"
    remedy = "wait as long as it says"

    outcome: Outcome

    @classmethod
    def by(cls, outcome: Outcome) -> RateLimited:
        """The error of an outcome."""
        wait = f"again in {outcome.retry_after_s} s" if outcome.retry_after_s else "it will never fit"
        error = cls(rule=outcome.rule, key=outcome.key, wait=wait)
        error.outcome = outcome
        return error


def limited(
    limiter: Limiter | BlockingLimiter,
    rule: str,
    *,
    key: str | Callable[..., str] = "",
    cost: int | Callable[..., int] = 1,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Limit a function. `key` and `cost`: the same for all calls, or made from a call's arguments."""

    def terms(*args: Any, **kwargs: Any) -> tuple[str, str, int]:
        return (
            rule,
            key(*args, **kwargs) if callable(key) else key,
            cost(*args, **kwargs) if callable(cost) else cost,
        )

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        wrap = _blocking if isinstance(limiter, BlockingLimiter) else _awaiting
        return cast("Callable[_P, _R]", functools.wraps(function)(wrap(function, limiter, terms)))

    return decorate


def _awaiting(function: Any, limiter: Any, terms: Callable[..., tuple[str, str, int]]) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        async with limiter.held(*terms(*args, **kwargs)) as outcome:
            if not outcome.allowed:
                raise RateLimited.by(outcome)
            if outcome.delay_s:
                await asyncio.sleep(outcome.delay_s)
            return await function(*args, **kwargs)

    return call


def _blocking(function: Any, limiter: Any, terms: Callable[..., tuple[str, str, int]]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with limiter.held(*terms(*args, **kwargs)) as outcome:
            if not outcome.allowed:
                raise RateLimited.by(outcome)
            if outcome.delay_s:
                time.sleep(outcome.delay_s)
            return function(*args, **kwargs)

    return call
