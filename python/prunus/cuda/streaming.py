"""From the host's memory to a GPU's while kernels run: a ring of buffers, pinned and on the device.

What is read from a disk is put into a pinned staging buffer, copied from there on a stream of its own into a
buffer on the device, and used by kernels on the current stream. Three rules order this, and nothing else
waits: the current stream waits for the copy of what it uses, a copy waits until kernels are done with what
was in its device buffer, and the host waits for a staging buffer that is still being copied. So the host is
ahead of the copies, and these of the kernels, by the length of the ring.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from prunus._dtypes import Array
from prunus._errors import PrunusError
from prunus.cuda.runtime import Place, empty, is_captured, on
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = [
    "BUFFER",
    "SLOTS",
    "Channel",
    "Ring",
    "borrowed",
    "channel_of",
    "check_not_captured",
    "held",
    "release",
]

T = TypeVar("T")

#: Bytes of a buffer, but for what has larger blocks or rows. A constant: where sums are cut follows from it.
#: Copying that much takes longer than to launch what works on it, even where the host's pages are warm.
BUFFER: Final = 8 << 20
#: Buffers of each kind: one is filled, one is copied, one is used, and one keeps them from meeting.
SLOTS: Final = 4
_ALIGNED: Final = 256


class Channel(Protocol):
    """What orders copies and kernels of a place; events are its own."""

    def copy(self, to: torch.Tensor, what: torch.Tensor, after: Any) -> Any:
        """Copy bytes once ``after`` was reached, without waiting; return the event that they are there."""
        ...

    def reached(self) -> Any:
        """Return the event that the current stream has done what it was given until now."""
        ...

    def follow(self, event: Any) -> None:
        """Have the current stream wait for an event."""
        ...

    def wait(self, event: Any) -> None:
        """Wait for an event, on the host."""
        ...

    def drain(self) -> None:
        """Wait until nothing is under way, neither a copy nor a kernel of the current stream."""
        ...


class _Streams:
    """A GPU's: copies have a stream of their own, one for each GPU."""

    def __init__(self, where: Place) -> None:
        self._cuda, self._where = libraries().torch.cuda, where
        self._copies = _copy_stream(where)

    def copy(self, to: torch.Tensor, what: torch.Tensor, after: Any) -> Any:
        if after is not None:
            self._copies.wait_event(after)
        with self._cuda.stream(self._copies):
            to.copy_(what, non_blocking=True)
        return self._mark(self._copies)

    def reached(self) -> Any:
        return self._mark(self._current())

    def follow(self, event: Any) -> None:
        self._current().wait_event(event)

    def wait(self, event: Any) -> None:
        event.synchronize()

    def drain(self) -> None:
        self._copies.synchronize()
        self._current().synchronize()

    def _current(self) -> Any:
        return self._cuda.current_stream(self._where.device)

    def _mark(self, stream: Any) -> Any:
        # A host that waits sleeps: the pager's threads have use for the processor.
        with on(self._where):
            event = self._cuda.Event(blocking=True)
            event.record(stream)
        return event


class _Immediate:
    """The interpreter's, where everything is done when it is asked for."""

    def copy(self, to: torch.Tensor, what: torch.Tensor, after: Any) -> Any:
        to.copy_(what)

    def reached(self) -> Any:
        return None

    def follow(self, event: Any) -> None:
        pass

    def wait(self, event: Any) -> None:
        pass

    def drain(self) -> None:
        pass


def channel_of(where: Place) -> Channel:
    """Return what orders copies and kernels of a place."""
    return _Immediate() if where.interpreted else _Streams(where)


@cache
def _copy_stream(where: Place) -> Any:
    return libraries().torch.cuda.Stream(where.device)


class _Slot:
    """A staging buffer and the device buffer that it is copied to."""

    __slots__ = ("consumed", "copied", "device", "host", "view")

    def __init__(self, host: torch.Tensor, device: torch.Tensor, consumed: Any) -> None:
        self.host, self.device = host, device
        self.view: Array = host.numpy()
        self.copied: Any = None
        self.consumed: Any = consumed


