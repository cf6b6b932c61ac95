"""A scan gives each entry once, page by page, through nodes that come and go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted_node import DROP, Connect, ScriptedCluster

import kvstore.sync
from kvstore import errors
from kvstore.client import pages
from kvstore.client.client import Client


async def filled(connect: Connect, count: int) -> Client:
    """A client of a cluster that holds `a:0000` .. and some other keys."""
    kv = await connect()
    await kv.put_many({f"a:{i:04}": b"%d" % i for i in range(count)})
    await kv.put_many({f"b:{i:04}": b"-" for i in range(10)})
    return kv


async def test_all_entries_come_once_over_many_pages(
    cluster: ScriptedCluster, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_KEYS", 10)
    kv = await filled(connect, 95)
    entries = [entry async for entry in kv.scan("a:")]
    assert [entry.key for entry in entries] == [f"a:{i:04}" for i in range(95)]
    assert [entry.value for entry in entries] == [b"%d" % i for i in range(95)]
    assert all(entry.receipt.version == entry.version > 0 for entry in entries)
    assert sum(cluster.asked("scan")) == 10


@pytest.mark.parametrize("act", [DROP, errors.NotReady(reason="stopping"), "nonsense"])
async def test_a_page_that_fails_is_asked_again_elsewhere(
    cluster: ScriptedCluster, connect: Connect, monkeypatch: pytest.MonkeyPatch, act: Any
) -> None:
    monkeypatch.setattr(pages, "PAGE_KEYS", 10)
    kv = await filled(connect, 50)
    for node in cluster.nodes.values():
        node.acts["scan"].append(act)
    assert len([entry async for entry in kv.scan("a:")]) == 50


@pytest.mark.parametrize(("limit", "requests"), [(0, 0), (1, 1), (10, 1), (25, 3), (1_000, 6)])
async def test_a_limit_is_kept(
    cluster: ScriptedCluster,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    requests: int,
) -> None:
    monkeypatch.setattr(pages, "PAGE_KEYS", 10)
    kv = await filled(connect, 50)
    assert len([entry async for entry in kv.scan(limit=limit)]) == min(limit, 60)
    assert sum(cluster.asked("scan")) == requests


async def test_keys_only_brings_no_values(connect: Connect) -> None:
    kv = await filled(connect, 5)
    assert [(entry.key, entry.value) async for entry in kv.scan("b:", keys_only=True, limit=1)] == [
        ("b:0000", None)
    ]


async def test_keys_are_shown_as_text_where_they_are_text(connect: Connect) -> None:
    kv = await connect()
    await kv.put(b"\xff\xfe", b"1")
    await kv.put("ä", b"2")
    assert {entry.key for entry in [entry async for entry in kv.scan()]} == {b"\xff\xfe", "ä"}


async def test_a_scan_can_be_left_and_gone_on_with(connect: Connect) -> None:
    kv = await filled(connect, 20)
    scan = kv.scan("a:")
    async for entry in scan:
        if entry.key == "a:0009":
            break
    assert [entry.key async for entry in scan] == [f"a:{i:04}" for i in range(10, 20)]
    assert [entry async for entry in scan] == []
    closed = kv.scan("a:")
    await anext(closed)
    await closed.aclose()
    assert [entry async for entry in closed] == []


async def test_an_entry_that_cannot_be_decoded_takes_no_other_with_it(
    cluster: ScriptedCluster, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_KEYS", 10)
    raw = await filled(connect, 30)
    await raw.put("a:0015", b"{")
    scan = (await connect(codec="json")).scan("a:")
    seen = [await anext(scan) for _ in range(15)]
    with pytest.raises(errors.BadOption, match="stored value"):
        await anext(scan)
    seen += [entry async for entry in scan]
    assert [entry.value for entry in seen] == [number for number in range(30) if number != 15]

    def blocking() -> None:
        with kvstore.sync.connect(cluster.url, codec="json") as kv:
            entries = kv.scan("a:")
            values = [next(entries).value for _ in range(15)]
            with pytest.raises(errors.BadOption, match="stored value"):
                next(entries)
            assert values + [entry.value for entry in entries] == [entry.value for entry in seen]

    await asyncio.to_thread(blocking)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"limit": -1}, errors.BadOption),
        ({"limit": True}, errors.BadOption),
        ({"limit": 1.5}, errors.BadOption),
        ({"prefix": 7}, errors.BadOption),
        ({"prefix": "\ud800"}, errors.BadOption),
        ({"prefix": "x" * 481}, errors.BadOption),
        ({"consistency": "most"}, errors.BadConsistency),
        ({"r": 0}, errors.BadConsistency),
        ({"timeout": 0}, errors.BadOption),
    ],
)
async def test_wrong_terms_are_refused_when_the_scan_is_made(
    cluster: ScriptedCluster, connect: Connect, wrong: dict[str, Any], kind: type[errors.KVError]
) -> None:
    kv = await connect()
    with pytest.raises(kind):
        kv.scan(**wrong)
    assert sum(cluster.asked("scan")) == 0
