"""What goes wrong in a run, as data: a pure function of nemesis, seed, nodes and seconds.

A plan is a list of faults; a target carries each out at its time and undoes it when its time is over. Shapes
after Jepsen's nemesis.combined (RELIABILITY 1.5). Node 0 stands for all clients.

Rules kept here:
- the first fault comes after a quiet beginning, and the last one is over before the run is;
- at most a minority of the nodes is down, paused or skewed at a time, unless the nemesis says so;
- links may be cut between any.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

QUIET_S: Final = 1.5
"""Before the first fault and after the last: figures of undisturbed work, to compare with."""
CLIENTS: Final = 0
"""The "node" from which all clients come."""

Pair = tuple[int, int]
"""(from, to): one direction of a link."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, from `at` for `lasts` seconds."""

    at: float
    lasts: float
    name: str
    """For people: what the nemesis calls it."""
    kind: str
    """For the target: cut, flaky, slow, disconnect, kill, restart, pause, clock, drift, disk_full or
    torn_tail."""
    nodes: tuple[int, ...] = ()
    pairs: tuple[Pair, ...] = ()
    amount: float = 0.0
    """flaky: share lost; slow: seconds; clock: seconds ahead; drift: seconds a second."""

    @property
    def until(self) -> float:
        """When it is over."""
        return self.at + self.lasts

    def __str__(self) -> str:
        where = " ".join(f"n{node}" for node in self.nodes)
        links = " ".join(f"{_shown(a)}>{_shown(b)}" for a, b in self.pairs)
        amount = f" {self.amount:g}" if self.amount else ""
        return f"{self.at:.2f}s +{self.lasts:.2f}s {self.name} {where}{links}{amount}"


def _shown(node: int) -> str:
    return f"n{node}" if node != CLIENTS else "clients"


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of one run, in order of time."""

    nemesis: str
    seed: int
    nodes: int
    seconds: float
    faults: tuple[Fault, ...]

    def kinds(self) -> set[str]:
        """What the target has to be able to do."""
        return {fault.kind for fault in self.faults}

    def as_json(self) -> dict[str, Any]:
        """For the file that a replay reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Plan:
        """The other way. Raises KeyError, TypeError, ValueError."""
        faults = tuple(
            Fault(
                float(each["at"]),
                float(each["lasts"]),
                str(each["name"]),
                str(each["kind"]),
                tuple(int(node) for node in each["nodes"]),
                tuple((int(a), int(b)) for a, b in each["pairs"]),
                float(each["amount"]),
            )
            for each in plain["faults"]
        )
        return cls(
            str(plain["nemesis"]), int(plain["seed"]), int(plain["nodes"]), float(plain["seconds"]), faults
        )


@dataclass(frozen=True, slots=True)
class Draw:
    """A fault without its time."""

    kind: str
    nodes: tuple[int, ...] = ()
    pairs: tuple[Pair, ...] = ()
    amount: float = 0.0


@dataclass(frozen=True, slots=True)
class Nemesis:
    """One way to make things go wrong again and again."""

    name: str
    about: str
    draw: Callable[[random.Random, int, int], Draw]
    """From dice, nodes and the number of the turn."""
    lasts: tuple[float, float]
    """Seconds, least and most."""
    pause: tuple[float, float] = (1.5, 3.0)
    nodes_min: int = 3


def _everyone(nodes: int) -> list[int]:
    return list(range(1, nodes + 1))


