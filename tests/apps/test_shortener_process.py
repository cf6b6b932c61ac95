"""`kv app shortener` as a process: it stops in order, and `kill -9` loses no more than it says."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from pathlib import Path

import click
import httpx
import pytest

import kvstore
from kvstore.apps.shortener.clock import wall_ms
from kvstore.apps.shortener.link import decode, link_key
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.stats import Stats, read_stats
from kvstore.server import LocalNodes, local_nodes
from kvstore_cli import apps_shortener
from kvstore_cli.problems import UsageProblem

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("shortener")]
KEY = "ada-key-0123456789"
TARGET = "https://example.com/a"


class Running:
    """One process of the service."""

    def __init__(self, *arguments: str, port: int) -> None:
        self._arguments = [*arguments, "--port", str(port)]
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}")
        self.told = ""

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kvstore_cli.main", "app", "shortener", *self._arguments,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stderr is not None
        while "listening on" not in self.told:
            line = await self._process.stderr.readline()
            assert line, self.told
            self.told += line.decode()
        async with asyncio.timeout(20):
            while not await self._ready():
                await asyncio.sleep(0.02)

    async def _ready(self) -> bool:
        try:
            return (await self.http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)
        _, rest = await self._process.communicate()
        self.told += rest.decode()
        await self.http.aclose()
        assert self._process.returncode is not None
        return self._process.returncode


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[LocalNodes]:
    async with local_nodes(tmp_path / "nodes", count=3, cluster_id="b" * 32, partitions=16) as local:
        yield local


async def clicked(http: httpx.AsyncClient, code: str, times: int) -> None:
    for _ in range(times):
        assert (await http.get(f"/{code}")).status_code == 302


async def test_an_orderly_stop_loses_nothing_and_kill_9_at_most_two_seconds(
    nodes: LocalNodes, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"# keys\nada:{KEY}\n")
    arguments = ("--url", ",".join(nodes.urls).replace(",kv://", ","), "--keys", str(keys))
    async with await kvstore.connect(nodes.urls) as kv:

        async def counted() -> Stats:
            entry = await kv.get(link_key("my-link"))
            assert entry is not None
            return await read_stats(kv, decode(entry.value), wall_ms())

        first = Running(*arguments, port=free_port())
        await first.start()
        made = await first.http.post(
            "/api/links",
            json={"url": TARGET, "alias": "my-link"},
            headers={"authorization": f"Bearer {KEY}"},
        )
        assert made.status_code == 201
        await clicked(first.http, "my-link", 25)
        assert await first.end(signal.SIGTERM) == 0
        assert (await counted()).total == 25
        lines = [json.loads(line) for line in first.told.splitlines() if line.startswith("{")]
        assert [line["status"] for line in lines if line["path"] == "/my-link"] == [302] * 25

        second = Running(*arguments, "--quiet", "--set", "flush_s=0.4", port=free_port())
        await second.start()
        await clicked(second.http, "my-link", 20)
        await asyncio.sleep(2.0)
        await clicked(second.http, "my-link", 10)
        assert await second.end(signal.SIGKILL) == -signal.SIGKILL
        assert 45 <= (await counted()).total <= 55
        assert "{" not in second.told


async def test_without_a_cluster_it_starts_one_and_gives_a_key(free_port: Callable[[], int]) -> None:
    alone = Running(port=free_port())
    await alone.start()
    key = alone.told.partition("for this run: ")[2].split()[0]
    made = await alone.http.post(
        "/api/links", json={"url": TARGET}, headers={"authorization": f"Bearer {key}"}
    )
    assert made.status_code == 201
    await clicked(alone.http, made.json()["code"], 1)
    assert await alone.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("cache_links=5", {"cache_links": 5}),
        ("flush_s=0.25", {"flush_s": 0.25}),
        ("metrics=false", {"metrics": False}),
        ("country_header=x-country", {"country_header": "x-country"}),
        ("own_hosts=a.example,b.example", {"own_hosts": frozenset({"a.example", "b.example"})}),
    ],
)
def test_any_option_can_be_set_by_its_name(given: str, found: dict[str, object]) -> None:
    settings = apps_shortener._settings((given,), ShortenerOptions)
    assert settings == found
    ShortenerOptions(**settings)


@pytest.mark.parametrize("given", ["nothing=1", "cache_links", "cache_links=many", "metrics=yes", "web=true"])
def test_what_cannot_be_set_is_refused_with_a_hint(given: str) -> None:
    with pytest.raises(UsageProblem):
        apps_shortener._settings((given,), ShortenerOptions)


def test_every_option_is_in_the_docs_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "shortener.md").read_text(encoding="utf-8")
    for field in fields(ShortenerOptions):
        shown = "empty" if field.default in ("", frozenset()) else str(field.default)
        assert f"| `{field.name}` | {shown} |" in page, field.name
    for option in apps_shortener.shortener_command.params:
        if isinstance(option, click.Option) and option.hidden:
            continue  # of every command
        assert f"`{option.opts[0]}" in page, option.opts
