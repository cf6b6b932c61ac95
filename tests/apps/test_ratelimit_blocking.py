"""The blocking limiter, the WSGI middleware and the decorator, against real nodes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
import pytest
from nodes_in_thread import nodes_in_thread

import kvstore
from kvstore import errors
from kvstore.apps.ratelimit import BlockingLimiter, Limiter, RateLimited, limited, parse
from kvstore.apps.ratelimit.wsgi import App, Environ, RateLimitMiddleware, StartResponse

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RULES = parse("""
[[rule]]
name = "api"
limits = [{ algorithm = "token_bucket", limit = 2, per = "1h" }]
[[rule]]
name = "jobs"
limits = [{ algorithm = "concurrency", limit = 1, per = "1h" }]
[[rule]]
name = "even"
limits = [{ algorithm = "leaky_bucket", limit = 10, per = "1s" }]
""")


@pytest.fixture
def urls(tmp_path: Path) -> Iterator[list[str]]:
    """The addresses of three nodes in a thread."""
    with nodes_in_thread(tmp_path) as found:
        yield found


@pytest.fixture
def limiter(urls: list[str]) -> Iterator[BlockingLimiter]:
    with BlockingLimiter(urls, RULES, timeout_s=20) as made:
        yield made


def test_threads_share_a_limiter_and_get_exactly_the_limit(limiter: BlockingLimiter) -> None:
    with ThreadPoolExecutor(6) as threads:
        told = list(threads.map(lambda _: bool(limiter.check("api", "k")), range(12)))
    assert sum(told) == 2
    assert limiter.peek("api", "k").verdict.remaining == 0
    limiter.reset("api", "k")
    assert limiter.check("api", "k")
    outcome = limiter.check("jobs", "k")
    assert not limiter.check("jobs", "k")
    limiter.release("jobs", "k", outcome.lease)
    assert limiter.check("jobs", "k")
    limiter.close()
    limiter.close()


def test_no_thread_is_left_when_nobody_answers(free_port: Callable[[], int]) -> None:
    before = threading.active_count()
    with pytest.raises(errors.CannotConnect):
        BlockingLimiter(f"kv://127.0.0.1:{free_port()}", RULES)
    assert threading.active_count() == before


# --- WSGI --------------------------------------------------------------------------------


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's word
        del format, args


@pytest.fixture
def serve(free_port: Callable[[], int]) -> Iterator[Callable[[App], str]]:
    servers: list[WSGIServer] = []

    def start(app: App) -> str:
        port = free_port()
        server = make_server("127.0.0.1", port, app, server_class=_Server, handler_class=_Quiet)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_wsgi_application_is_limited_by_its_middleware(
    limiter: BlockingLimiter, serve: Callable[[App], str]
) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/broken":
            raise ValueError
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    waits: list[float] = []
    guarded = RateLimitMiddleware(app, limiter, rule="jobs")
    url = serve(
        RateLimitMiddleware(
            guarded, limiter, rule="api", key=lambda environ: environ.get("HTTP_X_KEY"), sleep=waits.append
        )
    )
    with httpx.Client(base_url=url, timeout=20) as http:
        for left in ("1", "0"):
            answer = http.get("/", headers={"X-Key": "k"})
            assert (answer.text, answer.headers.get_list("X-RateLimit-Remaining")) == ("hello", ["0", left])
        refused = http.get("/", headers={"X-Key": "k"})
        assert refused.status_code == 429
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert refused.json()["violated-policies"] == ["api"]
        assert http.get("/").text == "hello", "no key: not limited by the first; the lease was given back"
    assert not waits


def test_what_a_broken_wsgi_application_held_is_given_back(limiter: BlockingLimiter) -> None:
    def broken(_environ: Environ, _start: StartResponse) -> Iterable[bytes]:
        raise ValueError("broken")

    app = RateLimitMiddleware(broken, limiter, rule="jobs")
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            app({"REMOTE_ADDR": "10.0.0.1"}, lambda *_: None)


def test_a_leaky_bucket_makes_a_wsgi_request_wait(limiter: BlockingLimiter) -> None:
    waits: list[float] = []
    app = RateLimitMiddleware(lambda *_: [b""], limiter, rule="even", sleep=waits.append)
    for _ in range(3):
        app({"REMOTE_ADDR": "10.0.0.1"}, lambda *_: None)
    assert all(0 < wait <= 0.2 for wait in waits)


# --- the decorator -----------------------------------------------------------------------


def test_a_plain_function_is_limited(limiter: BlockingLimiter) -> None:
    @limited(limiter, "api", key=lambda user: user, cost=2)
    def greet(user: str) -> str:
        return f"hello {user}"

    assert (greet("ada"), greet("bob")) == ("hello ada", "hello bob")
    with pytest.raises(RateLimited) as caught:
        greet("ada")
    assert caught.value.outcome.retry_after_s is not None
    assert 3590 <= caught.value.outcome.retry_after_s <= 3600
    assert greet.__name__ == "greet"


async def test_a_coroutine_function_is_limited_and_gives_back(urls: list[str]) -> None:
    async with await kvstore.connect(urls) as kv:
        limiter = Limiter(kv, RULES, timeout_s=20)
        entered, go_on = asyncio.Event(), asyncio.Event()

        @limited(limiter, "jobs", key="one")
        async def job() -> float:
            entered.set()
            await go_on.wait()
            return time.monotonic()

        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(job())
            await entered.wait()
            with pytest.raises(RateLimited):
                await job()
            go_on.set()
        assert first.result() < await job()
