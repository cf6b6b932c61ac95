"""What a benchmark asks for: which operation next, on which key.

The mixes and distributions are YCSB's (Cooper et al., "Benchmarking Cloud Serving Systems with
YCSB", 2010), so that figures can be set beside those of other stores; the Zipfian generator is
Gray et al., "Quickly Generating Billion-Record Synthetic Databases", 1994, with YCSB's constant.
Popular keys are scattered over the key space by a fixed hash, else they would share a partition.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ZIPF_CONSTANT: Final = 0.99
LATEST_CONSTANT: Final = 0.99

GET: Final = "get"
PUT: Final = "put"
INSERT: Final = "insert"
"""A put of a key that did not exist; on the wire it is a put."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the operations; what is left of reads and inserts are updates."""

    name: str
    reads: float
    inserts: float
    latest: bool
    """Reads favour the keys inserted last."""
    about: str


MIXES: Final = {
    mix.name: mix
    for mix in (
        Mix("a", 0.5, 0.0, latest=False, about="YCSB A: half reads, half updates"),
        Mix("b", 0.95, 0.0, latest=False, about="YCSB B: 95 % reads, 5 % updates"),
        Mix("c", 1.0, 0.0, latest=False, about="YCSB C: reads only"),
        Mix("d", 0.95, 0.05, latest=True, about="YCSB D: reads of what was inserted last, 5 % inserts"),
        Mix("put", 0.0, 0.0, latest=False, about="writes only"),
        Mix("get", 1.0, 0.0, latest=False, about="reads only (as c)"),
    )
}


def key_name(number: int) -> bytes:
    """The 16-byte key of record `number`."""
    return b"user%012d" % number


def scatter(number: int, keys: int) -> int:
    """Spread ranks over 0..keys-1 by a hash that is the same in every process."""
    return zlib.crc32(number.to_bytes(8, "big")) % keys


class Zipfian:
    """Ranks 0..items-1, rank r drawn in proportion to 1 / (r + 1) ** constant."""

    __slots__ = ("_alpha", "_dice", "_eta", "_half", "_items", "_zeta")

    def __init__(self, items: int, dice: random.Random, constant: float = ZIPF_CONSTANT) -> None:
        assert items >= 1, items
        self._items = items
        self._dice = dice
        self._alpha = 1.0 / (1.0 - constant)
        self._half = 0.5**constant
        self._zeta = _zeta(items, constant)
        two = 1.0 + self._half
        self._eta = (1.0 - (2.0 / items) ** (1.0 - constant)) / (1.0 - two / self._zeta) if items > 2 else 0.0

    def __call__(self) -> int:
        """Draw a rank."""
        drawn = self._dice.random()
        scaled = drawn * self._zeta
        if scaled < 1.0:
            return 0
        if scaled < 1.0 + self._half:
            return min(1, self._items - 1)
        return min(self._items - 1, int(self._items * (self._eta * drawn - self._eta + 1.0) ** self._alpha))


def _zeta(items: int, constant: float) -> float:
    """Sum of 1 / i ** constant for i in 1..items: exact to 10,000, then by the integral."""
    exact = min(items, 10_000)
    head = sum(math.pow(i, -constant) for i in range(1, exact + 1))
    if items == exact:
        return head
    power = 1.0 - constant
    first, last = float(exact), float(items)
    # Euler-Maclaurin to the second term; what is left out is below 1e-8 here.
    integral = (math.pow(last, power) - math.pow(first, power)) / power
    return head + integral + 0.5 * (math.pow(last, -constant) - math.pow(first, -constant))


class Workload:
    """An endless seeded sequence of operations for one generator process.

    `share` of `shares` tells which process it is: each inserts numbers of its own.
    """

    __slots__ = ("_dice", "_inserted", "_keys", "_mix", "_rank", "_share", "_shares", "_updates_from")

    def __init__(
        self, mix: Mix, *, keys: int, zipfian: bool, seed: int, share: int = 0, shares: int = 1
    ) -> None:
        assert 0 <= share < shares, (share, shares)
        self._mix = mix
        self._dice = random.Random(f"{seed}/{share}")
        self._keys = keys
        self._share = share
        self._shares = shares
        self._inserted = 0
        self._updates_from = mix.reads + mix.inserts
        self._rank: Callable[[], int] | None = None
        if mix.latest or zipfian:
            self._rank = Zipfian(keys, self._dice, LATEST_CONSTANT if mix.latest else ZIPF_CONSTANT)

    def next(self) -> tuple[str, bytes]:
        """Draw the next operation, `(GET | PUT | INSERT, key)`."""
        drawn = self._dice.random()
        if drawn < self._mix.reads:
            return GET, key_name(self._existing())
        if drawn < self._updates_from:
            number = self._keys + self._inserted * self._shares + self._share
            self._inserted += 1
            return INSERT, key_name(number)
        return PUT, key_name(self._existing())

    def _existing(self) -> int:
        """Draw a key number that the load phase wrote or that this process inserted."""
        rank = self._rank
        if rank is None:
            return self._dice.randrange(self._keys)
        if not self._mix.latest:
            return scatter(rank(), self._keys)
        # Rank 0 is the newest: first our own inserts, newest first, then the loaded keys from the top.
        age = rank()
        if age < self._inserted:
            return self._keys + (self._inserted - 1 - age) * self._shares + self._share
        return self._keys - 1 - (age - self._inserted)
