"""A retry after a lost answer never applies twice: exactly the answer is dropped, for every verb."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

import kvstore
from kvstore import errors
from kvstore.client.caller import Caller
from kvstore.client.change import Applied
from kvstore.core.changes import Request
from kvstore.node.proposers import OnSettled, Settled
from kvstore.node.registers import Registers

pytestmark = pytest.mark.patches
Client = kvstore.Client
LINEAR = "linearizable"


@pytest.fixture
async def kv() -> AsyncIterator[Client]:
    async with kvstore.local_cluster(nodes=3) as client:
        yield client


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The next answer to a write is lost on its way to the client; the list says of which method."""
    lost: list[str] = []
    honest = Caller._try

    async def forgetful(self: Caller, address: str, method: str, *rest: Any) -> Any:
        answer = await honest(self, address, method, *rest)
        if method in ("put", "delete", "touch", "persist", "change") and not lost:
            lost.append(method)
            raise errors.ConnectionLost(address=address, reason="the test dropped exactly this answer")
        return answer

    monkeypatch.setattr(Caller, "_try", forgetful)
    return lost


async def value(kv: Client, key: str) -> bytes | None:
    found = await kv.get(key, consistency=LINEAR)
    return None if found is None else bytes(found.value)


async def incr(kv: Client) -> None:
    assert (await kv.incr("k", 5)).value == 5
    assert await value(kv, "k") == b"5"


async def put(kv: Client) -> None:
    receipt = await kv.put("k", b"v", consistency=LINEAR)
    found = await kv.get("k", consistency=LINEAR)
    assert found is not None
    assert found.version == receipt.version


async def cas(kv: Client) -> None:
    assert await kv.cas("k", new=b"b", expected_version=0)
    assert await value(kv, "k") == b"b"


async def cas_of_a_value(kv: Client) -> None:
    assert await kv.cas("k", new=b"b", expected_value=None)


async def put_if_absent(kv: Client) -> None:
    assert await kv.put_if_absent("k", b"v")


async def get_and_set(kv: Client) -> None:
    done = await kv.get_and_set("k", b"v")
    assert done.value is None, "the second try would have seen the first"


async def update(kv: Client) -> None:
    await kv.update("k", lambda found: (found or b"") + b"x")
    assert await value(kv, "k") == b"x"


async def lock(kv: Client) -> None:
    async with kv.lock("k", ttl=5, wait=1) as lease:
        assert lease.token


VERBS: Sequence[Callable[[Client], Awaitable[None]]] = (
    incr, put, cas, cas_of_a_value, put_if_absent, get_and_set, update, lock,
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
async def test_a_change_whose_answer_was_lost_is_not_done_twice(
    kv: Client, dropped: list[str], verb: Callable[[Client], Awaitable[None]]
) -> None:
    await verb(kv)
    assert len(dropped) == 1


async def test_a_delete_a_touch_and_a_conditional_delete(kv: Client, request: pytest.FixtureRequest) -> None:
    version = (await kv.put("k", b"v", consistency=LINEAR)).version
    lost: list[str] = request.getfixturevalue("dropped")
    assert await kv.extend("k", 60, expected_version=version)
    lost.clear()
    assert await kv.touch("k", 30, consistency=LINEAR) is not None
    lost.clear()
    assert await kv.persist("k", consistency=LINEAR) is not None
    lost.clear()
    assert isinstance(await kv.delete_if("k", expected_version=version), Applied)
    lost.clear()
    await kv.put("k", b"w", consistency=LINEAR)
    lost.clear()
    receipt = await kv.delete("k", consistency=LINEAR)
    assert receipt.existed, "the answer is that of the try that did it"
    assert lost == ["delete"]


async def test_a_plain_write_that_met_a_register_is_not_done_twice(kv: Client, dropped: list[str]) -> None:
    dropped.append("not yet")
    await kv.put("k", b"1", consistency=LINEAR)
    dropped.clear()
    receipt = await kv.put("k", b"2")
    assert dropped == ["put"]
    assert receipt.attempts == 2
    found = await kv.get("k", consistency=LINEAR)
    assert found is not None
    assert (found.value, found.version) == (b"2", receipt.version)


async def test_what_nobody_could_answer_is_resolved_into_a_fact(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Registers.start

    def silent(self: Registers, key: bytes, request: Request, deadline: float, done: OnSettled) -> None:
        def told(settled: Settled | None, error: errors.KVError | None) -> None:
            if request.name == "incr":
                settled = None
                error = errors.QuorumTimeout(operation="incr", needed=2, acked=1, missing="n9")
            done(settled, error)

        honest(self, key, request, deadline, told)

    monkeypatch.setattr(Registers, "start", silent)
    with pytest.raises(errors.Unresolved) as caught:
        await kv.incr("k", 3, timeout=0.5)
    operation = caught.value.operation
    assert operation is not None
    done = await kv.resolve(str(operation))
    assert isinstance(done, Applied)
    assert done.value == b"3"
    assert await value(kv, "k") == b"3"


async def test_what_never_arrived_is_resolved_as_never_applied_for_good(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Registers.start
    held: list[tuple[Registers, bytes, Request, float]] = []

    def held_up(self: Registers, key: bytes, request: Request, deadline: float, done: OnSettled) -> None:
        if request.name == "incr":
            held.append((self, key, request, deadline))
            done(None, errors.QuorumTimeout(operation="incr", needed=2, acked=0, missing="n9"))
        else:
            honest(self, key, request, deadline, done)

    monkeypatch.setattr(Registers, "start", held_up)
    with pytest.raises(errors.Unresolved) as caught:
        await kv.incr("k", 3, timeout=0.5)
    assert not await kv.resolve(caught.value.operation)
    registers, key, request, deadline = held[0]
    monkeypatch.undo()
    outcome, _ = await registers.change(key, request, deadline + 5)
    assert not outcome.applied, "the try that was held up comes too late"
    assert await value(kv, "k") is None
