"""Target `sim`: a run of kvstore's own simulator, with its own workload, faults and judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jepsen_lite import workloads
from jepsen_lite.nemesis import NoPlanError
from jepsen_lite.runner import Options
from jepsen_lite.verdict import Word

ALL = "all"
"""Every kind of the simulator's, of which a seed draws some; the other names run all that they stand for."""
_KINDS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "halves": ("halves",), "isolate": ("isolate",), "one-way": ("one_way",), "slow": ("slow",),
    "kill": ("crash", "kill"), "kill-all": ("blackout",), "rolling": ("restart",), "pause": ("pause",),
    "clock": ("clock",), "drift": ("drift",), "disk-full": ("disk_full",), "torn-tail": ("power_cut",),
    "client-cut": ("client_cut",), "partitions": ("halves", "isolate", "one_way"),
}  # fmt: skip
NAMES = (*_KINDS, ALL)
"""The nemeses that the simulator knows."""
_LINEARIZABLE_SHARE = 0.7
_WORDS = {"ok": Word.OK, "illegal": Word.ILLEGAL, "unknown": Word.UNKNOWN}


@dataclass(frozen=True, slots=True)
class Judged:
    """What the simulator said."""

    word: Word
    text: str


def parts_of(nemesis: str) -> dict[str, tuple[str, ...]]:
    """For each name of `a+b`, the simulator's kinds of faults. Raises NoPlanError."""
    from kvstore.sim.faults import KINDS  # noqa: PLC0415  brings the whole store

    if nemesis == ALL:
        return {ALL: KINDS}
    names = nemesis.split("+")
    # Another nemesis in its place would pass for this one.
    if strange := [name for name in names if name not in _KINDS]:
        raise NoPlanError(f"the simulator has no nemesis {', '.join(strange)}; it has {', '.join(NAMES)}")
    return {name: _KINDS[name] for name in names}


def simulate(options: Options) -> Judged:
    """Run one seed under the faults that `--nemesis` names. Raises NoPlanError."""
    from kvstore.sim.run import Shape, simulate  # noqa: PLC0415  brings the whole store

    parts = parts_of(options.nemesis)
    shape = Shape(
        nodes=options.nodes,
        replicas=options.replicas,
        seconds=options.seconds,
        kinds=tuple(dict.fromkeys(kind for kinds in parts.values() for kind in kinds)),
        swarm=options.nemesis == ALL,
        registers=_LINEARIZABLE_SHARE if workloads.make(options.workload).linearizable else 0.0,
    )
    outcome = simulate(options.seed, shape)
    word = _WORDS.get(outcome.verdict.word, Word.UNKNOWN)
    told = [*outcome.verdict.violations, *outcome.verdict.unknown][:10]
    met = {fault.kind for fault in outcome.plan.faults}
    for name in [name for name, kinds in parts.items() if kinds and not met.intersection(kinds)]:
        told.append(f"no fault of {name} was drawn: give it more time or another seed")
        word = Word.UNKNOWN if word is Word.OK else word
    figures = f"figures: operations {outcome.operations}, ok {outcome.succeeded}, "
    figures += f"simulated_s {outcome.seconds:.1f}"
    lines = [
        "the simulator has its own workload and judge; --workload sets the share of linearizable calls",
        *(f"fault: {fault}" for fault in outcome.plan.faults),
        *told,
        figures,
        f"verdict: {word}",
    ]
    return Judged(word, "\n".join(lines))
