"""Cut a byte stream into frames of MessagePack-RPC, and check their outer shape.

Nothing here reads a socket: feed it bytes as they came, take whole frames out. The limits stand
between a stranger and our memory: before hello a frame holds at most 16 KiB, afterwards 12 MiB; a
frame that has begun may wait for no more bytes than that, whatever length it declares.

After an error the stream has lost its place and the connection must close.
"""

from __future__ import annotations

from typing import Any

import msgpack

from kvstore import errors, limits

Frame = tuple[Any, ...]
_ID_MAX = 0xFFFFFFFF


class Session:
    """Frames out of one direction of one connection."""

    __slots__ = ("_fed", "_frame_max", "_tail", "_unpacker", "_whole", "mid_frame")

    def __init__(self, *, frame_bytes_max: int = limits.FRAME_BYTES_BEFORE_HELLO) -> None:
        self._tail = b""
        self.mid_frame = False
        """Whether half a frame is waiting for its other half."""
        self._set(frame_bytes_max)

    def _set(self, frame_bytes_max: int) -> None:
        self._frame_max = frame_bytes_max
        self._unpacker = msgpack.Unpacker(
            raw=False,
            use_list=False,
            strict_map_key=False,
            max_buffer_size=0xFFFFFFFF,  # we count ourselves: one feed may hold many frames
            max_str_len=min(limits.STRING_BYTES_MAX, frame_bytes_max),
            max_bin_len=frame_bytes_max,
            max_array_len=limits.ARRAY_ITEMS_MAX,
            max_map_len=limits.MAP_ITEMS_MAX,
            max_ext_len=0,
        )
        self._fed = self._whole = 0

    def raise_limits(self) -> None:
        """After hello: full-size frames. What came behind hello is kept."""
        self._set(limits.FRAME_BYTES_MAX)
        self._unpacker.feed(self._tail)
        self._fed = len(self._tail)
        self._tail = b""

    def receive(self, data: bytes) -> list[Frame]:
        """Feed bytes; return the whole frames now available, in order.

        Raises errors.Malformed and errors.FrameTooLarge.
        """
        unpacker = self._unpacker
        unpacker.feed(data)
        self._fed += len(data)
        frames: list[Frame] = []
        try:
            for frame in unpacker:
                _check(frame)
                frames.append(frame)
                # Here and not after the loop: the unpacker's position also counts half a frame.
                self._whole = unpacker.tell()
        except errors.KVError:
            raise
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise errors.Malformed(reason=str(error)[:200] or type(error).__name__) from None
        waiting = self._fed - self._whole
        if waiting > self._frame_max:
            raise errors.FrameTooLarge(maximum=self._frame_max)
        self.mid_frame = waiting > 0
        if self._frame_max < limits.FRAME_BYTES_MAX:
            self._tail = (self._tail + data)[-waiting:] if waiting else b""
        return frames


def _check(frame: Any) -> None:
    if type(frame) is tuple:
        size = len(frame)
        if size == 4:
            kind, msgid, third, fourth = frame
            if type(msgid) is int and 0 <= msgid <= _ID_MAX:
                if kind == 0 and type(third) is str and type(fourth) is tuple:
                    return
                if kind == 1 and (third is None or type(third) is tuple):
                    return
        elif size == 3 and frame[0] == 2 and type(frame[1]) is str and type(frame[2]) is tuple:
            return
    raise errors.Malformed(
        reason="a frame is [0, id, method, params], [1, id, error, result] or [2, method, params]"
    )
