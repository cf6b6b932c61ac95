"""What HTTP says of an outcome: header fields, and a problem document when it is refused.

- `RateLimit-Policy`, `RateLimit`: draft-ietf-httpapi-ratelimit-headers-10; a bucket is told as its burst and
  the time that takes to fill, concurrency in the unit `concurrent-requests`;
- `X-RateLimit-Limit`, `-Remaining`, `-Reset`: the older ones, of the limit with the least left, in seconds;
- `X-RateLimit-Source`: strict, local, failed-open or failed-closed;
- `Retry-After`: whole seconds, when waiting helps;
- RFC 9457 problems, 429 for a refusal, 503 when a rule fails closed.
"""

from __future__ import annotations

import json
from typing import Any, Final

from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limiter import Outcome

PROBLEM_TYPE: Final = "application/problem+json"
_TYPES: Final = "https://iana.org/assignments/http-problem-types#"
_SECOND_US: Final = 1_000_000

Headers = list[tuple[str, str]]


def headers_of(outcome: Outcome) -> Headers:
    """The fields for the answer to a call, allowed or not."""
    names = policies_of(outcome)
    found = [
        ("RateLimit-Policy", ", ".join(map(_policy, names, outcome.limits))),
        ("X-RateLimit-Source", outcome.source.value),
    ]
    if not outcome.failed:
        decisions = outcome.verdict.decisions
        told = [
            f'"{name}";r={each.remaining};t={_seconds(each.reset_after_us)}'
            for name, each in zip(names, decisions, strict=True)
        ]
        tightest = min(range(len(decisions)), key=lambda at: decisions[at].remaining)
        found += [
            ("RateLimit", ", ".join(told)),
            ("X-RateLimit-Limit", str(outcome.limits[tightest].capacity)),
            ("X-RateLimit-Remaining", str(decisions[tightest].remaining)),
            ("X-RateLimit-Reset", str(_seconds(decisions[tightest].reset_after_us))),
        ]
    if outcome.retry_after_s is not None:
        found.append(("Retry-After", str(outcome.retry_after_s)))
    return found


def policies_of(outcome: Outcome) -> list[str]:
    """A name for each limit of the rule."""
    if len(outcome.limits) == 1:
        return [outcome.rule]
    return [f"{outcome.rule}.{number}" for number in range(1, len(outcome.limits) + 1)]


def _policy(name: str, limit: Limit) -> str:
    if limit.algorithm is Algorithm.CONCURRENCY:
        return f'"{name}";q={limit.amount};qu="concurrent-requests"'
    fills_us = -(-limit.period_us * limit.capacity // limit.amount)
    return f'"{name}";q={limit.capacity};w={max(_seconds(fills_us), 1)}'


def _seconds(us: int) -> int:
    return -(-us // _SECOND_US)


def status_of(outcome: Outcome) -> int:
    """200, 429, or 503 when a rule failed closed."""
    if outcome.allowed:
        return 200
    return 503 if outcome.failed else 429


def document_of(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain data; a problem when it is refused."""
    verdict = outcome.verdict
    told = {
        "allowed": outcome.allowed,
        "rule": outcome.rule,
        "key": outcome.key,
        "source": outcome.source.value,
        "remaining": verdict.remaining,
        "reset_after_ms": -(-verdict.reset_after_us // 1000),
        "delay_ms": -(-verdict.delay_us // 1000),
    }
    if outcome.lease:
        told["lease"] = outcome.lease
    if outcome.allowed:
        return told
    if outcome.failed:
        problem: dict[str, Any] = {
            "type": _TYPES + "temporary-reduced-capacity",
            "title": "The limits of this request cannot be checked now",
        }
    else:
        refusing = zip(policies_of(outcome), verdict.decisions, strict=True)
        problem = {
            "type": _TYPES + "quota-exceeded",
            "title": "Request cannot be satisfied as assigned quota has been exceeded",
            "violated-policies": [name for name, each in refusing if not each.allowed],
        }
    if verdict.retry_after_us >= 0:
        told["retry_after_ms"] = -(-verdict.retry_after_us // 1000)
    return {**problem, "status": status_of(outcome), **told}


def refusal_of(outcome: Outcome) -> tuple[int, Headers, bytes]:
    """A whole answer to a call that is refused."""
    body = json.dumps(document_of(outcome)).encode()
    fields = [("Content-Type", PROBLEM_TYPE), ("Content-Length", str(len(body)))]
    return status_of(outcome), [*headers_of(outcome), *fields], body
