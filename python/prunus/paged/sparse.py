"""Block-sparse arrays whose blocks are in a file."""

from __future__ import annotations

import os
from typing import Any

from prunus import _construct
from prunus import _layout as lay
from prunus._bsr import BSR
from prunus._dtypes import DType
from prunus._errors import FormatError
from prunus._format import size_text
from prunus._layout import Index
from prunus._mask import BlockMask
from prunus.paged.array import PagedArray, from_file
from prunus.paged.headers import Blocks, load, numpy_dtype
from prunus.paged.multiplying import Multiplying, PagedTranspose
from prunus.paged.pagers import panel_of

__all__ = ["PagedBSR"]


class PagedBSR(Multiplying):
    """A block-sparse array whose pattern is in memory and whose blocks are in a file; made by ``pr.open``.

    Attributes
    ----------
    shape : tuple of int
        Shape, with batch dimensions in front.
    blocksize : tuple of int
        Rows and columns of a block.
    indices, indptr : ndarray
        The pattern, in memory, as in :class:`prunus.BSR`.
    values : PagedArray
        The blocks on disk: (n, br, bc), with batch dimensions in front where members share one pattern.
    """

    __slots__ = ("__weakref__", "blocksize", "indices", "indptr", "name", "shape", "values")

    def __init__(self, values: PagedArray, indices: Index, indptr: Index, blocks: Blocks, name: str) -> None:
        self.values = values
        self.indices = indices
        self.indptr = indptr
        self.shape = blocks.shape
        self.blocksize = blocks.blocksize
        self.name = name

    @classmethod
    def from_file(cls, file: Any, blocks: Blocks, name: str, writable: bool, pager: Any) -> PagedBSR:
        """Read the pattern of a block-sparse array and check it.

        Raises
        ------
        FormatError
            If indices are out of range or offsets do not fit.
        """
        panel = panel_of(pager)
        indices, indptr = load(file, blocks.indices, panel), load(file, blocks.indptr, panel)
        try:
            _construct.check_pattern(indices, indptr, lay.blocks_along(blocks.shape[-1], blocks.blocksize[1]))
        except ValueError as error:
            raise FormatError(f"{os.fsdecode(file.path)}: block-sparse array {name!r}: {error}") from error
        one = blocks.values
        # The pattern in memory would not see a change of that in the file.
        for part in (indices, indptr):
            part.flags.writeable = False
        values = from_file(
            file, one.begin, one.shape, numpy_dtype(one), writable=writable, name=one.name, pager=pager
        )
        return cls(values, indices, indptr, blocks, name)

    @property
    def T(self) -> PagedTranspose:  # noqa: N802
        """The transpose of the last two axes, whose products read the same blocks in the same order."""
        return PagedTranspose(self)

    @property
    def dtype(self) -> DType:
        """Dtype of the values."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nnzb(self) -> int:
        """Number of stored blocks, over all batch members."""
        br, bc = self.blocksize
        return self.nnz // (br * bc)

    @property
    def nnz(self) -> int:
        """Number of stored values, explicit zeros and padding included, as SciPy counts."""
        return int(self.values.size)

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices."""
        return int(self.values.nbytes) + self.indices.nbytes + self.indptr.nbytes

    @property
    def density(self) -> float:
        """Share of block positions that are stored, 0.0 where there are none."""
        rows, cols = (lay.blocks_along(n, b) for n, b in zip(self.shape[-2:], self.blocksize, strict=True))
        positions = rows * cols
        for size in self.shape[:-2]:
            positions *= size
        return self.nnzb / positions if positions else 0.0

    def member(self, at: int) -> PagedBSR:
        """Return one member of a batch of one dimension, whose blocks stay on disk.

        Raises
        ------
        ValueError
            If there is no such batch.
        """
        if self.ndim != 3:
            raise ValueError(f"an array of shape {self.shape} has no batch of one dimension")
        indices, indptr, first = self.indices, self.indptr, 0
        if indptr.ndim > 1:
            indptr = indptr[at]
            first, stop = int(indptr[0]), int(indptr[-1])
            values, indices, indptr = self.values.rows(first, stop), indices[first:stop], indptr - first
        else:
            values = self.values.rows(at, at + 1).reshape(self.values.shape[1:])
        one = object.__new__(PagedBSR)
        one.values, one.indices, one.indptr = values, indices, indptr
        one.shape, one.blocksize, one.name = self.shape[1:], self.blocksize, f"{self.name}[{at}]"
        return one

    @property
    def mask(self) -> BlockMask:
        """Which blocks are stored; two-dimensional where a batch shares one pattern."""
        shape = self.shape if self.indptr.ndim > 1 else self.shape[-2:]
        return BlockMask((self.indices, self.indptr), self.blocksize, shape=shape)

    def load(self) -> BSR:
        """Return the array in memory."""
        return BSR((self.values.load(), self.indices.copy(), self.indptr.copy()), shape=self.shape)

    def prefetch(self) -> None:
        """Have the pager fetch the blocks, as far as its budget goes; returns at once."""
        self.values.prefetch()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Refuse: nothing is read or densified behind the user's back."""
        raise TypeError(
            "a block-sparse array on disk is not made dense implicitly; call .load() or .toarray()"
        )

    def __repr__(self) -> str:
        br, bc = self.blocksize
        return (
            f"<prunus.paged.PagedBSR {self.shape} {self.dtype}: {self.nnzb} blocks of {br} x {bc} on disk, "
            f"density {self.density:.4g}, {size_text(self.nbytes)}>"
        )
