"""The service over real HTTP: a real uvicorn, a real cluster, httpx as the client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import uvicorn

import kvstore
from kvstore.apps.shortener.app import create_app
from kvstore.apps.shortener.door import BODY_BYTES_MAX
from kvstore.apps.shortener.options import ShortenerOptions

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shortener")]
KEYS = {"ada-key-0123456789": "ada", "bob-key-0123456789": "bob"}
ADA = {"authorization": "Bearer ada-key-0123456789"}
BOB = {"authorization": "Bearer bob-key-0123456789"}
TARGET = "https://example.com/a"
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Mobile/15E148"
Site = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def kv() -> AsyncIterator[kvstore.Client]:
    async with kvstore.local_cluster(nodes=3, partitions=16) as client:
        yield client


@pytest.fixture
def log() -> list[dict[str, Any]]:
    return []


@pytest.fixture
async def site(
    kv: kvstore.Client, free_port: Callable[[], int], log: list[dict[str, Any]]
) -> AsyncIterator[Site]:
    """Start services over one cluster; each stops in order at the end."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> httpx.AsyncClient:
            port = free_port()
            base = f"http://127.0.0.1:{port}"
            chosen = ShortenerOptions(base_url=base, **{"flush_s": 0.05, **options})
            config = uvicorn.Config(
                create_app(kv, chosen, keys=KEYS, log=log.append), port=port, log_config=None, lifespan="on"
            )
            server = uvicorn.Server(config)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            tasks.create_task(server.serve())
            stack.callback(setattr, server, "should_exit", True)
            while not server.started:
                await asyncio.sleep(0.01)
            return await stack.enter_async_context(httpx.AsyncClient(base_url=base))

        yield start


@pytest.fixture
async def http(site: Site) -> httpx.AsyncClient:
    return await site()


async def made(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await http.post("/api/links", json={"url": TARGET, **more}, headers=ADA)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def assert_problem(answer: httpx.Response, status: int, kind: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= body.keys()
    assert body["type"].endswith(kind)


async def test_a_link_over_http_from_creation_to_deletion(http: httpx.AsyncClient) -> None:
    link = await made(http, tags=["x"], ttl=3600)
    code = link["code"]
    assert re.fullmatch(r"[0-9A-Za-z]{7}", code)
    assert link["short_url"] == f"{http.base_url}/{code}".replace("//" + code, "/" + code)
    answer = await http.get(f"/{code}")
    assert (answer.status_code, answer.headers["location"]) == (302, TARGET)
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "noindex" in answer.headers["x-robots-tag"]
    assert answer.headers["cache-control"] == "no-store"
    changed = await http.patch(
        f"/api/links/{code}", json={"permanent": True, "expires_at": None}, headers=ADA
    )
    assert (changed.json()["permanent"], changed.json()["expires_at"]) == (True, None)
    assert changed.json()["tags"] == ["x"]
    answer = await http.get(f"/{code}")
    assert (answer.status_code, answer.headers["cache-control"]) == (301, "public, max-age=86400")
    assert (await http.get("/api/links", headers=ADA)).json() == {"links": [changed.json()], "next": None}
    assert (await http.get("/api/links", headers=BOB)).json() == {"links": [], "next": None}
    assert_problem(await http.get(f"/api/links/{code}", headers=BOB), 404, "no-such-link")
    assert (await http.delete(f"/api/links/{code}", headers=ADA)).status_code == 204
    assert_problem(await http.get(f"/{code}"), 404, "no-such-link")
    assert_problem(await http.delete(f"/api/links/{code}", headers=ADA), 404)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"url": "javascript:alert(1)"}, 422, "bad-url"),
        ({"url": "http://127.0.0.1/"}, 422, "bad-url"),
        ({"url": TARGET, "alias": "admin"}, 422, "bad-alias"),
        ({"url": TARGET, "ttl": -1}, 422, "bad-field"),
        ({"url": TARGET, "permanent": True, "max_clicks": 2}, 422, "bad-field"),
        ({"url": TARGET, "tags": ["x" * 41]}, 422, "bad-field"),
        ({"url": TARGET, "unknown": 1}, 422, "about:blank"),
        ({}, 422, "about:blank"),
    ],
)
async def test_wrong_requests_are_problems(site: Site, body: Any, status: int, kind: str) -> None:
    http = await site()
    assert_problem(await http.post("/api/links", json=body, headers=ADA), status, kind)


