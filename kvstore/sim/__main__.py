"""`python -m kvstore.sim`: run seeds, say what came of them, keep the trace of one that failed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kvstore.io.clock import SystemClock
from kvstore.sim.faults import KINDS
from kvstore.sim.run import Outcome, Shape, simulate


def _say(text: str = "", **how: Any) -> None:
    print(text, **how)  # noqa: T201  a command's output


def main(arguments: list[str] | None = None) -> int:
    """0 when every run is ok, 1 when one is illegal or unknown."""
    parser = argparse.ArgumentParser(prog="python -m kvstore.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--runs", type=int, default=1, help="how many seeds from there on (default 1)")
    parser.add_argument("--nodes", type=int, default=5, help="nodes (default 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="simulated seconds of faults (default 8)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of faults to draw from")
    parser.add_argument("--within", type=float, default=0.0, help="begin no run after so many real seconds")
    parser.add_argument("--digest", action="store_true", help="print each run's digest and nothing else")
    parser.add_argument("--traces", default="sim-traces", help="folder for traces of failed runs")
    given = parser.parse_args(arguments)
    kinds = tuple(kind for kind in given.kinds.split(",") if kind)
    if unknown := sorted(set(kinds) - set(KINDS)):
        parser.error(f"no such kind of fault: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    shape = Shape(nodes=given.nodes, replicas=min(3, given.nodes), seconds=given.seconds, kinds=kinds)
    clock = SystemClock()
    began = clock.monotonic()
    outcomes: list[Outcome] = []
    failed: list[Outcome] = []
    for seed in range(given.seed, given.seed + given.runs):
        if given.within and clock.monotonic() - began > given.within:
            break
        outcome = simulate(seed, shape)
        if given.digest:
            _say(f"{seed} {outcome.digest}")
            continue
        outcomes.append(outcome)
        if outcome.verdict.word != "ok":
            failed.append(outcome)
            _tell(outcome, shape, Path(given.traces))
        if sys.stderr.isatty():
            _say(f"\r{len(outcomes)} of {given.runs} runs, {len(failed)} failed ", end="", file=sys.stderr)
    if given.digest:
        return 0
    if sys.stderr.isatty():
        _say(file=sys.stderr)
    took = max(clock.monotonic() - began, 0.001)
    simulated = sum(outcome.seconds for outcome in outcomes)
    operations = sum(outcome.operations for outcome in outcomes)
    succeeded = sum(outcome.succeeded for outcome in outcomes)
    _say(
        f"seeds {given.seed} to {given.seed + len(outcomes) - 1}: {len(outcomes) - len(failed)} ok, "
        f"{len(failed)} failed; {simulated / 60:.1f} simulated minutes in {took:.1f} s "
        f"({simulated / took:.0f} : 1), {operations} operations ({operations / took * 60:.0f} a minute), "
        f"{succeeded / max(operations, 1):.1%} succeeded"
    )
    return 1 if failed else 0


def _tell(outcome: Outcome, shape: Shape, folder: Path) -> None:
    _say(f"seed {outcome.seed}: {outcome.verdict.word}")
    for line in (outcome.verdict.violations or outcome.verdict.unknown)[:5]:
        _say(f"  {line}")
    again = simulate(outcome.seed, shape, keep_trace=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed-{outcome.seed}.txt"
    faults = "\n".join(f"fault     {fault}" for fault in outcome.plan.faults)
    path.write_text(faults + "\n" + "\n".join(again.trace) + "\n", encoding="utf-8")
    _say(f"  trace: {path}\n  again: make sim SEED={outcome.seed} RUNS=1")


if __name__ == "__main__":
    sys.exit(main())
