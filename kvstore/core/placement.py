"""Who owns which partition: deterministic, balanced, spread over zones, with few moves.

Rules kept here:
- every partition has `replicas` distinct owners, or all nodes when there are fewer;
- owners of one partition are in distinct zones (hosts, where no zones are named) as far as there are
  enough; where there are not, a `Violation` says so;
- shares follow the weights, to within one partition where the zones allow it;
- a change keeps what it can: only partitions of nodes that left, or above a node's share, move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from kvstore.core.member import NodeInfo
from kvstore.types import NodeId

Owners = tuple[tuple[NodeId, ...], ...]


@dataclass(frozen=True, slots=True)
class Violation:
    """What could not be had. `what` is `replicas` or `zones`."""

    what: str
    wanted: int
    got: int
    partitions: int
    """How many partitions are concerned."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Owners by partition, in preference order."""

    owners: Owners
    violations: tuple[Violation, ...]
    moved: int
    """Copies of partitions that a node gets which it did not have before."""


def place(
    nodes: Sequence[NodeInfo], *, partitions: int, replicas: int, current: Owners | None = None
) -> Placement:
    """Give every partition its owners."""
    table = _Table(nodes, partitions, min(replicas, len(nodes)), current)
    table.fill()
    table.balance()
    owners = table.ordered()
    moved = sum(len(set(now) - set(current[at] if current else ())) for at, now in enumerate(owners))
    return Placement(owners, table.violations(replicas), moved)


class _Table:
    """The work in progress: a set of owners for each partition."""

    def __init__(
        self, nodes: Sequence[NodeInfo], partitions: int, copies: int, current: Owners | None
    ) -> None:
        self.nodes = sorted(nodes, key=lambda node: node.number)
        self.zone = {node.number: node.zone or node.host for node in self.nodes}
        if not any(node.zone for node in self.nodes) and len({node.host for node in self.nodes}) < copies:
            self.zone = {
                node.number: str(node.number) for node in self.nodes
            }  # one machine: spread over nodes
        self.copies = copies
        self.zones_wanted = min(copies, len(set(self.zone.values())))
        known = set(self.zone)
        rows = current or tuple(() for _ in range(partitions))
        self.rows = [[n for n in row if n in known][:copies] for row in rows]
        self.before = [frozenset(row) for row in self.rows]
        self.together: Counter[tuple[NodeId, NodeId]] = Counter()
        """How many rows two nodes share."""
        for row in self.rows:
            self.together.update(permutations(row, 2))
        weights = sum(node.weight for node in self.nodes)
        self.share = {n.number: min(partitions, partitions * copies * n.weight / weights) for n in self.nodes}
        self.have = dict.fromkeys(self.zone, 0)
        for row in self.rows:
            for number in row:
                self.have[number] += 1

    def _fits(self, row: list[NodeId], number: NodeId, without: NodeId | None = None) -> bool:
        """Whether `number` may join a row (in the place of `without`) and the zones stay as good."""
        rest = [n for n in row if n != without]
        if number in rest or number == without:
            return False
        if without is None:
            used = {self.zone[n] for n in rest}
            return self.zone[number] not in used or len(used) >= self.zones_wanted
        before = len({self.zone[n] for n in row})
        return len({self.zone[n] for n in [*rest, number]}) >= min(before, self.zones_wanted)

    def fill(self) -> None:
        """Give each row its missing owners: who lacks most, and is least often together with the others.

        Mixing every node with every other matters when one leaves: its partitions can then go to
        whoever has room, and nothing else needs to move.
        """
        together = self.together
        numbers = list(self.zone)
        for at, row in enumerate(self.rows):
            while len(row) < self.copies:
                able = [n for n in numbers if self._fits(row, n)] or [n for n in numbers if n not in row]
                missing = {n: self.share[n] - self.have[n] for n in able}
                most = max(missing.values())
                # Ties go around the ring, so that the first placement begins as a plain round robin.
                turn = {n: (place - at) % len(numbers) for place, n in enumerate(numbers)}
                best = min(
                    (n for n in able if missing[n] > most - 1),
                    key=lambda n: (sum(together[n, other] for other in row), turn[n]),
                )
                for other in row:
                    together[best, other] += 1
                    together[other, best] += 1
                row.append(best)
                self.have[best] += 1

    def balance(self) -> None:
        """Even the shares out, first among what is new to its owner anyway, then with real moves."""
        for new_only in (True, False):
            while self._relieve(new_only=new_only):
                pass

    def _relieve(self, *, new_only: bool) -> bool:
        """Shift one partition from who has too many to who has too few, over others if need be.

        Breadth first, so that the shortest chain is taken: each step of it is a move.
        """
        over = {number: self.have[number] - self.share[number] for number in self.zone}
        for high in sorted(over, key=lambda n: (-over[n], n)):
            came_from: dict[NodeId, tuple[NodeId, int]] = {}
            frontier = [high]
            for giver in frontier:
                for taker in sorted(over, key=lambda n: (over[n], n)):
                    if taker == high or taker in came_from:
                        continue
                    at = self._row_to_give(giver, taker, new_only=new_only)
                    if at is None:
                        continue
                    came_from[taker] = (giver, at)
                    frontier.append(taker)
                    if over[high] - over[taker] > 1:
                        self._shift(high, taker, came_from)
                        return True
        return False

    def _row_to_give(self, giver: NodeId, taker: NodeId, *, new_only: bool) -> int | None:
        """A row in which `taker` may take the place of `giver`; the one that mixes the nodes best."""
        able = (
            at
            for at, row in enumerate(self.rows)
            if giver in row and not (new_only and giver in self.before[at]) and self._fits(row, taker, giver)
        )
        together = self.together
        return min(
            able,
            key=lambda at: sum(together[taker, n] - together[giver, n] for n in self.rows[at] if n != giver),
            default=None,
        )

    def _shift(self, high: NodeId, low: NodeId, came_from: dict[NodeId, tuple[NodeId, int]]) -> None:
        """Move one partition along each step of the chain from `high` to `low`."""
        self.have[high] -= 1
        self.have[low] += 1
        taker = low
        while taker != high:
            giver, at = came_from[taker]
            row = self.rows[at]
            for other in row:
                if other != giver:
                    self.together.subtract([(giver, other), (other, giver)])
                    self.together.update([(taker, other), (other, taker)])
            row[row.index(giver)] = taker
            taker = giver

    def ordered(self) -> Owners:
        """Choose who comes first, so that first places are shared like partitions are; moves no data."""
        first = dict.fromkeys(self.zone, 0)
        rows: list[tuple[NodeId, ...]] = []
        for row in self.rows:
            head = min(row, key=lambda n: ((first[n] + 1) / max(self.share[n], 1), row.index(n)))
            first[head] += 1
            at = row.index(head)
            rows.append(tuple(row[at:] + row[:at]))
        return tuple(rows)

    def violations(self, replicas: int) -> tuple[Violation, ...]:
        """What could not be had."""
        found: list[Violation] = []
        if self.copies < replicas:
            found.append(Violation("replicas", replicas, self.copies, len(self.rows)))
        zones = [len({self.zone[n] for n in row}) for row in self.rows]
        short = [z for z in zones if z < self.copies]
        if short:
            found.append(Violation("zones", self.copies, min(short), len(short)))
        return tuple(found)
