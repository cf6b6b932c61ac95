"""Many changes of registers with one request to each node, on real nodes; and numbers that count a period."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import kvstore
from kvstore import errors

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
async def kv() -> AsyncIterator[kvstore.Client]:
    async with kvstore.local_cluster(nodes=3) as client:
        yield client


async def held(kv: kvstore.Client, key: str) -> Any:
    entry = await kv.get(key, consistency="linearizable")
    return None if entry is None else entry.value


async def test_many_changes_have_an_outcome_each(kv: kvstore.Client) -> None:
    await kv.put_if_absent("taken", b"1")
    await kv.put_if_absent("text", b"many")
    told: list[bytes] = []
    made = [
        kv.change.incr("n", 2),
        kv.change.incr("n", 3),
        kv.change.put_if_absent("taken", b"2"),
        kv.change.incr("text"),
        kv.change.cas("new", new=b"3", expected_version=0, ttl=60),
        kv.change.delete_if("taken", expected_value=b"1"),
        kv.change.get_and_set("text", b"more"),
        *(kv.change.incr(f"k{number}", number) for number in range(40)),
    ]
    done = await kv.change_many(made, on_outcome=lambda change, _outcome: told.append(change.key))
    assert sorted(told) == sorted(change.key for change in made)
    assert sorted(each.value for each in done[:2] if isinstance(each, kvstore.Applied)) in ([2, 5], [3, 5])
    lost = done[2]
    assert isinstance(lost, kvstore.NotApplied)
    assert lost.value == b"1"
    assert isinstance(done[3], errors.NotANumber)
    new = done[4]
    assert isinstance(new, kvstore.Applied)
    assert new.expires_at is not None
    assert await held(kv, "taken") is None
    assert isinstance(done[6], kvstore.Applied)
    assert [each.value for each in done[7:] if isinstance(each, kvstore.Applied)] == list(range(40))


async def test_changes_that_are_sent_again_are_done_once(kv: kvstore.Client) -> None:
    changes = [kv.change.incr(f"n{number}") for number in range(9)]
    first = await kv.change_many(changes)
    again = await kv.change_many(changes)
    assert [bool(each) for each in first + again] == [True] * 18
    assert [await held(kv, f"n{number}") for number in range(9)] == [b"1"] * 9
    assert await kv.change_many([]) == []


async def test_a_number_that_counts_a_period(kv: kvstore.Client) -> None:
    assert (await kv.incr("n", 3, period=20, maximum=4)).value == 3
    full = await kv.incr("n", 3, period=20, maximum=4)
    assert (bool(full), full.value) == (False, 3)
    assert (await kv.incr("n", period=21)).value == 1
    over = await kv.incr("n", period=20)
    assert (bool(over), over.value) == (False, None)
    assert await held(kv, "n") == b"21:1"
    with pytest.raises(errors.NotANumber):
        await kv.incr("n")
    with pytest.raises(errors.BadOption):
        await kv.incr("n", period="20")  # type: ignore[arg-type]


async def test_changes_may_come_from_a_generator(kv: kvstore.Client) -> None:
    done = await kv.change_many(kv.change.incr(f"n{number}", number) for number in range(3))
    assert [each.value for each in done if isinstance(each, kvstore.Applied)] == [0, 1, 2]


class Picky:
    """Reads only what begins with a plus."""

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, data: bytes) -> bytes:
        if not data.startswith(b"+"):
            raise ValueError("no plus")
        return data


async def test_a_change_that_was_applied_is_never_told_as_refused() -> None:
    async with kvstore.local_cluster(nodes=3, codec=Picky()) as kv:
        for key in ("a", "b", "c"):
            await kv.put(key, b"old", consistency="linearizable")
        with pytest.raises(errors.Unresolved, match="was applied") as unresolved:
            await kv.get_and_set("a", b"+new")
        assert not unresolved.value.definite
        assert unresolved.value.operation.key == b"a"
        assert await held(kv, "a") == b"+new"
        with pytest.raises(errors.BadOption):
            await kv.cas("b", new=b"+new", expected_version=1)
        done = await kv.change_many(
            [
                kv.change.get_and_set("b", b"+new"),
                kv.change.put_if_absent("c", b"+new"),
                kv.change.incr("n"),
            ]
        )
        assert [type(each) for each in done] == [errors.Unresolved, errors.BadOption, kvstore.Applied]
        assert isinstance(done[0], errors.Unresolved)
        assert done[0].operation.key == b"b"
        assert await held(kv, "b") == b"+new"
