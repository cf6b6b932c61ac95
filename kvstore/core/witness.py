"""Remember what peers said they had made durable, and tell who comes back with less.

A node that lost acceptor state would break registers: it would promise again what it had promised away
(DESIGN 6, "amnesia breaks Paxos"). Its ceiling (`node.ceiling`) is durable before it is told to anybody, and
only ever grows; so whoever begins a new life with a lower one than it told of has been given older data.

Within one life a lower ceiling means nothing: what was said on one connection may arrive after what was said
later on another (simulator, seed 4004).
"""

from __future__ import annotations

from typing import NamedTuple

from kvstore.types import NodeId


class Told(NamedTuple):
    """What a node tells of itself."""

    life: int
    """Drawn when its process starts."""
    ceiling: int
    """No version it has issued is above; durable."""


class Witness:
    """The highest ceiling that each peer has told of."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: dict[NodeId, Told] = {}

    def believes(self, node: NodeId, told: Told | None) -> bool:
        """Take note of what a peer tells; False when it told of more in an earlier life.

        None: it makes no promise (its data is in memory alone), so there is none to break.
        """
        if told is None:
            return True
        known = self._told.get(node)
        if known is not None and told.ceiling < known.ceiling:
            return told.life == known.life
        self._told[node] = told
        return True
