"""Cut a byte stream into frames of MessagePack-RPC, and check their outer shape.

Nothing here reads a socket: feed it bytes as they came, take whole frames out. The limits stand
between a stranger and our memory:

- a frame, whole or begun, holds at most 16 KiB before hello and 12 MiB afterwards, whatever length it
  declares; how the bytes were cut makes no difference to the verdict;
- the C unpacker makes room for an array when it reads the array's header, and nests up to 1,024 deep: so
  three bytes a level would buy 128 KiB a level. Before hello an array has at most 16 items, which bounds
  the sum of all levels to about 200 KiB; afterwards `array_items_max` bounds it;
- there are no extension types, no text that is not UTF-8, and no keys of maps that are containers.

After an error the stream has lost its place and the connection must close; the session says the same
error again whatever it is fed.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgpack

from kvstore import errors, limits

Frame = tuple[Any, ...]
_ID_MAX = 0xFFFFFFFF
_NO_LIMIT_OF_ITS_OWN = 0xFFFFFFFF
"""For the unpacker's buffer: one feed may hold many frames, so bytes are counted here, frame by frame."""


def _no_extensions(code: int, data: bytes) -> NoReturn:
    del data
    raise ValueError(f"extension type {code}")


class Session:
    """Frames out of one direction of one connection."""

    __slots__ = ("_error", "_fed", "_frame_max", "_tail", "_unpacker", "_whole", "mid_frame")

    def __init__(self, *, frame_bytes_max: int = limits.FRAME_BYTES_BEFORE_HELLO) -> None:
        self._tail = b""
        self._error: errors.ProtocolError | None = None
        self.mid_frame = False
        """Whether half a frame is waiting for its other half."""
        greeted = frame_bytes_max > limits.FRAME_BYTES_BEFORE_HELLO
        items = limits.ARRAY_ITEMS_MAX if greeted else limits.ARRAY_ITEMS_BEFORE_HELLO
        self._set(frame_bytes_max, items)

    def _set(self, frame_bytes_max: int, array_items_max: int) -> None:
        self._frame_max = frame_bytes_max
        self._unpacker = msgpack.Unpacker(
            raw=False,
            use_list=False,
            strict_map_key=False,
            ext_hook=_no_extensions,
            max_buffer_size=_NO_LIMIT_OF_ITS_OWN,
            max_str_len=min(limits.STRING_BYTES_MAX, frame_bytes_max),
            max_bin_len=frame_bytes_max,
            max_array_len=array_items_max,
            max_map_len=min(limits.MAP_ITEMS_MAX, array_items_max),
            max_ext_len=0,
        )
        self._fed = self._whole = 0

    def raise_limits(self, *, array_items_max: int = limits.ARRAY_ITEMS_MAX) -> None:
        """After hello: full-size frames. What came behind hello is kept."""
        self._set(limits.FRAME_BYTES_MAX, array_items_max)
        self._unpacker.feed(self._tail)
        self._fed = len(self._tail)
        self._tail = b""

    def receive(self, data: bytes) -> list[Frame]:
        """Feed bytes; return the whole frames now available, in order.

        Raises errors.Malformed and errors.FrameTooLarge.
        """
        if self._error is not None:
            raise self._error
        unpacker = self._unpacker
        unpacker.feed(data)
        self._fed += len(data)
        frames: list[Frame] = []
        whole = self._whole
        try:
            for frame in unpacker:
                # Asked here and not after the loop: the unpacker's position also counts half a frame.
                end = unpacker.tell()
                if end - whole > self._frame_max:
                    raise errors.FrameTooLarge(maximum=self._frame_max)
                whole = end
                _check(frame)
                frames.append(frame)
            self._whole = whole
            waiting = self._fed - whole
            if waiting > self._frame_max:
                raise errors.FrameTooLarge(maximum=self._frame_max)
        except errors.ProtocolError as error:
            self._error = error
            raise
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            self._error = errors.Malformed(reason=str(error)[:200] or type(error).__name__)
            raise self._error from None
        self.mid_frame = waiting > 0
        if self._frame_max < limits.FRAME_BYTES_MAX:
            self._tail = (self._tail + data)[-waiting:] if waiting else b""
        return frames


def _check(frame: Any) -> None:
    if type(frame) is tuple:
        size = len(frame)
        if size == 4:
            kind, msgid, third, fourth = frame
            if type(msgid) is int and 0 <= msgid <= _ID_MAX and type(kind) is int:
                if kind == 0 and type(third) is str and type(fourth) is tuple:
                    return
                if kind == 1 and (third is None or type(third) is tuple):
                    return
        elif (
            size == 3
            and type(frame[0]) is int
            and frame[0] == 2
            and type(frame[1]) is str
            and type(frame[2]) is tuple
        ):
            return
    raise errors.Malformed(
        reason="a frame is [0, id, method, params], [1, id, error, result] or [2, method, params]"
    )
