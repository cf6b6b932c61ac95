"""A scan: pages fetched one by one, each tried again by itself, given out entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from kvstore import errors, limits
from kvstore.client.caller import Caller
from kvstore.client.codecs import Codec
from kvstore.client.receipt import Entry, Receipt, instant
from kvstore.client.terms import Key, shown_key
from kvstore.wire import messages, results

PAGE_KEYS = 500


def prefix_bytes(prefix: Key) -> bytes:
    """A prefix as the store has it. Raises errors.BadOption."""
    try:
        raw: object = prefix.encode() if isinstance(prefix, str) else prefix
    except UnicodeEncodeError:
        raw = None
    if not isinstance(raw, bytes) or len(raw) > limits.KEY_BYTES_MAX:
        raise errors.BadOption(
            option="prefix", given=repr(prefix)[:60], allowed="str that is UTF-8, or bytes, as long as a key"
        )
    return raw


class Scan:
    """Live entries, as an async iterator. Made by `Client.scan`."""

    def __init__(
        self,
        caller: Caller,
        codec: Codec,
        *,
        options: Mapping[str, Any],
        prefix: Key,
        limit: int | None,
        keys_only: bool,
        timeout: float,
    ) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise errors.BadOption(option="limit", given=repr(limit)[:60], allowed="0 or more")
        self._caller = caller
        self._codec = codec
        self._options = {**options, "prefix": prefix_bytes(prefix)}
        if keys_only:
            self._options["keys_only"] = True
        self._timeout = timeout
        self._left = limit
        self._cursor: bytes | None = None
        self._over = limit == 0
        self._page = Receipt(0, 0, ())
        self._ready: list[results.Row] = []
        """Fetched and not given out, the next one last."""

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> Entry:
        """The next entry. Raises what a call raises; asked again it goes on where it was.

        An entry that cannot be decoded raises once, in its place; the one after it comes next.
        """
        while (entry := self.take()) is None:
            if not await self.fetch():
                raise StopAsyncIteration
        return entry

    def take(self) -> Entry | None:
        """The next entry of those that were fetched, or None. Raises what the codec raises."""
        return self._entry(self._ready.pop()) if self._ready else None

    async def fetch(self) -> bool:
        """Make one more request (which perhaps brings nothing), once all was taken; False at the end."""
        if self._over:
            return False
        limit = PAGE_KEYS if self._left is None else min(self._left, PAGE_KEYS)
        position = self._cursor
        rows: results.Rows
        rows, node, attempts = await self._caller.call(
            "scan",
            lambda t: messages.encode_scan(position, {**self._options, "limit": limit, "t": t}),
            key=None,
            timeout=self._timeout,
            writes=False,
            decode=results.decode_rows,
        )
        self._cursor = rows.cursor
        if self._left is not None:
            self._left -= len(rows.rows)
        self._over = rows.cursor is None or (self._left is not None and self._left <= 0)
        self._page = Receipt(0, rows.epoch, rows.answered, coordinator=node, attempts=attempts)
        self._ready = list(rows.rows[:limit])[::-1]
        return True

    def _entry(self, row: results.Row) -> Entry:
        page = self._page
        value = None if row.payload is None else self._codec.decode(row.payload)
        receipt = Receipt(
            row.version, page.epoch, page.answered, coordinator=page.coordinator, attempts=page.attempts
        )
        return Entry(shown_key(row.key), value, row.version, instant(row.expires_ms), receipt)

    async def aclose(self) -> None:
        """Give no more; for `contextlib.aclosing`. A scan holds nothing on the nodes."""
        self._over = True
        self._ready.clear()
