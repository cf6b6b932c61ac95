"""A record that its disk has damaged: scans are answered by the owners that are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_nodes import running

import kvstore

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("level", ["one", "quorum"])
async def test_a_scan_through_the_node_with_the_damage_finds_everything(tmp_path: Path, level: str) -> None:
    wanted = {*(f"k{number}" for number in range(9)), "bad"}
    async with (
        running(tmp_path, 3) as three,
        await kvstore.connect(three.local.urls) as kv,
    ):
        for key in wanted:
            await kv.put(key, b"PAYLOAD-OF-" + key.encode(), consistency="all")
    base = tmp_path / "n1" / "base" / "data.mdb"
    base.write_bytes(base.read_bytes().replace(b"PAYLOAD-OF-bad", b"PAYLOAD-OF-baD"))
    async with (
        running(tmp_path, 3) as three,
        await kvstore.connect(three.local.urls[:1], pinned=True) as kv,
    ):
        assert {entry.key async for entry in kv.scan(consistency=level)} == wanted
