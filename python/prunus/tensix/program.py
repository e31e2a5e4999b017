"""Programs: circular buffers, semaphores and kernels on cores."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from prunus import _core
from prunus.tensix.buffers import Buffer, format_of, tile_bytes
from prunus.tensix.cores import Core, Cores, cores_of
from prunus.tensix.errors import MisusedError
from prunus.tensix.mesh import ChipAt, Chips, Mesh, chips_of, every

__all__ = ["Kernel", "Program", "Role"]

Role: TypeAlias = Literal["reader", "writer", "compute"]
#: What a kernel function returns: it yields verbs, and gets what they return.
Kernel: TypeAlias = Generator[_core.Verb, Any, None]
Arguments: TypeAlias = Sequence[Any] | Callable[[Core], Sequence[Any]]

# As tt-metal's ReaderDataMovementConfig and WriterDataMovementConfig have it.
_NOC: Final[dict[str, int]] = {"reader": 0, "writer": 1, "compute": 0}


@dataclass(frozen=True)
class _CircularBuffer:
    number: int
    cores: tuple[Core, ...]
    format: str
    page_bytes: int
    pages: int
    address: int | None
    shares: int | None
    chips: tuple[ChipAt, ...] | None


@dataclass(frozen=True)
class _Launch:
    function: Callable[..., Kernel]
    cores: tuple[Core, ...]
    role: str
    args: Arguments
    noc: int
    name: str
    chips: tuple[ChipAt, ...] | None


class Program:
    """What runs on a chip at once.

    A program can run many times; one whose kernels have no buffers as arguments, on several chips.

    Parameters
    ----------
    name : str, optional
        What reports call it; by default the name of its first compute kernel, or else of its first kernel.

    Examples
    --------
    A kernel is a generator function. What it asks of the hardware it yields:

    >>> import prunus as pr
    >>> def kernel(k, neighbour):
    ...     yield k.noc_semaphore_inc(neighbour, 0)
    ...     yield k.noc_semaphore_wait(0, 1)
    >>> program = pr.tensix.Program()
    >>> program.semaphore(0)
    0
    >>> pair = [(0, 0), (1, 0)]
    >>> program.kernel(kernel, pair, args=lambda core: [(1 - core[0], 0)])
    >>> report = pr.tensix.Chip("n150", mode="timing").run(program)
    >>> [core["core"] for core in report.cores], report.cycles > 100
    ([(0, 0), (1, 0)], True)
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._buffers: list[_CircularBuffer] = []
        self._semaphores: list[int] = []
        self._launches: list[_Launch] = []

    @property
    def name(self) -> str:
        """What reports call it."""
        if self._name is not None:
            return self._name
        named = [launch.name for launch in self._launches if launch.role == "compute"]
        named += [launch.name for launch in self._launches]
        return named[0] if named else "nothing"

    def cb(
        self,
        number: int,
        cores: Cores,
        format: object = "bfloat16",
        pages: int = 2,
        *,
        page_bytes: int | None = None,
        address: int | None = None,
        shares: int | None = None,
        chips: Chips | None = None,
    ) -> int:
        """Add a circular buffer: pages in L1 that one kernel of a core fills and another one empties.

        Parameters
        ----------
        number : int
            What kernels call it, 0 to 31.
        cores : (x, y), list of (x, y) or CoreRange
            Where it is, at one address on all of them.
        format : str or dtype
            Format of its tiles: float32, bfloat16, float16, bfloat8_b, bfloat4_b, int8, int32, uint16 or
            uint32.
        pages : int
            Pages, as a rule tiles.
        page_bytes : int, optional
            Bytes of a page; by default those of a tile.
        address : int, optional
            Where it lies, such as :meth:`Chip.tensor` returns; by default behind those added before.
        shares : int, optional
            Number of a buffer added before, where it lies as well.
        chips : (row, column) or list of (row, column), optional
            Chips of a mesh whose cores have it; by default all.

        Returns
        -------
        int
            The number.
        """
        size = tile_bytes(format) if page_bytes is None else page_bytes
        for what, value in (("number", number), ("pages", pages), ("page_bytes", size)):
            if not 0 <= value < 2**32:
                raise MisusedError(f"misused: {what} of a circular buffer is {value}")
        if number > 31:
            raise MisusedError(f"misused: circular buffers have numbers from 0 to 31, got {number}")
        chosen = tuple(cores_of(cores))
        buffer = _CircularBuffer(
            number, chosen, format_of(format), size, pages, address, shares, chips_of(chips)
        )
        self._buffers.append(buffer)
        return number

    def semaphore(self, initial: int = 0) -> int:
        """Add a semaphore that every core has.

        Parameters
        ----------
        initial : int
            Its value when the program starts.

        Returns
        -------
        int
            Its number: what kernels call it.
        """
        if not 0 <= initial < 2**32:
            raise MisusedError(f"misused: a semaphore is a 32-bit word, got {initial}")
        if len(self._semaphores) == 256:
            raise MisusedError("misused: a program has up to 256 semaphores")
        self._semaphores.append(initial)
        return len(self._semaphores) - 1

    def kernel(
        self,
        function: Callable[..., Kernel],
        cores: Cores,
        role: Role = "reader",
        args: Arguments = (),
        *,
        noc: int | None = None,
        name: str | None = None,
        chips: Chips | None = None,
    ) -> None:
        """Add a kernel: a generator function that is run once for each core.

        Parameters
        ----------
        function : callable
            Called as ``function(k, *args)`` with a :class:`KernelContext`; yields verbs, the results of the
            context's methods.
        cores : (x, y), list of (x, y) or CoreRange
            Where it runs.
        role : {"reader", "writer", "compute"}
            The thread: the second RISC-V core for data movement, the first one, or those of unpack, math and
            pack. A core has one kernel of each.
        args : sequence or callable
            Runtime arguments; a callable is asked for those of each core (x, y).
        noc : {0, 1}, optional
            The network of its transfers: by default 0 for readers and 1 for writers.
        name : str, optional
            What messages call it; by default the function's name.
        chips : (row, column) or list of (row, column), optional
            Chips of a mesh on which it runs; by default all. A kernel's ``k.chip`` is where it is.
        """
        if not callable(function):
            raise TypeError(f"a kernel is a generator function, got {type(function).__name__}")
        if role not in _NOC:
            raise MisusedError(f"misused: role is reader, writer or compute, got {role!r}")
        if noc not in (None, 0, 1):
            raise MisusedError(f"misused: noc is 0 or 1, got {noc!r}")
        called = name if name is not None else getattr(function, "__name__", "kernel")
        network = _NOC[role] if noc is None else noc
        on = chips_of(chips)
        self._launches.append(_Launch(function, tuple(cores_of(cores)), role, args, network, called, on))

    def _start(self, chip: _core.TensixChip, mesh: Mesh) -> tuple[list[Any], list[int], list[Any]]:
        """Return the parts that the compiled side takes, with a new generator for each kernel and core."""
        every_chip = tuple(every(mesh))
        buffers = [
            (b.number, b.cores, b.chips or every_chip, b.format, b.page_bytes, b.pages, b.address, b.shares)
            for b in self._buffers
        ]
        pages: dict[tuple[ChipAt, Core], list[tuple[int, int]]] = {}
        for b in self._buffers:
            for at in b.chips or every_chip:
                for core in b.cores:
                    pages.setdefault((at, core), []).append((b.number, b.page_bytes))
        kernels = []
        for launch in self._launches:
            for at in launch.chips or every_chip:
                for core in launch.cores:
                    context = chip.context(core, launch.name, pages.get((at, core), []), at)
                    args = launch.args(core) if callable(launch.args) else launch.args
                    for value in args:
                        if isinstance(value, Buffer):
                            value.of(chip)
                    kernels.append((context, launch.role, launch.noc, launch.function(context, *args)))
        return buffers, list(self._semaphores), kernels
