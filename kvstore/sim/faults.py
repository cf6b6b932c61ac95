"""What goes wrong, as data: a pure function of the seed.

Swarm testing: each run draws which kinds of faults it has and how hard, so that some runs have none of
a kind and others a lot. At most a minority of the nodes is down, paused, skewed or full at a time, but
for a blackout, which takes all of them; links may be cut between any. Kinds and ranges after FoundationDB
and TigerBeetle.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

KINDS = (
    "crash", "power_cut", "blackout", "isolate", "halves", "one_way", "slow", "chop", "pause", "clock",
    "disk_full", "stall",
)  # fmt: skip


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


def plan(seed: int, *, nodes: int, seconds: float, kinds: tuple[str, ...] = KINDS) -> Plan:
    """Draw the faults of a run. The last one is over before `seconds`."""
    dice = random.Random(f"faults {seed}")
    armed = tuple(kind for kind in kinds if dice.random() < 0.45)
    if not armed:
        armed = (dice.choice(kinds),) if kinds else ()
    faults: list[Fault] = []
    now = dice.uniform(0.2, 0.8)
    while armed and now < seconds - 1:
        lasts = min(dice.choice((0.1, 0.5, 1.0, 2.5, 4.0)) * dice.uniform(0.5, 1.5), seconds - now - 0.1)
        faults.append(_draw(dice, dice.choice(armed), now, lasts, nodes))
        # The next one comes when this one is over: what a quorum survives is a minority at a time.
        now += lasts + dice.uniform(0.1, 0.8)
    return Plan(armed, tuple(faults))


def _draw(dice: random.Random, kind: str, at: float, lasts: float, nodes: int) -> Fault:
    everyone = list(range(1, nodes + 1))
    few = tuple(sorted(dice.sample(everyone, dice.randint(1, (nodes - 1) // 2))))
    rest = [n for n in everyone if n not in few]
    match kind:
        case "isolate":
            one = few[0]
            pairs = [(one, n) for n in everyone if n != one] + [(n, one) for n in everyone if n != one]
        case "halves":
            pairs = [(a, b) for a in few for b in rest] + [(b, a) for a in few for b in rest]
        case "one_way":
            pairs = (
                [(a, b) for a in few for b in rest]
                if dice.random() < 0.5
                else [(b, a) for a in few for b in rest]
            )
        case "slow":
            pairs = [(a, b) for a in everyone for b in everyone if a != b and dice.random() < 0.4]
            return Fault(at, lasts, kind, pairs=tuple(pairs), amount=dice.choice((0.005, 0.05, 0.3)))
        case "blackout":
            return Fault(
                at, min(lasts, 1.0), kind, nodes=tuple(everyone), amount=dice.choice((1.0, 50.0, 300.0))
            )
        case "chop":
            return Fault(at, lasts, kind, amount=dice.uniform(0.3, 1.0))
        case "power_cut":
            return Fault(at, lasts, kind, nodes=few[:1], amount=dice.randint(1, 12))
        case "clock":
            amount = dice.choice((-1, 1)) * dice.choice((80.0, 400.0, 2_000.0, 3_600_000.0, 86_400_000.0))
            return Fault(at, lasts, kind, nodes=few[:1], amount=amount)
        case "stall":
            return Fault(at, lasts, kind, nodes=few, amount=dice.choice((10.0, 100.0, 1000.0)))
        case _:
            return Fault(at, lasts, kind, nodes=few)
    return Fault(at, lasts, kind, pairs=tuple(pairs))