async def test_keys_sizes_and_paths_are_checked(http: httpx.AsyncClient) -> None:
    for headers in ({}, {"authorization": "Bearer wrong-key-wrong-key"}, {"authorization": "Basic x"}):
        answer = await http.post("/api/links", json={"url": TARGET}, headers=headers)
        assert_problem(answer, 401, "not-signed-in")
        assert answer.headers["www-authenticate"] == "Bearer"
    large = await http.post("/api/links", content=b"x" * (BODY_BYTES_MAX + 1), headers=ADA)
    assert_problem(large, 413)
    for path in ("/nothing7", "/a.b", "/%00", "/" + "a" * 500, "/x/y"):
        assert_problem(await http.get(path), 404)
    long = "a" * 5_000
    for owners in (f"/api/links/{long}", f"/api/links/{long}/stats"):
        assert_problem(await http.get(owners, headers=ADA), 404, "no-such-link")
    for method in ("PATCH", "DELETE"):
        answer = await http.request(method, f"/api/links/{long}", json={"tags": []}, headers=ADA)
        assert_problem(answer, 404, "no-such-link")
    assert_problem(await http.get(f"/links/{long}"), 404, "no-such-link")
    page = await http.get("/nothing7", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")


async def test_a_retried_post_makes_one_link_and_a_taken_alias_is_a_conflict(http: httpx.AsyncClient) -> None:
    headers = {**ADA, "idempotency-key": "retry-1"}
    body = {"url": TARGET, "alias": "my-alias"}
    first, second = [await http.post("/api/links", json=body, headers=headers) for _ in range(2)]
    assert (first.status_code, first.json()) == (second.status_code, second.json()) == (201, first.json())
    assert len((await http.get("/api/links", headers=ADA)).json()["links"]) == 1
    other = await http.post("/api/links", json={"url": TARGET}, headers=headers)
    assert_problem(other, 422, "idempotency-key-reused")
    assert_problem(await http.post("/api/links", json=body, headers=BOB), 409, "alias-taken")
    found = await http.post("/api/links", json={"url": TARGET, "dedupe": True}, headers=BOB)
    again = await http.post("/api/links", json={"url": TARGET, "dedupe": True}, headers=BOB)
    assert (found.status_code, again.status_code) == (201, 200)
    assert found.json() == again.json()


async def test_bulk_tells_of_each_and_lists_have_pages(http: httpx.AsyncClient) -> None:
    body = {"links": [{"url": f"{TARGET}{at}"} for at in range(5)] + [{"url": "ftp://x.example/"}]}
    answer = await http.post("/api/links/bulk", json=body, headers=ADA)
    results = answer.json()["results"]
    assert [each["status"] for each in results] == [201] * 5 + [422]
    assert [each["link"]["url"] for each in results[:5]] == [f"{TARGET}{at}" for at in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    for _ in range(3):
        page = (await http.get("/api/links", params=query, headers=ADA)).json()
        seen += [link["code"] for link in page["links"]]
        query["cursor"] = page["next"]
    assert query["cursor"] is None
    assert sorted(seen) == sorted(each["link"]["code"] for each in results[:5])


async def test_head_preview_and_qr_codes_count_nothing(http: httpx.AsyncClient) -> None:
    link = await made(http, alias="näh-ü", max_clicks=1)
    code = link["code"]
    head = await http.head(f"/{code}")
    assert (head.status_code, head.headers["location"], head.content) == (302, TARGET, b"")
    preview = await http.get(f"/{code}+")
    assert TARGET in preview.text
    assert "noindex" in preview.headers["x-robots-tag"]
    png, svg = await http.get(f"/{code}.png"), await http.get(f"/{code}.svg")
    assert (png.content[:8], png.headers["content-type"]) == (b"\x89PNG\r\n\x1a\n", "image/png")
    assert b"<svg" in svg.content
    assert [(await http.get(f"/{code}")).status_code for _ in range(3)] == [302, 410, 410]
    for used_up in (await http.head(f"/{code}"), await http.get(f"/{code}+")):
        assert (used_up.status_code, "location" in used_up.headers, TARGET in used_up.text) == (
            410,
            False,
            False,
        )
    await asyncio.sleep(0.3)
    stats = (await http.get(f"/api/links/{code}/stats", headers=ADA)).json()
    assert stats["total"] == 1


async def test_plain_codes_take_the_short_way_with_the_same_answer(
    kv: kvstore.Client, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the door answers itself, and what it leaves to the application, differ in nothing."""
    plain, spelled = await made(http, alias="plain-one"), await made(http, alias="naïve-one")
    answers = [await http.get(f"/{link['code']}") for link in (plain, spelled)]
    answers += [await http.head(f"/{link['code']}") for link in (plain, spelled)]
    shown = [{name: value for name, value in answer.headers.items() if name != "date"} for answer in answers]
    assert [answer.status_code for answer in answers] == [302] * 4
    assert shown == [shown[0]] * 4
    await http.patch("/api/links/plain-one", json={"permanent": True, "ttl": 50}, headers=ADA)
    answer = await http.get("/plain-one")
    assert answer.status_code == 301
    assert 40 <= int(answer.headers["cache-control"].rpartition("=")[2]) <= 50
    assert_problem(await http.post("/plain-one"), 405)
    async with asyncio.timeout(5):
        while (await http.get("/api/links/plain-one/stats", headers=ADA)).json()["total"] < 2:
            await asyncio.sleep(0.05)
    reads: list[str] = []
    get = kv.get

    async def counted(key: Any, **options: Any) -> Any:
        reads.append(options.get("consistency", "quorum"))
        return await get(key, **options)

    monkeypatch.setattr(kv, "get", counted)
    assert_problem(await http.get("/nothing7"), 404, "no-such-link")
    assert reads == ["one", "quorum"], "the store is not asked again by whoever tells of it"


async def test_clicks_of_two_services_meet_in_one_sum_after_they_stop(site: Site) -> None:
    one, two = await site(country_header="x-country"), await site(country_header="x-country")
    code = (await made(one))["code"]
    headers = {"user-agent": PHONE, "referer": "https://News.example/page?q=1", "x-country": "de"}
    for at in range(40):
        answer = await (one, two)[at % 2].get(f"/{code}", headers=headers)
        assert answer.status_code == 302
    async with asyncio.timeout(5):
        while True:
            stats = (await one.get(f"/api/links/{code}/stats", headers=ADA)).json()
            if stats["total"] >= 40:
                break
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    stats = (await one.get(f"/api/links/{code}/stats", headers=ADA)).json()
    assert stats["total"] == 40
    assert stats["referrers"] == [{"name": "news.example", "clicks": 40}]
    assert stats["countries"] == [{"name": "DE", "clicks": 40}]
    assert stats["devices"] == [{"name": "mobile", "clicks": 40}]


async def test_creation_is_limited_for_each_owner_over_all_services_together(site: Site) -> None:
    services = [await site(creations_per_minute=4, creations_burst=2) for _ in range(2)]
    statuses = [
        (await services[at % 2].post("/api/links", json={"url": TARGET}, headers=ADA)).status_code
        for at in range(3)
    ]
    assert statuses == [201, 201, 429]
    http = services[1]
    answer = await http.post("/api/links", json={"url": TARGET}, headers=ADA)
    assert_problem(answer, 429, "too-many")
    assert 1 <= int(answer.headers["retry-after"]) <= 16
    assert (await http.post("/api/links", json={"url": TARGET}, headers=BOB)).status_code == 201
    many = {"links": [{"url": TARGET}] * 3}
    assert_problem(await http.post("/api/links/bulk", json=many, headers=BOB), 429, "too-many")


async def test_health_metrics_openapi_and_the_access_log(
    http: httpx.AsyncClient, log: list[dict[str, Any]]
) -> None:
    code = (await made(http))["code"]
    for _ in range(3):
        await http.get(f"/{code}")
    assert (await http.get("/healthz")).text == "ok\n"
    assert (await http.get("/readyz")).json() == {"ready": True}
    text = (await http.get("/metrics")).text
    assert 'kv_shortener_requests_total{method="GET",route="/{name}",status="302"} 3.0' in text
    assert "kv_shortener_cache_hits_total 2.0" in text
    spec = (await http.get("/api/openapi.json")).json()
    assert {
        "/api/links",
        "/api/links/bulk",
        "/api/links/{code}",
        "/api/links/{code}/stats",
        "/{name}",
    } == set(spec["paths"])
    lines = [line for line in log if line["path"] == f"/{code}"]
    assert [(line["route"], line["status"]) for line in lines] == [("/{name}", 302)] * 3


async def test_the_page_works_with_forms_alone(site: Site) -> None:
    http = await site(allow_private=False)
    first = await http.get("/")
    assert "default-src 'none'" in first.headers["content-security-policy"]
    assert "HttpOnly" in first.headers["set-cookie"]
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', first.text))
    sent = {**form, "url": f"{TARGET}?<script>", "alias": "from-page", "lifetime": "86400"}
    answers = [await http.post("/links", data=sent) for _ in range(2)]
    assert [(each.status_code, each.headers["location"]) for each in answers] == [
        (303, "/links/from-page")
    ] * 2, "sent twice, made once"
    shown = await http.get("/links/from-page")
    assert "/from-page.svg" in shown.text
    assert "<script>" not in shown.text
    home = (await http.get("/")).text
    assert home.count('href="/links/') == 1
    bad = await http.post("/links", data={**form, "once": "other", "url": "http://localhost/"})
    assert (bad.status_code, 'role="alert"' in bad.text) == (422, True)
    for wrong in (
        await http.post("/links", data={**sent, "token": "x"}),
        await http.post("/links", data=sent, headers={"origin": "https://evil.example"}),
        await http.post("/links", data=sent, headers={"origin": "http://["}),
        await http.post("/links/from-page/delete"),
    ):
        assert_problem(wrong, 403, "wrong-origin")
    async with httpx.AsyncClient(base_url=http.base_url) as stranger:
        assert (await stranger.get("/links/from-page")).status_code == 404
    assert (await http.post("/links/from-page/delete", data=form)).status_code == 303
    assert (await http.get("/from-page")).status_code == 404


async def test_without_a_quorum_requests_are_503_and_not_404(
    kv: kvstore.Client, http: httpx.AsyncClient
) -> None:
    code = (await made(http))["code"]
    await kv.close()
    kv.get = _refused  # type: ignore[method-assign]
    assert_problem(await http.get(f"/{code}"), 503)
    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/healthz")).status_code == 200


async def _refused(*_args: Any, **_options: Any) -> None:
    raise kvstore.errors.NotReady(reason="test")
