"""Clusters of real nodes for the tests of the node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from raw_nodes import Nodes, running


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Three nodes."""
    async with running(tmp_path, 3) as nodes:
        yield nodes


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Nodes]:
    """A single node."""
    async with running(tmp_path, 1) as nodes:
        yield nodes
