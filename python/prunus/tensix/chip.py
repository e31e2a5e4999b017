"""Simulated chips."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunus import _core
from prunus._threads import get_num_threads
from prunus.tensix.buffers import Buffer, Matrix, format_of, shape_of, tile_bytes, tilize, untilize
from prunus.tensix.cores import Core, CoreRange, core_of
from prunus.tensix.errors import MisusedError, TensixError
from prunus.tensix.mesh import chips_of, every, mesh_of
from prunus.tensix.program import Program
from prunus.tensix.report import Operation, Report
from prunus.tensix.spec import ChipSpec
from prunus.tensix.timeline import MOST

__all__ = ["Chip", "Fidelity", "Mode"]

Mode: TypeAlias = Literal["full", "timing"]
Fidelity: TypeAlias = Literal["LoFi", "HiFi2", "HiFi3", "HiFi4"]


class Chip:
    """A simulated chip with its memory, or a mesh of equal chips that Ethernet links join.

    Runs are deterministic: the same program takes the same cycles and gives the same bits, every time. Values
    are computed on as many threads as `prunus.num_threads` says; neither cycles nor bits depend on it.

    Parameters
    ----------
    spec : str or ChipSpec
        A chip that comes with the package, by its name, or a description.
    mode : {"full", "timing"}
        Whether values are computed, or only time; then memory holds nothing, and reading it is an error.
    mesh : tuple of int, optional
        Rows and columns of chips; by default one chip. Each has memory of its own, and its own cores.
    timeline : bool or int
        Whether runs record what their threads do, and how many intervals of it at most; True is 2^20.

    Raises
    ------
    SpecError
        If there is no chip of that name.
    UnsupportedError
        If its board has no links for such a mesh.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> chip = pr.tensix.Chip("n150")
    >>> a = chip.buffer(np.eye(40, dtype=np.float32), "bfloat16")
    >>> a.tiles, a.pages, a.page_bytes
    ((2, 2), 4, 2048)
    >>> float(chip.to_numpy(a).sum())
    40.0
    """

    def __init__(
        self,
        spec: str | ChipSpec = "n150",
        mode: Mode = "full",
        *,
        mesh: tuple[int, int] | None = None,
        timeline: bool | int = False,
    ) -> None:
        if mode not in ("full", "timing"):
            raise ValueError(f"mode is full or timing, got {mode!r}")
        if not isinstance(spec, str | ChipSpec):
            raise TypeError(f"expected a chip's name or a ChipSpec, got {type(spec).__name__}")
        self._spec = ChipSpec.named(spec) if isinstance(spec, str) else spec
        self._mode = mode
        self._mesh = mesh_of(mesh)
        self._core = _core.TensixChip(self._spec.text, mode == "full", self._mesh)
        self._running = False
        #: Of threads that use the chip as an engine.
        self._turn = threading.RLock()
        self._timeline = _intervals(timeline)
        self._operations: list[Operation] = []

    @property
    def spec(self) -> ChipSpec:
        """The chip's description."""
        return self._spec

    @property
    def mode(self) -> str:
        """``"full"`` or ``"timing"``."""
        return self._mode

    @property
    def mesh(self) -> tuple[int, int]:
        """Rows and columns of chips; (1, 1) is one chip."""
        return self._mesh

    @property
    def chips(self) -> list[tuple[int, int]]:
        """All chips by row and column, row by row."""
        return every(self._mesh)

    @property
    def cores(self) -> CoreRange:
        """All cores of a chip."""
        workers = self._spec.workers
        return CoreRange((0, 0), (len(workers.x) - 1, len(workers.y) - 1))

    @property
    def compute_grid(self) -> CoreRange:
        """The cores that products use."""
        across, down = self._spec.workers.compute_grid
        return CoreRange((0, 0), (across - 1, down - 1))

    def _idle(self) -> _core.TensixChip:
        """Return the compiled chip, which has no time for others while a program runs."""
        if self._running:
            raise MisusedError("misused: a chip's memory is its program's own while that runs")
        return self._core

    def buffer(
        self,
        array: ArrayLike | tuple[int, int],
        dtype: object = None,
        *,
        channel: int | None = None,
        chip: tuple[int, int] = (0, 0),
    ) -> Matrix:
        """Put a matrix into DRAM, a page for each tile.

        Parameters
        ----------
        array : array_like or tuple of int
            Two-dimensional values; or rows and columns of a matrix that nobody has written yet.
        dtype : str or dtype, optional
            Format of the tiles; by default the array's own dtype, and bfloat16 for a shape.
        channel : int, optional
            The channel of all tiles; by default they are spread over all.
        chip : tuple of int
            Row and column of the chip of a mesh in whose DRAM it is.

        Returns
        -------
        Matrix
            What kernels read and write: ``buffer.page(i)``, ``buffer.tile(row, column)``.

        Raises
        ------
        ValueError
            If there is no such format, or integers do not fit into it.
        TypeError
            If integers are to be floating-point tiles, or the reverse.
        MisusedError
            If DRAM is too small, or the matrix is empty.
        """
        shape = shape_of(array)
        if shape is not None:
            return self._matrix(shape, format_of("bfloat16" if dtype is None else dtype), channel, chip)
        values = np.asarray(array)
        name = format_of(values.dtype if dtype is None else dtype)
        data = tilize(values, name)
        buffer = self._matrix((values.shape[0], values.shape[1]), name, channel, chip)
        self._idle().write_buffer(buffer.number, data)
        return buffer

    def _matrix(
        self, shape: tuple[int, int], dtype: str, channel: int | None, chip: tuple[int, int]
    ) -> Matrix:
        if min(shape) <= 0:
            raise MisusedError(f"misused: a matrix of {shape[0]} x {shape[1]} holds nothing")
        pages = -(-shape[0] // 32) * -(-shape[1] // 32)
        raw = self.pages(tile_bytes(dtype), pages, channel=channel, chip=chip)
        return Matrix(raw.number, raw.page_bytes, raw.pages, channel, raw.chip, self._core, shape, dtype)

    def pages(
        self, page_bytes: int, pages: int, *, channel: int | None = None, chip: tuple[int, int] = (0, 0)
    ) -> Buffer:
        """Make a buffer of plain pages in DRAM.

        Parameters
        ----------
        page_bytes, pages : int
            Bytes of a page, and pages.
        channel : int, optional
            The channel of all pages; by default page ``i`` is in channel ``i % channels``.
        chip : tuple of int
            Row and column of the chip of a mesh in whose DRAM it is.
        """
        for what, value in (("page_bytes", page_bytes), ("pages", pages), ("channel", channel or 0)):
            if not 0 <= value < 2**32:
                raise MisusedError(f"misused: {what} of a buffer is {value}")
        if channel is not None and channel >= len(self._spec.dram.channels):
            raise MisusedError(f"misused: channel {channel}: there are {len(self._spec.dram.channels)}")
        at = self._at(chip)
        core = self._idle()
        core.stand_on(at)
        try:
            number = core.buffer(page_bytes, pages, channel)
        finally:
            core.stand_on((0, 0))
        return Buffer(number, page_bytes, pages, channel, at, self._core)

    def _at(self, chip: tuple[int, int]) -> tuple[int, int]:
        """Return a chip that there is."""
        found = chips_of(chip)
        if found is None or len(found) != 1 or found[0] not in self.chips:
            raise MisusedError(f"misused: chip {chip!r}: the mesh has {self._mesh[0]} x {self._mesh[1]}")
        return found[0]

    def write(self, buffer: Buffer, data: ArrayLike | bytes) -> None:
        """Write all of a buffer.

        Parameters
        ----------
        buffer : Buffer
            One of this chip.
        data : array_like or bytes
            The values of a matrix, of its shape; otherwise bytes, as many as the buffer has.
        """
        if isinstance(buffer, Matrix) and not isinstance(data, bytes):
            values = np.asarray(data)
            if values.shape != buffer.shape:
                raise ValueError(f"expected an array of shape {buffer.shape}, got {values.shape}")
            data = tilize(values, buffer.dtype)
        elif not isinstance(data, bytes):
            data = np.ascontiguousarray(data).tobytes()
        self._idle().write_buffer(buffer.of(self._core), data)

    def read(self, buffer: Buffer) -> bytes:
        """Return all bytes of a buffer.

        Raises
        ------
        UndefinedError
            If some page was never written.
        UnsupportedError
            If the chip only takes time.
        """
        return self._idle().read_buffer(buffer.of(self._core))

    def to_numpy(self, matrix: Matrix) -> NDArray[Any]:
        """Return the values of a matrix.

        Returns
        -------
        ndarray
            Of the format's dtype; float32 for block formats.

        Raises
        ------
        UndefinedError
            If some tile was never written.
        UnsupportedError
            If the chip only takes time.
        """
        return untilize(self.read(matrix), matrix.shape, matrix.dtype)

    from_numpy = buffer

    def tensor(self, size: int) -> int:
        """Take room in every core's L1 that stays from program to program.

        Parameters
        ----------
        size : int
            Bytes on each core.

        Returns
        -------
        int
            The address, the same on all cores.

        Raises
        ------
        MisusedError
            If L1 is too small.
        """
        if not 0 < size < 2**32:
            raise MisusedError(f"misused: room of {size} B in L1")
        return self._idle().tensor(size)

    def write_l1(self, core: Core, address: int, data: bytes, *, chip: tuple[int, int] = (0, 0)) -> None:
        """Write bytes to the L1 of a core, of the chip of a mesh in a row and column."""
        self._idle().write_l1(core_of(core), self._l1(address), data, self._at(chip))

    def read_l1(self, core: Core, address: int, size: int, *, chip: tuple[int, int] = (0, 0)) -> bytes:
        """Return bytes of the L1 of a core, of the chip of a mesh in a row and column.

        Raises
        ------
        UndefinedError
            If some of them were never written.
        UnsupportedError
            If the chip only takes time.
        """
        return self._idle().read_l1(core_of(core), self._l1(address), self._l1(size), self._at(chip))

    def _l1(self, value: int) -> int:
        if not 0 <= value <= self._spec.l1.bytes:
            raise MisusedError(f"misused: {value} in L1, which has {self._spec.l1.bytes} B")
        return value

    def run(
        self,
        program: Program,
        *,
        fidelity: Fidelity = "HiFi4",
        fp32_dest_acc: bool = False,
        limit: float = 1e9,
        patience: float | None = 10.0,
        name: str | None = None,
        flops: float | None = None,
        timeline: bool | int | None = None,
    ) -> Report:
        """Run a program to its end.

        Parameters
        ----------
        program : Program
            What to run.
        fidelity : {"LoFi", "HiFi2", "HiFi3", "HiFi4"}
            Phases of the matrix unit.
        fp32_dest_acc : bool
            Sums in 32 bits, which halves the destination registers.
        limit : float
            Cycles after which the program is stopped.
        patience : float or None
            Seconds after which a kernel that does not yield is stopped. None lets it be, for a debugger.
        name : str, optional
            What reports call the run; by default the program's name.
        flops : float, optional
            Useful operations; by default what the matrix units do, padding included.
        timeline : bool or int, optional
            Whether to record what threads do, and how many intervals of it at most; by default as the chip
            does.

        Returns
        -------
        Report
            What it took and moved; :meth:`report` has all runs.

        Raises
        ------
        MisusedError
            If the program, or a call of the kernel API, breaks its rules.
        UndefinedError
            If it does what hardware leaves undefined, such as reading what was never written.
        DeadlockError
            If all threads wait.
        EndlessError
            If the limit or the patience is over.
        Exception
            What a kernel raised comes out as it is, with a note of the kernel, its core and the cycle.
        """
        if not isinstance(program, Program):
            raise TypeError(f"expected a Program, got {type(program).__name__}")
        if not limit > 0:
            raise MisusedError(f"misused: a limit of {limit} cycles")
        room = self._timeline if timeline is None else _intervals(timeline)
        core = self._idle()
        self._running = True
        try:
            buffers, semaphores, kernels = program._start(core, self._mesh)
            found = core.run(
                buffers,
                semaphores,
                kernels,
                fidelity,
                fp32_dest_acc,
                limit,
                patience,
                room,
                get_num_threads(),
            )
        finally:
            self._running = False
        done = self._record(found, name=program.name if name is None else name, flops=flops)
        return Report(self._spec, [done])

    def _record(self, found: Mapping[str, Any], *, name: str, flops: float | None = None) -> Operation:
        """Enter a run, as the compiled side reports it, and return its part of the report."""
        done = Operation(self._spec, found, name=name, flops=flops)
        self._keep(done)
        return done

    def _keep(self, done: Operation) -> None:
        """Enter an operation into the report."""
        self._operations.append(done)
        if len(self._operations) > _KEPT:
            # A chip may live for long: its first runs become one.
            first = self._operations[: _KEPT // 2]
            self._operations[: _KEPT // 2] = [Operation.together(self._spec, first)]

    def report(self) -> Report:
        """Return what all runs since the chip was made, or since :meth:`reset_report`, took and moved.

        Of more than 2048 runs the first ones are together, as one operation, "earlier"; sums stay the same.

        Raises
        ------
        TensixError
            If nothing has run.
        """
        if not self._operations:
            raise TensixError("nothing has run on this chip yet")
        return Report(self._spec, self._operations)

    def reset_report(self) -> None:
        """Forget the runs so far: reports begin anew."""
        self._operations = []

    def __repr__(self) -> str:
        rows, columns = self._mesh
        many = "" if self._mesh == (1, 1) else f", {rows} x {columns} chips"
        return f"<Chip {self._spec.name!r}{many}, {self._mode}>"


# Runs that are kept one by one, some tens of kilobytes each, at most.
_KEPT: Final = 2048


def _intervals(timeline: bool | int) -> int:
    """Return how many intervals a timeline may have."""
    if not 0 <= timeline < 2**32:
        raise MisusedError(f"misused: a timeline of {timeline} intervals")
    return MOST if timeline is True else int(timeline)
