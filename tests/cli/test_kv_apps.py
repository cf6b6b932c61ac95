"""What `kv app shortener` and `kv app ratelimit` have in common before they serve."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KV = [sys.executable, "-m", "kvstore_cli.main"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(params=["shortener", "ratelimit"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The command, with what it needs."""
    if request.param == "shortener":
        return [*KV, "app", "shortener"]
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nname = "r"\nlimits = [{ algorithm = "fixed_window", limit = 9, per = "1s" }]\n'
    )
    return [*KV, "app", "ratelimit", "--rules", str(rules)]


def failed(command: list[str]) -> tuple[int, str]:
    """How it ended, and what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.splitlines()[-1]


def test_a_bare_address_of_the_cluster_will_do(app: list[str], free_port: Callable[[], int]) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    status, line = failed([*app, "--url", nobody, "--port", "0"])
    assert (status, line.partition(" to ")[2][: len(nobody)]) == (4, nobody), line


def test_a_port_that_is_taken_is_told(app: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, line = failed([*app, "--port", str(port)])
    assert status == 3
    assert line.startswith(f"error[KV-C02]: 127.0.0.1:{port} is taken"), line
