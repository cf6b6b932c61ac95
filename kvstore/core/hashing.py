"""From a key to its slot: Redis Cluster's function, so that its clients know our ring.

Source: Redis Cluster specification, "Key distribution model" and "Hash tags".
"""

from __future__ import annotations

from binascii import crc_hqx

from kvstore.types import Slot

_MASK = 16_383


def hash_tag(key: bytes) -> bytes:
    """The part of a key that is hashed; keys with one tag share a slot.

    It is what stands between the first `{` and the first `}` after it, if that is not empty; else all.
    """
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    return key


def slot_of(key: bytes) -> Slot:
    """CRC16-XMODEM of the tagged key, modulo 16384. `crc_hqx` is that CRC, in C."""
    return Slot(crc_hqx(hash_tag(key) if b"{" in key else key, 0) & _MASK)
