"""The two small clocks of a node: the end of a loop turn, and the wheel of deadlines."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.node.deadlines import STEP_S, Deadlines
from kvstore.node.turn import Turn


async def test_everything_marked_in_one_turn_runs_once_and_in_order() -> None:
    turn = Turn(asyncio.get_running_loop())
    ran: list[str] = []
    turn.mark(lambda: ran.append("log"))
    turn.mark(lambda: ran.append("peers"))
    assert ran == [], "nothing leaves before the turn ends"
    await asyncio.sleep(0)
    assert ran == ["log", "peers"]
    await asyncio.sleep(0)
    assert ran == ["log", "peers"]


async def test_a_mark_made_while_the_turn_ends_belongs_to_the_next() -> None:
    turn = Turn(asyncio.get_running_loop())
    ran: list[int] = []
    turn.mark(lambda: (ran.append(1), turn.mark(lambda: ran.append(2))))  # type: ignore[func-returns-value,arg-type]
    await asyncio.sleep(0)
    assert ran == [1]
    await asyncio.sleep(0)
    assert ran == [1, 2]


class Waiting:
    """Something with a deadline, that remembers having missed it."""

    def __init__(self) -> None:
        self.expired = 0

    def expire(self) -> None:
        """Count it."""
        self.expired += 1


@pytest.mark.parametrize("after", [0.0, 0.004, 0.5, 7.0])
def test_a_deadline_expires_once_never_early_and_within_two_steps(after: float) -> None:
    wheel, waiting = Deadlines(100.0), Waiting()
    wheel.add(100.0 + after, waiting)
    now = 100.0
    while now < 100.0 + after:
        wheel.advance(now)
        assert waiting.expired == 0, f"early at {now}"
        now += STEP_S / 3
    wheel.advance(100.0 + after + 2 * STEP_S)
    wheel.advance(100.0 + after + 9)
    assert waiting.expired == 1


def test_what_left_its_bucket_does_not_expire() -> None:
    wheel, waiting = Deadlines(0.0), Waiting()
    bucket = wheel.add(1.0, waiting)
    assert len(wheel) == 1
    bucket.pop(id(waiting))
    wheel.advance(5.0)
    assert waiting.expired == 0
    assert len(wheel) == 0


def test_after_a_long_pause_everything_due_expires_in_one_go() -> None:
    wheel = Deadlines(0.0)
    early, late = Waiting(), Waiting()
    wheel.add(1.0, early)
    wheel.add(90_000.0, late)
    assert wheel.advance(86_400.0) == 1
    assert (early.expired, late.expired) == (1, 0)


def test_a_deadline_already_past_is_met_at_the_next_step() -> None:
    wheel, waiting = Deadlines(50.0), Waiting()
    wheel.advance(60.0)
    wheel.add(55.0, waiting)
    wheel.advance(60.0 + 2 * STEP_S)
    assert waiting.expired == 1
