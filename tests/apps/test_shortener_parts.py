"""Parts of the service without a store: the cache, keys and limits, visitors, charts, options."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request

from kvstore import errors
from kvstore.apps.ratelimit.asgi import header
from kvstore.apps.shortener import access, charts, visitors
from kvstore.apps.shortener.cache import Found, LinkCache
from kvstore.apps.shortener.link import Link
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.service import client_address


def link(url: str = "https://example.com/") -> Link:
    return Link(code="abc", id="1", url=url, owner="ada", created_ms=0)


class Store:
    """What the cache reads; each read waits until it is let go."""

    def __init__(self) -> None:
        self.held: Link | None = None
        self.version = 1
        self.behind: tuple[Link, int] | None = None
        """What one replica shows that has not heard of the latest change."""
        self.reads: list[bool] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.now_s = 0.0
        self.failure: Exception | None = None

    async def read(self, _code: str, verify: bool) -> Found:
        held, version = self.held, self.version
        if not verify and self.behind is not None:
            held, version = self.behind
        self.reads.append(verify)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return Found(held, version if held is not None else 0, verify or held is None)

    def cache(self, links_max: int = 10) -> LinkCache:
        return LinkCache(
            self.read, monotonic=lambda: self.now_s, ttl_s=1.0, verify_s=4.0, links_max=links_max
        )


async def started(*tasks: asyncio.Task[Any]) -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_a_hundred_who_ask_at_once_cost_one_read() -> None:
    store = Store()
    store.held = link()
    cache = store.cache()
    assert await asyncio.gather(*(cache.get("abc") for _ in range(100))) == [link()] * 100
    assert await cache.get("abc") == link()
    assert store.reads == [False]


async def test_reads_are_verified_within_the_stated_time() -> None:
    store = Store()
    store.held = link()
    cache = store.cache()
    for store.now_s in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
        await cache.get("abc")
    assert store.reads == [False, True, False, False, False, True, False]


async def test_a_miss_is_never_kept_and_never_taken_from_a_read_that_began_before() -> None:
    store = Store()
    cache = store.cache()
    store.gate.clear()
    early = asyncio.ensure_future(cache.get("abc"))
    await started(early)
    store.held = link()
    late = asyncio.ensure_future(cache.get("abc"))
    await started(early, late)
    store.gate.set()
    assert (await early, await late) == (None, link())


async def test_who_is_cancelled_or_fails_takes_only_those_along_who_must() -> None:
    store = Store()
    store.held = link()
    cache = store.cache()
    store.gate.clear()
    leader = asyncio.ensure_future(cache.get("abc"))
    await started(leader)
    joined = asyncio.ensure_future(cache.get("abc"))
    await started(leader, joined)
    leader.cancel()
    store.gate.set()
    assert await joined == link()
    store.failure = errors.NotReady(reason="test")
    for outcome in await asyncio.gather(*(cache.get("xyz") for _ in range(3)), return_exceptions=True):
        assert isinstance(outcome, errors.NotReady)


async def test_what_was_changed_here_is_not_kept_by_a_read_under_way() -> None:
    store = Store()
    store.held = link("https://old.example/")
    cache = store.cache()
    store.gate.clear()
    slow = asyncio.ensure_future(cache.get("abc"))
    await started(slow)
    store.held = link("https://new.example/")
    cache.forget("abc")
    store.gate.set()
    await slow
    found = await cache.get("abc")
    assert found is not None
    assert found.url == "https://new.example/"


async def test_after_a_change_made_here_a_quorum_is_asked() -> None:
    store = Store()
    old = store.held = link("https://old.example/")
    cache = store.cache()
    await cache.get("abc")
    store.held, store.version, store.behind = link("https://new.example/"), 2, (old, 1)
    cache.forget("abc")
    assert await cache.get("abc") == store.held
    store.now_s = 2.0
    assert await cache.get("abc") == store.held, "a replica that is behind takes nobody back"
    assert store.reads == [False, True, False, True]


async def test_what_a_quorum_no_longer_finds_is_not_taken_from_one_replica() -> None:
    store = Store()
    store.held = link()
    cache = store.cache()
    store.now_s = 0.0
    await cache.get("abc")
    store.behind, store.held = (link(), 1), None
    for store.now_s in (1.0, 2.0, 3.0):
        assert await cache.get("abc") is None
    store.behind, store.held = None, link()
    for store.now_s in (4.0, 5.0):
        assert await cache.get("abc") == link()
    assert store.reads == [False, True, True, True, True, False]


async def test_the_cache_is_bounded() -> None:
    store = Store()
    store.held = link()
    cache = store.cache(links_max=3)
    for at in range(10):
        await cache.get(f"code{at}")
        cache.forget(f"other{at}")
    assert (len(cache._kept), len(cache._doubted)) == (3, 3)


def test_keys_find_their_owners_and_are_not_kept_in_the_clear() -> None:
    keys = access.ApiKeys({"k" * 20: "ada"})
    assert (keys.owner("k" * 20), keys.owner("x" * 20)) == ("ada", None)
    assert "k" * 20 not in repr(vars(keys))
    for wrong in ({"short": "ada"}, {"k" * 20: "a/b"}, {"k" * 20: "web-1"}, {"k" * 20: ""}):
        with pytest.raises(errors.BadOption):
            access.ApiKeys(wrong)


def test_a_visitor_is_known_by_a_cookie_alone() -> None:
    new = access.Visitor.of(None)
    again = access.Visitor.of(new.cookie)
    assert (new.new, again.new, again.owner == new.owner) == (True, False, True)
    assert new.cookie not in new.owner
    assert again.gave_out(new.form_token)
    assert not again.gave_out("x")
    assert not new.gave_out(new.form_token), "without the cookie a form is nobody's"
    assert access.Visitor.of("forged").new


@pytest.mark.parametrize(
    ("header", "host"),
    [
        (None, "direct"), ("", "direct"), ("https://News.Example/a?b", "news.example"),
        ("android-app://com.example", "other"), ("https://[::1", "other"), ("x" * 9999, "other"),
        ("https://a b/", "other"),
    ],
)  # fmt: skip
def test_referrers_are_hosts(header: str | None, host: str) -> None:
    assert visitors.referrer_host(header) == host


@pytest.mark.parametrize(
    ("agent", "device"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0", "desktop"),
        ("Mozilla/5.0 (Linux; Android 15; Pixel) Mobile Safari", "mobile"),
        ("Mozilla/5.0 (Linux; Android 15; Tab) Safari", "tablet"),
        ("Mozilla/5.0 (iPad; CPU OS 18_0 like Mac OS X)", "tablet"),
        ("Mozilla/5.0 (compatible; Googlebot/2.1)", "bot"),
        ("curl/8.0", "bot"), (None, "other"), ("?", "other"),
    ],
)  # fmt: skip
def test_devices_are_classes(agent: str | None, device: str) -> None:
    assert visitors.device(agent) == device


def test_countries_are_two_letters() -> None:
    assert [visitors.country(each) for each in ("de", " FR ", None, "D1", "DEU")] == ["DE", "FR", *["--"] * 3]


def test_charts_escape_and_say_their_numbers() -> None:
    drawn = str(charts.lines([("<b>", 3), ("x" * 40, 1)], title="Where from"))
    assert "<b>" not in drawn
    assert "&lt;b&gt;</th>" in drawn
    assert '<td class="number">3</td>' in drawn
    assert 'rect width="33.3%"' in drawn
    assert "<svg" in str(charts.columns([], title="Nothing"))
    days = str(charts.columns([("a", 1), ("b", 2), ("<c>", 0)], title="Days"))
    assert 'height="110.0"' in days
    assert 'aria-label="Days: 3 clicks"' in days
    assert "at most 2" in days
    assert "<c>" not in days


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://x"}, {"base_url": "https://x/path"}, {"code_length": 6}, {"verify_s": 0.5},
        {"flush_s": 2.0}, {"cache_ttl_s": -1}, {"creations_per_minute": 0},
        {"creations_burst": 0}, {"counters_per_s": 0},
    ],
)  # fmt: skip
def test_options_are_checked_with_their_relations(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.BadOption):
        ShortenerOptions(**wrong)


def test_options_know_the_hosts_they_serve() -> None:
    options = ShortenerOptions(base_url="https://Sho.rt", own_hosts=frozenset({"www.sho.rt"}))
    assert options.rules().own_hosts == {"sho.rt", "www.sho.rt"}
    assert options.short_url("ü1x") == "https://Sho.rt/%C3%BC1x"
    assert options.spread_s == 15.0


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (["6.6.6.6", "203.0.113.9"], "203.0.113.9"),  # HAProxy adds a line of its own
        (["6.6.6.6, 7.7.7.7", "8.8.8.8, 203.0.113.9"], "203.0.113.9"),
        ([], "10.0.0.1"),
    ],
)
def test_what_a_client_tells_of_its_address_is_not_believed(lines: list[str], client: str) -> None:
    fields = [(b"x-forwarded-for", line.encode()) for line in lines]
    request = Request({"type": "http", "headers": fields, "client": ("10.0.0.1", 1)})
    assert client_address(request, ShortenerOptions(trust_proxy=True)) == client
    assert client_address(request, ShortenerOptions()) == "10.0.0.1"


def test_a_key_from_a_header_is_the_line_that_the_proxy_added() -> None:
    key_of = header("X-User")
    assert key_of({"headers": [(b"x-user", b"forged"), (b"x-user", b"ada")]}) == "ada"
    assert key_of({"headers": []}) == ""
