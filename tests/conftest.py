"""Fixtures that every area may need, and the choice of event loop.

`KV_TEST_LOOP=uvloop` runs every async test on uvloop instead of the stock loop; CI does both.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, settings

from kvstore_cli.about import is_compiled

_PORTS_FROM, _PORTS_TO = 10_000, 20_000
"""Ours alone: above come the ports that `kvstore.local_cluster` draws, then those that the kernel hands to
outgoing connections. So what was free stays free, also while a test has its node dead."""
_WORKERS_MAX = 6

# Tests run beside whatever else the machine does: how long an example takes says nothing of it.
settings.register_profile("kvstore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvstore")

if os.environ.get("KV_TEST_LOOP") == "uvloop":
    import uvloop

    def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Tell pytest-asyncio which loop to make."""
        return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what compiled code cannot be tested by (`make test-compiled`)."""
    if not is_compiled():
        return
    compiled = pytest.mark.skip(reason="compiled code cannot be changed while it runs")
    for item in items:
        if item.get_closest_marker("patches") is not None:
            item.add_marker(compiled)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture(scope="session")
def _port_source() -> Iterator[int]:
    """Walk a range of ports that belongs to this test process alone."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS_MAX
    share = (_PORTS_TO - _PORTS_FROM) // _WORKERS_MAX
    first = _PORTS_FROM + worker * share
    # Two test runs at once on one machine should seldom meet: start where the process id says.
    start = os.getpid() * 37 % share
    return itertools.cycle((*range(first + start, first + share), *range(first, first + start)))


@pytest.fixture
def free_port(_port_source: Iterator[int]) -> Callable[[], int]:
    """Give loopback ports that nobody listens on; each call another one."""
    return lambda: next(port for port in _port_source if _is_free(port))


@pytest.fixture
def free_base_port(_port_source: Iterator[int]) -> Callable[[int], int]:
    """Give the first of `count` client ports in a row whose peer ports (100 above) are free as well."""

    def find(count: int = 3) -> int:
        for base in _port_source:
            run = [base + i + shift for i in range(count) for shift in (0, 100)]
            if max(run) < _PORTS_TO and all(map(_is_free, run)):
                return base
        raise AssertionError

    return find