def _minority(dice: random.Random, nodes: int) -> tuple[int, ...]:
    most = max((nodes - 1) // 2, 1)
    return tuple(sorted(dice.sample(_everyone(nodes), dice.randint(1, most))))


def between(some: Iterable[int], others: Iterable[int]) -> tuple[Pair, ...]:
    """Both directions of every link between two groups."""
    others = list(others)
    return tuple(sorted(pair for a in some for b in others for pair in ((a, b), (b, a))))


def _halves(dice: random.Random, nodes: int, _turn: int) -> Draw:
    few = dice.sample(_everyone(nodes), (nodes - 1) // 2)
    return Draw("cut", pairs=between(few, [node for node in _everyone(nodes) if node not in few]))


def _isolate(dice: random.Random, nodes: int, _turn: int) -> Draw:
    one = dice.randint(1, nodes)
    return Draw("cut", pairs=between([one], [node for node in _everyone(nodes) if node != one]))


def _ring(dice: random.Random, nodes: int, _turn: int) -> Draw:
    order = dice.sample(_everyone(nodes), nodes)
    reach = (nodes // 2 + 1) // 2  # neighbours seen on either side, so that each node sees a majority
    cut = [
        (order[a], order[b])
        for a in range(nodes)
        for b in range(nodes)
        if reach < (b - a) % nodes < nodes - reach
    ]
    return Draw("cut", pairs=tuple(sorted(cut)))


def _bridge(dice: random.Random, nodes: int, _turn: int) -> Draw:
    order = dice.sample(_everyone(nodes), nodes)[1:]  # the first one sees both sides
    half = len(order) // 2
    return Draw("cut", pairs=between(order[:half], order[half:]))


def _one_way(dice: random.Random, nodes: int, _turn: int) -> Draw:
    few = _minority(dice, nodes)
    pairs = [(a, b) for a in few for b in _everyone(nodes) if b not in few]
    if dice.random() < 0.5:
        pairs = [(b, a) for a, b in pairs]
    return Draw("cut", pairs=tuple(sorted(pairs)))


def _some_links(dice: random.Random, nodes: int) -> tuple[Pair, ...]:
    links = [(a, b) for a in _everyone(nodes) for b in _everyone(nodes) if a != b]
    return tuple(sorted(dice.sample(links, max(len(links) * 2 // 5, 1))))


def _flaky(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("flaky", pairs=_some_links(dice, nodes), amount=dice.choice((0.05, 0.2, 0.5)))


def _slow(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("slow", pairs=_some_links(dice, nodes), amount=dice.choice((0.01, 0.1, 0.4)))


def _client_cut(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("cut", pairs=between([CLIENTS], _minority(dice, nodes)))


def _disconnect(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("disconnect", nodes=_minority(dice, nodes))


def _kill(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("kill", nodes=_minority(dice, nodes))


def _kill_all(_dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("kill", nodes=tuple(_everyone(nodes)))


def _pause(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("pause", nodes=_minority(dice, nodes))


def _clock(dice: random.Random, nodes: int, _turn: int) -> Draw:
    ahead = dice.choice((-1, 1)) * dice.choice((0.08, 0.4, 2.0, 3_600.0))
    return Draw("clock", nodes=_minority(dice, nodes), amount=ahead)


def _drift(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("drift", nodes=_minority(dice, nodes), amount=dice.choice((-0.2, -0.02, 0.02, 0.2)))


def _disk_full(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("disk_full", nodes=tuple(sorted(dice.sample(_everyone(nodes), dice.randint(1, nodes)))))


def _torn_tail(dice: random.Random, nodes: int, _turn: int) -> Draw:
    return Draw("torn_tail", nodes=_minority(dice, nodes))


def _rolling(_dice: random.Random, nodes: int, turn: int) -> Draw:
    return Draw("restart", nodes=(turn % nodes + 1,))


_LONG, _SHORT = (4.0, 8.0), (0.5, 3.0)
_SINGLE = (
    Nemesis("halves", "cut a minority off from the rest", _halves, _LONG),
    Nemesis(
        "ring", "majority ring: each node sees a majority, and no two the same", _ring, _LONG, nodes_min=4
    ),
    Nemesis("bridge", "two halves, and one node that sees both", _bridge, _LONG),
    Nemesis("isolate", "cut one node off from all others", _isolate, _LONG),
    Nemesis("one-way", "cut one direction between a minority and the rest", _one_way, _LONG),
    Nemesis("flaky", "lose a share of the packets on two links of five", _flaky, _LONG),
    Nemesis("slow", "delay two links of five by 10 to 400 ms", _slow, _LONG),
    Nemesis("client-cut", "cut the clients off from a minority", _client_cut, _LONG),
    Nemesis("disconnect", "take the network away from a minority; clients too lose it", _disconnect, _LONG),
    Nemesis("kill", "kill -9 a minority, and start it again", _kill, _SHORT),
    Nemesis("kill-all", "kill -9 all nodes at once, and start them again", _kill_all, (0.2, 1.0), (4.0, 6.0)),
    Nemesis("pause", "SIGSTOP a minority for 0.5 to 8 s, then SIGCONT", _pause, (0.5, 8.0)),
    Nemesis("clock", "set the clocks of a minority 80 ms to an hour off, and back", _clock, (2.0, 6.0)),
    Nemesis("drift", "let the clocks of a minority run 2 or 20 % fast or slow", _drift, _LONG),
    Nemesis("disk-full", "fill the disks of some nodes, or of all", _disk_full, (2.0, 6.0)),
    Nemesis("torn-tail", "kill -9 a minority, tear the tail of its log, start it again", _torn_tail, _SHORT),
    Nemesis("rolling", "restart one node after the other, in order", _rolling, (0.2, 0.5), (1.5, 2.5)),
)
_LINKS = ("halves", "ring", "bridge", "isolate", "one-way", "flaky")
_NODES = ("kill", "pause", "torn-tail", "rolling")
_BY_NAME: Mapping[str, Nemesis] = {each.name: each for each in _SINGLE}

ABOUT: Mapping[str, str] = {
    "none": "nothing goes wrong",
    **{each.name: each.about for each in _SINGLE},
    "partitions": "halves, ring, bridge, isolate and one-way in turn",
    "all": "links and nodes fail at the same time: cuts, loss, kills, pauses, torn tails, restarts",
}
"""Every nemesis, with one line each."""


class NoPlanError(ValueError):
    """A nemesis that is not there, or that such a cluster is too small for."""


def plan(nemesis: str, *, seed: int, nodes: int, seconds: float) -> Plan:
    """Draw the faults of a run; `a+b` takes single nemeses in turn. Raises NoPlanError."""
    for name in nemesis.split("+"):
        if name not in ABOUT or (name != nemesis and name not in _BY_NAME):
            raise NoPlanError(
                f"there is no nemesis {name!r}; there are {', '.join(ABOUT)}, and in turn: halves+kill"
            )
    faults: list[Fault] = []
    for lane, among in enumerate(_lanes(nemesis, nodes)):
        dice = random.Random(f"{nemesis} {seed} {lane}")
        faults += _lane(dice, among, nodes, seconds)
    return Plan(nemesis, seed, nodes, seconds, tuple(sorted(faults, key=lambda fault: fault.at)))


def _lanes(nemesis: str, nodes: int) -> list[Sequence[Nemesis]]:
    """What to choose from; lanes go on side by side."""
    match nemesis:
        case "none":
            return []
        case "all":
            lanes = [[_BY_NAME[name] for name in names] for names in (_LINKS, _NODES)]
        case "partitions":
            lanes = [[_BY_NAME[name] for name in _LINKS if name != "flaky"]]
        case _:
            lanes = [[_BY_NAME[name] for name in nemesis.split("+")]]
    fitting = [[each for each in lane if each.nodes_min <= nodes] for lane in lanes]
    if not all(fitting):
        least = min(each.nodes_min for lane in lanes for each in lane)
        raise NoPlanError(f"{nemesis} needs at least {least} nodes, there are {nodes}")
    return [tuple(lane) for lane in fitting]


def _lane(dice: random.Random, among: Sequence[Nemesis], nodes: int, seconds: float) -> list[Fault]:
    """One fault after the other."""
    faults: list[Fault] = []
    last = seconds - QUIET_S
    at = QUIET_S + dice.uniform(0.0, 0.5)
    turn = 0
    while last - at >= 0.2:
        each = among[turn % len(among)] if len(among) < 4 else dice.choice(among)
        # A short run still gets whole faults: shorter ones, rather than none.
        most = max(seconds / 3, 0.2)
        if faults and last - at < min(each.lasts[0], most):
            break  # too little of it to prove anything
        lasts = min(dice.uniform(*each.lasts), most, last - at)
        draw = each.draw(dice, nodes, turn)
        faults.append(
            Fault(round(at, 3), round(lasts, 3), each.name, draw.kind, draw.nodes, draw.pairs, draw.amount)
        )
        at += lasts + min(dice.uniform(*each.pause), max(seconds / 8, 0.3))
        turn += 1
    return faults
