"""What only the real disk and the real thread have."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from kvstore.io.disk import SystemFile, SystemFiles
from kvstore.io.worker import ThreadWorker


def test_files_and_directories_are_for_their_owner_alone(tmp_path: Path) -> None:
    files = SystemFiles()
    files.make_dir(f"{tmp_path}/d")
    files.create(f"{tmp_path}/d/f").close()
    files.write_atomic(f"{tmp_path}/d/g", b"x")
    release = files.lock(f"{tmp_path}/d/l")
    assert release is not None
    release()
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert {(tmp_path / "d" / name).stat().st_mode & 0o777 for name in "fgl"} == {0o600}


def test_new_directories_are_synced_into_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(SystemFiles, "sync_dir", lambda _self, path: synced.append(path))
    SystemFiles().make_dir(f"{tmp_path}/a/b/c")
    assert synced == [f"{tmp_path}", f"{tmp_path}/a", f"{tmp_path}/a/b"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    SystemFiles().make_dir(f"{tmp_path}/a/b/c")
    assert len(synced) == 3


def test_short_writes_and_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, bytes(data)[:3], at))
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read(fd, min(size, 2), at))
    file = SystemFiles().create(f"{tmp_path}/f")
    file.write_at(0, b"0123456789")
    assert file.read_at(0, 100) == b"0123456789"
    file.close()


def test_a_reservation_that_does_not_fit_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: SystemFile, _offset: int, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SystemFile, "write_at", full)
    with pytest.raises(OSError, match="No space"):
        SystemFiles().create(f"{tmp_path}/f", 1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_taken_is_an_error_not_a_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="No locks"):
        SystemFiles().lock(f"{tmp_path}/lock")


async def test_jobs_run_in_order_off_the_loop_and_answer_on_it() -> None:
    loop = asyncio.get_running_loop()
    worker = ThreadWorker(loop)
    ran: list[tuple[int, bool]] = []
    answered: list[tuple[int, bool]] = []
    end = loop.create_future()
    main = threading.get_ident()

    def job(n: int) -> int:
        ran.append((n, threading.get_ident() == main))
        return n * 10

    def done(result: int | None, error: BaseException | None) -> None:
        assert error is None
        assert result is not None
        answered.append((result, threading.get_ident() == main))
        if len(answered) == 50:
            end.set_result(None)

    for n in range(50):
        worker.submit(partial(job, n), done)
    await end
    assert ran == [(n, False) for n in range(50)]
    assert answered == [(n * 10, True) for n in range(50)]
    worker.close()
    worker.close()


async def test_an_error_is_the_answer_and_the_next_job_runs() -> None:
    loop = asyncio.get_running_loop()
    worker = ThreadWorker(loop)
    first, second = loop.create_future(), loop.create_future()
    worker.submit(lambda: 1 // 0, lambda _result, error: first.set_result(error))
    worker.submit(lambda: 7, lambda result, _error: second.set_result(result))
    assert isinstance(await first, ZeroDivisionError)
    assert await second == 7
    worker.close()


def test_close_waits_for_every_job_and_nobody_needs_the_loop_any_more() -> None:
    loop = asyncio.new_event_loop()
    worker = ThreadWorker(loop)
    gate, ran = threading.Event(), []
    worker.submit(gate.wait, lambda _result, _error: None)
    worker.submit(lambda: ran.append(1), lambda _result, _error: None)
    loop.close()
    gate.set()
    worker.close()
    assert ran == [1]
    with pytest.raises(AssertionError):
        worker.submit(lambda: None, lambda _result, _error: None)


def test_a_worker_that_never_worked_has_no_thread() -> None:
    before = threading.active_count()
    loop = asyncio.new_event_loop()
    worker = ThreadWorker(loop)
    worker.close()
    loop.close()
    assert threading.active_count() == before
