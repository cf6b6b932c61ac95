"""Envoy's rate limit service over gRPC, for Envoy, Istio and whatever else speaks it.

    envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit

Each descriptor is one call: its entry `rule` names the rule (Envoy's `generic_key` with `descriptor_key:
rule`), and where there is none, the request's domain does; the other entries are the key, as a query string:
`remote_address=10.0.0.1`, `path=%2Fpay&user=42`. So overrides can name them. Rules kept here:
- a descriptor whose rule nobody knows is not limited, as in Envoy's own service;
- all descriptors are charged, and one that is over its limit makes the answer OVER_LIMIT;
- a rule that fails closed is OVER_LIMIT and one that fails open is OK: that is the rule's to say, not that of
  Envoy's `failure_mode_deny`, which is for a service that does not answer at all;
- hits_addend 0 of a descriptor asks and charges nothing; 0 of the request is its default, 1;
- rules that hold leases are refused, for Envoy has no word for giving them back; a limit inside a
  descriptor (`limit`) is not heeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import grpc

from kvstore import errors
from kvstore.apps.ratelimit import headers
from kvstore.apps.ratelimit.envoy_schema import (
    OK,
    OVER_LIMIT,
    SERVICE,
    UNITS_US,
    RateLimitRequest,
    RateLimitResponse,
)
from kvstore.apps.ratelimit.ledger import Verdict
from kvstore.apps.ratelimit.limiter import COST_MAX, Limiter, Outcome
from kvstore.apps.ratelimit.metrics import Metrics

RULE_ENTRY = "rule"
DESCRIPTORS_MAX = 64
_UINT32_MAX = (1 << 32) - 1


def addressed(domain: str, descriptor: Any) -> tuple[str, str]:
    """The rule and the key of a descriptor."""
    pairs = [(entry.key, entry.value) for entry in descriptor.entries]
    named = [value for key, value in pairs if key == RULE_ENTRY]
    return (named[0] if named else domain), urlencode([pair for pair in pairs if pair[0] != RULE_ENTRY])


class RateLimitService:
    """Answers ShouldRateLimit."""

    def __init__(self, limiter: Limiter, metrics: Metrics, *, log: Any) -> None:
        self._limiter = limiter
        self._metrics = metrics
        self._log = log

    async def should_rate_limit(self, request: Any, context: Any) -> Any:
        """One call of the protocol."""
        clock = asyncio.get_running_loop().time
        began, code = clock(), "INTERNAL"
        try:
            self._check(request)
            answer = await self._answer(request)
            code = "OVER_LIMIT" if answer.overall_code == OVER_LIMIT else "OK"
            return answer
        except errors.BadRequest as mistake:
            code = "INVALID_ARGUMENT"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, mistake.message)
        finally:
            seconds = clock() - began
            self._metrics.grpc_requests.labels(code).inc()
            self._metrics.grpc_seconds.observe(seconds)
            self._log.info(
                "grpc",
                method="ShouldRateLimit",
                domain=request.domain,
                descriptors=len(request.descriptors),
                code=code,
                ms=round(seconds * 1000, 3),
                peer=context.peer(),
            )

    def _check(self, request: Any) -> None:
        if not request.domain or not 1 <= len(request.descriptors) <= DESCRIPTORS_MAX:
            allowed = f"a domain and 1 to {DESCRIPTORS_MAX} descriptors"
            raise errors.BadOption(option="request", given="another", allowed=allowed)
        for descriptor in request.descriptors:
            rule = self._limiter.rules.get(addressed(request.domain, descriptor)[0])
            if rule is not None and rule.holds:
                raise errors.BadOption(option="rule", given=rule.name, allowed="one that holds no leases")

    async def _answer(self, request: Any) -> Any:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._one(request, descriptor)) for descriptor in request.descriptors]
        outcomes = [task.result() for task in asked]
        answer = RateLimitResponse(overall_code=OK)
        for outcome in outcomes:
            _tell(answer.statuses.add(), outcome)
            if outcome is not None and not outcome.allowed:
                answer.overall_code = OVER_LIMIT
        known = [outcome for outcome in outcomes if outcome is not None]
        tightest = min(known, key=_room, default=None)
        if tightest is not None:
            for name, value in headers.headers_of(tightest):
                answer.response_headers_to_add.add(key=name.lower(), value=value)
            if not tightest.allowed:
                status, _, answer.raw_body = headers.refusal_of(tightest)
                assert status != 200
                answer.response_headers_to_add.add(key="content-type", value=headers.PROBLEM_TYPE)
        return answer

    async def _one(self, request: Any, descriptor: Any) -> Outcome | None:
        """None: nobody limits it."""
        rule, key = addressed(request.domain, descriptor)
        if rule not in self._limiter.rules:
            return None
        has_own = descriptor.HasField("hits_addend")
        cost = descriptor.hits_addend.value if has_own else request.hits_addend or 1
        if cost:
            # Envoy lets a request pass when it is told of a mistake.
            return await self._limiter.check(rule, key, min(cost, COST_MAX))
        seen = await self._limiter.peek(rule, key)
        is_over = not seen.failed and not seen.verdict.remaining
        return seen._replace(verdict=Verdict(False, seen.verdict.decisions)) if is_over else seen


def _room(outcome: Outcome) -> tuple[bool, int]:
    return outcome.allowed, outcome.verdict.remaining


def _tell(status: Any, outcome: Outcome | None) -> None:
    """What became of one descriptor."""
    status.code = OK if outcome is None or outcome.allowed else OVER_LIMIT
    if outcome is None or outcome.failed:
        return
    decisions = outcome.verdict.decisions
    at = min(range(len(decisions)), key=lambda index: decisions[index].remaining)
    limit = outcome.limits[at]
    status.current_limit.name = headers.policies_of(outcome)[at]
    status.current_limit.requests_per_unit = min(limit.amount, _UINT32_MAX)
    status.current_limit.unit = UNITS_US.get(limit.period_us, 0)
    status.limit_remaining = min(decisions[at].remaining, _UINT32_MAX)
    status.duration_until_reset.FromMicroseconds(max(decisions[at].reset_after_us, 0))


@asynccontextmanager
async def listening(service: RateLimitService, *, host: str, port: int, drain_s: float) -> AsyncIterator[int]:
    """Serve while the block lasts, and finish what is under way; the port. Raises errors.PortInUse."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        _typed(service.should_rate_limit),
        request_deserializer=RateLimitRequest.FromString,
        response_serializer=RateLimitResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"ShouldRateLimit": handler}),)
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        raise errors.PortInUse(address=address) from None
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(drain_s)


def _typed(function: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    """Whatever: the types of grpc know only handlers that block."""
    return function
