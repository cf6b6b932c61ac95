"""A real node with one rule broken, for tests: `BROKEN_RULE=name python -m broken_node server ...`."""

from __future__ import annotations

import os

import mutants
import pytest

from kvstore_cli.main import main

if __name__ == "__main__":
    getattr(mutants, os.environ.pop("BROKEN_RULE"))(pytest.MonkeyPatch())
    main()
