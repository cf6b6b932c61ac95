"""One call, from its deadline to its outcome: which node, which tries, which error.

Rules kept here:
- one deadline for the call; each try gets a part of what is left, so that a node that hangs does not eat
  all of it, and tells the node a little less than that, so that the node's own error arrives before we
  give up on it;
- a definite not-now error is tried again at another node; an indefinite one too, because every call here
  is safe to repeat under its operation id;
- asking another node because one cannot be reached is free: it adds no load anywhere. All other retries
  spend a budget, so that they never become the load; asking the same nodes again waits, with full jitter;
- once one try of a write was indefinite the whole call is, whatever later tries say;
- every try names the instant after which it is void, so that one that was held up does not take effect
  when the call has long had its outcome;
- a connection on which nothing at all came back during a try is given up: its node hangs or is cut off. Not
  before it was silent for a fifth of a second, for it is everybody's: who waits shorter than that disturbs
  nobody, and those who do find out together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from kvstore import errors
from kvstore.client.connection import too_many
from kvstore.client.nodes import Nodes
from kvstore.core.retry import RetryBudget, RetryPolicy
from kvstore.ports import Dice

Params = Callable[[int], Sequence[Any]]
"""From a try's budget in milliseconds to the params of the request."""
ATTEMPTS_MAX = 8
_TRY_PART = 0.4
_TRY_S_MIN = 0.25
_TIME_S_MIN = 0.0005
"""With less than that nothing can come back: such a try would only seem to tell something of its node."""
_SILENT_S = 0.2
"""What is too long to say nothing: less than a try takes, for loops tell the time in whole milliseconds."""
_SILENCE = (errors.CannotConnect, errors.ConnectionLost, errors.DeadlineExceeded)
_MARGIN_PART, _MARGIN_S_MAX = 0.1, 0.05


def _as_it_is(result: Any) -> Any:
    return result


class _Tries:
    """What the tries of one call have shown."""

    __slots__ = ("asked", "hopeless", "last", "unresolved", "writes")

    def __init__(self, *, writes: bool) -> None:
        self.writes = writes
        self.asked: set[str] = set()
        """In this round."""
        self.hopeless: set[str] = set()
        """Addresses whose hello said never: another cluster, another token."""
        self.unresolved: errors.KVError | None = None
        self.last: errors.KVError | None = None

    def note(self, error: errors.KVError) -> None:
        """A try failed."""
        # What a node says tells more than that another one says nothing.
        if self.last is None or isinstance(self.last, _SILENCE) or not isinstance(error, _SILENCE):
            self.last = error
        if self.writes and not error.definite and self.unresolved is None:
            self.unresolved = error

    def next(self, order: Sequence[str]) -> str | None:
        """Where to go: the best that was not asked in this round; None when there is no sense in any."""
        left = [address for address in order if address not in self.hopeless] if self.hopeless else order
        if not left:
            return None
        for address in left:
            if address not in self.asked:
                self.asked.add(address)
                return address
        self.asked = {left[0]}
        return left[0]

    def is_round_over(self, order: Sequence[str]) -> bool:
        """Whether everybody was asked."""
        return all(address in self.asked or address in self.hopeless for address in order)


