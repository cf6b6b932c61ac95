"""Clients where they were not made: in a child after a fork, and in another event loop."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import fork_program
import pytest
from nodes_in_thread import nodes_in_thread

import kvstore
from kvstore import errors

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of three durable nodes."""
    with nodes_in_thread(tmp_path_factory.mktemp("nodes")) as found:
        yield found


def forked(kind: str, urls: list[str]) -> Any:
    """What a process that forks has to say, on standard error too."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    command = [sys.executable, "-X", "dev", str(fork_program.__file__), kind, *urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_child_goes_on_with_a_client_of_its_own(urls: list[str]) -> None:
    came, unused, counted = forked("client", urls)
    # Everybody counted once: both sides went on with the ids of operations, but not with the same.
    seen, held, released, acquired, scanned, after = came
    assert seen == [2, 3, 4]
    assert (held, released, acquired, scanned, after) == (
        False, None, "wrong_loop", "wrong_loop", "cannot_connect"
    )  # fmt: skip
    assert unused is None
    assert counted == [1, 5, True, 899], "its parent has the connection, the lock and the scan as before"


@pytest.mark.parametrize("kind", ["limiter", "storage"])
def test_a_limit_holds_for_parent_and_child_together(urls: list[str], kind: str) -> None:
    assert forked(kind, urls) == [[True, True], [True, True], [True, False]]


def test_another_event_loop_is_told(urls: list[str]) -> None:
    async def begin() -> kvstore.Client:
        kv = await kvstore.connect(urls)
        await kv.put("looped", b"v")
        return kv

    async def use(kv: kvstore.Client) -> None:
        with pytest.raises(errors.WrongLoop):
            await kv.put("looped", b"w")
        with pytest.raises(errors.WrongLoop):
            await kv.close()

    with asyncio.Runner() as first:
        kv = first.run(begin())
        with asyncio.Runner() as second:
            second.run(use(kv))
        first.run(kv.close())
