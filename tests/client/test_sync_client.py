"""The blocking client: the same verbs, the same answers, threads, and an orderly end."""

from __future__ import annotations

import asyncio
import inspect
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from nodes_in_thread import nodes_in_thread
from scripted_node import ScriptedCluster, scripted

import kvstore
import kvstore.sync
from kvstore import errors
from kvstore.client.client import Client
from kvstore.client.registers import RegisterVerbs
from kvstore.io.clock import SystemClock
from kvstore.node.service import Service
from kvstore.sync.resident import Resident

ABOUT_THE_CLIENT = {"connect", "close"}
NOT_ON_THE_WIRE = {"exists", "ttl"}
"""They are a get with `head`."""


IN_THEIR_OWN_WAY = {"scan", "lock", "update"}
"""They do more than to hand their arguments on."""


def verbs(kind: type) -> dict[str, Any]:
    names = [name for name in dir(kind) if not name.startswith("_")]
    return {name: getattr(kind, name) for name in names if callable(getattr(kind, name))}


def test_both_clients_have_the_same_verbs_with_the_same_terms() -> None:
    blocking = verbs(kvstore.sync.Client)
    waiting = verbs(Client)
    assert {"put", "scan", "cas", "lock", "resolve"} <= blocking.keys()
    assert blocking.keys() - ABOUT_THE_CLIENT == waiting.keys() - ABOUT_THE_CLIENT
    for name in blocking.keys() - ABOUT_THE_CLIENT:
        mine, its = inspect.signature(blocking[name]), inspect.signature(waiting[name])
        assert mine.parameters == its.parameters, name
        if name != "scan":  # Lock is another class here; both are called Lock
            assert mine.return_annotation == its.return_annotation, name


def test_both_locks_have_the_same_parts(blocking_cluster: ScriptedCluster) -> None:
    with kvstore.sync.connect(blocking_cluster.url) as kv:
        mine = {name for name in dir(kv.lock("job")) if not name.startswith("_")}
    dice, clock = random.Random(1), SystemClock()
    its = kvstore.Lock(None, "job", ttl=1, wait=None, clock=clock, dice=dice)  # type: ignore[arg-type]
    assert mine == {name for name in dir(its) if not name.startswith("_")}
    for name in ("acquire", "release"):
        blocking, waiting = getattr(kvstore.sync.Lock, name), getattr(kvstore.Lock, name)
        assert inspect.signature(blocking) == inspect.signature(waiting)


@pytest.mark.parametrize("name", sorted(verbs(Client).keys() - ABOUT_THE_CLIENT - IN_THEIR_OWN_WAY))
def test_every_argument_is_handed_on(name: str) -> None:
    signature = inspect.signature(getattr(Client, name))
    given = {parameter: object() for parameter in list(signature.parameters)[1:]}
    handed: dict[str, Any] = {}

    async def note(*args: Any, **terms: Any) -> None:
        handed.update(signature.bind(None, *args, **terms).arguments)

    kv = object.__new__(kvstore.sync.Client)
    kv._resident = SimpleNamespace(  # type: ignore[assignment]
        it=SimpleNamespace(**{name: note}), thread=SimpleNamespace(run=asyncio.run)
    )
    getattr(kv, name)(**given)
    assert handed == {"self": None, **given}


def test_both_ways_to_connect_take_the_same_options() -> None:
    waiting, blocking = inspect.signature(kvstore.connect), inspect.signature(kvstore.sync.connect)
    assert waiting.parameters == blocking.parameters


@pytest.mark.patches
def test_every_verb_is_a_method_of_the_node_and_every_method_has_a_verb() -> None:
    names = inspect.getsource(Service.__init__).split("self._methods")[1].split("}")[0]
    methods = {line.split('"')[1] for line in names.splitlines() if '"' in line}
    assert len(methods) > 10
    plain = verbs(Client).keys() - verbs(RegisterVerbs).keys()
    assert plain - ABOUT_THE_CLIENT - NOT_ON_THE_WIRE == methods - {"hello", "change", "change_many"}
    assert {"change", "change_many"} <= methods, "what all verbs of registers are on the wire"


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


def threads_of_clients() -> int:
    """Nodes, executors and other tests of this process begin and end threads of their own at any time."""
    return sum(thread.name == "kvstore-sync" for thread in threading.enumerate())


def test_after_close_calls_are_refused_and_the_thread_is_gone(blocking_cluster: ScriptedCluster) -> None:
    before = threads_of_clients()
    kv = kvstore.sync.connect(blocking_cluster.url)
    assert threads_of_clients() == before + 1
    kv.close()
    kv.close()
    assert threads_of_clients() == before
    with pytest.raises(errors.CannotConnect, match="closed"):
        kv.put("k", b"v")


def test_of_two_threads_that_close_one_closes_and_the_other_waits() -> None:
    closed: list[object] = []
    returned: list[bool] = []

    async def make() -> object:
        return object()

    async def close(it: object) -> None:
        closed.append(it)
        await asyncio.sleep(0.05)

    resident = Resident(make, close)

    def end() -> None:
        resident.end()
        returned.append(resident.thread.ended)

    ends = [threading.Thread(target=end, daemon=True) for _ in range(2)]
    for each in ends:
        each.start()
    for each in ends:
        each.join(timeout=5)
    assert (len(closed), returned) == (1, [True, True])


def test_a_client_that_cannot_connect_leaves_no_thread() -> None:
    before = threads_of_clients()
    with pytest.raises(errors.CannotConnect):
        kvstore.sync.connect("kv://127.0.0.1:1", timeout=0.3)
    assert threads_of_clients() == before


