"""Many changes with one request to each node: what is asked, and what each came to.

No nested functions: they would refer to what refers to them, and all of it would wait for the collector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvstore import errors
from kvstore.client import steps
from kvstore.client.batches import Outcome, Request
from kvstore.client.change import Applied, Change, NotApplied
from kvstore.wire import messages

Became = Applied | NotApplied | errors.KVError
OnOutcome = Callable[[Change, Became], None]


class ChangeBatch:
    """The changes of one call, by their operations."""

    def __init__(self, changes: Sequence[Change], on_outcome: OnOutcome | None) -> None:
        self.changes = {change.operation: change for change in changes}
        self._on_outcome = on_outcome
        self.became: dict[bytes, Became] = {}

    def request(self) -> Request:
        """How a batch asks for them."""
        return Request(
            method="change_many",
            params=self._params,
            decode=messages.decode_changed,
            writes=True,
            sizes={operation: change.size for operation, change in self.changes.items()},
            key_of=self._key_of,
        )

    def tried(self) -> set[bytes]:
        """Those that an earlier call has sent."""
        return {operation for operation, change in self.changes.items() if change.is_tried}

    def asked(self, operations: set[bytes]) -> None:
        """They were sent, whatever came of it."""
        for operation in operations:
            self.changes[operation].is_tried = True

    def answered(self, settled: Mapping[bytes, Outcome]) -> None:
        """A node has told what became of these."""
        for operation, (changed, node, attempts) in settled.items():
            change = self.changes[operation]
            try:
                became: Became = change.outcome(changed, node, attempts)
            except errors.KVError as error:  # of this one only: the others have their outcomes
                became = error
            self._tell(change, became)

    def failed(self, failures: Mapping[bytes, errors.KVError]) -> None:
        """Of these it is not known, or they were refused."""
        for operation, error in failures.items():
            change = self.changes[operation]
            # Definite ones need no name: there is nothing to resolve.
            own = steps.named(error, change.named) if isinstance(error, errors.Unresolved) else error
            self._tell(change, own)

    def _tell(self, change: Change, became: Became) -> None:
        self.became[change.operation] = became
        if self._on_outcome is not None:
            self._on_outcome(change, became)

    def _params(self, part: Sequence[bytes], budget_ms: int) -> Sequence[Any]:
        chosen = [self.changes[operation] for operation in part]
        items = [(each.key, each.operation, each.name, each.args, each.ends) for each in chosen]
        return messages.encode_change_many(items, {"t": budget_ms})

    def _key_of(self, operation: bytes) -> bytes:
        return self.changes[operation].key
