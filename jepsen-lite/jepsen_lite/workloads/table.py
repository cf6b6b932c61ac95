"""The workloads by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jepsen_lite.workloads.gatherings import Counters, Elements, Lists, UniqueIds
from jepsen_lite.workloads.locks import Locks
from jepsen_lite.workloads.quorums import Expiry, Monotonic, Quorum
from jepsen_lite.workloads.ratelimits import RateLimits
from jepsen_lite.workloads.registers import Bank, Registers
from jepsen_lite.workloads.shorteners import Shorteners
from jepsen_lite.workloads.workload import Workload

_TABLE: Mapping[str, tuple[Callable[[], Workload], str]] = {
    "register": (Registers, "read, write and cas of registers: linearizable, key by key"),
    "set": (Elements, "unique elements with put_if_absent: what was acknowledged is there, and nothing else"),
    "counter": (Counters, "increments: every sum lies between what surely was added and what may have been"),
    "append": (Lists, "lists that grow by update(): all reads are prefixes of one list"),
    "unique": (UniqueIds, "ids from one counter: none twice, later ones greater"),
    "lock": (Locks, "locks: fencing tokens grow, and no effect passes with an overtaken one"),
    "bank": (Bank, "transfers over several registers: each account linearizable and never negative (no sum)"),
    "monotonic": (Monotonic, "put and get at quorum: every process reads forwards, and its own writes"),
    "ttl": (Expiry, "put with ttl: nothing is served later than the skew allows, nothing comes back"),
    "ratelimit": (RateLimits, "the rate limiter: never more than a limit allows, nothing charged twice"),
    "shortener": (Shorteners, "the URL shortener: codes lead where they should, one winner, clicks add up"),
    "quorum": (Quorum, "put, get and delete at quorum: nothing acknowledged is lost, reads never go back"),
}
ABOUT: Mapping[str, str] = {name: about for name, (_, about) in _TABLE.items()}


def make(name: str) -> Workload:
    """A workload for one run. Raises KeyError."""
    return _TABLE[name][0]()
