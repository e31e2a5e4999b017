"""Blocks of an array on disk as a product takes them: in the file's order, each read once, in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

import numpy as np

from prunus._dtypes import Array, DType
from prunus._errors import PrunusError
from prunus._layout import Index
from prunus.engines.base import Blocks
from prunus.paged.store import Store

__all__ = ["GROUP", "SPREAD", "BlockFile", "Piece", "least_budget", "stream_panel"]

# Bytes of blocks that are multiplied at a time where they are put together: enough that what a product does
# once a call, such as packing its dense operand, is a small part of it. A constant, so that where sums are
# cut does not depend on a budget.
GROUP: Final = 8 << 20
# The same for a transposed operand: each group adds to sums all over the result, which have to come from
# memory and go back.
SPREAD: Final = 16 << 20
# A panel of a stream takes at most this share of the budget: some are on their way while one is used.
_SHARE: Final = 16
_LARGEST: Final = 2 << 20
_SECTOR: Final = 4096


def stream_panel(budget: int, unit: int = 1) -> int:
    """Return how many bytes a stream's panels should have, a multiple of ``unit`` where that fits one."""
    # The sectors that a panel begins and ends in are in its frame too.
    most = max(min(budget // _SHARE, _LARGEST) - 2 * _SECTOR, _SECTOR)
    if unit > most:
        return most // _SECTOR * _SECTOR
    # Of whole sectors where that can be: panels that share one would read it twice.
    whole = math.lcm(unit, _SECTOR)
    unit = whole if whole <= most else unit
    return most // unit * unit


def least_budget() -> int:
    """Return the least budget in bytes with which streams make progress: some sectors for each panel."""
    return 2 * _SHARE * _SECTOR


class Piece(NamedTuple):
    """Blocks of a file that follow one another, in memory.

    Attributes
    ----------
    data : ndarray
        Shape (n, br, bc); holds until the next piece is asked for.
    first : int
        Number of the first one, counted from the start of the member.
    rows : slice
        Which block rows they are in; empty ones may be among them.
    whole : bool
        Whether these are all blocks of these rows.
    """

    data: Array
    first: int
    rows: slice
    whole: bool


class BlockFile(NamedTuple):
    """One member of a block-sparse array whose blocks lie one after the other in a file.

    Attributes
    ----------
    store : Store
        Where the blocks are.
    start : int
        Byte of the store where the first one begins.
    dtype : dtype
        Dtype of the values.
    blocksize : tuple of int
        Rows and columns of a block as it is stored.
    indices, indptr : ndarray
        The pattern; ``indptr`` begins with 0.
    shape : tuple of int
        Shape as it is stored.
    transposed : bool
        Whether the operand is the transpose of what is stored.
    """

    store: Store
    start: int
    dtype: DType
    blocksize: tuple[int, int]
    indices: Index
    indptr: Index
    shape: tuple[int, int]
    transposed: bool

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return math.prod(self.blocksize) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return len(self.indices) * self.block_bytes

    def part(self, piece: Piece) -> Blocks:
        """Return the blocks of a piece as an operand of an engine: some rows of what is stored."""
        ends = self.indptr[piece.rows.start : piece.rows.stop + 1]
        end = piece.first + len(piece.data)
        indptr = np.clip(ends, piece.first, end) - piece.first
        rows = self.rows(piece)
        return Blocks(
            piece.data,
            self.indices[piece.first : end],
            indptr.astype(self.indptr.dtype, copy=False),
            (rows.stop - rows.start, self.shape[1]),
            self.transposed,
        )

    def rows(self, piece: Piece) -> slice:
        """Return which rows of what is stored a piece's block rows are."""
        height = self.blocksize[0]
        return slice(piece.rows.start * height, min(piece.rows.stop * height, self.shape[0]))

    def pieces(self, few: bool = False) -> Iterator[Piece]:
        """Read all blocks in order. The next ones are on their way while a piece is used.

        Pieces of an operand that is not transposed are whole block rows, if a row has no more than ``GROUP``
        bytes; longer ones come in several pieces. Those of a transposed operand are cut anywhere.

        Parameters
        ----------
        few : bool
            The product does little once a piece: blocks are used where they were read to, rather than put
            together into larger pieces.

        Raises
        ------
        OSError
            If the file cannot be read.
        PrunusError
            If the pager's budget is too small for a stream.
        """
        panel = self._panel()
        count = len(self.indices)
        if not count or not self.block_bytes:
            shape = (count, *self.blocksize)
            yield Piece(np.zeros(shape, self.dtype), 0, slice(0, len(self.indptr) - 1), True)
            return
        longest = int(np.diff(self.indptr).max(initial=0)) * self.block_bytes
        with closing(self._reader(panel)) as reader:
            if self.transposed:
                small = few and panel >= self.block_bytes
                pieces = self._anywhere(self._panels(reader) if small else self._groups(reader))
            elif few and longest <= panel:
                pieces = self._joined(self._panels(reader))
            else:
                pieces = self._collected(reader)
            yield from pieces

    @contextmanager
    def panels(self) -> Iterator[Iterator[Array]]:
        """Read the bytes of all blocks in order, the next ones being on their way while some are used.

        Within it, runs of bytes in panels: each holds until the next one is asked for.

        Raises
        ------
        OSError, PrunusError
            As :meth:`pieces`.
        """
        panel = self._panel()
        if not self.nbytes:
            yield iter(())
            return
        with closing(self._reader(panel)) as reader:
            yield (raw for _, raw in reader)

    def _panel(self) -> int:
        """Return the bytes of a panel; raises if the budget has no room for a stream."""
        budget = int(self.store.pager.budget)
        if budget < least_budget():
            raise PrunusError(
                f"a pager with a budget of {budget} bytes cannot stream the blocks of "
                f"{self.store.name or 'an array'}: it takes at least {least_budget()}"
            )
        return stream_panel(budget, max(self.block_bytes, 1))

    def _reader(self, panel: int) -> Any:
        return self.store.segment.reader(self.start, self.start + self.nbytes, panel)

    # How bytes become blocks ---------------------------------------------------------------------------

    def _blocks(self, raw: Array) -> Array:
        data = raw.view(self.dtype).reshape(-1, *self.blocksize)
        # Kernels read no value across an odd address, which arrays in files of others may begin at.
        return data if data.flags.aligned else data.copy()

    def _panels(self, reader: Any) -> Iterator[Array]:
        """Yield blocks where they were read to; panels hold whole ones."""
        for _, raw in reader:
            yield self._blocks(raw)

    def _groups(self, reader: Any) -> Iterator[Array]:
        """Yield as many blocks as ``SPREAD`` bytes hold, but one at least, in memory that is used again."""
        room = max(SPREAD // self.block_bytes, 1) * self.block_bytes
        buffer = np.empty(min(room, self.nbytes), np.uint8)
        filled = 0
        for _, raw in reader:
            at = 0
            while at < len(raw):
                size = min(len(buffer) - filled, len(raw) - at)
                buffer[filled : filled + size] = raw[at : at + size]
                at, filled = at + size, filled + size
                if filled == len(buffer):
                    yield self._blocks(buffer)
                    filled = 0
        if filled:
            yield self._blocks(buffer[:filled])

    # How blocks become pieces --------------------------------------------------------------------------

    def _anywhere(self, groups: Iterator[Array]) -> Iterator[Piece]:
        first = 0
        for data in groups:
            end = first + len(data)
            row = int(np.searchsorted(self.indptr, first, "right")) - 1
            stop = int(np.searchsorted(self.indptr, end, "left"))
            yield Piece(data, first, slice(row, stop), False)
            first = end

    def _joined(self, panels: Iterator[Array]) -> Iterator[Piece]:
        """Yield whole block rows; one that begins in a panel and ends in the next is put together."""
        row, first = 0, 0
        begun: list[Array] = []  # blocks of the current row, and of none that follows
        for panel in panels:
            data, end = panel, first + sum(map(len, begun)) + len(panel)
            if begun:
                stop = int(self.indptr[row + 1])
                if stop > end:
                    begun.append(data.copy())
                    continue
                cut = stop - first - sum(map(len, begun))
                yield Piece(np.concatenate([*begun, data[:cut]]), first, slice(row, row + 1), True)
                begun, data, first, row = [], data[cut:], stop, row + 1
            done = int(np.searchsorted(self.indptr, end, "right")) - 1
            if done > row:
                cut = int(self.indptr[done]) - first
                yield Piece(data[:cut], first, slice(row, done), True)
                data, first, row = data[cut:], first + cut, done
            if len(data):
                begun = [data.copy()]

    def _collected(self, reader: Any) -> Iterator[Piece]:
        """Yield whole block rows out of a buffer of ``GROUP`` bytes, and parts of those that exceed it."""
        each = self.block_bytes
        room = min(max(GROUP // each, 1), len(self.indices))
        buffer = np.empty(room * each, np.uint8)
        row, first, filled, read = 0, 0, 0, 0
        for _, raw in reader:
            at = 0
            while at < len(raw):
                size = min(len(buffer) - filled, len(raw) - at)
                buffer[filled : filled + size] = raw[at : at + size]
                at, filled, read = at + size, filled + size, read + size
                if filled < len(buffer) and read < self.nbytes:
                    continue
                data = self._blocks(buffer[:filled])
                done = int(np.searchsorted(self.indptr, first + len(data), "right")) - 1
                used = 0
                if done > row:
                    # A row of which a part was there before ends here.
                    if first > self.indptr[row]:
                        used = int(self.indptr[row + 1]) - first
                        yield Piece(data[:used], first, slice(row, row + 1), False)
                        row += 1
                    if done > row:
                        cut = int(self.indptr[done]) - first
                        yield Piece(data[used:cut], first + used, slice(row, done), True)
                        used = cut
                    row = done
                elif len(data) == room:
                    used = len(data)
                    yield Piece(data, first, slice(row, row + 1), False)
                left = filled - used * each
                buffer[:left] = buffer[used * each : filled].copy()
                filled, first = left, first + used
