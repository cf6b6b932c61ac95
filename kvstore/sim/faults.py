"""What goes wrong, as data: a pure function of the seed.

Swarm testing: each run draws which kinds of faults it has and how hard, so that some runs have none of
a kind and others a lot. Faults come in two lanes. In the first, one after the other, what befalls nodes: at
most a minority at a time, but for a blackout, which takes all of them. In the second, beside it, what befalls
links, disks and a single clock. Kinds and ranges after FoundationDB and TigerBeetle.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

NODE_KINDS = (
    "crash", "kill", "power_cut", "blackout", "restart", "pause", "isolate", "halves", "one_way",
    "disk_full", "bad_disk",
)  # fmt: skip
SIDE_KINDS = ("slow", "chop", "reset", "client_cut", "clock", "drift", "stall")
KINDS = NODE_KINDS + SIDE_KINDS
CLIENTS = 1_000
"""Machines from this number on are those of clients."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, from `at` for `lasts` seconds."""

    at: float
    lasts: float
    kind: str
    nodes: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    amount: float = 0.0

    def __str__(self) -> str:
        what = " ".join(map(str, self.nodes)) or " ".join(f"{a}>{b}" for a, b in self.pairs)
        return f"{self.at:.2f}s +{self.lasts:.2f}s {self.kind} {what} {self.amount:g}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of one run, in order of time."""

    kinds: tuple[str, ...]
    faults: tuple[Fault, ...] = field(default_factory=tuple)


def plan(
    seed: int,
    *,
    nodes: int,
    seconds: float,
    clients: int = 4,
    kinds: tuple[str, ...] = KINDS,
    swarm: bool = True,
) -> Plan:
    """Draw the faults of a run, of some of the kinds or, without `swarm`, of all of them.

    The last one is over before `seconds`.
    """
    dice = random.Random(f"faults {seed}")
    armed = tuple(kind for kind in kinds if dice.random() < 0.35 or not swarm)
    if not armed:
        armed = (dice.choice(kinds),) if kinds else ()
    faults: list[Fault] = []
    for lane in (NODE_KINDS, SIDE_KINDS):
        here = [kind for kind in armed if kind in lane]
        now = dice.uniform(0.2, 0.8)
        while here and now < seconds - 1:
            lasts = min(dice.choice((0.1, 0.5, 1.0, 2.5, 4.0)) * dice.uniform(0.5, 1.5), seconds - now - 0.1)
            faults.append(_draw(dice, dice.choice(here), now, lasts, nodes, clients))
            # The next one comes when this one is over: what a quorum survives is a minority at a time.
            now += lasts + dice.uniform(0.1, 0.8)
    return Plan(armed, tuple(sorted(faults, key=lambda fault: fault.at)))


def _draw(dice: random.Random, kind: str, at: float, lasts: float, nodes: int, clients: int) -> Fault:
    everyone = list(range(1, nodes + 1))
    few = tuple(sorted(dice.sample(everyone, dice.randint(1, (nodes - 1) // 2))))
    match kind:
        case "isolate" | "halves" | "one_way" | "slow" | "client_cut":
            return Fault(
                at,
                lasts,
                kind,
                pairs=_links(dice, kind, everyone, few, clients),
                amount=_slowness(dice, kind),
            )
        case "blackout":
            amount = dice.choice((1.0, 50.0, 300.0))
            return Fault(at, min(lasts, 1.0), kind, nodes=tuple(everyone), amount=amount)
        case "chop":
            return Fault(at, lasts, kind, amount=dice.uniform(0.3, 1.0))
        case "power_cut":
            return Fault(at, lasts, kind, nodes=few[:1], amount=dice.randint(1, 12))
        case "clock":
            amount = dice.choice((-1, 1)) * dice.choice((80.0, 400.0, 2_000.0, 3_600_000.0, 86_400_000.0))
            # Sometimes a whole minority goes wrong alike, as when it asks the same broken time server.
            return Fault(at, lasts, kind, nodes=few if dice.random() < 0.4 else few[:1], amount=amount)
        case "drift":
            amount = dice.choice((-1, 1)) * dice.choice((0.001, 0.05, 0.3))
            return Fault(at, lasts, kind, nodes=few[:1], amount=amount)
        case "stall":
            return Fault(at, lasts, kind, nodes=few, amount=dice.choice((10.0, 100.0, 1000.0)))
        case _:
            return Fault(at, lasts, kind, nodes=few)


def _slowness(dice: random.Random, kind: str) -> float:
    return dice.choice((0.005, 0.05, 0.3)) if kind == "slow" else 0.0


def _links(
    dice: random.Random, kind: str, everyone: list[int], few: tuple[int, ...], clients: int
) -> tuple[tuple[int, int], ...]:
    rest = [n for n in everyone if n not in few]
    match kind:
        case "isolate":
            near, far, ways = [few[0]], [n for n in everyone if n != few[0]], 3
        case "slow":
            near, far, ways = everyone, everyone, 1
        case "client_cut":
            near, far = [CLIENTS + n for n in range(1, clients + 1) if dice.random() < 0.5], everyone
            # Often only the way back: requests are done and nobody is told.
            ways = dice.choice((1, 2, 2, 3))
        case _:
            near, far, ways = list(few), rest, 3 if kind == "halves" else dice.choice((1, 2))
    there = [(a, b) for a in near for b in far if ways & 1 and a != b]
    back = [(b, a) for a in near for b in far if ways & 2]
    chance = {"slow": 0.4, "client_cut": 0.6}.get(kind, 1.0)
    return tuple(pair for pair in there + back if chance == 1.0 or dice.random() < chance)
