"""How values become bytes and come back. The store itself only knows bytes."""

from __future__ import annotations

import json
from typing import Any, Protocol, runtime_checkable

from kvstore import errors
from kvstore.wire import codec as wire_codec


@runtime_checkable
class Codec(Protocol):
    """Turns values into bytes and back; each must be the other's inverse."""

    def encode(self, value: Any) -> bytes:
        """To bytes."""
        ...

    def decode(self, data: bytes) -> Any:
        """From bytes."""
        ...


class RawCodec:
    """Bytes as they are."""

    def encode(self, value: Any) -> bytes:
        """Raises errors.BadOption for anything but bytes."""
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        raise errors.BadOption(
            option="value",
            given=type(value).__name__,
            allowed='bytes, or a client with codec="text", "json" or "msgpack"',
        )

    def decode(self, data: bytes) -> bytes:
        """The same bytes."""
        return data


class TextCodec:
    """str, as UTF-8."""

    def encode(self, value: Any) -> bytes:
        """Raises errors.BadOption for anything but str."""
        if not isinstance(value, str):
            raise errors.BadOption(option="value", given=type(value).__name__, allowed="str")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise errors.BadOption(option="value", given=str(error), allowed="text that is UTF-8") from None

    def decode(self, data: bytes) -> str:
        """Raises errors.BadOption when the stored bytes are not UTF-8."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise errors.BadOption(option="stored value", given=str(error), allowed="UTF-8 text") from None


class JsonCodec:
    """Anything the json module takes."""

    def encode(self, value: Any) -> bytes:
        """Raises errors.BadOption for what JSON cannot hold."""
        try:
            return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise errors.BadOption(option="value", given=str(error), allowed="what JSON can hold") from None

    def decode(self, data: bytes) -> Any:
        """Raises errors.BadOption when the stored bytes are not JSON."""
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise errors.BadOption(option="stored value", given=str(error), allowed="JSON") from None


class MsgpackCodec:
    """Anything MessagePack holds: also bytes, and maps with other keys than text."""

    def encode(self, value: Any) -> bytes:
        """Raises errors.BadOption for what MessagePack cannot hold."""
        return wire_codec.pack_value(value)

    def decode(self, data: bytes) -> Any:
        """Raises errors.BadOption when the stored bytes are not MessagePack."""
        return wire_codec.unpack_value(data)


_KNOWN: dict[str, type[Codec]] = {
    "raw": RawCodec,
    "text": TextCodec,
    "json": JsonCodec,
    "msgpack": MsgpackCodec,
}


def codec_named(codec: str | Codec | None) -> Codec:
    """A codec by its name, or the object itself. Raises errors.BadOption."""
    if codec is None:
        return RawCodec()
    if isinstance(codec, str):
        known = _KNOWN.get(codec)
        if known is None:
            raise errors.BadOption(option="codec", given=codec, allowed=", ".join(_KNOWN))
        return known()
    return codec
