"""The verdict of a run: its workload's judge, and what every run must show to prove anything."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jepsen_lite import workloads
from jepsen_lite.checks_session import check_liveness, check_substance
from jepsen_lite.history import History, Operation
from jepsen_lite.nemesis import CLIENTS, Fault
from jepsen_lite.seat import ASKED_AFTER
from jepsen_lite.verdict import Verdict, Word, guarded, illegal, worst

AVAILABLE_AFTER_S = 2.0
"""From the start of a partition until its majority is expected to serve again."""
LATE_S = 0.5
"""Beyond its deadline, for a call to be called late."""
_ONE_CALL = frozenset(("read", "write", "cas", "delete", "generate", "add", "append"))
"""What a workload does with one call, so with one deadline."""


@dataclass(frozen=True, slots=True)
class Span:
    """A fault as it was carried out, in seconds since the run began."""

    began: float
    ended: float
    fault: Fault

    def as_json(self) -> list[Any]:
        """For the history's header."""
        return [self.began, self.ended, str(self.fault)]


@dataclass(slots=True)
class Judgement:
    """All verdicts of a run, and its figures."""

    verdicts: list[Verdict]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def word(self) -> Word:
        """What the run is worth."""
        return worst(self.verdicts)

    @property
    def failing(self) -> Verdict | None:
        """The verdict to look at first."""
        bad = [verdict for verdict in self.verdicts if verdict.word is self.word]
        return max(bad, key=lambda v: (bool(v.evidence), bool(v.key)), default=None) if self.word else None

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "verdict": str(self.word),
            "checks": [verdict.as_json() for verdict in self.verdicts],
            "figures": self.figures,
        }


def judge(workload: str, operations: Sequence[Operation], spans: Sequence[tuple[float, float]]) -> Judgement:
    """What a history alone can tell. Raises KeyError for a workload that is not there."""
    verdicts = [
        *workloads.make(workload).judge(operations),
        guarded("liveness", lambda: check_liveness(operations)),
        guarded("substance", lambda: check_substance(operations, spans)),
    ]
    return Judgement(verdicts, figures(operations))


def judge_saved(history: History) -> Judgement:
    """A history from a file. Raises KeyError when its header does not say what workload it is of."""
    spans = [(float(span[0]), float(span[1])) for span in history.header.get("faults", [])]
    return judge(str(history.header["workload"]), history.operations, spans)


def check_nodes(complaints: Sequence[str]) -> Verdict:
    """No node ended by itself, and no log tells of a bug."""
    if complaints:
        return illegal("nodes", "; ".join(complaints))
    return Verdict("nodes", Word.OK)


def check_clients(bugs: Sequence[str]) -> Verdict:
    """No client raised what is none of the store's errors."""
    if bugs:
        return illegal("clients", f"{len(bugs)} times a client broke, the first: {bugs[0]}")
    return Verdict("clients", Word.OK)


def check_recovery(recovered_s: float | None, within_s: float) -> Verdict:
    """After healing every node serves again, in time."""
    if recovered_s is None:
        return illegal("recovery", f"not every node served within {within_s:g} s of healing")
    return Verdict("recovery", Word.OK, f"every node served {recovered_s:.1f} s after healing")


def check_deadlines(operations: Sequence[Operation], timeout_s: float) -> Verdict:
    """Every call had its outcome by its deadline; a change that was asked after had a second one.

    Late answers are not wrong ones, and the machine may be busy: they make a run unknown.
    """
    late = [
        op
        for op in operations
        if op.ended is not None
        and op.kind in _ONE_CALL
        and not op.final
        and op.ended - op.began > timeout_s * (2 if op.error.endswith(ASKED_AFTER) else 1) + LATE_S
    ]
    if late:
        return Verdict("deadlines", Word.UNKNOWN, f"{len(late)} calls ended after their deadline: {late[0]}")
    return Verdict("deadlines", Word.OK)


def figures(operations: Sequence[Operation]) -> dict[str, Any]:
    """How much was done, and how fast."""
    ended = [op for op in operations if op.outcome == "ok" and op.ended is not None and not op.final]
    took = sorted((op.ended or 0.0) - op.began for op in ended)
    result: dict[str, Any] = {
        "operations": len(operations),
        **{word: sum(op.outcome == word for op in operations) for word in ("ok", "fail", "unknown")},
    }
    if len(took) > 1:
        result["latency_ms_median"] = round(statistics.median(took) * 1000, 2)
        result["latency_ms_p99"] = round(took[math.ceil(len(took) * 0.99) - 1] * 1000, 2)
    return result


def availability(
    operations: Sequence[Operation],
    spans: Sequence[Span],
    owners: Mapping[str, Sequence[int]],
    nodes: Mapping[str, int],
    *,
    linearizable: bool,
) -> dict[str, Any]:
    """How each side of the partitions fared, from 2 s after each began: by the calls of pinned clients.

    What was served when the partition had ended is left out: that is not an answer of a side.
    """
    served = {"majority": 0, "minority": 0}
    asked = {"majority": 0, "minority": 0}
    refused_s: list[float] = []
    cuts = [span for span in spans if span.fault.kind == "cut"]
    others = [span for span in spans if span.fault.kind != "cut"]
    for op in operations:
        during = [span for span in cuts if span.began + AVAILABLE_AFTER_S <= op.began <= span.ended]
        if op.node not in nodes or op.final or op.key not in owners or not during or op.ended is None:
            continue
        if any(span.began <= op.ended and op.began <= span.ended + AVAILABLE_AFTER_S for span in others):
            continue  # what else goes wrong is no fault of the partition
        is_served = op.outcome == "ok" or op.is_mismatch
        if is_served and op.ended > min(span.ended for span in during):
            continue
        cut = frozenset(pair for span in during for pair in span.fault.pairs)
        side = side_of(nodes[op.node], owners[op.key], cut)
        if not side:
            continue
        served[side] += is_served
        asked[side] += 1
        if side == "minority" and not is_served and not op.error.endswith(ASKED_AFTER):
            refused_s.append(op.ended - op.began)
    result: dict[str, Any] = {}
    for side in (side for side in asked if asked[side]):
        result[f"{side}_served"] = round(served[side] / asked[side], 4)
        result[f"{side}_asked"] = asked[side]
    if linearizable and refused_s:
        result["minority_refused_after_s_max"] = round(max(refused_s), 3)
    return result


def side_of(node: int, owners: Sequence[int], cut: frozenset[tuple[int, int]]) -> str:
    """On which side of a cut a node is, for a key with these owners; empty where one cannot say.

    Majority: it reaches most owners itself, both ways. Minority: neither it nor any owner it reaches does.
    In between, an owner may do for it what it cannot do itself; and clients may be cut off.
    """
    if (CLIENTS, node) in cut or (node, CLIENTS) in cut:
        return ""

    def reached(source: int) -> list[int]:
        return [each for each in owners if each == source or not {(source, each), (each, source)} & cut]

    if len(reached(node)) > len(owners) // 2:
        return "majority"
    return "" if any(len(reached(each)) > len(owners) // 2 for each in reached(node)) else "minority"
