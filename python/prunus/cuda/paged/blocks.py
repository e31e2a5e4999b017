"""Block-sparse arrays on disk in pieces for a GPU: their blocks, and the part of the pattern that is theirs.

Where pieces are cut follows from the pattern and constants, never from a budget or from timing. A piece is as
many whole rows of blocks as a buffer holds, or a part of a longer one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from prunus._dtypes import Array
from prunus.cuda.blocks import Operand
from prunus.cuda.dtypes import torch_of
from prunus.cuda.paged.sources import InOrder
from prunus.cuda.versions import libraries
from prunus.paged.blocks import BlockFile

if TYPE_CHECKING:
    import torch

__all__ = ["Cut", "Pieces", "least_buffer"]

_ALIGNED: Final = 16
# Blocks of a part of a row, in multiples: kernels step over the inner dimension by powers of two up to 256,
# and what steps take together must not depend on where a row was cut.
_STEP: Final = 256
_FAR: Final = 2**31 - 2**16


class Cut(NamedTuple):
    """A piece of a block-sparse array.

    Attributes
    ----------
    first, end : int
        Which blocks, counted from the start of the member.
    row, stop : int
        Which rows of blocks they are in; empty ones may be among them.
    begins, ends : bool
        Whether the first block of its rows is in it, and the last one: of all pieces but parts of long rows
        both are.
    """

    first: int
    end: int
    row: int
    stop: int
    begins: bool
    ends: bool


def least_buffer(w: BlockFile) -> int:
    """Return the bytes that a buffer must have: a block and its place in the pattern, whatever its size."""
    return w.block_bytes + 6 * _ALIGNED


class Pieces:
    """One member of an array on disk, cut into pieces for buffers of so many bytes.

    Parameters
    ----------
    w : BlockFile
        The member.
    room : int
        Bytes of a buffer; :func:`least_buffer` at least.
    """

    def __init__(self, w: BlockFile, room: int) -> None:
        self.w, self.room = w, room
        # One width for all: kernels are compiled for each.
        self.index = np.dtype(np.int32 if max(w.shape) < _FAR else np.int64)
        inner = w.blocksize[0] if w.transposed else w.blocksize[1]
        self.unit = _STEP // math.gcd(_STEP, max(inner, 1))
        indptr = w.indptr.astype(np.int64)
        self._indptr = indptr
        # Bytes of all that comes before each row of blocks.
        each = w.block_bytes + self.index.itemsize
        self._before = indptr * each + np.arange(len(indptr)) * self.index.itemsize
        self._each = each

    def cuts(self) -> Iterator[Cut]:
        """Yield the pieces, in the file's order."""
        # Between the parts are gaps, and indptr has an entry more than there are rows.
        room = self.room - 4 * _ALIGNED - self.index.itemsize
        rows, row = len(self._indptr) - 1, 0
        while row < rows:
            stop = int(np.searchsorted(self._before, self._before[row] + room, "right")) - 1
            if stop > row:
                yield Cut(int(self._indptr[row]), int(self._indptr[stop]), row, stop, True, True)
                row = stop
                continue
            most = max((room - self.index.itemsize) // self._each, 1)
            most = most // self.unit * self.unit or most
            begin, end = int(self._indptr[row]), int(self._indptr[row + 1])
            for first in range(begin, end, most):
                last = min(first + most, end)
                yield Cut(first, last, row, row + 1, first == begin, last == end)
            row += 1

    def fill(self, source: InOrder, cut: Cut, view: Array) -> int:
        """Put a piece into a buffer: blocks as they come from the source, indices, offsets."""
        w = self.w
        blocks, indices, indptr, used = self._layout(cut)
        source.take(view[blocks])
        view[indices].view(self.index)[...] = w.indices[cut.first : cut.end]
        ends = self._indptr[cut.row : cut.stop + 1]
        view[indptr].view(self.index)[...] = np.clip(ends, cut.first, cut.end) - cut.first
        return used

    def operand(self, cut: Cut, there: torch.Tensor) -> Operand:
        """Return a piece whose bytes are at a place: some rows of what is stored."""
        w = self.w
        blocks, indices, indptr, _ = self._layout(cut)
        kind = libraries().torch.int32 if self.index == np.int32 else libraries().torch.int64
        rows = self.rows(cut)
        return Operand(
            there[blocks].view(torch_of(w.dtype)).view(cut.end - cut.first, *w.blocksize),
            there[indices].view(kind),
            there[indptr].view(kind),
            (rows.stop - rows.start, w.shape[1]),
            w.transposed,
        )

    def rows(self, cut: Cut) -> slice:
        """Return which rows of what is stored a piece's rows of blocks are."""
        height = self.w.blocksize[0]
        return slice(cut.row * height, min(cut.stop * height, self.w.shape[0]))

    def _layout(self, cut: Cut) -> tuple[slice, slice, slice, int]:
        """Return where the parts of a piece lie in a buffer, and the bytes of all."""
        count, size = cut.end - cut.first, self.index.itemsize
        at, parts = 0, []
        for length in (count * self.w.block_bytes, count * size, (cut.stop - cut.row + 1) * size):
            parts.append(slice(at, at + length))
            at += -(-length // _ALIGNED) * _ALIGNED
        return parts[0], parts[1], parts[2], parts[2].stop
