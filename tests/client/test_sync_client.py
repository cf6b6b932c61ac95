"""The blocking client: the same verbs, the same answers, threads, and an orderly end."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scripted_node import ScriptedCluster, scripted

import kvstore
import kvstore.sync
from kvstore import errors
from kvstore.client.client import Client
from kvstore.node.service import Service

ABOUT_THE_CLIENT = {"connect", "close"}
NOT_ON_THE_WIRE = {"exists", "ttl"}
"""They are a get with `head`."""


def verbs(kind: type) -> dict[str, Any]:
    return {name: part for name, part in vars(kind).items() if not name.startswith("_") and callable(part)}


def test_both_clients_have_the_same_verbs_with_the_same_terms() -> None:
    blocking = verbs(kvstore.sync.Client)
    waiting = verbs(Client)
    assert blocking.keys() - ABOUT_THE_CLIENT == waiting.keys() - ABOUT_THE_CLIENT
    for name in blocking.keys() - ABOUT_THE_CLIENT:
        mine, its = inspect.signature(blocking[name]), inspect.signature(waiting[name])
        assert mine.parameters == its.parameters, name
        if name != "scan":
            assert mine.return_annotation == its.return_annotation, name


def test_both_ways_to_connect_take_the_same_options() -> None:
    waiting, blocking = inspect.signature(kvstore.connect), inspect.signature(kvstore.sync.connect)
    assert waiting.parameters == blocking.parameters


def test_every_verb_is_a_method_of_the_node_and_every_method_has_a_verb() -> None:
    names = inspect.getsource(Service.__init__).split("self._methods")[1].split("}")[0]
    methods = {line.split('"')[1] for line in names.splitlines() if '"' in line}
    assert len(methods) > 10
    assert verbs(Client).keys() - ABOUT_THE_CLIENT - NOT_ON_THE_WIRE == methods - {"hello"}


@pytest.fixture
def blocking_cluster() -> Iterator[ScriptedCluster]:
    """A scripted cluster whose loop runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = scripted(3)
    cluster = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
    yield cluster
    asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_the_verbs_block_and_answer(blocking_cluster: ScriptedCluster) -> None:
    with kvstore.sync.connect(blocking_cluster.url, codec="text") as kv:
        assert kv.put("k", "v", ttl=60).attempts == 1
        entry = kv.get("k")
        assert entry is not None
        assert entry.value == "v"
        assert kv.exists("k")
        assert kv.ttl("nothing") is None
        assert kv.touch("nothing", 5) is None
        assert kv.persist("k") is not None
        assert len(kv.put_many({f"a{i}": "x" for i in range(1_200)})) == 1_200
        assert len(kv.get_many(["a1", "a2"])) == 2
        assert [entry.key for entry in kv.scan("a", limit=3)] == ["a0", "a1", "a10"]
        assert len(list(kv.scan("a", keys_only=True))) == 1_200
        assert len(kv.delete_many(["a1"])) == 1
        assert kv.delete("k").existed
        assert kv.locate("k").owners
        assert kv.topology().epoch == 1
        assert kv.status()["state"] == "ready"
        assert kv.ping() >= 0


def test_errors_reach_the_caller_as_they_are(blocking_cluster: ScriptedCluster) -> None:
    with kvstore.sync.connect(blocking_cluster.url) as kv:
        with pytest.raises(errors.BadKey):
            kv.put("", b"v")
        blocking_cluster.always("put", errors.NeedsRegister())
        with pytest.raises(errors.NeedsRegister):
            kv.put("k", b"v")
        with pytest.raises(errors.BadOption):
            kv.scan(limit=-1)


def test_one_client_serves_many_threads(blocking_cluster: ScriptedCluster) -> None:
    with kvstore.sync.connect(blocking_cluster.url) as kv, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: kv.put(f"k{i}", b"%d" % i), range(400)))
        values = list(pool.map(lambda i: kv.get(f"k{i}"), range(400)))
    assert [entry.value for entry in values if entry is not None] == [b"%d" % i for i in range(400)]
    assert sum(node.accepted for node in blocking_cluster.nodes.values()) <= 4


def test_after_close_calls_are_refused_and_the_thread_is_gone(blocking_cluster: ScriptedCluster) -> None:
    before = threading.active_count()
    kv = kvstore.sync.connect(blocking_cluster.url)
    assert threading.active_count() == before + 1
    kv.close()
    kv.close()
    assert threading.active_count() == before
    with pytest.raises(errors.CannotConnect, match="closed"):
        kv.put("k", b"v")


def test_a_client_that_cannot_connect_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(errors.CannotConnect):
        kvstore.sync.connect("kv://127.0.0.1:1", timeout=0.3)
    assert threading.active_count() == before


FORBIDDEN = [
    "lmdb",
    "uvloop",
    "structlog",
    "click",
    "rich",
    "prompt_toolkit",
    "hdrh",
    "aiofiles",
    "ssl_unused",
]


@pytest.mark.parametrize("module", ["kvstore", "kvstore.sync", "kvstore.client.client"])
def test_a_client_loads_nothing_that_only_servers_need(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name.split(".")[0] for name in out.split()} | set(out.split())
    assert "kvstore" in loaded
    assert not loaded & {*FORBIDDEN, "kvstore.node", "kvstore.storage", "kvstore.server", "kvstore.sim"}
