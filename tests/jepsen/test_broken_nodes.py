"""Real node processes with one rule broken: jepsen-lite convicts each of them, with its usual judges.

The same rules are broken in the simulator (`tests/sim`). Here the processes, sockets, partitions and kills
are real, so each rule gets the faults that show it, and several tries; how many it takes is chance, and the
machine's. So these runs are asked for: KV_BROKEN_NODES=1 pytest tests/jepsen/test_broken_nodes.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jepsen_lite import nemesis, runner
from jepsen_lite.runner import Options
from jepsen_lite.targets import processes
from jepsen_lite.verdict import Word

SECONDS = 12.0
TRIES = 8
CONTROLS = [
    ("one_answer_taken_for_a_quorum", "quorum", "halves"),
    ("a_lost_quorum_counts_as_reached", "quorum", "halves"),
    ("the_window_is_not_asked", "counter", "pause"),
    ("timeouts_told_as_refusals", "counter", "kill"),
]
"""The broken rule, the workload, the nemesis."""
INNOCENT = ("deadlines", "recovery", "liveness", "clients")
"""Checks that a busy machine can fail too."""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("KV_BROKEN_NODES"), reason="asked for by KV_BROKEN_NODES=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("rule", "workload", "kind"), CONTROLS, ids=lambda text: text)
async def test_a_real_cluster_with_a_broken_rule_is_convicted(
    rule: str, workload: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PROGRAM", (sys.executable, "-m", "broken_node"))
    monkeypatch.setenv("BROKEN_RULE", rule)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "harness"))
    told = ""
    for seed in range(1, TRIES + 1):
        options = Options(
            workload=workload,
            nemesis=kind,
            seconds=SECONDS,
            seed=seed,
            nodes=3,
            clients=10,
            rate=200,
            links="proxy",
        )
        plan = nemesis.plan(kind, seed=seed, nodes=3, seconds=SECONDS)
        outcome = await runner.run(options, plan, tmp_path / str(seed), say=lambda _text: None)
        told = "\n".join(map(str, outcome.judgement.verdicts))
        if any(v.word is Word.ILLEGAL and v.check not in INNOCENT for v in outcome.judgement.verdicts):
            return
    pytest.fail(f"{rule} passed {TRIES} runs:\n{told}")
