"""Clicks from memory over the journal to the counters: all of them once, whoever dies in between."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import kvstore
from kvstore import errors
from kvstore.apps.shortener import clicks as clicks_module
from kvstore.apps.shortener import counting, journal
from kvstore.apps.shortener.clicks import Clicks
from kvstore.apps.shortener.clock import wall_ms
from kvstore.apps.shortener.codes import new_id
from kvstore.apps.shortener.counting import Click, Counting, Names, hour_of
from kvstore.apps.shortener.journal import Journal, Lookout, TakenOver
from kvstore.apps.shortener.link import Link, counter_key, journal_key, record_key
from kvstore.apps.shortener.stats import Stats, forget_stats, read_stats

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shortener")]


@pytest.fixture
async def kv() -> AsyncIterator[kvstore.Client]:
    async with kvstore.local_cluster(nodes=3, partitions=16) as client:
        yield client


def link_made() -> Link:
    return Link(code="abcdefg", id=new_id(), url="https://example.com/", owner="ada", created_ms=wall_ms())


def click(link: Link, referrer: str = "direct", country: str = "--", device: str = "bot") -> Click:
    return Click(link.id, hour_of(wall_ms()), referrer, country, device)


def counted_by(kv: Any, flush_s: float = 0.01) -> Clicks:
    loop = asyncio.get_running_loop()
    return Clicks(kv, flush_s=flush_s, monotonic=loop.time, counters_per_s=100_000)


async def stats_of(kv: kvstore.Client, link: Link) -> Stats:
    return await read_stats(kv, link, wall_ms())


async def test_clicks_add_up_from_two_processes_and_are_not_counted_twice(kv: kvstore.Client) -> None:
    made = link_made()
    one, two = counted_by(kv), counted_by(kv)
    for at in range(300):
        (one, two)[at % 2].note(click(made, "news.example", ("DE", "FR")[at % 3 == 0], "mobile"))
    two.note(click(made))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one.run(stop))
        tasks.create_task(two.run(stop))
        stop.set()
    found = await stats_of(kv, made)
    assert (found.total, found.days[-1][1], sum(n for _, n in found.hours)) == (301, 301, 301)
    assert found.referrers == (("news.example", 300), ("direct", 1))
    assert found.countries == (("DE", 200), ("FR", 100), ("--", 1))
    assert found.devices == (("mobile", 300), ("bot", 1))
    listed = await kv.get(journal_key(""), consistency="linearizable")
    assert listed is not None
    assert json.loads(listed.value) == [], "who stops in order leaves no journal"
    await forget_stats(kv, made, wall_ms())
    assert (await stats_of(kv, made)).total == 0


async def test_what_a_killed_process_had_written_is_counted_once_by_another(
    kv: kvstore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = link_made()
    dead = Journal(kv, "dead")
    for at in range(3):
        await dead.append(journal.encode([(click(made, f"r{n}.example"), at + 1) for n in range(4)]))
    lost = await dead.take(2)
    assert [n for _, n in lost] == [1, 1]
    monkeypatch.setattr(clicks_module, "_LOOK_S", 0.01)
    monkeypatch.setattr(journal, "STILL_S", 0.05)
    heirs = [counted_by(kv), counted_by(kv)]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for heir in heirs:
            tasks.create_task(heir.run(stop))
        async with asyncio.timeout(10):
            while await kv.get(journal_key("dead"), consistency="linearizable") is not None:
                await asyncio.sleep(0.02)
        stop.set()
    assert (await stats_of(kv, made)).total == 4 * (1 + 2 + 3) - 2, "all but the portion under way"
    assert [await kv.get(record_key("dead", at)) for at in range(3)] == [None] * 3
    with pytest.raises(TakenOver):
        await dead.take(2)


async def test_a_journal_that_moves_is_left_alone(
    kv: kvstore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    alive = Journal(kv, "alive")
    await alive.append(journal.encode([(click(link_made()), 1)]))
    lookout = Lookout(kv, lambda: now_s)
    for _ in range(5):
        assert await lookout.orphan("mine") is None
        await alive.beat()
        now_s += journal.STILL_S
    assert await lookout.orphan("alive") is None, "one's own"
    assert await lookout.orphan("mine") is None
    now_s += journal.STILL_S
    monkeypatch.setattr(journal, "STILL_S", 0.0)
    found = await lookout.orphan("mine")
    assert found is not None
    with pytest.raises(TakenOver):
        await alive.beat()


class Forgetful:
    """A store whose answers to changes of a register get lost, after they were made."""

    def __init__(self, kv: kvstore.Client) -> None:
        self._kv = kv
        self.loses = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def cas(self, key: str, **options: Any) -> Any:
        done = await self._kv.cas(key, **options)
        if self.loses:
            self.loses -= 1
            raise errors.DeadlineExceeded(timeout_ms=1)
        return done


async def test_a_lost_answer_neither_skips_a_portion_nor_gives_it_twice(kv: kvstore.Client) -> None:
    made = link_made()
    store = Forgetful(kv)
    mine = Journal(store, "mine")  # type: ignore[arg-type]
    await mine.append(journal.encode([(click(made, f"r{n}.example"), 1) for n in range(3)]))
    store.loses = 1
    with pytest.raises(errors.DeadlineExceeded):
        await mine.take(2)
    await mine.beat()
    portions = [await mine.take(2) for _ in range(3)]
    assert [len(portion) for portion in portions] == [2, 1, 0]


class Counters:
    """A fake of the counter's promise: what ends Unresolved stays in the client's total."""

    def __init__(self, *script: kvstore.KVError) -> None:
        self.script = list(script)
        self.total: Counter[str] = Counter()

    async def update(self, _key: str, change: Callable[[bytes | None], bytes], *, timeout: float) -> None:
        del timeout
        self._fail(None)
        change(None)

    async def counter_add(self, key: str, by: int, *, timeout: float) -> None:
        del timeout
        self._fail((key, by))

    def _fail(self, added: tuple[str, int] | None) -> None:
        error = self.script.pop() if self.script else None
        if added is not None and not isinstance(error, kvstore.Refused):
            self.total[added[0]] += added[1]
        if error is not None:
            raise error


async def test_a_refused_addition_is_owed_and_an_unknown_one_is_not_added_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "_PAUSE_S", 0.0)
    refused, unknown = errors.NotReady(reason="test"), errors.DeadlineExceeded(timeout_ms=1)
    fake = Counters(unknown, refused, unknown, refused, unknown, refused)
    count = Counting(fake)  # type: ignore[arg-type]
    added = await count.count([(Click("id", "2026112109", "news.example", "DE", "bot"), 5)])
    assert (added, count.failed, count.dropped) == (5, 6, 0)
    assert set(fake.total.values()) == {5}
    assert len(fake.total) == 5
    never = Counting(Counters(*[errors.NotACounter(key="k")] * 4))  # type: ignore[arg-type]
    await never._surely("key", 5)
    assert never.dropped == 5


async def test_what_fails_before_a_counter_was_read_is_counted_all_the_same(
    kv: kvstore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_PAUSE_S", 0.0)
    read, failures = kv._counter, 8

    async def failing(*arguments: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise errors.DeadlineExceeded(timeout_ms=1)
        return await read(*arguments)

    monkeypatch.setattr(kv, "_counter", failing)
    made = link_made()
    await Counting(kv).count([(click(made), 5)])
    monkeypatch.undo()
    assert (await stats_of(kv, made)).total == 5


async def test_the_queue_is_bounded_and_names_overflow_into_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clicks_module, "CLICKS_MAX", 3)
    queue = counted_by(None)
    for at in range(8):
        queue.note(Click("id", "2026112109", f"r{at % 4}", "DE", "bot"))
    assert (queue.noted, queue.dropped, queue.waiting) == (6, 2, 6)
    monkeypatch.setattr(counting, "REFERRERS_MAX", 2)
    names = Names().with_clicks(Click("id", "2026112109", f"r{at}", "DE", "bot") for at in range(5))
    assert names.referrers == {"r0", "r1", "other"}
    keys = list(names.counters_of(Click("id", "2026112109", "r4", "DE", "bot")))
    assert counter_key("id", "r/other") in keys
    assert len(keys) == 5
    plain = list(names.counters_of(Click("id", "2026112109", "direct", "--", "bot")))
    assert plain == [counter_key("id", part) for part in ("v/bot", "d/20261121", "h/2026112109")]
    assert Names.decode(names.encode()) == names


class Broken:
    """A store that takes nothing."""

    def __getattr__(self, _name: str) -> Any:
        async def refuse(*_args: object, **_options: object) -> None:
            raise errors.NotReady(reason="test")

        return refuse


async def test_a_store_that_takes_nothing_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clicks_module, "_LAST_S", 0.05)
    clicks = counted_by(Broken())
    clicks.note(click(link_made()))
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(5):
        await clicks.run(stop)
    assert (clicks.waiting, clicks.journal_waiting) == (1, 0)
    assert clicks.failed > 0


async def test_a_full_journal_keeps_clicks_in_memory(
    kv: kvstore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RECORDS_MAX", 1)
    made = link_made()
    clicks = counted_by(kv)
    for _ in range(2):
        clicks.note(click(made))
        await clicks.flush()
    assert (clicks.journal_waiting, clicks.waiting, clicks.failed) == (1, 1, 1)
