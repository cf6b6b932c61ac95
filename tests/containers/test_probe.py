"""What HEALTHCHECK and the Kubernetes probes ask: ready means it serves, alive means it answers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType

import pytest

import kvstore

PATH = Path(__file__).parents[2] / "scripts" / "kv_probe.py"


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kv_probe", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("state", "ready", "alive"),
    [
        ("ready", True, True),
        ("forming", False, True),
        ("starting", False, True),
        ("draining", False, True),
        ("failed", False, False),
    ],
)
def test_the_two_questions_mean_different_things(
    probe: ModuleType, state: str, *, ready: bool, alive: bool
) -> None:
    status = {"state": state}
    assert (probe.verdict("ready", status), probe.verdict("alive", status)) == (ready, alive)


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, "127.0.0.1:7401"),
        ({"KV_LISTEN_HOST": "0.0.0.0", "KV_CLIENT_PORT": "9"}, "127.0.0.1:9"),  # noqa: S104
        ({"KV_LISTEN_HOST": "::"}, "[::1]:7401"),
        ({"KV_LISTEN_HOST": "192.0.2.1"}, "192.0.2.1:7401"),
    ],
)
def test_it_asks_the_node_of_its_own_environment(
    probe: ModuleType, environment: dict[str, str], address: str
) -> None:
    assert probe.address_of(environment) == address


def test_it_shows_the_token_of_a_file(probe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    assert probe.token_of({"KV_CLIENT_TOKEN_FILE": str(tmp_path / "token")}) == "s3cret"
    assert probe.token_of({"KV_CLIENT_TOKEN": "other"}) == "other"


def _ask(*question: str, port: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, PATH, *question],
        env=os.environ | {"KV_CLIENT_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with kvstore.local_cluster(nodes=1) as kv:
        yield (await kv.topology()).nodes[0].client_port


@pytest.mark.slow
async def test_a_real_node_is_ready(port: int) -> None:
    import asyncio

    assert await asyncio.to_thread(_ask, "ready", port=port) == (0, "n1: ready\n")


@pytest.mark.slow
def test_nobody_there_is_not_ready(free_port: Callable[[], int]) -> None:
    status, said = _ask("alive", port=free_port())
    assert status == 1
    assert said.startswith("no answer: ")
    assert _ask("well", port=1) == (2, "usage: kv-probe ready|alive\n")
