"""Target `sim`: a run of kvstore's own simulator, with its own workload, faults and judge."""

from __future__ import annotations

from dataclasses import dataclass

from jepsen_lite import workloads
from jepsen_lite.runner import Options
from jepsen_lite.verdict import Word

_KINDS = {
    "none": (),
    "halves": ("halves",), "isolate": ("isolate",), "one-way": ("one_way",), "slow": ("slow",),
    "kill": ("crash", "kill"), "kill-all": ("blackout",), "rolling": ("restart",), "pause": ("pause",),
    "clock": ("clock",), "drift": ("drift",), "disk-full": ("disk_full",), "torn-tail": ("power_cut",),
    "client-cut": ("client_cut",), "partitions": ("halves", "isolate", "one_way"),
}  # fmt: skip
_LINEARIZABLE_SHARE = 0.7
_WORDS = {"ok": Word.OK, "illegal": Word.ILLEGAL, "unknown": Word.UNKNOWN}


@dataclass(frozen=True, slots=True)
class Judged:
    """What the simulator said."""

    word: Word
    text: str


def simulate(options: Options) -> Judged:
    """Run one seed; `--nemesis` picks the kinds of faults, and what the simulator does not know means all."""
    from kvstore.sim.faults import KINDS  # noqa: PLC0415  brings the whole store
    from kvstore.sim.run import Shape, simulate  # noqa: PLC0415

    kinds = _KINDS.get(options.nemesis, KINDS)
    shape = Shape(
        nodes=options.nodes,
        replicas=options.replicas,
        seconds=options.seconds,
        kinds=tuple(kind for kind in kinds if kind in KINDS),
        registers=_LINEARIZABLE_SHARE if workloads.make(options.workload).linearizable else 0.0,
    )
    outcome = simulate(options.seed, shape)
    told = [*outcome.verdict.violations, *outcome.verdict.unknown]
    figures = f"figures: operations {outcome.operations}, ok {outcome.succeeded}, "
    figures += f"simulated_s {outcome.seconds:.1f}"
    lines = [
        "the simulator has its own workload and judge; --workload sets the share of linearizable calls",
        *(f"fault: {fault}" for fault in outcome.plan.faults),
        *told[:10],
        figures,
        f"verdict: {outcome.verdict.word}",
    ]
    return Judged(_WORDS.get(outcome.verdict.word, Word.UNKNOWN), "\n".join(lines))
