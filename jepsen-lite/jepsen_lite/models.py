"""Sequential models: what one copy, used by one client at a time, would answer.

A model turns each operation into a move: a function from state to next state, or to None when the answer
cannot be given in that state. A move of None is an operation that neither changes nor constrains. States are
hashable and never None. A pure move never changes the state, so the search takes it as soon as it fits.

Two conventions differ between the sources of our oracles (their README files), and are flags here:
- Porcupine: a failed cas says that the register was not as expected; a read of nil needs nil;
- Knossos: what failed is left out; a read of nil says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from jepsen_lite.history import Operation, identity

State = Any
"""Hashable; each model has its own."""

UNBOUND = ("absent", -1)
"""Left by a delete whose version nobody told: the first read of it finds out."""


def absent(version: int = 0) -> tuple[str, int]:
    """The state after the delete of that version; 0: nothing was ever written, or versions are not told."""
    return ("absent", version)


def _is_absent(state: State) -> bool:
    return isinstance(state, tuple) and state[0] == "absent"


class Move(NamedTuple):
    """What an operation does to the state."""

    apply: Callable[[State], State | None]
    pure: bool = False


class Model(Protocol):
    """What the search needs to know of an object."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    def start(self) -> State:
        """State before the first operation."""
        ...

    def moves(self, operations: Sequence[Operation]) -> list[Move | None]:
        """One move for each operation, or None where it says nothing."""
        ...


def _set_to(new: State) -> Move:
    return Move(lambda _state: new)


def _is(wanted: State) -> Move:
    return Move(lambda state: state if state == wanted else None, pure=True)


@dataclass(frozen=True, slots=True)
class Register:
    """Read, write, cas and delete of one value."""

    initial: Any = None
    failed_cas_constrains: bool = True
    nil_reads_constrain: bool = True
    name: str = "register"

    def start(self) -> State:
        """See Model."""
        return absent() if self.initial is None else identity(self.initial)

    def moves(self, operations: Sequence[Operation]) -> list[Move | None]:
        """See Model."""
        versioned = any(op.version for op in operations)
        values = {
            op.version: identity(op.value)
            for op in operations
            if op.version and op.outcome == "ok" and op.value is not None and op.kind != "delete"
        }
        deleted = {op.version for op in operations if _deletes(op) and op.outcome == "ok"}
        look = _Look(versioned, values, deleted)
        moves = [self._move(op, look) for op in operations]
        if not any(op.is_mismatch and not op.observed for op in operations) or not self.failed_cas_constrains:
            _drop_unseen(operations, moves, values)
        return moves

    def _move(self, op: Operation, look: _Look) -> Move | None:
        if op.outcome == "fail":
            return self._mismatch(op, look) if self.failed_cas_constrains and op.is_mismatch else None
        match op.kind:
            case "read":
                if op.outcome != "ok" or (op.value is None and not self.nil_reads_constrain):
                    return None
                return look.at(op.value, op.version)
            case "write":
                return _set_to(look.left_by(op))
            case "delete":
                return _set_to(look.left_by(op))
            case "cas":
                new, fits = look.left_by(op), look.expected(op)
                return Move(lambda state: new if fits(state) else None)
            case _:
                raise ValueError(f"a register knows no {op.kind!r}")

    def _mismatch(self, op: Operation, look: _Look) -> Move | None:
        if op.observed:
            return look.at(op.seen, op.version)
        if op.version in look.values:
            return _is(look.values[op.version])
        fits = look.expected(op)
        return Move(lambda state: None if fits(state) else state, pure=True)


def _deletes(op: Operation) -> bool:
    """Whether it leaves the key absent, should it be applied."""
    return op.kind == "delete" or (op.kind in ("cas", "write") and op.value is None)


