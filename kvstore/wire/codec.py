"""Build the four kinds of frames of MessagePack-RPC.

    request      := [0, id, method, params]
    response     := [1, id, error | nil, result]
    notification := [2, method, params]

Text is str, keys and values are bin. A packer is not thread-safe; each connection has its own.
"""

from __future__ import annotations

from typing import Any

import msgpack

from kvstore.errors import KVError


class Packer:
    """Makes frames for one connection."""

    __slots__ = ("_pack",)

    def __init__(self) -> None:
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack

    def request(self, msgid: int, method: str, params: Any) -> bytes:
        """`params` is a list or tuple."""
        return self._pack((0, msgid, method, params))

    def response(self, msgid: int, result: Any) -> bytes:
        """A good answer."""
        return self._pack((1, msgid, None, result))

    def error_response(self, msgid: int, error: KVError) -> bytes:
        """A bad answer."""
        return self._pack((1, msgid, error.to_wire(), None))

    def notification(self, method: str, params: Any) -> bytes:
        """Something nobody answers."""
        return self._pack((2, method, params))
