"""A node that is given older data than it had told its peers of takes no part (DESIGN 6)."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from raw_nodes import OPERATION, Nodes

from kvstore.core.witness import Told, Witness
from kvstore.types import NodeId

OTHER = OPERATION[::-1]
ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def test_a_witness_notices_who_begins_a_new_life_with_less() -> None:
    witness = Witness()
    assert all(witness.believes(ONE, Told(1, ceiling)) for ceiling in (100, 100, 160))
    assert witness.believes(TWO, Told(2, 90)), "each is held to its own word"
    assert not witness.believes(ONE, Told(3, 159))
    assert not witness.believes(ONE, Told(4, 0))
    assert witness.believes(ONE, Told(5, 160))
    assert not witness.believes(ONE, Told(1, 159)), "said in the life before, and late"


def test_within_one_life_words_may_overtake_each_other() -> None:
    """Simulator, seed 4004: a hello on a slow link came after the answer to a peer's own."""
    witness = Witness()
    assert witness.believes(ONE, Told(1, 160))
    assert witness.believes(ONE, Told(1, 100))
    assert not witness.believes(ONE, Told(2, 159)), "what was told stays told"


def test_who_promises_nothing_breaks_no_promise() -> None:
    witness = Witness()
    assert witness.believes(ONE, None)
    witness.believes(ONE, Told(1, 7))
    assert witness.believes(ONE, None)


async def _with_older_data(three: Nodes, tmp_path: Path) -> None:
    """Node 3 stops, and starts again with a copy of its directory from before it was asked to promise."""
    directory = tmp_path / "n3"
    await three.local.stop(THREE)
    await asyncio.to_thread(shutil.copytree, directory, tmp_path / "older")
    await three.local.start(THREE)
    await three.until_linked(1, 2)
    await three.until_linked(3, 2)
    raw = await three.connect(3)
    await raw.call("put", b"k", b"v", OPERATION, {"c": "all"})
    raw.transport.abort()
    await asyncio.sleep(1.5)  # a beat goes out once a second, and names the ceiling of that put
    await three.local.stop(THREE)
    await asyncio.to_thread(shutil.rmtree, directory)
    await asyncio.to_thread(shutil.copytree, tmp_path / "older", directory)
    await three.local.start(THREE)


@pytest.mark.slow
async def test_a_node_with_older_data_is_let_in_by_nobody_and_serves_nothing(
    three: Nodes, tmp_path: Path
) -> None:
    await _with_older_data(three, tmp_path)
    async with asyncio.timeout(10):
        while three.status(3)["state"] != "quarantined":
            await asyncio.sleep(0.05)
    assert not any(peer["up"] for peer in three.status(3)["peers"].values())
    other = await three.connect(1)
    assert (await other.call("put", b"k", b"w", OTHER, {"c": "linearizable"}))[0]
    assert (await other.call("get", b"k", {"c": "linearizable"}))[0] == b"w"
    async with asyncio.timeout(10):
        while "forgotten" not in three.status(1)["peers"]["n3"]["reason"]:
            await asyncio.sleep(0.05)
    assert not three.status(1)["peers"]["n3"]["up"]
    forgetful = await three.connect(3)
    for level in ("one", "quorum", "linearizable"):
        name, fields = await forgetful.error("get", b"k", {"c": level})
        assert name == "not_ready"
        assert "forgotten" in fields["reason"]
