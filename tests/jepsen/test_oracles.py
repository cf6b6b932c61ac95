"""Verdicts of others: every history that Porcupine and Knossos keep must get the verdict it got there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jepsen_lite import foreign, search
from jepsen_lite.history import Operation
from jepsen_lite.models import AppendText, Model, MultiRegister, Mutex, Register
from jepsen_lite.verdict import Word

ORACLES = Path(__file__).parent / "oracles"
STEPS = 5_000_000
KNOSSOS_REGISTER = Register(0, failed_cas_constrains=False, nil_reads_constrain=False)
MODELS: dict[str, Model] = {
    "etcd-cas-register": Register(),
    "kv-string": AppendText(),
    "cas-register": KNOSSOS_REGISTER,
    "multi-register": MultiRegister({"x": 0, "y": 0}),
    "mutex": Mutex(),
}


def _files(source: str) -> dict[str, dict[str, Any]]:
    verdicts = json.loads((ORACLES / source / "verdicts.json").read_text(encoding="utf-8"))
    files: dict[str, dict[str, Any]] = verdicts["files"]
    return files


def _history(source: str, name: str) -> list[Operation]:
    text = (ORACLES / source / name).read_text(encoding="utf-8")
    return foreign.parse_log(text) if name.endswith(".log") else foreign.parse_events(text)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["porcupine", "knossos"])
def test_every_history_gets_the_verdict_it_is_known_for(source: str) -> None:
    files = _files(source)
    wrong = []
    for name, known in files.items():
        if known["linearizable"] is None:
            continue
        verdict = search.check_keys(_history(source, name), MODELS[known["model"]], STEPS)
        if verdict.word is not (Word.OK if known["linearizable"] else Word.ILLEGAL):
            wrong.append(f"{name}: {verdict}")
    assert not wrong, "\n".join(wrong)
    assert len(files) >= 100


def test_parsing_finds_every_operation() -> None:
    for name, known in _files("porcupine").items():
        operations = _history("porcupine", name)
        assert len(operations) == known["ops"], name
        assert sum(op.outcome == "unknown" for op in operations) == known["indeterminate"], name