@dataclass(frozen=True, slots=True)
class _Look:
    """Reads the versions of one history: which absence is which."""

    versioned: bool
    values: dict[int, Hashable]
    deleted: set[int]

    def left_by(self, op: Operation) -> State:
        """State after an operation that was applied."""
        if not _deletes(op):
            return identity(op.value)
        if not self.versioned:
            return absent()
        return absent(op.version) if op.version else UNBOUND

    def at(self, value: Any, version: int) -> Move:
        """An observation of `value`, shown at `version`."""
        if value is not None:
            return _is(identity(value))
        wanted = absent(version)
        if version == 0 or version in self.deleted:
            return _is(wanted)
        # Nobody told this version: it belongs to a delete without an answer, found out by this read.
        return Move(lambda state: wanted if state in (wanted, UNBOUND) else None)

    def expected(self, op: Operation) -> Callable[[State], bool]:
        """Whether a state is the one that this cas replaces."""
        if op.expected is not None:
            wanted = identity(op.expected)
            return lambda state: bool(state == wanted)
        version = op.expected_version
        if version == 0:
            return _is_absent
        if version in self.values:
            wanted = self.values[version]
            return lambda state: bool(state == wanted)
        gone = absent(version)
        known = version in self.deleted
        return lambda state: state == gone or (not known and state == UNBOUND)


def _drop_unseen(
    operations: Sequence[Operation], moves: list[Move | None], values: dict[int, Hashable]
) -> None:
    """Leave out writes of unknown outcome whose value nobody reads or expects.

    Nothing but another write could stand behind one, so a history is legal with it if and only if it is
    legal without. Not so when a failed cas only says "not what I expected" (RELIABILITY 5.3, trap 1).
    """
    wanted: set[Hashable] = set()
    absence = False
    for op, move in zip(operations, moves, strict=True):
        if move is None:
            continue
        if op.kind == "read" or op.is_mismatch:
            value = op.seen if op.is_mismatch else op.value
            wanted.add(identity(value))
            absence |= value is None
        elif op.kind == "cas":
            wanted.add(values.get(op.expected_version) if op.expected is None else identity(op.expected))
            absence |= op.expected is None
    for index, op in enumerate(operations):
        if op.outcome == "unknown" and not (absence if _deletes(op) else identity(op.value) in wanted):
            moves[index] = None


@dataclass(frozen=True, slots=True)
class MultiRegister:
    """Transactions of reads and writes over several registers: `[["read", "x", 1], ["write", "y", 2]]`."""

    initial: dict[str, Any] = field(default_factory=dict)
    name: str = "multi-register"

    def start(self) -> State:
        """See Model."""
        return tuple(sorted(self.initial.items()))

    def moves(self, operations: Sequence[Operation]) -> list[Move | None]:
        """See Model."""
        return [None if op.outcome == "fail" else self._move(op) for op in operations]

    def _move(self, op: Operation) -> Move | None:
        parts: list[tuple[str, str, Any]] = [tuple(part) for part in op.value]
        pure = all(kind == "read" for kind, _, _ in parts)
        if pure and op.outcome == "unknown":
            return None

        def apply(state: State) -> State | None:
            registers = dict(state)
            for kind, name, value in parts:
                if kind == "write":
                    registers[name] = value
                elif value is not None and registers.get(name) != value:
                    return None
            return tuple(sorted(registers.items()))

        return Move(apply, pure)


@dataclass(frozen=True, slots=True)
class Mutex:
    """Acquire and release; whoever releases need not be who acquired."""

    name: str = "mutex"

    def start(self) -> State:
        """See Model."""
        return "free"

    def moves(self, operations: Sequence[Operation]) -> list[Move | None]:
        """See Model."""
        acquire = Move(lambda state: "held" if state == "free" else None)
        release = Move(lambda state: "free" if state == "held" else None)
        return [
            None if op.outcome == "fail" else acquire if op.kind == "acquire" else release
            for op in operations
        ]


@dataclass(frozen=True, slots=True)
class AppendText:
    """Porcupine's string store: write, append and read of one string."""

    name: str = "append-text"

    def start(self) -> State:
        """See Model."""
        return ""

    def moves(self, operations: Sequence[Operation]) -> list[Move | None]:
        """See Model."""
        return [self._move(op) for op in operations]

    def _move(self, op: Operation) -> Move | None:
        if op.outcome == "fail" or (op.kind == "read" and op.outcome == "unknown"):
            return None
        value: str = op.value or ""
        match op.kind:
            case "read":
                return _is(value)
            case "write":
                return _set_to(value)
            case "append":
                return Move(lambda state: state + value)
            case _:
                raise ValueError(f"a string knows no {op.kind!r}")
