"""The HTTP service and the ASGI middleware, over real sockets and real nodes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from structlog.testing import LogCapture

import kvstore
from kvstore.apps.ratelimit import rules, serving
from kvstore.apps.ratelimit.asgi import App, RateLimitMiddleware, Receive, Scope, Send, header
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.serving import listening
from kvstore.server import local_nodes

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RULES = """
[[rule]]
name = "api"
limits = [
    { algorithm = "token_bucket", limit = 2, per = "1h" },
    { algorithm = "sliding_log", limit = 1000, per = "1h" },
]
[rule.overrides]
vip = [{ algorithm = "token_bucket", limit = 50, per = "1h" }]

[[rule]]
name = "jobs"
limits = [{ algorithm = "concurrency", limit = 1, per = "1h" }]

[[rule]]
name = "lax"
on_failure = "open"
limits = [{ algorithm = "token_bucket", limit = 2, per = "1h" }]
"""


class Service:
    """A service that runs, its client, and what it logged."""

    def __init__(self, http: httpx.AsyncClient, file: Path, logged: LogCapture) -> None:
        self.http, self.file, self.logged = http, file, logged

    async def post(self, act: str, **body: Any) -> httpx.Response:
        return await self.http.post(f"/v1/{act}", json=body)


@asynccontextmanager
async def served(kv: kvstore.Client, folder: Path, port: int) -> AsyncIterator[Service]:
    file, logged = folder / "rules.toml", LogCapture()
    file.write_text(RULES)
    log = structlog.wrap_logger(None, processors=[logged])
    ready: asyncio.Future[Callable[[], None]] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(
            serving.serve(kv, file, serving.Places(port=port), log=log, started=ready.set_result, look_s=0.02)
        )
        stop = await ready
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            yield Service(http, file, logged)
        stop()
        await running


@pytest.fixture
async def kv() -> AsyncIterator[kvstore.Client]:
    async with kvstore.local_cluster(nodes=3) as client:
        yield client


@pytest.fixture
async def service(kv: kvstore.Client, tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[Service]:
    async with served(kv, tmp_path, free_port()) as running:
        yield running


async def test_check_tells_it_in_headers_and_documents(service: Service) -> None:
    one = await service.post("check", rule="api", key="k")
    assert one.status_code == 200
    assert one.json() | {"reset_after_ms": 0} == {
        "allowed": True, "rule": "api", "key": "k", "source": "strict",
        "remaining": 1, "reset_after_ms": 0, "delay_ms": 0,
    }  # fmt: skip
    assert one.headers["RateLimit-Policy"] == '"api.1";q=2;w=3600, "api.2";q=1000;w=3600'
    assert one.headers["RateLimit"] == '"api.1";r=1;t=1800, "api.2";r=999;t=3600'
    assert one.headers["X-RateLimit-Limit"] == "2"
    assert one.headers["X-RateLimit-Remaining"] == "1"
    assert one.headers["X-RateLimit-Source"] == "strict"
    assert (await service.post("check", rule="api", key="k")).status_code == 200
    refused = await service.post("check", rule="api", key="k")
    assert refused.status_code == 429
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert 1700 < int(refused.headers["Retry-After"]) <= 1800
    problem = refused.json()
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert problem["violated-policies"] == ["api.1"]
    assert (problem["status"], problem["allowed"]) == (429, False)
    assert (await service.post("check", rule="api", key="vip", cost=50)).json()["remaining"] == 0
    too_much = await service.post("check", rule="api", key="vip", cost=51)
    assert "Retry-After" not in too_much.headers


async def test_peek_and_reset(service: Service) -> None:
    await service.post("check", rule="api", key="k", cost=2)
    for _ in range(2):
        assert (await service.post("peek", rule="api", key="k")).json()["remaining"] == 0
    assert (await service.post("reset", rule="api", key="k")).status_code == 204
    assert (await service.post("peek", rule="api", key="k")).json()["remaining"] == 2


async def test_leases_over_http(service: Service) -> None:
    lease = (await service.post("check", rule="jobs", key="k")).json()["lease"]
    refused = await service.post("check", rule="jobs", key="k")
    assert refused.status_code == 429
    assert refused.headers["RateLimit-Policy"] == '"jobs";q=1;qu="concurrent-requests"'
    assert (await service.post("check", rule="jobs", key="k", lease=lease)).json()["lease"] == lease
    assert (await service.post("release", rule="jobs", key="k", lease=lease)).status_code == 204
    assert (await service.post("check", rule="jobs", key="k")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"rule": "none", "key": "k"}, 404),
        ({"rule": "api"}, 400),
        ({"rule": "api", "key": 5}, 400),
        ({"rule": "api", "key": "k", "cost": "many"}, 400),
        ({"rule": "api", "key": "k", "cost": 0}, 400),
        ({"rule": "api", "key": "k", "more": 0}, 400),
        ([], 400),
        ({"rule": "api", "key": "k" * 70_000}, 400),
    ],
    ids=lambda case: str(case)[:40],
)
async def test_a_callers_mistake_is_a_problem_of_his(service: Service, body: Any, status: int) -> None:
    answer = await service.http.post("/v1/check", json=body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_health_metrics_and_the_access_log(service: Service) -> None:
    assert (await service.http.get("/healthz")).text == "ok\n"
    assert (await service.http.get("/readyz")).text == "ready\n"
    assert (await service.http.get("/nothing/here")).status_code == 404
    for _ in range(3):
        await service.post("check", rule="api", key="k")
    text = (await service.http.get("/metrics")).text
    assert 'kv_ratelimit_decisions_total{allowed="true",rule="api",source="strict"} 2.0' in text
    assert 'kv_ratelimit_decisions_total{allowed="false",rule="api",source="strict"} 1.0' in text
    assert 'kv_ratelimit_circuit{state="closed"} 1.0' in text
    assert 'kv_ratelimit_http_requests_total{path="/v1/check",status="429"} 1.0' in text
    assert 'path="other",status="404"' in text
    line = next(each for each in service.logged.entries if each.get("status") == 429)
    assert (line["event"], line["path"], line["source"]) == ("request", "/v1/check", "strict")
    shown = (await service.http.get("/v1/rules")).json()
    assert shown["api"]["limits"][0]["over_admission_max"] == 0


async def test_changed_rules_are_read_and_bad_ones_refused(service: Service) -> None:
    async def until(event: str) -> None:
        async with asyncio.timeout(10):
            while not any(each["event"] == event for each in service.logged.entries):
                await asyncio.sleep(0.01)

    await service.post("check", rule="api", key="k")
    service.file.write_text("[[rule")
    await until("rules_refused")
    assert (await service.post("check", rule="api", key="k")).status_code == 200
    service.file.write_text(RULES.replace("limit = 1000", "limit = 3"))
    await until("rules_loaded")
    # The bucket did not change and goes on; the log is another one now, and starts anew.
    refused = await service.post("check", rule="api", key="k")
    assert refused.json()["violated-policies"] == ["api.1"]


async def test_without_the_store_headers_tell_which_rule_failed_how(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    async with local_nodes(tmp_path / "data", count=1, cluster_id="d" * 32, replicas=1) as nodes:
        kv = await kvstore.connect(nodes.urls)
        async with kv, served(kv, tmp_path, free_port()) as service:
            await nodes.stop_all()
            closed = await service.post("check", rule="api", key="k")
            assert (closed.status_code, closed.headers["X-RateLimit-Source"]) == (503, "failed-closed")
            assert closed.headers["Retry-After"] == "1"
            assert "RateLimit" not in closed.headers
            opened = await service.post("check", rule="lax", key="k")
            assert (opened.status_code, opened.headers["X-RateLimit-Source"]) == (200, "failed-open")
            assert (await service.http.get("/readyz")).status_code == 503
            assert (await service.http.get("/healthz")).status_code == 200
            assert (await service.post("reset", rule="api", key="k")).status_code == 503


# --- ASGI middleware ---------------------------------------------------------------------


@asynccontextmanager
async def running(app: App, port: int) -> AsyncIterator[httpx.AsyncClient]:
    """An application behind a real server."""
    config = uvicorn.Config(app, port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    socket = listening("127.0.0.1", port)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server._serve([socket]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            yield http
        server.should_exit = True


async def test_an_asgi_application_is_limited_by_its_middleware(
    kv: kvstore.Client, free_port: Callable[[], int]
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            entered.set()
            await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    limiter = Limiter(kv, rules.parse(RULES), timeout_s=20)
    limited = RateLimitMiddleware(
        RateLimitMiddleware(app, limiter, rule="jobs", key=header("x-job")),
        limiter,
        rule="api",
        key=lambda scope: None if scope["path"] == "/free" else "everybody",
        cost=lambda scope: 2 if scope["path"] == "/dear" else 1,
    )
    async with running(limited, free_port()) as http, asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(http.get("/slow", headers={"X-Job": "a"}))
        await entered.wait()
        refused = await http.get("/free", headers={"X-Job": "a"})
        assert (refused.status_code, refused.json()["rule"]) == (429, "jobs")
        assert (await http.get("/free", headers={"X-Job": "b"})).text == "hello"
        go_on.set()
        first = await slow
        assert (first.text, first.headers.get_list("X-RateLimit-Remaining")) == ("hello", ["0", "1"])
        assert (await http.get("/free", headers={"X-Job": "a"})).text == "hello"
        dear = await http.get("/dear", headers={"X-Job": "a"})
        assert (dear.status_code, dear.json()["rule"]) == (429, "api")


# --- the command -------------------------------------------------------------------------


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, free_port: Callable[[], int]) -> None:
    file, port, grpc_port = tmp_path / "rules.toml", free_port(), free_port()
    file.write_text(RULES)
    command = [sys.executable, "-m", "kvstore_cli.main", "app", "ratelimit"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KV_")}
    with subprocess.Popen(
        [*command, "--rules", str(file), "--port", str(port), "--grpc-port", str(grpc_port)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=environment,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = json.loads(next(each for each in process.stdout if '"serving"' in each))
            assert (line["port"], line["grpc_port"]) == (port, grpc_port)
            with socket.create_connection(("127.0.0.1", grpc_port)):
                pass
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/check", json={"rule": "api", "key": "k"})
            assert answer.json()["remaining"] == 1
            process.send_signal(signal.SIGTERM)
            assert '"stopped"' in process.stdout.read()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
