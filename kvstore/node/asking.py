"""What operations ask of a peer in one loop turn, gathered until it leaves, and who asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvstore.types import NodeId


class WriteAsker(Protocol):
    """An operation that wants a record stored."""

    def answer(self, node: NodeId, applied: int, durability: int) -> None:
        """The peer's answer."""
        ...

    def fail(self, node: NodeId) -> None:
        """No answer will come; it may have happened."""
        ...


class ReadAsker(Protocol):
    """An operation that wants a record."""

    def answer_read(self, node: NodeId, record: bytes | None) -> None:
        """The peer's record."""
        ...

    def fail(self, node: NodeId) -> None:
        """No answer will come."""
        ...

    def is_over(self) -> bool:
        """Whether it needs no answer any more."""
        ...


class VoteAsker(Protocol):
    """A proposer's phase that wants votes."""

    def voted(self, node: NodeId, vote: tuple[int, int, bytes | None]) -> None:
        """The peer's acceptor answered."""
        ...

    def fail(self, node: NodeId) -> None:
        """No answer will come; it may have happened."""
        ...

    def is_over(self) -> bool:
        """Whether its phase is decided."""
        ...


class PeekAsker(Protocol):
    """A read that hopes to do without a round."""

    def peeked(self, node: NodeId, promised: int, record: bytes | None) -> None:
        """The peer's acceptor showed its state."""
        ...

    def fail(self, node: NodeId) -> None:
        """No answer will come."""
        ...

    def is_over(self) -> bool:
        """Whether it needs no answer any more."""
        ...


Asker = ReadAsker | VoteAsker | PeekAsker


class Questions:
    """Reads, votes or peeks that wait for the end of the turn: arguments flat in one array, and who asked."""

    __slots__ = ("askers", "deadline", "decode", "flat", "method", "size", "tell")

    def __init__(
        self,
        method: str,
        decode: Callable[[Any, int], Sequence[Any] | None],
        tell: Callable[[Any, NodeId, Any], None],
    ) -> None:
        self.method = method
        self.decode = decode
        self.tell = tell
        self._clear()

    def _clear(self) -> None:
        self.flat: list[Any] = []
        self.askers: list[Any] = []
        self.size = 0
        """Bytes of records."""
        self.deadline = 0.0

    def take(self) -> tuple[list[Any], list[Any], float]:
        """What was collected; from here on there is nothing."""
        taken = self.flat, self.askers, self.deadline
        self._clear()
        return taken


def tell_read(asker: ReadAsker, node: NodeId, record: bytes | None) -> None:
    """As `Questions.tell`."""
    asker.answer_read(node, record)


def tell_vote(asker: VoteAsker, node: NodeId, vote: tuple[int, int, bytes | None]) -> None:
    """As `Questions.tell`."""
    asker.voted(node, vote)


def tell_peek(asker: PeekAsker, node: NodeId, seen: tuple[int, bytes | None]) -> None:
    """As `Questions.tell`."""
    asker.peeked(node, *seen)


class Batch:
    """Records that wait for the end of the turn, and who asked."""

    __slots__ = ("askers", "deadline", "flat", "method", "size", "sync")

    def __init__(self, method: str) -> None:
        self.method = method
        self._clear()

    def _clear(self) -> None:
        self.flat: list[bytes] = []
        self.askers: list[WriteAsker] = []
        self.size = 0
        self.sync = False
        self.deadline = 0.0

    def take(self) -> tuple[list[bytes], list[WriteAsker], bool, float]:
        """What was collected; from here on the batch is empty."""
        taken = self.flat, self.askers, self.sync, self.deadline
        self._clear()
        return taken
