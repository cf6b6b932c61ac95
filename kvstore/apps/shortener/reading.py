"""Reads that come at the same moment, asked for together: one message a node instead of one a link."""

from __future__ import annotations

import asyncio

import kvstore
from kvstore import errors

_MOST = 100
Found = kvstore.Entry | None


class Together:
    """Gets at one replica. Whoever comes first waits for one turn of the loop and asks for all who came."""

    def __init__(self, kv: kvstore.Client) -> None:
        self._kv = kv
        self._asked: dict[str, asyncio.Future[Found]] = {}

    async def get(self, key: str) -> Found:
        """What a replica has. Raises errors.KVError."""
        asked = self._asked.get(key)
        if asked is None:
            asked = asyncio.get_running_loop().create_future()
            self._asked[key] = asked
            if len(self._asked) == 1:
                await self._lead()
        try:
            return await asyncio.shield(asked)
        except errors.KVError:
            return await self._kv.get(key, consistency="one")  # it may have failed for another's sake

    async def _lead(self) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            batch, self._asked = self._asked, {}
        keys: list[str | bytes] = list(batch)
        try:
            if len(keys) == 1:
                found: dict[str | bytes, Found] = {
                    keys[0]: await self._kv.get(keys[0], consistency="one")
                }
            else:
                found = await self._kv.get_many(keys, consistency="one")
        except BaseException as failure:
            told = failure if isinstance(failure, errors.KVError) else errors.Cancelled()
            for each in batch.values():
                each.set_exception(told)
                each.exception()
            if not isinstance(failure, errors.KVError):
                raise
        else:
            for key, each in batch.items():
                each.set_result(found[key])
