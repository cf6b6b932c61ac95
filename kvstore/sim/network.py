"""In-memory connections between machines, with everything a network does to them.

A connection is two pipes. A pipe keeps its own queue, so bytes never overtake each other: a timer only says
"deliver the next". A cut is directed and holds what is on the way (TCP would retransmit); after a
healing it goes on. Chunks are cut at random places. A crash resets what its peers can still hear.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from kvstore.sim.host import Incarnation
from kvstore.sim.loop import SimLoop

CONNECT_GIVES_UP_S = 3.0
_CLOSE, _RESET = object(), object()


class Pipe:
    """One direction of a connection."""

    __slots__ = ("_armed", "_last", "_network", "dst", "queue", "size", "src", "to")

    def __init__(self, network: Network, src: str, dst: str) -> None:
        self._network = network
        self._armed = False
        self._last = 0.0
        self.src = src
        self.dst = dst
        self.queue: deque[tuple[float, Any]] = deque()
        self.size = 0
        self.to: Transport | None = None
        """The receiving end."""

    def put(self, item: Any) -> None:
        """Send bytes, or an end mark, behind everything sent before."""
        network = self._network
        self._last = max(self._last, network.loop.time() + network.delay(self.src, self.dst))
        self.queue.append((self._last, item))
        if isinstance(item, bytes):
            self.size += len(item)
        self.kick()

    def kick(self) -> None:
        """Arm the timer for the next delivery, if there is one and nothing stands in its way."""
        if self._armed or not self.queue or (self.src, self.dst) in self._network.cuts:
            return
        if self.to is not None and self.to.reading_paused and isinstance(self.queue[0][1], bytes):
            return
        self._armed = True
        self._network.at(self.queue[0][0], self._deliver)

    def _deliver(self) -> None:
        self._armed = False
        if not self.queue or (self.src, self.dst) in self._network.cuts:
            return
        receiver = self.to
        assert receiver is not None
        item = self.queue[0][1]
        if isinstance(item, bytes):
            if receiver.reading_paused:
                return
            self.size -= len(item)
        self.queue.popleft()
        self._network.trace("deliver", self.src, self.dst, item if isinstance(item, bytes) else b"end")
        receiver.receive(item)
        sender = receiver.peer
        if sender is not None:
            sender.drained()
        self.kick()


class Transport:
    """One end of a connection: what asyncio's protocols expect of a transport."""

    def __init__(
        self, network: Network, owner: Incarnation | None, pipe: Pipe, names: tuple[Any, Any]
    ) -> None:
        self._network = network
        self.owner = owner
        self.out = pipe
        self._names = names
        self._closing = False
        self._lost = False
        self._high = 64 << 10
        self._write_paused = False
        self.reading_paused = False
        self.protocol: Any = None
        self.peer: Transport | None = None

    # --- what protocols call ------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send, in pieces as the network likes."""
        if self._closing or self._lost or not data:
            return
        for piece in self._network.chop(bytes(data)):
            self.out.put(piece)
        if self.out.size > self._high and not self._write_paused:
            self._write_paused = True
            self.protocol.pause_writing()

    def writelines(self, parts: Any) -> None:
        """Send several."""
        self.write(b"".join(parts))

    def close(self) -> None:
        """Send what is waiting, then end."""
        if not self._closing:
            self._closing = True
            self.out.put(_CLOSE)
            self.soon(self._lose, None)

    def abort(self) -> None:
        """End now; the other side sees a reset."""
        if not self._lost:
            self._closing = True
            self.out.queue.clear()
            self.out.size = 0
            self.out.put(_RESET)
            self.soon(self._lose, None)

    def is_closing(self) -> bool:
        """Whether it ends or has ended."""
        return self._closing or self._lost

    def pause_reading(self) -> None:
        """Take nothing for now."""
        self.reading_paused = True

    def resume_reading(self) -> None:
        """Take again."""
        self.reading_paused = False
        if self.peer is not None:
            self.peer.out.kick()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When to ask the protocol to pause."""
        del low
        self._high = 64 << 10 if high is None else high

    def get_write_buffer_size(self) -> int:
        """Bytes on the way."""
        return self.out.size

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`sockname` and `peername`."""
        return {"sockname": self._names[0], "peername": self._names[1]}.get(name, default)

    # --- what the network calls ---------------------------------------------------------

    def receive(self, item: Any) -> None:
        """Something arrived; it is handed over as a callback of the receiving process."""
        if item is _CLOSE or item is _RESET:
            # Not closing yet: a process that stands still first meets what arrived before the end.
            error = (
                None if item is _CLOSE else ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            )
            self.soon(self._lose, error)
        else:
            self.soon(self._data, item)

    def drained(self) -> None:
        """The other side took something."""
        if self._write_paused and self.out.size <= self._high // 4:
            self._write_paused = False
            self.soon(self._resume_writing)

    def mute(self) -> None:
        """The process on this side is gone, with all that it had not sent."""
        self._lost = True
        self.out.queue.clear()
        self.out.size = 0

    def broken(self) -> None:
        """The connection is no more."""
        self._closing = True
        self.out.queue.clear()
        self.out.size = 0
        self.soon(self._lose, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    def _data(self, data: bytes) -> None:
        if not self._lost:
            self.protocol.data_received(data)

    def _resume_writing(self) -> None:
        if not self._lost:
            self.protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._network.forget(self)
            self.protocol.connection_lost(error)

    def soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Run something as a callback of the process on this side."""
        context = self.owner.context if self.owner is not None else None
        self._network.loop.call_soon(callback, *args, context=context)


class Server:
    """What `create_server` returns."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def close(self) -> None:
        """Listen no more."""
        self._close()


class Network:
    """All machines and the links between them."""

    def __init__(self, loop: SimLoop, dice: random.Random, trace: Callable[..., None]) -> None:
        self.loop = loop
        self.trace = trace
        self._dice = dice
        self._listening: dict[tuple[str, int], tuple[Incarnation | None, Callable[[], Any]]] = {}
        self._ends: list[Transport] = []
        self._silent: list[Transport] = []
        """Ends that lost power and have told nobody yet."""
        self._next_port = 40_000
        self.cuts: set[tuple[str, str]] = set()
        """Directed: (source, destination)."""
        self.slow: dict[tuple[str, str], float] = {}
        """Seconds added, at the mean, to each chunk on a link."""
        self.base_delay_s = 0.0005
        self.jitter_s = 0.0005
        self.chop_chance = 0.1

    def delay(self, src: str, dst: str) -> float:
        """How long the next chunk takes."""
        if src == dst:
            return 0.00005
        extra = self.slow.get((src, dst), 0.0)
        return (
            self.base_delay_s
            + self._dice.random() * self.jitter_s
            + (self._dice.expovariate(1 / extra) if extra else 0.0)
        )

    def chop(self, data: bytes) -> list[bytes]:
        """Cut a write in two at a random place, sometimes."""
        if len(data) > 1 and self._dice.random() < self.chop_chance:
            at = self._dice.randrange(1, len(data))
            return [data[:at], data[at:]]
        return [data]

    def at(self, when: float, callback: Callable[[], None]) -> None:
        """Run something of the network's own: it belongs to no process."""
        asyncio.SelectorEventLoop.call_at(self.loop, when, callback)

    def listen(
        self, owner: Incarnation | None, host: str | None, port: int | None, factory: Callable[[], Any]
    ) -> Server:
        """Open a port. Raises OSError when it is taken."""
        assert host is not None
        assert port is not None
        key = (host, port)
        holder = self._listening.get(key)
        if holder is not None and not (holder[0] is not None and holder[0].dead):
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self._listening[key] = (owner, factory)

        def close() -> None:
            if self._listening.get(key) == (owner, factory):
                del self._listening[key]

        return Server(close)

    async def connect(
        self,
        source: str,
        owner: Incarnation | None,
        host: str | None,
        port: int | None,
        factory: Callable[[], Any],
    ) -> tuple[Transport, Any]:
        """Shake hands, if both directions are open and somebody listens."""
        assert host is not None
        assert port is not None
        await asyncio.sleep(self.delay(source, host) + self.delay(host, source))
        waited = 0.0
        while (source, host) in self.cuts or (host, source) in self.cuts:
            if waited >= CONNECT_GIVES_UP_S:
                raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
            await asyncio.sleep(0.1)
            waited += 0.1
        listener = self._listening.get((host, port))
        if listener is None or (listener[0] is not None and listener[0].dead):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        self._next_port += 1
        here, there = (source, self._next_port), (host, port)
        out, back = Pipe(self, source, host), Pipe(self, host, source)
        mine = Transport(self, owner, out, (here, there))
        theirs = Transport(self, listener[0], back, (there, here))
        out.to, back.to, mine.peer, theirs.peer = theirs, mine, theirs, mine
        self._ends += (mine, theirs)
        theirs.protocol = listener[1]() if listener[0] is None else listener[0].context.run(listener[1])
        theirs.soon(theirs.protocol.connection_made, theirs)
        mine.protocol = factory()
        mine.protocol.connection_made(mine)
        return mine, mine.protocol

    def crash(self, incarnation: Incarnation, *, silent: bool) -> None:
        """A process is gone: its ports close, its connections are reset.

        Silent: the whole machine is; the others hear of it when it is up again.
        """
        for key in [key for key, (owner, _) in self._listening.items() if owner is incarnation]:
            del self._listening[key]
        for end in [end for end in self._ends if end.owner is incarnation]:
            self.forget(end)
            end.mute()
            self._silent.append(end)
        if not silent:
            self.speak(incarnation.host)

    def speak(self, host: str) -> None:
        """A machine is up, and answers what comes for its dead processes with resets."""
        for end in [end for end in self._silent if end.out.src == host]:
            self._silent.remove(end)
            end.out.put(_RESET)

    def reset(self, host: str) -> None:
        """Something on the way breaks half of a machine's connections; what was on the way is lost."""
        for end in list(self._ends):
            if end.out.src == host and self._dice.random() < 0.5:
                for side in (end, end.peer):
                    if side is not None:
                        side.broken()

    def forget(self, end: Transport) -> None:
        """A connection's end is over."""
        if end in self._ends:
            self._ends.remove(end)

    def kick(self) -> None:
        """Cuts changed: let go what may go."""
        for end in list(self._ends):
            end.out.kick()
