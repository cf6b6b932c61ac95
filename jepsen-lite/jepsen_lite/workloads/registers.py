"""Linearizable registers: plain ones, and a bank over several of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jepsen_lite import search
from jepsen_lite.checks_session import check_session, check_stale, check_versions
from jepsen_lite.history import Operation
from jepsen_lite.models import Register as RegisterModel
from jepsen_lite.seat import Seat, note_change
from jepsen_lite.verdict import Verdict, Word, guarded, illegal
from jepsen_lite.workloads.workload import KeyPool

LINEAR = "linearizable"


async def read(seat: Seat, key: str) -> Operation:
    """Read a register; its value as text, or None."""

    async def ask(op: Operation) -> None:
        entry = await seat.kv.get(key, consistency=LINEAR)
        if entry is not None:
            op.value, op.version = entry.value.decode(), entry.version

    return await seat.call("read", key, ask)


async def write(seat: Seat, key: str, value: str) -> Operation:
    """Write a register."""

    async def ask(op: Operation) -> None:
        op.version = (await seat.kv.put(key, value.encode(), consistency=LINEAR)).version

    return await seat.call("write", key, ask, value=value)


async def cas(seat: Seat, key: str, new: str, *, expected: str | None, version: int | None) -> Operation:
    """Compare and set: by version where one is given, else by value."""

    async def ask(op: Operation) -> None:
        if version is not None:
            done = await seat.kv.cas(key, new=new.encode(), expected_version=version)
        else:
            was = expected.encode() if expected is not None else None
            done = await seat.kv.cas(key, new=new.encode(), expected_value=was)
        note_change(op, done, bytes.decode)

    return await seat.call(
        "cas", key, ask, value=new, expected=expected, expected_version=version if version is not None else 0
    )


def judge_registers(operations: Sequence[Operation]) -> list[Verdict]:
    """Linearizable for each key; and versions grow in that same order, as the client is promised."""
    return [
        guarded("linearizable", lambda: search.check_keys(operations, RegisterModel())),
        guarded("versions", lambda: check_versions(operations)),
        guarded("stale-reads", lambda: check_stale(operations)),
        guarded("session", lambda: check_session(operations)),
    ]


class Registers:
    """Read, write and cas of a few registers at a time."""

    linearizable = True
    keys_are_stored = True

    def __init__(self) -> None:
        self._pool = KeyPool("register:")

    async def step(self, seat: Seat) -> None:
        """Mostly reads, so that whatever goes wrong is seen."""
        key = self._pool.pick(seat.dice)
        known: tuple[str | None, int] = seat.memory.get(key, (None, 0))
        draw = seat.dice.random()
        if draw < 0.45:
            op = await read(seat, key)
        elif draw < 0.7:
            op = await write(seat, key, seat.unique())
        else:
            by_version = seat.dice.random() < 0.5
            op = await cas(
                seat, key, seat.unique(), expected=known[0], version=known[1] if by_version else None
            )
        if op.outcome == "ok":
            seat.memory[key] = op.value, op.version
        elif op.observed:
            seat.memory[key] = op.seen, op.version

    async def finish(self, seat: Seat) -> None:
        """Read the newest registers, write one, read it again."""
        keys = self._pool.finals()
        for key in keys:
            await read(seat, key)
        if keys:
            await write(seat, keys[0], seat.unique())
            await read(seat, keys[0])

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """See judge_registers."""
        return judge_registers(operations)


class Bank:
    """Transfers between accounts, one register each.

    There is no change of two keys at once, so the sum over all accounts is no promise and is not judged: a
    transfer debits one account and then credits another. Each is a linearizable register, and never negative.
    """

    linearizable = True
    keys_are_stored = True
    accounts = 5
    opening = 100

    async def step(self, seat: Seat) -> None:
        """Look at an account, or transfer between two."""
        names = [f"account:{number}" for number in range(self.accounts)]
        source, target = seat.dice.sample(names, 2)
        if seat.dice.random() < 0.4:
            await read(seat, source)
            return
        amount = seat.dice.randint(1, 30)
        if await self._add(seat, source, -amount):
            await self._add(seat, target, amount)

    async def _add(self, seat: Seat, key: str, amount: int) -> bool:
        """One side of a transfer: False when it did not happen, or nobody knows."""
        for _ in range(5):
            seen = await read(seat, key)
            if seen.outcome != "ok":
                return False
            after = balance(seen.value, self.opening) + amount
            if after < 0:
                return False
            new = json.dumps({"balance": after, "by": seat.unique()})
            done = await cas(seat, key, new, expected=seen.value, version=seen.version)
            if done.outcome != "fail":
                return done.outcome == "ok"
        return False

    async def finish(self, seat: Seat) -> None:
        """Read all accounts."""
        for number in range(self.accounts):
            await read(seat, f"account:{number}")

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """Accounts are registers, and no balance is negative."""
        return [*judge_registers(operations), guarded("bank", lambda: check_balances(operations))]


def balance(value: Any, opening: int = Bank.opening) -> int:
    """What an account's value says; an account that was never written has its opening balance."""
    return int(json.loads(value)["balance"]) if value is not None else opening


def check_balances(operations: Sequence[Operation]) -> Verdict:
    """Every balance that was read or found is at least zero."""
    seen = [op for op in operations if op.kind == "read" and op.outcome == "ok"]
    for op in seen:
        if balance(op.value) < 0:
            return illegal("bank", "an account is overdrawn", ("seen", [op]), key=op.key)
    return Verdict("bank", Word.OK if seen else Word.UNKNOWN, "" if seen else "no balance was read")
