"""Randomness and identities from the operating system."""

from __future__ import annotations

import random
import uuid

from kvstore.ports import Dice


def system_dice() -> Dice:
    """Fast dice, seeded by the operating system: for jitter, sampling and operation ids."""
    return random.Random(random.SystemRandom().getrandbits(128))


def new_uuid() -> str:
    """A name for a cluster or a node that nobody else has."""
    return str(uuid.uuid4())
