"""Slots are Redis Cluster's, to the bit; partitions are equal runs of them."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors, limits
from kvstore.core import hashing, ring


def crc16_xmodem(data: bytes) -> int:
    """The CRC bit by bit, as the specification writes it: polynomial 0x1021, start 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


@pytest.mark.parametrize(
    ("key", "slot"),
    [(b"123456789", 0x31C3 & 16_383), (b"somekey", 11_058), (b"foo{hash_tag}", 2_515), (b"{}", 15_257)],
)
def test_known_slots(key: bytes, slot: int) -> None:
    assert hashing.slot_of(key) == slot


def test_the_check_value_of_the_crc() -> None:
    assert crc16_xmodem(b"123456789") == 0x31C3


@given(st.binary(min_size=1, max_size=40))
def test_a_slot_is_the_crc_of_the_tag(key: bytes) -> None:
    assert hashing.slot_of(key) == crc16_xmodem(hashing.hash_tag(key)) & 16_383


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        (b"{user}.a", b"user"),
        (b"a{user}b{other}", b"user"),
        (b"{}a{b}", b"{}a{b}"),
        (b"{a", b"{a"),
        (b"a}{b", b"a}{b"),
        (b"{{a}}", b"{a"),
    ],
)
def test_hash_tags(key: bytes, tag: bytes) -> None:
    assert hashing.hash_tag(key) == tag


def when_it_listens(port: int) -> socket.socket:
    """A connection, as soon as there is one to be had."""
    for _ in range(250):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        time.sleep(0.02)
    raise AssertionError(f"nobody listens on {port}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_a_thousand_keys_have_the_slots_that_redis_gives_them(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    dice, port = random.Random(4), free_port()
    keys = [
        bytes(dice.choice(b"{}ab\x00\xff\r\n ") for _ in range(dice.randint(1, 24))) for _ in range(1_000)
    ]
    command = [
        "redis-server",
        "--port",
        str(port),
        "--cluster-enabled",
        "yes",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            line = when_it_listens(port)
            with line, line.makefile("rb") as answers:
                for key in keys:
                    line.sendall(b"*3\r\n$7\r\nCLUSTER\r\n$7\r\nKEYSLOT\r\n$%d\r\n%s\r\n" % (len(key), key))
                assert [int(answers.readline()[1:]) for _ in keys] == [hashing.slot_of(key) for key in keys]
        finally:
            server.terminate()


@given(st.sampled_from([1, 2, 16, 256, 1_024, 16_384]), st.integers(0, 16_383))
def test_partitions_are_equal_runs_and_double_in_place(partitions: int, slot: int) -> None:
    partition = ring.partition_of(slot, partitions)
    assert slot in ring.slots_of(partition, partitions)
    assert len(ring.slots_of(partition, partitions)) == limits.SLOTS // partitions
    if partitions < 16_384:
        assert ring.partition_of(slot, 2 * partitions) // 2 == partition


@given(st.integers(0, 16_383), st.binary(min_size=1, max_size=480))
def test_storage_keys_come_apart_again(partition: int, key: bytes) -> None:
    assert ring.split_storage_key(ring.storage_key(partition, key)) == (partition, key)


@pytest.mark.parametrize("partitions", [0, 3, 100, -8, 32_768])
def test_only_powers_of_two_cut_the_ring(partitions: int) -> None:
    with pytest.raises(errors.BadOption):
        ring.check_partitions(partitions)
