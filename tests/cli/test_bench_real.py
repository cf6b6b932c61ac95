"""`kv bench` from its command line down to real nodes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

import kvstore

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with kvstore.local_cluster(nodes=3) as kv:
        topology = await kv.topology()
        yield "kv://" + ",".join(f"{node.host}:{node.client_port}" for node in topology.nodes)


async def kv_bench(*arguments: str) -> tuple[int, str]:
    """Run `kv bench`; status and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kvstore_cli.main", "bench", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_a_mix_by_count_over_two_processes_is_reported_as_json(url: str) -> None:
    status, out = await kv_bench(
        "--url",
        url,
        "--mix",
        "d",
        "-c",
        "6",
        "--processes",
        "2",
        "--keys",
        "300",
        "-n",
        "400",
        "--warmup",
        "0",
        "-o",
        "json",
    )
    told: dict[str, Any] = json.loads(out)
    assert status == 0
    assert told["errors"] == {}
    assert told["nodes"] == 3
    assert told["latency_ms"]["all"]["count"] == 400
    assert told["latency_ms"]["get"]["count"] + told["latency_ms"]["insert"]["count"] == 400


async def test_reads_find_what_was_loaded_and_the_table_says_so(url: str) -> None:
    status, out = await kv_bench(
        "--url", url, "--mix", "get", "--consistency", "all", "--keys", "50", "-n", "100", "-o", "table"
    )
    assert status == 0
    assert "c=all" in out
    assert "errors" not in out
    async with await kvstore.connect(url) as kv:
        assert len([entry async for entry in kv.scan(prefix="user")]) == 50


async def test_a_cluster_that_refuses_everything_is_status_five(url: str) -> None:
    status, out = await kv_bench(
        "--url", url, "--mix", "put", "--value-bytes", "2000000", "-c", "2", "-n", "4", "-o", "json"
    )
    assert status == 5
    assert json.loads(out)["errors"] == {"bad_value": 4}
