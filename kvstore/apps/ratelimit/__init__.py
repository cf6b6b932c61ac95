"""Rate limits over the store: exact, decided together, with a stated bound where they are leased.

    limiter = Limiter(kv, load("rules.toml"))
    outcome = await limiter.check("api", "customer:42")

`kvstore.apps.ratelimit.asgi` and `.wsgi` have middleware, `.service` the HTTP service; docs/ratelimit.md
says what each algorithm promises.
"""

from kvstore.apps.ratelimit.blocking import BlockingLimiter
from kvstore.apps.ratelimit.breaker import Breaker
from kvstore.apps.ratelimit.decorating import RateLimited, limited
from kvstore.apps.ratelimit.limit import Algorithm, Decision, Limit
from kvstore.apps.ratelimit.limiter import Limiter, Outcome, Source, UnknownRule
from kvstore.apps.ratelimit.rules import Mode, OnFailure, Rule, Rules, load, parse

__all__ = [
    "Algorithm",
    "BlockingLimiter",
    "Breaker",
    "Decision",
    "Limit",
    "Limiter",
    "Mode",
    "OnFailure",
    "Outcome",
    "RateLimited",
    "Rule",
    "Rules",
    "Source",
    "UnknownRule",
    "limited",
    "load",
    "parse",
]
