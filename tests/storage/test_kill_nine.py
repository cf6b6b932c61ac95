"""kill -9 of a real process on a real disk, in the middle of everything."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kvstore.core import record as records
from kvstore.io.disk import SystemFiles
from kvstore.io.worker import ThreadWorker
from kvstore.storage.identity import Identity
from kvstore.storage.lmdb_engine import LmdbEngine
from kvstore.storage.options import StoreOptions
from kvstore.storage.store import Store
from kvstore.types import NodeId

WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from kvstore.core import record as records
    from kvstore.io.disk import SystemFiles
    from kvstore.io.worker import ThreadWorker
    from kvstore.storage.identity import Identity
    from kvstore.storage.lmdb_engine import LmdbEngine
    from kvstore.storage.options import StoreOptions
    from kvstore.storage.store import Store

    async def main(directory, first):
        loop = asyncio.get_running_loop()
        store = Store.open(
            files=SystemFiles(), worker=ThreadWorker(loop), flusher=ThreadWorker(loop),
            engine=LmdbEngine(directory + "/base", map_bytes=1 << 16), directory=directory,
            identity=Identity("c", "u", 1, "aa"),
            options=StoreOptions(segment_bytes=1 << 18, memtable_bytes=1 << 17),
        )
        version = first
        while True:
            for _ in range(20):
                key = (version % 7).to_bytes(2, "big") + b"k%d" % (version % 3_000)
                store.apply(key, records.encode(version, 0, 1, b"x" * (version % 300)), 1)
                version += 1
            durable = loop.create_future()
            store.commit(lambda error: durable.set_result(error))
            assert await durable is None
            print(version - 1, flush=True)

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    """
)


def found(directory: Path) -> tuple[dict[bytes, bytes], int]:
    """What a new process finds, and the highest version it knows."""
    loop = asyncio.new_event_loop()
    try:
        store = Store.open(
            files=SystemFiles(),
            worker=ThreadWorker(loop),
            flusher=ThreadWorker(loop),
            engine=LmdbEngine(f"{directory}/base"),
            directory=str(directory),
            identity=Identity("c", "u", NodeId(1), "aa"),
            options=StoreOptions(segment_bytes=1 << 18, memtable_bytes=1 << 17),
        )
        page, more = store.scan(b"", b"\xff", limit=1 << 30, bytes_max=1 << 40)
        assert not more
        highest = store.highest_version
        store.abandon()
    finally:
        loop.close()
    return dict(page), highest


@pytest.mark.slow
def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    dice = random.Random(5)
    acknowledged = 0
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(acknowledged + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline(), "the writer could not begin"
            time.sleep(dice.uniform(0.05, 0.25))
            writer.kill()
            lines = writer.stdout.read().split("\n")
        # The last line may have been cut by the kill.
        acknowledged = max([acknowledged, *(int(line) for line in lines[:-1])])
        contents, highest = found(tmp_path)
        assert highest >= acknowledged
        for version in range(max(1, acknowledged - 2_999), acknowledged + 1):
            key = (version % 7).to_bytes(2, "big") + b"k%d" % (version % 3_000)
            assert records.version_of(contents[key]) >= version
        acknowledged = highest
    assert acknowledged > 3_000, "it came to flushing"
