"""Envoy's rate limit service, asked by a grpcio client over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog
from google.protobuf import descriptor_pool
from structlog.testing import LogCapture

import kvstore
from kvstore import errors
from kvstore.apps import serving as common
from kvstore.apps.ratelimit import rules, serving
from kvstore.apps.ratelimit.envoy import RateLimitService, addressed, listening
from kvstore.apps.ratelimit.envoy_schema import (
    METHOD,
    OK,
    OVER_LIMIT,
    RateLimitRequest,
    RateLimitResponse,
)
from kvstore.apps.ratelimit.limiter import COST_MAX, Limiter
from kvstore.apps.ratelimit.metrics import Metrics
from kvstore.server import local_nodes

RULES = """
rule:
  - name: edge
    limits: [{algorithm: token_bucket, limit: 2, per: 1h}]
    overrides:
      remote_address=10.0.0.9: [{algorithm: fixed_window, limit: 50, per: 1m}]
  - name: dear
    limits: [{algorithm: sliding_log, limit: 10, per: 90s}]
  - name: jobs
    limits: [{algorithm: concurrency, limit: 1, per: 1h}]
  - name: lax
    on_failure: open
    limits: [{algorithm: token_bucket, limit: 2, per: 1h}]
"""

Ask = Callable[..., Any]


def request(domain: str, *descriptors: dict[str, str], hits: int = 0, own_hits: int | None = None) -> Any:
    made = RateLimitRequest(domain=domain, hits_addend=hits)
    for entries in descriptors:
        descriptor = made.descriptors.add()
        for key, value in entries.items():
            descriptor.entries.add(key=key, value=value)
        if own_hits is not None:
            descriptor.hits_addend.value = own_hits
    return made


# --- the bytes, by hand from the field numbers of rls.proto ------------------------------


def test_a_request_is_what_the_protocol_says_byte_for_byte() -> None:
    entry = b"\x0a\x0eremote_address\x12\x08" + b"10.0.0.1"  # key = 1, value = 2
    descriptor = b"\x0a" + bytes([len(entry)]) + entry + b"\x1a\x02\x08\x07"  # entries = 1, hits_addend = 3
    unknown = b"\x12\x02\x08\x01"  # limit = 2, which is not in the schema
    descriptor += unknown
    wire = b"\x0a\x04edge\x12" + bytes([len(descriptor)]) + descriptor + b"\x18\x03"
    found = RateLimitRequest.FromString(wire)
    assert (found.domain, found.hits_addend) == ("edge", 3)
    assert found.descriptors[0].hits_addend.value == 7
    assert addressed(found.domain, found.descriptors[0]) == ("edge", "remote_address=10.0.0.1")


def test_an_answer_is_what_the_protocol_says_byte_for_byte() -> None:
    answer = RateLimitResponse(overall_code=OVER_LIMIT, raw_body=b"no")
    status = answer.statuses.add(code=OVER_LIMIT, limit_remaining=5)
    status.current_limit.name = "edge"
    status.current_limit.requests_per_unit = 2
    status.current_limit.unit = 3
    status.duration_until_reset.seconds = 9
    answer.response_headers_to_add.add(key="a", value="b")
    limit = b"\x08\x02\x10\x03\x1a\x04edge"  # requests_per_unit = 1, unit = 2 (HOUR), name = 3
    told = b"\x08\x02\x12" + bytes([len(limit)]) + limit + b"\x18\x05\x22\x02\x08\x09"
    wire = b"\x08\x02\x12" + bytes([len(told)]) + told + b"\x1a\x06\x0a\x01a\x12\x01b\x2a\x02no"
    assert answer.SerializeToString(deterministic=True) == wire


def test_names_are_envoys_and_the_default_pool_is_left_alone() -> None:
    assert RateLimitRequest.DESCRIPTOR.full_name == "envoy.service.ratelimit.v3.RateLimitRequest"
    assert RateLimitResponse.DESCRIPTOR.full_name == "envoy.service.ratelimit.v3.RateLimitResponse"
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("envoy.service.ratelimit.v3.RateLimitRequest")


def test_a_descriptor_is_a_rule_and_a_key() -> None:
    for entries, expected in (
        ({"rule": "dear", "user": "42"}, ("dear", "user=42")),
        ({"path": "/a&b=c", "user": "é"}, ("edge", "path=%2Fa%26b%3Dc&user=%C3%A9")),
        ({"rule": "dear"}, ("dear", "")),
    ):
        (descriptor,) = request("edge", entries).descriptors
        assert addressed("edge", descriptor) == expected


# --- over a socket -----------------------------------------------------------------------


@pytest.fixture
def logged() -> LogCapture:
    return LogCapture()


@pytest.fixture
async def ask(logged: LogCapture) -> AsyncIterator[Ask]:
    """A client of a service with nodes behind it."""
    log = structlog.wrap_logger(None, processors=[logged])
    async with kvstore.local_cluster(nodes=3) as kv:
        limiter = Limiter(kv, rules.parse(RULES, yaml=True), timeout_s=20)
        service = RateLimitService(limiter, Metrics(limiter), log=log)
        async with listening(service, host="127.0.0.1", port=0, drain_s=5) as port, client(port) as asking:
            yield asking
        await limiter.close()


class client:  # noqa: N801  used as a function
    """A channel of grpcio, and the one method."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def __aenter__(self) -> Ask:
        method: Any = self._channel.unary_unary(
            METHOD,
            request_serializer=RateLimitRequest.SerializeToString,
            response_deserializer=RateLimitResponse.FromString,
        )

        async def ask(made: Any) -> Any:
            return await method(made, timeout=20)

        return ask

    async def __aexit__(self, *_exc: object) -> None:
        await self._channel.close()


