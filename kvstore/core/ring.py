"""The ring: 16,384 slots cut into Q equal partitions, and how a key looks in storage.

A partition is the unit of ownership, streaming and repair. Q is a power of two, fixed when a
cluster is born; doubling it splits each partition in two and moves no key elsewhere.
"""

from __future__ import annotations

from kvstore import errors, limits
from kvstore.types import Partition

_HEADS = tuple(number.to_bytes(2, "big") for number in range(limits.PARTITIONS_MAX))


def partition_of(slot: int, partitions: int) -> Partition:
    """The partition that holds a slot."""
    return Partition(slot * partitions >> 14)


def slots_of(partition: int, partitions: int) -> range:
    """The slots of a partition."""
    size = limits.SLOTS // partitions
    return range(partition * size, (partition + 1) * size)


def storage_key(partition: int, key: bytes) -> bytes:
    """The partition in two bytes, then the key: a partition is one run of storage keys."""
    return _HEADS[partition] + key


def split_storage_key(skey: bytes) -> tuple[Partition, bytes]:
    """Take a storage key apart."""
    return Partition(int.from_bytes(skey[:2], "big")), skey[2:]


def check_partitions(partitions: int) -> None:
    """Raises errors.BadOption unless it is a power of two from 1 to 16384."""
    if not 1 <= partitions <= limits.PARTITIONS_MAX or partitions & (partitions - 1):
        raise errors.BadOption(
            option="partitions", given=partitions, allowed=f"a power of two from 1 to {limits.PARTITIONS_MAX}"
        )
