"""Build the four kinds of frames of MessagePack-RPC.

    request      := [0, id, method, params]
    response     := [1, id, error | nil, result]
    notification := [2, method, params]

Text is str, keys and values are bin. A packer is not thread-safe; each connection has its own.
"""

from __future__ import annotations

from typing import Any

import msgpack

from kvstore.errors import BadOption, KVError


class Packer:
    """Makes frames for one connection."""

    __slots__ = ("_pack",)

    def __init__(self) -> None:
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack

    def request(self, msgid: int, method: str, params: Any) -> bytes:
        """`params` is a list or tuple."""
        frame: bytes = self._pack((0, msgid, method, params))
        return frame

    def response(self, msgid: int, result: Any) -> bytes:
        """A good answer."""
        frame: bytes = self._pack((1, msgid, None, result))
        return frame

    def error_response(self, msgid: int, error: KVError) -> bytes:
        """A bad answer."""
        frame: bytes = self._pack((1, msgid, error.to_wire(), None))
        return frame

    def notification(self, method: str, params: Any) -> bytes:
        """Something nobody answers."""
        frame: bytes = self._pack((2, method, params))
        return frame


def pack_value(value: Any) -> bytes:
    """Any plain value, for users' values. Raises errors.BadOption."""
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadOption(option="value", given=str(error), allowed="what MessagePack can hold") from None
    return packed


def unpack_value(data: bytes) -> Any:
    """The other way. Raises errors.BadOption."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadOption(option="stored value", given=str(error), allowed="MessagePack") from None