# --- registers and locks, on real nodes -------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of three durable nodes, which run in a thread. Keys differ from test to test."""
    with nodes_in_thread(tmp_path_factory.mktemp("nodes")) as found:
        yield found


@pytest.mark.e2e
@pytest.mark.slow
def test_register_verbs_block_and_answer_both_ways(url: list[str]) -> None:
    with kvstore.sync.connect(url) as kv:
        made = kv.put_if_absent("r1", b"1", ttl=60)
        assert made
        assert kv.put_if_absent("r1", b"2").value == b"1"
        assert kv.cas("r1", new=b"2", expected_version=made.version)
        assert not kv.cas("r1", new=b"3", expected_version=made.version)
        assert not kv.cas("r1", new=b"3", expected_value=b"1")
        assert kv.extend("r1", 30)
        assert not kv.extend("r1", 30, expected_version=made.version)
        assert kv.get_and_set("r1", b"4").value == b"2"
        assert not kv.delete_if("r1", expected_value=b"2")
        assert kv.delete_if("r1", expected_value=b"4")
        assert kv.get("r1", consistency="linearizable") is None
        assert kv.incr("n1", 5).value == 5
        assert not kv.incr("n1", maximum=5)
        assert not kv.resolve("1" * 32 + ":" + b"n1".hex())
        with pytest.raises(errors.BadOption):
            kv.cas("r1", new=b"x")


@pytest.mark.e2e
@pytest.mark.slow
def test_updates_of_many_threads_lose_nothing_and_run_where_they_were_called(url: list[str]) -> None:
    with kvstore.sync.connect(url, codec="json", timeout=30) as kv, ThreadPoolExecutor(4) as pool:

        def add(worker: int) -> None:
            def change(seen: list[int] | None) -> list[int]:
                assert threading.get_ident() == mine
                assert kv.ping() >= 0, "a change may use the client that runs it"
                return [*(seen or []), worker]

            mine = threading.get_ident()
            for _ in range(5):
                assert kv.update("r2", change)

        list(pool.map(add, range(4)))
        entry = kv.get("r2", consistency="linearizable")
        assert entry is not None
        assert sorted(entry.value) == sorted([0, 1, 2, 3] * 5)
        with pytest.raises(errors.BadOption):
            kv.update("r2", lambda seen: seen, timeout=-1)
        kv.update("r2", lambda _seen: None)
        assert kv.get("r2", consistency="linearizable") is None


@pytest.mark.e2e
@pytest.mark.slow
def test_an_update_gives_up_when_others_keep_coming_in_between(url: list[str]) -> None:
    with kvstore.sync.connect(url) as kv:

        def change(_seen: Any) -> bytes:
            kv.incr("r3")  # somebody who is always quicker
            return b"-1"

        told = set()
        for _ in range(3):
            with pytest.raises(errors.KVError) as gave_up:
                kv.update("r3", change, timeout=0.3)
            told.add(type(gave_up.value))
        # The last try may have been so much slower than those before that nobody knows.
        assert errors.Contended in told
        assert told <= {errors.Contended, errors.DeadlineExceeded}
        entry = kv.get("r3", consistency="linearizable")
        assert entry is not None
        assert int(entry.value) > 1


@pytest.mark.e2e
@pytest.mark.slow
def test_a_lock_excludes_threads_and_clients_and_its_tokens_grow(url: list[str]) -> None:
    inside: list[int] = []
    tokens: list[int] = []

    def work(kv: kvstore.sync.Client) -> None:
        for _ in range(3):
            with kv.lock("l1", ttl=10) as lease:
                inside.append(lease.token)
                assert len(inside) == 1
                assert lease.held
                tokens.append(lease.token)
                inside.clear()
            assert (lease.token, lease.held) == (0, False)

    with kvstore.sync.connect(url) as kv, kvstore.sync.connect(url) as other, ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [kv, kv, other, other]))
    assert len(tokens) == 12
    assert tokens == sorted(set(tokens))


@pytest.mark.e2e
@pytest.mark.slow
def test_a_lease_is_renewed_while_its_thread_blocks(url: list[str]) -> None:
    with kvstore.sync.connect(url) as kv, kvstore.sync.connect(url) as other:
        with kv.lock("l2", ttl=1) as lease:
            time.sleep(2.2)
            assert lease.held
            assert not lease.lost.is_set()
            with pytest.raises(errors.LockTaken):
                other.lock("l2", wait=0).acquire()
        assert other.lock("l2", wait=0).acquire()


@pytest.mark.e2e
@pytest.mark.slow
def test_a_lease_that_was_taken_away_says_so(url: list[str]) -> None:
    with kvstore.sync.connect(url) as kv, kv.lock("l3", ttl=1) as lease:
        kv.delete(lease.key, consistency="linearizable")
        assert lease.lost.wait(5)
        assert not lease.held


@pytest.mark.e2e
@pytest.mark.slow
def test_closing_a_client_ends_what_waits_and_what_it_holds(url: list[str]) -> None:
    before = threads_of_clients()
    holder, waiter = kvstore.sync.connect(url), kvstore.sync.connect(url)
    lease = holder.lock("l4", ttl=1)
    assert lease.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waiter.lock("l4").acquire)
        time.sleep(0.2)
        waiter.close()
        with pytest.raises(errors.ConnectionLost, match="closed"):
            waiting.result(timeout=10)
    holder.close()
    lease.release()
    assert not lease.held
    assert threads_of_clients() == before
    with kvstore.sync.connect(url) as kv:
        assert kv.lock("l4", wait=10).acquire() > lease.token, "free when its ttl is over"


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