ADDRESS = {"remote_address": "10.0.0.1"}


@pytest.mark.e2e
@pytest.mark.slow
async def test_envoy_is_told_ok_and_then_over_limit(ask: Ask, logged: LogCapture) -> None:
    first = await ask(request("edge", ADDRESS))
    assert first.overall_code == OK
    (status,) = first.statuses
    assert (status.code, status.limit_remaining) == (OK, 1)
    assert (status.current_limit.name, status.current_limit.requests_per_unit) == ("edge", 2)
    assert status.current_limit.unit == 3
    assert 1700 < status.duration_until_reset.seconds <= 1800
    told = {header.key: header.value for header in first.response_headers_to_add}
    assert told["x-ratelimit-remaining"] == "1"
    assert told["ratelimit-policy"] == '"edge";q=2;w=3600'
    assert (await ask(request("edge", ADDRESS))).overall_code == OK
    over = await ask(request("edge", ADDRESS))
    assert (over.overall_code, over.statuses[0].code) == (OVER_LIMIT, OVER_LIMIT)
    told = {header.key: header.value for header in over.response_headers_to_add}
    assert 1700 < int(told["retry-after"]) <= 1800
    assert told["content-type"] == "application/problem+json"
    assert b"quota-exceeded" in over.raw_body
    assert (await ask(request("edge", {"remote_address": "10.0.0.2"}))).overall_code == OK
    vip = await ask(request("edge", {"remote_address": "10.0.0.9"}, hits=50))
    assert (vip.overall_code, vip.statuses[0].current_limit.unit) == (OK, 2)
    lines = [(each["event"], each["domain"], each["code"]) for each in logged.entries]
    assert lines[:3] == [("grpc", "edge", "OK"), ("grpc", "edge", "OK"), ("grpc", "edge", "OVER_LIMIT")]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("hits", [COST_MAX + 1, (1 << 32) - 1])
async def test_more_hits_than_any_limit_gives_are_over_it(ask: Ask, hits: int) -> None:
    """Envoy lets a request pass when it is told of an error."""
    assert (await ask(request("edge", ADDRESS, hits=hits))).overall_code == OVER_LIMIT
    assert (await ask(request("edge", ADDRESS, own_hits=hits))).overall_code == OVER_LIMIT


