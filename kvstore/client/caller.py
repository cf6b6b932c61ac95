"""One call, from its deadline to its outcome: which node, which tries, which error.

Rules kept here:
- one deadline for the call; each try gets a part of what is left, so that a node that hangs does not eat
  all of it, and tells the node how much it got;
- a definite not-now error is tried again at another node; an indefinite one too, because every call here
  is safe to repeat under its operation id;
- retries have full jitter and a budget, so that they never become the load;
- once one try of a write was indefinite the whole call is, whatever later tries say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from kvstore import errors
from kvstore.client.nodes import Nodes
from kvstore.core.retry import RetryBudget, RetryPolicy
from kvstore.ports import Dice

Params = Callable[[int], Sequence[Any]]
"""From a try's budget in milliseconds to the params of the request."""
ATTEMPTS_MAX = 8
_TRY_PART = 0.4
_TRY_S_MIN = 0.25


class Caller:
    """Makes calls through `Nodes`."""

    def __init__(
        self, nodes: Nodes, *, policy: RetryPolicy, budget: RetryBudget, attempts_max: int, dice: Dice
    ) -> None:
        self._nodes = nodes
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
    ) -> tuple[Any, int, int]:
        """Returns (result, number of the node that answered, tries). `timeout` in seconds.

        `node`: ask this address and no other. Raises the KVError that says most.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self._budget.call()
        unresolved: errors.KVError | None = None
        last: errors.KVError | None = None
        tried: set[str] = set()
        for attempt in range(1, self._attempts_max + 1):
            left = deadline - loop.time()
            if left <= 0:
                break
            order = [node] if node is not None else self._nodes.candidates(key)
            fresh = [address for address in order if address not in tried]
            if not fresh:
                tried.clear()
                fresh = order
            address = fresh[0]
            tried.add(address)
            try:
                result, number = await self._try(
                    address, method, params, min(left, max(left * _TRY_PART, _TRY_S_MIN))
                )
            except errors.KVError as error:
                if not error.retryable:
                    raise error if unresolved is None or not error.definite else unresolved from None
                # What a node says tells more than that another one cannot be reached.
                if last is None or not isinstance(error, errors.CannotConnect):
                    last = error
                if writes and not error.definite:
                    unresolved = unresolved or error
            else:
                return result, number, attempt
            if attempt < self._attempts_max:
                if not self._budget.retry():
                    break
                # Another node can be asked at once; only a second round waits.
                if len(tried) >= len(order):
                    pause = self._policy.delay_ms(attempt, self._dice) / 1000
                    await asyncio.sleep(max(min(pause, deadline - loop.time()), 0))
        raise unresolved or last or errors.DeadlineExceeded(timeout_ms=int(timeout * 1000))

    async def _try(self, address: str, method: str, params: Params, seconds: float) -> tuple[Any, int]:
        connection = None
        try:
            async with asyncio.timeout(seconds):
                connection = await self._nodes.connection(address)
                # A tenth less, so that the node's answer, which says why, comes before our own patience ends.
                terms = params(max(int(seconds * 1000 - min(seconds * 100, 50)), 1))
                result = await connection.call(
                    method, [*terms, connection.void_after(seconds)] if terms else terms
                )
        except TimeoutError:
            self._nodes.failed(address)
            if connection is None:
                raise errors.CannotConnect(
                    address=address, reason=f"no answer within {seconds:.2f} s"
                ) from None
            raise errors.DeadlineExceeded(timeout_ms=int(seconds * 1000)) from None
        except errors.TooLate:
            if connection is not None:
                connection.compare_clocks()  # perhaps it was not late, but the node's clock was set
            raise
        except (errors.ConnectionLost, errors.NotReady, errors.ClockSkew):
            self._nodes.failed(address)
            raise
        self._nodes.worked(address)
        return result, connection.node
