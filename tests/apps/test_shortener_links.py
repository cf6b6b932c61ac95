"""The library of the shortener on three real nodes: one winner, one link for a retry, clicks that add up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore.apps.shortener import owned
from kvstore.apps.shortener.clock import wall_ms
from kvstore.apps.shortener.link import Link, link_key, spent_key
from kvstore.apps.shortener.links import GRACE_S, Links, Made, create_many
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.problems import AliasTaken, BadField, BadUrl, KeyReused, LinkGone, NoSuchLink
from kvstore.apps.shortener.wishes import Edit, Wish
from kvstore.server import LocalNodes, local_nodes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shortener")]
WISH = Wish(url="https://example.com/a")
OPTIONS = ShortenerOptions()


def made_over(kv: kvstore.Client, now_ms: Callable[[], int] = wall_ms) -> Links:
    return Links(kv, OPTIONS, now_ms=now_ms, monotonic=time.monotonic)


@asynccontextmanager
async def nodes_at(directory: Path) -> AsyncIterator[LocalNodes]:
    async with local_nodes(directory, count=3, cluster_id="a" * 32) as local:
        yield local


@pytest.fixture
async def kv() -> AsyncIterator[kvstore.Client]:
    async with kvstore.local_cluster(nodes=3, partitions=16) as client:
        yield client


@pytest.fixture
def links(kv: kvstore.Client) -> Links:
    return made_over(kv)


async def all_of(links: Links, owner: str, limit: int = 100) -> list[str]:
    codes: list[str] = []
    cursor = None
    while True:
        page, cursor = await links.owned(owner, cursor=cursor, limit=limit)
        codes += [link.code for link in page]
        if cursor is None:
            return codes


async def test_a_link_lives_from_creation_to_deletion(links: Links) -> None:
    made = (await links.create("ada", replace(WISH, tags=("news",)))).link
    assert (len(made.code), made.url, made.tags, made.owner) == (7, WISH.url, ("news",), "ada")
    assert await links.get("ada", made.code) == made == await links.resolve(made.code)
    changed = await links.edit("ada", made.code, Edit(url="https://example.org/b", permanent=True))
    assert (changed.url, changed.permanent, changed.tags) == ("https://example.org/b", True, ("news",))
    assert await links.resolve(made.code) == changed
    assert await all_of(links, "ada") == [made.code]
    await links.delete("ada", made.code)
    for gone in (links.resolve(made.code), links.get("ada", made.code), links.delete("ada", made.code)):
        with pytest.raises(NoSuchLink):
            await gone
    assert await all_of(links, "ada") == []


async def test_other_owners_see_nothing_and_change_nothing(links: Links) -> None:
    made = (await links.create("ada", WISH)).link
    for attempt in (
        links.get("eve", made.code),
        links.edit("eve", made.code, Edit(url="https://evil.example/")),
        links.delete("eve", made.code),
        links.stats("eve", made.code),
    ):
        with pytest.raises(NoSuchLink):
            await attempt
    assert await all_of(links, "eve") == []
    assert await links.resolve(made.code) == made


async def test_fifty_claim_one_alias_at_three_nodes_and_exactly_one_wins(tmp_path: Path) -> None:
    async with nodes_at(tmp_path) as local:
        clients = [await kvstore.connect(url, pinned=True) for url in local.urls]
        over = [made_over(client) for client in clients]
        wish = replace(WISH, alias="only-one")
        claims = [(f"owner{at % 5}", over[at % 3].create(f"owner{at % 5}", wish)) for at in range(50)]
        outcomes = await asyncio.gather(*(claim for _, claim in claims), return_exceptions=True)
        winners = [outcome for outcome in outcomes if isinstance(outcome, Made)]
        assert len(winners) == 1, Counter(map(repr, outcomes))
        assert sum(isinstance(outcome, AliasTaken) for outcome in outcomes) == 49
        winner = winners[0].link
        listed = {owner: await all_of(over[0], owner) for owner in sorted({owner for owner, _ in claims})}
        assert {owner: codes for owner, codes in listed.items() if codes} == {winner.owner: ["only-one"]}
        for client in clients:
            await client.close()


async def test_claims_go_on_and_one_wins_while_a_node_dies(tmp_path: Path) -> None:
    async with nodes_at(tmp_path) as local, await kvstore.connect(local.urls, timeout=10.0) as kv:
        links = made_over(kv)
        before = (await links.create("ada", WISH)).link
        wish = replace(WISH, alias="survivor")
        claims = [asyncio.ensure_future(links.create(f"o{at % 4}", wish)) for at in range(50)]
        await asyncio.sleep(0.01)
        await local.stop(local.topology.nodes[0].number)
        outcomes = await asyncio.gather(*claims, return_exceptions=True)
        assert sum(isinstance(outcome, Made) for outcome in outcomes) == 1, Counter(map(repr, outcomes))
        assert all(isinstance(outcome, Made | AliasTaken) for outcome in outcomes)
        assert (await made_over(kv).resolve(before.code)).url == WISH.url
        assert (await made_over(kv).resolve("survivor")).url == WISH.url


async def test_a_retried_request_makes_one_link_even_all_at_once_and_after_deletion(
    kv: kvstore.Client, links: Links
) -> None:
    over = [links, made_over(kv)]
    made = await asyncio.gather(*(over[at % 2].create("ada", WISH, idempotency_key="k1") for at in range(10)))
    codes = {each.link.code for each in made}
    assert len(codes) == 1
    assert await all_of(links, "ada") == sorted(codes)
    with pytest.raises(KeyReused):
        await links.create("ada", replace(WISH, url="https://example.com/b"), idempotency_key="k1")
    other = await links.create("bob", WISH, idempotency_key="k1")
    assert other.link.code not in codes, "keys belong to owners"
    (code,) = codes
    await links.delete("ada", code)
    assert (await links.create("ada", WISH, idempotency_key="k1")).link.code == code, "the same answer"
    with pytest.raises(NoSuchLink):
        await links.get("ada", code)


async def test_a_retry_after_a_crash_in_the_middle_finishes_the_same_link(kv: kvstore.Client) -> None:
    links = made_over(kv)
    make = links._make

    async def crash(draft: Link) -> Link:
        await make(draft)
        raise ConnectionResetError

    links._make = crash  # type: ignore[method-assign]
    with pytest.raises(ConnectionResetError):
        await links.create("ada", WISH, idempotency_key="k")
    again = made_over(kv)
    made = await again.create("ada", WISH, idempotency_key="k")
    assert await all_of(again, "ada") == [made.link.code]


async def test_dedupe_gives_one_link_only_when_asked(links: Links) -> None:
    asked = replace(WISH, dedupe=True)
    made = await asyncio.gather(*(links.create("ada", asked) for _ in range(8)))
    assert len({each.link.code for each in made}) == 1
    first = made[0].link
    assert (await links.create("ada", asked)).new is False
    assert (await links.create("ada", WISH)).link.code != first.code, "not asked"
    assert (await links.create("bob", asked)).link.code != first.code, "another owner"
    await links.edit("ada", first.code, Edit(url="https://example.com/elsewhere"))
    second = await links.create("ada", asked)
    assert (second.new, second.link.code == first.code) == (True, False), "the old one leads elsewhere now"
    await links.delete("ada", second.link.code)
    assert (await links.create("ada", asked)).new
    with pytest.raises(BadField):
        await links.create("ada", replace(asked, alias="mine-own"))


async def test_lists_go_over_pages_newest_first(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned, "PAGE_LINKS_MAX", 4)
    made = [(await links.create("ada", WISH)).link.code for _ in range(10)]
    for limit in (1, 3, 4, 100):
        assert await all_of(links, "ada", limit) == made[::-1]
    await links.delete("ada", made[5])
    assert await all_of(links, "ada", 3) == [code for code in made[::-1] if code != made[5]]
    with pytest.raises(BadField):
        await links.owned("ada", cursor="x.1", limit=5)


async def test_a_cursor_beyond_the_end_costs_no_more_than_one_that_was_given(
    kv: kvstore.Client, links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await links.create("ada", WISH)).link.code
    reads, get = 0, kv.get

    async def counted(key: str, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        assert reads < 10, "the walk goes on and on"
        return await get(key, **options)

    monkeypatch.setattr(kv, "get", counted)
    page, cursor = await links.owned("ada", cursor="9999999999999999.1", limit=5)
    assert ([link.code for link in page], cursor, reads) == ([made], None, 2)


async def test_a_list_of_many_empty_pages_is_walked_in_portions(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owned, "PAGE_LINKS_MAX", 1)
    monkeypatch.setattr(owned, "PAGES_WALKED_MAX", 2)
    made = [(await links.create("ada", WISH)).link.code for _ in range(6)]
    for code in made[1:]:
        await links.delete("ada", code)
    assert await links.owned("ada", cursor=None, limit=5) == ([], "3.1")
    assert await all_of(links, "ada") == made[:1]


async def test_many_at_once_tell_of_each(links: Links) -> None:
    wishes = [
        WISH,
        replace(WISH, url="javascript:1"),
        replace(WISH, alias="third"),
        replace(WISH, alias="third"),
    ]
    made = await create_many(links, "ada", wishes, idempotency_key="bulk")
    kinds = [type(each) for each in made]
    assert (kinds[:2], sorted(kinds[2:], key=str)) == ([Made, BadUrl], sorted([Made, AliasTaken], key=str))
    again = await create_many(links, "ada", wishes[:1], idempotency_key="bulk")
    assert again == made[:1]


async def test_expired_links_are_gone_and_limited_ones_never_give_more(kv: kvstore.Client) -> None:
    now = wall_ms()
    links = made_over(kv, lambda: now)
    short = (await links.create("ada", replace(WISH, ttl_s=60))).link
    assert short.expires_ms == now + 60_000
    limited = (await links.create("ada", replace(WISH, max_clicks=3))).link
    spent = await asyncio.gather(*(links.spend(limited) for _ in range(10)), return_exceptions=True)
    assert [type(each) for each in spent].count(LinkGone) == 7
    now += 60_000
    with pytest.raises(LinkGone):
        await links.resolve(short.code)


async def test_used_up_clicks_stay_used_up_where_the_deleted_link_is_in_memory(kv: kvstore.Client) -> None:
    here, there = made_over(kv), made_over(kv)
    once = (await here.create("ada", replace(WISH, max_clicks=1))).link
    await here.spend(await here.resolve(once.code))
    await there.resolve(once.code)
    await here.delete("ada", once.code)
    with pytest.raises(LinkGone):
        await there.spend(await there.resolve(once.code))
    left = await kv.ttl(spent_key(once.id), consistency="linearizable")
    assert left is not None
    assert 0 < left <= 86_400


@pytest.mark.parametrize("clicked", [True, False])
async def test_the_count_of_clicks_lives_as_long_as_the_link_after_each_edit(
    kv: kvstore.Client, links: Links, *, clicked: bool
) -> None:
    async def left() -> float:
        return await kv.ttl(spent_key(once.id), consistency="linearizable") or 0.0

    once = (await links.create("ada", replace(WISH, max_clicks=1, ttl_s=60))).link
    if clicked:
        await links.spend(once)
    await links.edit("ada", once.code, Edit(ttl_s=3_600))
    assert 3_500 < await left() - GRACE_S <= 3_600
    await links.edit("ada", once.code, Edit(expires_ms=None))
    if not clicked:
        await links.spend(once)  # by a service that knows the link as it was
    assert await left() == float("inf")
    with pytest.raises(LinkGone):
        await links.spend(await links.get("ada", once.code))


async def test_dedupe_does_not_give_a_link_that_is_used_up(links: Links) -> None:
    asked = replace(WISH, max_clicks=2, dedupe=True)
    first = (await links.create("ada", asked)).link
    await links.spend(first)
    assert (await links.create("ada", asked)).link == first
    await links.spend(first)
    second = await links.create("ada", asked)
    assert (second.new, second.link.code == first.code) == (True, False)


async def test_a_link_made_elsewhere_is_found_at_once_and_edits_spread_in_the_stated_time(
    kv: kvstore.Client,
) -> None:
    now_s = 100.0
    here = made_over(kv)
    there = Links(kv, OPTIONS, now_ms=wall_ms, monotonic=lambda: now_s)
    with pytest.raises(NoSuchLink):
        await there.resolve("fresh-one")
    made = (await here.create("ada", replace(WISH, alias="fresh-one"))).link
    assert await there.resolve("fresh-one") == made
    changed = await here.edit("ada", "fresh-one", Edit(url="https://example.com/new"))
    assert (await there.resolve("fresh-one")).url == made.url, "from memory"
    now_s += OPTIONS.spread_s
    assert await there.resolve("fresh-one") == changed


async def test_the_store_itself_shows_one_register_for_a_link(kv: kvstore.Client, links: Links) -> None:
    made = (await links.create("ada", WISH)).link
    entry = await kv.get(link_key(made.code), consistency="linearizable")
    assert entry is not None