@pytest.mark.e2e
@pytest.mark.slow
async def test_all_descriptors_are_charged_and_one_over_its_limit_is_enough(ask: Ask) -> None:
    dear = {"rule": "dear", "user": "42"}
    both = await ask(request("edge", ADDRESS, dear, {"rule": "nobody-knows"}, hits=2))
    assert [status.code for status in both.statuses] == [OK, OK, OK]
    assert [status.limit_remaining for status in both.statuses] == [0, 8, 0]
    assert not both.statuses[2].HasField("current_limit")
    over = await ask(request("edge", ADDRESS, dear))
    assert over.overall_code == OVER_LIMIT
    assert [status.code for status in over.statuses] == [OVER_LIMIT, OK]
    seven = await ask(request("edge", dear, own_hits=7))
    assert (seven.overall_code, seven.statuses[0].limit_remaining) == (OK, 0)
    nothing = await ask(request("edge", dear, ADDRESS, own_hits=0))
    assert [status.code for status in nothing.statuses] == [OVER_LIMIT, OVER_LIMIT]
    assert (await ask(request("edge", {"user": "new"}, own_hits=0))).statuses[0].limit_remaining == 2


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [request("", ADDRESS), request("edge"), request("edge", {"rule": "jobs"}), request("jobs", ADDRESS)],
)
async def test_a_mistake_is_an_invalid_argument(ask: Ask, wrong: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(wrong)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.e2e
@pytest.mark.slow
async def test_the_service_listens_on_both_ports_and_fails_as_its_rules_say(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    file, logged = tmp_path / "rules.yaml", LogCapture()
    file.write_text(RULES)
    places = serving.Places(port=free_port(), grpc_port=free_port())
    assert places.grpc_port is not None
    ready: asyncio.Future[Callable[[], None]] = asyncio.get_running_loop().create_future()
    log = structlog.wrap_logger(None, processors=[logged])
    async with local_nodes(tmp_path / "data", count=1, cluster_id="a" * 32, replicas=1) as nodes:
        kv = await kvstore.connect(nodes.urls)
        async with kv, asyncio.TaskGroup() as tasks:
            running = tasks.create_task(
                serving.serve(kv, file, places, log=log, started=ready.set_result, look_s=0.02)
            )
            stop = await ready
            async with client(places.grpc_port) as ask:
                assert (await ask(request("edge", ADDRESS))).overall_code == OK
                file.write_text(RULES.replace("name: dear", "name: dearer"))
                async with asyncio.timeout(10):
                    while not any(each["event"] == "rules_loaded" for each in logged.entries):
                        await asyncio.sleep(0.01)
                (status,) = (await ask(request("dearer", ADDRESS))).statuses
                assert status.current_limit.name == "dearer"
                await nodes.stop_all()
                assert (await ask(request("edge", ADDRESS))).overall_code == OVER_LIMIT
                opened = await ask(request("lax", ADDRESS))
                assert opened.overall_code == OK
                told = {header.key: header.value for header in opened.response_headers_to_add}
                assert told["x-ratelimit-source"] == "failed-open"
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{places.port}") as http:
                text = (await http.get("/metrics")).text
            assert 'kv_ratelimit_grpc_requests_total{code="OVER_LIMIT"} 1.0' in text
            stop()
            await running
    assert logged.entries[0]["grpc_port"] == places.grpc_port


async def test_a_port_in_use_is_told(free_port: Callable[[], int]) -> None:
    port = free_port()
    limiter = Limiter.__new__(Limiter)
    limiter.rules = {}
    service = RateLimitService(limiter, Metrics(limiter), log=None)
    with common.listening("127.0.0.1", port), pytest.raises(errors.PortInUse):
        async with listening(service, host="127.0.0.1", port=port, drain_s=0):
            pass