class Caller:
    """Makes calls through `Nodes`."""

    def __init__(
        self, nodes: Nodes, *, policy: RetryPolicy, budget: RetryBudget, attempts_max: int, dice: Dice
    ) -> None:
        self.nodes = nodes
        self._loop = asyncio.get_running_loop()
        self._policy = policy
        self._budget = budget
        self._attempts_max = attempts_max
        self._dice = dice

    async def call(
        self,
        method: str,
        params: Params,
        *,
        key: bytes | None,
        timeout: float,
        writes: bool,
        node: str | None = None,
        prefer: str | None = None,
        decode: Callable[[Any], Any] = _as_it_is,
        attempts_max: int | None = None,
    ) -> tuple[Any, int, int]:
        """Returns (decoded result, number of the node that answered, tries). `timeout` in seconds.

        `node`: ask this address and no other; `prefer`: ask it first. Raises the KVError that says most.
        """
        loop = self.here()
        deadline = loop.time() + timeout
        self._budget.call()
        tries = _Tries(writes=writes)
        most = self._attempts_max if attempts_max is None else min(attempts_max, self._attempts_max)
        for attempt in range(1, most + 1):
            left = deadline - loop.time()
            order = [node] if node is not None else self.nodes.candidates(key)
            if prefer is not None:
                order = [prefer, *order]
            address = tries.next(order) if left >= _TIME_S_MIN else None
            if address is None:
                break
            try:
                seconds = min(left, max(left * _TRY_PART, _TRY_S_MIN))
                nth = attempt if writes else 1
                result, number = await self._try(address, method, params, decode, seconds, nth)
            except errors.KVError as error:
                tries.note(error)
                if isinstance(error, errors.ProtocolError) and not error.retryable:
                    tries.hopeless.add(address)
                elif not error.retryable:
                    raise (tries.unresolved if error.definite else None) or error from None
                if not await self._may_go_on(tries, error, order, attempt, most, deadline - loop.time()):
                    break
            else:
                return result, number, attempt
        raise tries.unresolved or tries.last or errors.DeadlineExceeded(timeout_ms=int(timeout * 1000))

    def here(self) -> asyncio.AbstractEventLoop:
        """The loop of the connections, which is the caller's; anybody else's answers would never come.

        Raises errors.WrongLoop.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise errors.WrongLoop
        return self._loop

    async def _may_go_on(
        self,
        tries: _Tries,
        error: errors.KVError,
        order: Sequence[str],
        attempt: int,
        most: int,
        left: float,
    ) -> bool:
        """Whether to try again; returns when to."""
        if attempt >= most or left < _TIME_S_MIN:
            return False
        over = tries.is_round_over(order)
        unreachable = isinstance(error, errors.CannotConnect | errors.ConnectionLost | errors.ProtocolError)
        if (over or not unreachable) and not self._budget.retry():
            return False
        if over:
            pause = self._policy.delay_ms(attempt, self._dice)
            if isinstance(error, errors.Overloaded):
                asked_for = error.fields.get("retry_after_ms")
                pause += asked_for if isinstance(asked_for, int) and 0 < asked_for < left * 1000 else 0
            await asyncio.sleep(min(pause / 1000, left))
        return True

    async def _try(
        self,
        address: str,
        method: str,
        params: Params,
        decode: Callable[[Any], Any],
        seconds: float,
        nth: int,
    ) -> tuple[Any, int]:
        nodes = self.nodes
        connection = None
        heard = -1
        nodes.asking(address)
        try:
            async with asyncio.timeout(seconds):
                connection = await nodes.connection(address)
                await connection.room()
                heard = connection.received
                margin = min(seconds * _MARGIN_PART, _MARGIN_S_MAX)
                request = params(max(round((seconds - margin) * 1000), 1))
                if nth > 1 and request and isinstance(request[-1], dict):
                    # A register must know that an earlier try may have been applied.
                    request = (*request[:-1], {**request[-1], "n": nth})
                if request:  # a question about the node itself has no params, and is never void
                    request = (*request, connection.void_after(seconds))
                result = await connection.call(method, request)
            decoded = decode(result)
        except TimeoutError:
            since = None if connection is None else connection.silent_since
            silence = 0.0 if since is None else self._loop.time() - since
            if connection is None or max(silence, seconds) >= _SILENT_S:
                nodes.failed(address)
            if connection is None:
                raise errors.CannotConnect(
                    address=address, reason=f"no answer within {seconds:.2f} s"
                ) from None
            if heard < 0:
                raise too_many() from None
            if connection.received == heard and silence >= _SILENT_S:
                connection.give_up(f"it was silent for {silence:.2f} s")
            raise errors.DeadlineExceeded(timeout_ms=int(seconds * 1000)) from None
        except errors.Malformed as error:
            # From `decode`: it did answer, so it may have happened. (From hello: see Connection.open.)
            assert connection is not None
            connection.abort(error.message)
            raise errors.ConnectionLost(address=address, reason=error.message) from None
        except errors.TooLate:
            assert connection is not None
            connection.compare_clocks()  # perhaps it was not late, but the clocks ran apart
            raise
        except (errors.ConnectionLost, errors.NotReady, errors.ClockSkew):
            nodes.failed(address)
            raise
        nodes.worked(address)
        nodes.saw_epoch(getattr(decoded, "epoch", 0))
        return decoded, connection.node