class Ring:
    """Buffers through which pieces go to a place, one after the other.

    Parameters
    ----------
    where : Place
        Where to.
    nbytes : int
        Bytes of a buffer.
    slots : int
        How many there are of each kind.
    channel : Channel, optional
        What orders copies; for tests.

    Raises
    ------
    MemoryError
        If there is not that much of either memory; the message has the size.
    """

    def __init__(self, where: Place, nbytes: int, slots: int = SLOTS, channel: Channel | None = None) -> None:
        self.where, self.size = where, nbytes
        self.channel: Channel = channel or channel_of(where)
        torch = libraries().torch
        # What the device's memory held before may be in use by kernels under way.
        began = self.channel.reached()
        self._slots = [
            _Slot(_pinned(nbytes, where), empty((nbytes,), torch.uint8, where), began) for _ in range(slots)
        ]
        self._next = 0
        _RINGS.add(self)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, of the host's memory and again of the device's."""
        return self.size * len(self._slots)

    def pieces(self, plan: Iterable[T], fill: Callable[[T, Array], int]) -> Iterator[tuple[T, torch.Tensor]]:
        """Send pieces through; each is on its way when it is yielded, and further ones are while it is used.

        Parameters
        ----------
        plan : iterable
            What tells one piece from the next.
        fill : callable
            Puts a piece into a buffer of ``nbytes`` bytes, and returns how many it has.

        Yields
        ------
        object
            The piece.
        Tensor of uint8
            Its bytes at the place, for kernels that are launched on the current stream before the next piece
            is asked for.
        """
        for piece in plan:
            slot = self._slots[self._next]
            if slot.copied is not None:
                self.channel.wait(slot.copied)
                slot.copied = None
            used = fill(piece, slot.view)
            # From here on this slot is another's turn: whatever ends the call drains the ring.
            self._next = (self._next + 1) % len(self._slots)
            there = slot.device[:used]
            if used:
                slot.copied = self.channel.copy(there, slot.host[:used], slot.consumed)
                self.channel.follow(slot.copied)
            yield piece, there
            slot.consumed = self.channel.reached()

    def drain(self) -> None:
        """Wait until nothing uses the buffers any more."""
        self.channel.drain()
        for slot in self._slots:  # whose kernels may have been another stream's
            if slot.consumed is not None:
                self.channel.wait(slot.consumed)


def _pinned(nbytes: int, where: Place) -> torch.Tensor:
    """Return memory of the host that a GPU can copy from by itself; the interpreter's needs no pinning."""
    torch = libraries().torch
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=not where.interpreted)
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate" not in str(error):
            raise
        raise MemoryError(
            f"the host has no room for a staging buffer of {nbytes} bytes of pinned memory"
        ) from error


# Rings are kept between calls, as pinning memory takes longer than a small product.
_LOCK: Final = threading.Lock()
_IDLE: Final[list[Ring]] = []
_RINGS: Final[weakref.WeakSet[Ring]] = weakref.WeakSet()


@contextmanager
def borrowed(where: Place, least: int) -> Iterator[Ring]:
    """Lend a ring whose buffers have at least so many bytes, and :data:`BUFFER` at least.

    A call has it to itself. What goes wrong while it is used, Ctrl-C included, is raised when nothing is
    under way any more; the ring is given up then. One that is larger than usual is not kept either.

    Raises
    ------
    MemoryError
        If there is no room for its buffers.
    PrunusError
        If the current stream is being captured in a CUDA graph.
    """
    check_not_captured(where)
    size = -(-max(least, BUFFER) // _ALIGNED) * _ALIGNED
    ring = _idle(where, size)
    try:
        yield ring
    except BaseException:
        ring.drain()
        raise
    if size == -(-BUFFER // _ALIGNED) * _ALIGNED:
        with _LOCK:
            if not any(other.where == where for other in _IDLE):
                _IDLE.append(ring)
                return
    # Its memory goes back to those who order their uses by the stream it was allocated on alone.
    ring.drain()


def _idle(where: Place, size: int) -> Ring:
    with _LOCK:
        for at, ring in enumerate(_IDLE):
            if ring.where == where and ring.size == size:
                return _IDLE.pop(at)
    return Ring(where, size)


def check_not_captured(where: Place) -> None:
    """Raise PrunusError if what the current stream is told is captured in a CUDA graph, not done."""
    if not is_captured(where):
        return
    raise PrunusError(
        "an operand on disk cannot take part in a CUDA graph: what is replayed would not read the file; "
        "capture products of arrays on the GPU"
    )


def held(where: Place) -> int:
    """Return the bytes of pinned memory that rings of a place hold; they hold as many on the device."""
    return sum(ring.nbytes for ring in list(_RINGS) if ring.where == where)


def release() -> None:
    """Give back the memory of rings that no call uses; the next call makes a new one."""
    with _LOCK:
        rings, _IDLE[:] = list(_IDLE), []
    for ring in rings:
        with suppress(RuntimeError):
            ring.drain()
