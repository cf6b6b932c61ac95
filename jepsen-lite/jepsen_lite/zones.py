"""Whether the operations of one register are linearizable: exact, in O(n log n).

Algorithm: Gibbons and Korach 1997 ("Testing shared memories"), the case in which each read says which write
it saw, extended to chains of cas (RELIABILITY 5.2). Compared there with a search on millions of histories.

- A cluster is a write and the observations of it. Its low is the earliest end among them, its high the latest
  beginning. A comes before B if low(A) < high(B): something of A had ended when something of B began.
- A cas a -> b binds cluster b directly behind a. Each chain of them, its own order checked, becomes one zone.
- A zone with low < high is forward: its value surely stood all that while. Any other is backward, and needs
  only some moment between high and low.
- Legal if and only if no two forward zones overlap and no backward zone lies inside a forward one.
- What the register held at first is a write that ended before everything.

It needs that every value is written once and every observation says what it saw: a failed cas the value it
found, an absence the version of its delete (version 0: what was there at first). An operation of unknown
outcome never ends; unless its value was observed, or replaced by a cas that counts, it is left out.
Where the needs are not met the verdict is unknown, and not `applicable`: search instead.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

from jepsen_lite.history import Operation, identity
from jepsen_lite.verdict import Verdict, Word, illegal

NAME = "zones"
_KINDS = frozenset(("read", "write", "cas", "delete"))
_CHAIN_SHOWN = 4


class _NotApplicableError(Exception):
    """The history does not say enough."""


class _ConvictionError(Exception):
    """The history is illegal: why, and the clusters that prove it, besides single operations."""

    def __init__(self, why: str, clusters: Iterable[Sequence[int]] = (), *operations: Operation) -> None:
        super().__init__(why)
        self.clusters = list(clusters)
        self.operations = operations


def check(operations: Sequence[Operation], initial: object = None) -> Verdict:
    """Judge the operations of one key. See the module for what it assumes and how it decides."""
    key = operations[0].key if operations else ""
    clusters = _Clusters(operations, initial)
    try:
        clusters.gather()
        clusters.observe()
        clusters.link()
        _sweep(clusters)
    except _NotApplicableError as why:
        return Verdict(NAME, Word.UNKNOWN, str(why), key, applicable=False)
    except _ConvictionError as found:
        if clusters.had_choice:
            reason = f"several deletes of unknown outcome, and matched by age they do not fit: {found}"
            return Verdict(NAME, Word.UNKNOWN, reason, key, applicable=False)
        parts = [clusters.witnesses(members) for members in found.clusters]
        if found.operations:
            parts.append(("seen", list(found.operations)))
        return illegal(NAME, str(found), *parts, key=key)
    return Verdict(NAME, Word.OK, key=key, counts={"operations": len(operations)})


def _gone(version: int) -> Hashable:
    """Identity of the absence that the delete of a version left; 0: of what never was."""
    return ("gone", version)


class _Clusters:
    """Writes, what each replaces, and how early and late each was seen. Cluster 0 is the beginning."""

    def __init__(self, operations: Sequence[Operation], initial: object) -> None:
        self.operations = operations
        start = Operation(
            -1, "write", operations[0].key if operations else "", -math.inf, -math.inf, "ok", initial
        )
        self.writers = [start]
        self.at: dict[Hashable, int] = {_gone(0) if initial is None else identity(initial): 0}
        self.lows = [-math.inf]
        self.highs = [-math.inf]
        self.had_choice = False
        self._named: dict[int, Hashable] = {}
        """Version of an acknowledged write -> its value."""
        self._loose: list[Operation] = []
        """Deletes of unknown outcome: their versions are told by reads, if at all."""
        self._unclaimed: dict[Hashable, list[Operation]] = {}
        """Absences that belong to some loose delete -> who saw them."""
        self.kept: list[bool] = []
        """Whether a cluster took part: acknowledged, seen, or replaced by one that did."""
        self.child: dict[int, int] = {}
        """Cluster -> the cas that replaced it."""

    def gather(self) -> None:
        """Make a cluster of each write that may have been applied."""
        at, writers, lows, highs = self.at, self.writers, self.lows, self.highs
        has_tombstones = False
        for op in self.operations:
            kind = op.kind
            if kind == "read" or op.outcome == "fail":
                continue
            if kind not in _KINDS:
                raise _NotApplicableError(f"{kind} is no operation of a register")
            value = None if kind == "delete" else op.value
            if value is None:
                has_tombstones = True
                if op.version == 0:
                    self._loosen(op)
                    continue
                name = _gone(op.version)
            else:
                name = value if type(value) is str or type(value) is int else identity(value)
                if op.version and op.outcome == "ok":
                    self._named[op.version] = name
            if name in at:
                raise _NotApplicableError(f"{name!r} is written twice")
            at[name] = len(writers)
            writers.append(op)
            lows.append(op.end)
            highs.append(op.began)
        if has_tombstones:
            self._require_versions()

    def _loosen(self, op: Operation) -> None:
        if op.outcome == "ok" or op.kind == "cas":
            raise _NotApplicableError("a delete does not say which version it made")
        self._loose.append(op)

    def _require_versions(self) -> None:
        if not any(op.version for op in self.operations):
            raise _NotApplicableError("with deletes, reads of absence must say which version they saw")
        if self.writers[0].value is not None:
            raise _NotApplicableError("with deletes, the register must be absent at first")
        if any(
            op.kind == "cas" and op.expected is None and not op.expected_version for op in self.operations
        ):
            raise _NotApplicableError("a cas from absence does not say which absence it replaces")

    def name_of(self, value: object, version: int) -> Hashable:
        """Identity of an observed value, or of an absence seen at a version."""
        return identity(value) if value is not None else _gone(version)

    def seen_by(self, op: Operation) -> Hashable | None:
        """What an operation says it saw, if it counts as an observation."""
        if op.kind == "read":
            return self.name_of(op.value, op.version) if op.outcome == "ok" else None
        if not op.is_mismatch:
            return None
        if op.observed:
            return self.name_of(op.seen, op.version)
        if op.version in self._named:
            return self._named[op.version]
        raise _NotApplicableError("a failed cas does not say what it found")

    def observe(self) -> None:
        """Widen each cluster by those who saw it."""
        at, lows, highs = self.at, self.lows, self.highs
        for op in self.operations:
            if op.kind == "read" and op.outcome == "ok" and type(op.value) is str:
                name: Hashable = op.value  # the common case, without a call
            elif op.outcome == "fail" or op.kind == "read":
                name = self.seen_by(op)
                if name is None:
                    continue
            else:
                continue
            cluster = at.get(name)
            if cluster is None:
                self._claim(name, op)
                continue
            ended, began = op.ended, op.began
            if ended is None:
                raise _NotApplicableError(f"no end of what is {op.outcome}: {op}")
            if ended < lows[cluster]:  # noqa: PLR1730 - a call of min() would double the time of this loop
                lows[cluster] = ended
            if began > highs[cluster]:  # noqa: PLR1730
                highs[cluster] = began

    def replaced(self, op: Operation) -> Hashable:
        """What a cas replaces, or would."""
        if op.expected is None and op.expected_version in self._named:
            return self._named[op.expected_version]
        return self.name_of(op.expected, op.expected_version)

    def _claim(self, name: Hashable, op: Operation) -> None:
        """Note an observation of something that no cluster has."""
        version = name[1] if isinstance(name, tuple) and name[0] == "gone" else 0
        if not version:
            what = "absence" if isinstance(name, tuple) and name[0] == "gone" else f"{name!r}, never written"
            raise _ConvictionError(f"{op.kind} of {what}", [], op)
        if version in self._named:
            named = self.at[self._named[version]]
            raise _ConvictionError(f"absent at version {version}, which a write made", [[named]], op)
        self._unclaimed.setdefault(name, []).append(op)

    def _match(self) -> None:
        """Give each absence that was seen a delete of unknown outcome.

        With one delete there is no choice. With several, the oldest is given to what was seen first: if that
        is legal it proves the history legal; if not, another match might be, and a search has to say.
        """
        if not self._unclaimed:
            return
        if len(self._unclaimed) > len(self._loose):
            seen = [op for ops in self._unclaimed.values() for op in ops]
            raise _ConvictionError(
                f"{len(self._unclaimed)} absences seen, {len(self._loose)} deletes can have made them",
                [],
                *seen,
            )
        self.had_choice = len(self._loose) > 1
        unclaimed = sorted(self._unclaimed.items(), key=lambda item: min(op.end for op in item[1]))
        loose = sorted(self._loose, key=lambda op: op.began)
        for (name, seen), delete in zip(unclaimed, loose, strict=False):
            reads = [op for op in seen if op.outcome == "fail" or op.kind == "read"]
            self.at[name] = len(self.writers)
            self.writers.append(delete)
            self.kept.append(True)
            self.lows.append(min((op.end for op in reads), default=math.inf))
            self.highs.append(max((op.began for op in reads), default=delete.began))
            self.highs[-1] = max(self.highs[-1], delete.began)

    def link(self) -> None:
        """Tie each cas to what it replaced, and find out which operations of unknown outcome took part."""
        writers, at, kept = self.writers, self.at, self.kept
        kept += [op.outcome == "ok" or low < math.inf for op, low in zip(writers, self.lows, strict=True)]
        pending = [cluster for cluster, op in enumerate(writers) if op.kind == "cas" and kept[cluster]]
        unmatched: list[int] = []
        while pending:
            cluster = pending.pop()
            name = self.replaced(writers[cluster])
            parent = at.get(name)
            if parent is None:
                self._claim(name, writers[cluster])
                unmatched.append(cluster)
                continue
            self._tie(parent, cluster)
            if not kept[parent]:
                kept[parent] = True
                if writers[parent].kind == "cas":
                    pending.append(parent)
        self._match()
        for cluster in unmatched:
            self._tie(at[self.replaced(writers[cluster])], cluster)
        for cluster, low in enumerate(self.lows):
            if low < writers[cluster].began:
                raise _ConvictionError("seen before its write began", [[cluster]])

    def _tie(self, parent: int, cluster: int) -> None:
        other = self.child.setdefault(parent, cluster)
        if other != cluster:
            raise _ConvictionError("two cas replaced one value", [[parent], [other], [cluster]])

    def chains(self) -> list[list[int]]:
        """Chains of cas, each from the plain write it stands on. What took no part is left out."""
        writers, child, kept = self.writers, self.child, self.kept
        chains: list[list[int]] = []
        for cluster, is_kept in enumerate(kept):
            if is_kept and writers[cluster].kind != "cas":
                chain = [cluster]
                while chain[-1] in child:
                    chain.append(child[chain[-1]])
                chains.append(chain)
        if sum(map(len, chains)) != sum(kept):
            reached = {cluster for chain in chains for cluster in chain}
            circle = [cluster for cluster, is_kept in enumerate(kept) if is_kept and cluster not in reached]
            raise _ConvictionError("cas replace one another in a circle", [[cluster] for cluster in circle])
        return chains

    def witnesses(self, members: Sequence[int]) -> tuple[str, list[Operation]]:
        """Who made a zone, which of it ended first, and which began last."""
        inside = set(members)
        shown = [self.writers[cluster] for cluster in members[:_CHAIN_SHOWN] if cluster]
        part = [self.writers[cluster] for cluster in members if cluster]
        part += [op for op in self.operations if self._cluster_of(op) in inside]
        if part:
            shown += [min(part, key=lambda op: op.end), max(part, key=lambda op: op.began)]
        unique = {id(op): op for op in shown}
        names = [_shown(self.writers[cluster]) for cluster in members[:_CHAIN_SHOWN]]
        more = " -> ..." if len(members) > _CHAIN_SHOWN else ""
        what = f"{' -> '.join(names)}{more}: who wrote it, and saw it first and last"
        return what, sorted(unique.values(), key=lambda op: op.began)

    def _cluster_of(self, op: Operation) -> int | None:
        try:
            name = self.seen_by(op)
        except _NotApplicableError:
            return None
        return None if name is None else self.at.get(name)


def _shown(writer: Operation) -> str:
    if writer.process < 0:
        return "what was there at first"
    if writer.kind == "delete" or writer.value is None:
        return f"absence{f' v{writer.version}' if writer.version else ''}"
    return repr(writer.value)


def _sweep(clusters: _Clusters) -> None:
    """Contract the chains to zones, and look for two that each must come before the other."""
    lows, highs = clusters.lows, clusters.highs
    zones: list[tuple[float, float, int]] = []
    chains = clusters.chains()
    for index, chain in enumerate(chains):
        low, high = lows[chain[0]], highs[chain[0]]
        latest = chain[0]
        for cluster in chain[1:]:
            # Whatever saw an earlier link must be able to come before whatever saw this one.
            if lows[cluster] < high:
                why = "a value was seen after the cas that replaced it"
                raise _ConvictionError(why, [[latest], [cluster]])
            low = min(low, lows[cluster])
            if highs[cluster] > high:
                high, latest = highs[cluster], cluster
        zones.append((low, high, index))
    zones.sort()
    # Of the forward zones so far only the latest to end matters: those before it do not overlap it.
    until, holder, since = -math.inf, -1, -math.inf
    for low, high, index in zones:
        if low < until and since < high:
            raise _ConvictionError(
                "each of two values was seen after the other", [chains[holder], chains[index]]
            )
        if low < high and high > until:
            until, holder, since = high, index, low
