"""What a BSR holds: blocks, a pattern, a lazy transpose; and the attributes that follow from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import numpy as np

from prunus import _layout as lay
from prunus._construct import check_pattern
from prunus._core import Packed
from prunus._dtypes import BFLOAT16, F16, F32, F64, Array, DType, check_storage
from prunus._layout import Index, Int64
from prunus.engines import Blocks

if TYPE_CHECKING:
    from prunus._mask import BlockMask

# Products of two of these are of the same dtype: what the fast path of ``@`` handles.
_FAST = frozenset({F32, F64, F16, BFLOAT16})


def _is_pattern(indices: Index, indptr: Index, cols: int) -> bool:
    """Say whether a pattern without own ones for members is good, in a few microseconds; else False."""
    n = len(indices)
    return (
        indptr.ndim == 1
        and bool(indptr[0] == 0)
        and bool(indptr[-1] == n)
        and not (indptr[1:] < indptr[:-1]).any()
        and (n == 0 or bool(indices.min() >= 0 and indices.max() < cols))
    )


class BlockStorage:
    """The state of a :class:`prunus.BSR` and its attributes; operators and methods are added by subclasses.

    ``_data``, ``_indices``, ``_indptr`` describe members of shape ``_stored``; the array is their transpose
    if ``_t``. ``_batch`` are the leading dimensions, ``_own`` says that every member has its own pattern.
    Of a frozen array, ``_data`` is what the engine packed, which has an ndarray's shape, dtype, size, nbytes
    and copy(); ``_packed`` is the same then, and None otherwise. ``_rows`` and ``_cols`` are one member's
    shape after transposition and ``_fast`` the dtype that plain products of two dimensions take without
    further checks.
    """

    __slots__ = (
        "__weakref__",
        "_batch",
        "_cols",
        "_data",
        "_fast",
        "_indices",
        "_indptr",
        "_packed",
        "_rows",
        "_stored",
        "_t",
    )

    _data: Array | Packed
    _indices: Index
    _indptr: Index
    _stored: tuple[int, int]
    _batch: tuple[int, ...]
    _t: bool
    _packed: Packed | None
    _fast: DType | None
    _rows: int
    _cols: int

    # Building ----------------------------------------------------------------------------------------

    def _set(
        self,
        data: Array | Packed,
        indices: Index,
        indptr: Index,
        stored: tuple[int, int],
        batch: tuple[int, ...] = (),
        t: bool = False,
    ) -> None:
        """Fill the slots from parts that are known to be consistent."""
        self._data = data
        self._indices = indices
        self._indptr = indptr
        self._stored = stored
        self._batch = batch
        self._t = t
        self._packed = data if isinstance(data, Packed) else None
        self._rows, self._cols = (stored[1], stored[0]) if t else stored
        self._fast = data.dtype if not batch and data.dtype in _FAST else None

    @classmethod
    def _wrap(
        cls,
        data: Array | Packed,
        indices: Index,
        indptr: Index,
        stored: tuple[int, int],
        batch: tuple[int, ...] = (),
        t: bool = False,
    ) -> Self:
        """Return an array made of consistent parts, checking nothing."""
        self = object.__new__(cls)
        self._set(data, indices, indptr, stored, batch, t)
        return self

    def _with_data(self, data: Array) -> Self:
        """Return an array with the same pattern and other values, given in stored order."""
        # Indices are copied, as SciPy does: the two arrays must not share what a caller can write.
        return self._wrap(data, self._indices.copy(), self._indptr.copy(), self._stored, self._batch, self._t)

    def _values(self) -> Array:
        """Return the blocks' values: the very array, or a new one if the array is frozen."""
        return self._data.copy() if isinstance(self._data, Packed) else self._data

    def _thawed(self) -> Self:
        """Return an equal array that is not frozen: a copy, or itself."""
        return self if self._packed is None else self._with_data(self._packed.copy())

    # The pattern as algorithms want it ---------------------------------------------------------------

    def _check(self) -> None:
        """Raise ValueError unless indices and indptr, which a caller may have written to, are a pattern.

        For what follows the pattern in Python, where a block out of range would be left out or read from
        elsewhere; engines check for themselves.
        """
        if _is_pattern(self._indices, self._indptr, self._grid[1]):
            return
        try:
            check_pattern(self._indices, self._indptr, self._grid[1])
        except ValueError as error:
            raise ValueError(
                f"{error}; indices or indptr were written to after construction, see W.check_format()"
            ) from None

    @property
    def _own(self) -> bool:
        """Whether every batch member has a pattern of its own."""
        return self._indptr.ndim > 1

    @property
    def _grid(self) -> tuple[int, int]:
        """Block rows and columns of one stored member."""
        br, bc = self._data.shape[-2:]
        return lay.blocks_along(self._stored[0], br), lay.blocks_along(self._stored[1], bc)

    @property
    def _stacked(self) -> Index:
        """The indptr with the members' block rows one below the other."""
        return lay.stack_indptr(self._indptr)

    def _stacked_rows(self) -> Int64:
        """Return the stacked block row of every stored block."""
        return lay.block_rows(self._stacked)

    def _keys(self) -> Int64:
        """Return one number a block, ascending with (member, row, column)."""
        return lay.keys_of(self._indices, self._stacked, self._grid[1])

    def _padding(self) -> list[tuple[Int64, tuple[slice, slice]]]:
        """Return which stored blocks hang over the edge, and with which part."""
        br, bc = self._data.shape[-2:]
        m, k = self._stored
        if m % br == 0 and k % bc == 0:
            return []
        row = self._stacked_rows() % max(self._grid[0], 1)
        return lay.padding(row, self._indices, self._stored, (br, bc))

    def _clean(self) -> Array:
        """Return the stored values with zeros in the padding; as ``_values`` where they are zero already."""
        return lay.without_padding(self._values(), self._padding())

    def _canonical(self) -> Self:
        """Return an equal array whose stored pattern is sorted and free of duplicates; itself if it is so."""
        self._check()
        if lay.is_sorted(self._indices, self._stacked, strictly=True):
            return self
        parts = self._merged()
        return self._wrap(*parts, self._stored, self._batch, self._t)

    def _merged(self) -> tuple[Array, Index, Index]:
        """Return data, indices, indptr with sorted columns and duplicates summed, in storage order."""
        order = lay.sort_order(self._indices, self._stacked)
        wide = F32 if self._data.dtype in (F16, BFLOAT16) else None
        data, keys = lay.merge(self._values(), self._keys(), order, dtype=wide)
        indices, indptr = lay.pattern_of(keys, len(self._stacked) - 1, self._grid[1])
        dtype = self._indices.dtype
        indptr = lay.unstack_indptr(
            indptr.astype(dtype, copy=False), self._batch if self._own else (), self._grid[0]
        )
        return data, indices.astype(dtype, copy=False), indptr

    def _physical(self) -> Self:
        """Return an equal array without a lazy transpose: a transposed copy, or itself."""
        if not self._t:
            return self
        self._check()
        if not self._own:
            parts = lay.transpose(self._values(), self._indices, self._indptr, self._grid[1])
            return self._wrap(*parts, (self._stored[1], self._stored[0]), self._batch)
        rows, cols = self._grid
        # Members stay one below the other: their block columns become their block rows.
        member, inner = np.divmod(self._stacked_rows(), np.int64(max(rows, 1)))
        keys = (member * cols + self._indices) * max(rows, 1) + inner
        order = np.argsort(keys, kind="stable")
        row = member[order] * cols + self._indices[order]
        starts = np.searchsorted(row, np.arange(math.prod(self._batch) * cols + 1))
        return self._wrap(
            np.ascontiguousarray(np.swapaxes(self._values()[order], -1, -2)),
            inner[order].astype(self._indices.dtype),
            lay.unstack_indptr(starts.astype(self._indptr.dtype), self._batch, cols),
            (self._stored[1], self._stored[0]),
            self._batch,
        )

    def _with_own(self) -> Self:
        """Return an equal batched array in which every member has a pattern of its own; copies the values."""
        if self._own or not self._batch:
            return self
        members, n = math.prod(self._batch), len(self._indices)
        start = np.arange(members, dtype=np.int64)[:, None] * n
        indptr = (self._indptr + start).astype(lay.index_dtype(members * n))
        return self._wrap(
            self._values().reshape(members * n, *self._data.shape[-2:]),
            np.tile(self._indices, members).astype(indptr.dtype, copy=False),
            indptr.reshape(*self._batch, len(self._indptr)),
            self._stored,
            self._batch,
            self._t,
        )

    def _member(self, at: tuple[int, ...]) -> Self:
        """Return one two-dimensional batch member that shares this array's memory."""
        if not self._batch:
            return self
        values = self._values()
        if not self._own:
            return self._wrap(values[at], self._indices, self._indptr, self._stored, (), self._t)
        indptr = self._indptr[at]
        part = slice(int(indptr[0]), int(indptr[-1]))
        return self._wrap(values[part], self._indices[part], indptr - indptr[0], self._stored, (), self._t)

    def _blocks(self, batch: tuple[int, ...] = ()) -> Blocks:
        """Return the array as engines see it, a batched one broadcast to the dimensions ``batch``."""
        data, indptr = self._data, self._indptr
        if self._batch != batch:
            if self._own:
                indptr = np.broadcast_to(indptr, (*batch, indptr.shape[-1]))
            elif self._batch:
                data = np.broadcast_to(self._values(), (*batch, *data.shape[-3:]))
        # As Blocks(...) has it, in a third of the time.
        return tuple.__new__(Blocks, (data, self._indices, indptr, self._stored, self._t))

    def _readonly(self) -> tuple[Array, Index, Index]:
        """Return the arrays of a lazy transpose, computed for this one access."""
        array = self._physical()
        parts = array._values(), array._indices, array._indptr
        for part in parts:
            part.flags.writeable = False
        return parts

    # Attributes ----------------------------------------------------------------------------------------

    @property
    def data(self) -> Array:
        """Block values: (n, br, bc), or (*batch, n, br, bc) where the batch shares one pattern.

        Writing into it changes the array. For a lazy transpose (``W.T.data``) and a frozen array
        (``W.pack().data``) it is a read-only copy, computed on access and not kept.
        """
        if self._t:
            return self._readonly()[0]
        values = self._values()
        if self.frozen:
            values.flags.writeable = False
        return values

    @data.setter
    def data(self, values: Array) -> None:
        # Needed by ``W.data *= 2`` too, which assigns what it has written in place.
        if values is self._data:
            return
        if self._t or self._packed is not None:
            raise ValueError("the values of a lazy transpose and of a frozen array cannot be replaced")
        if not isinstance(values, np.ndarray) or values.shape != self._data.shape:
            raise ValueError(f"data must be an ndarray of shape {self._data.shape}")
        check_storage(values.dtype, "data")
        # C order alone is not enough: a view at an odd address has it too, and no engine reads that.
        values = np.require(values, values.dtype.newbyteorder("="), ["C", "A", "E"])
        self._set(values, self._indices, self._indptr, self._stored, self._batch)

    @property
    def indices(self) -> Index:
        """Block column of every stored block, int32 or int64 of shape (n,); read-only copy for ``W.T``."""
        return self._readonly()[1] if self._t else self._indices

    @property
    def indptr(self) -> Index:
        """Where every block row starts: (rows + 1,), or (*batch, rows + 1) where members have own patterns.

        With own patterns the offsets count through all members. A read-only copy for ``W.T``.
        """
        return self._readonly()[2] if self._t else self._indptr

    def crow_indices(self) -> Index:
        """Return ``indptr`` under torch's name."""
        return self.indptr

    def col_indices(self) -> Index:
        """Return ``indices`` under torch's name."""
        return self.indices

    def values(self) -> Array:
        """Return ``data`` under torch's name."""
        return self.data

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, with the batch dimensions in front."""
        return (*self._batch, self._rows, self._cols)

    @property
    def ndim(self) -> int:
        """Number of dimensions: 2 plus the batch's."""
        return len(self._batch) + 2

    @property
    def dtype(self) -> DType:
        """Dtype of the values."""
        return self._data.dtype

    @property
    def blocksize(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        br, bc = self._data.shape[-2:]
        return (bc, br) if self._t else (br, bc)

    @property
    def nnzb(self) -> int:
        """Number of stored blocks, over all batch members."""
        return math.prod(self._data.shape[:-2])

    @property
    def nnz(self) -> int:
        """Number of stored values, explicit zeros and padding included, as SciPy counts."""
        return self._data.size

    @property
    def size(self) -> int:
        """The same as ``nnz``, as in SciPy."""
        return self._data.size

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices; of a frozen array, the engine's own copy of the pattern included."""
        return self._data.nbytes + self._indices.nbytes + self._indptr.nbytes

    @property
    def density(self) -> float:
        """Share of block positions that are stored, 0.0 where there are none."""
        rows, cols = self._grid
        positions = math.prod(self._batch) * rows * cols
        return self.nnzb / positions if positions else 0.0

    @property
    def device(self) -> str:
        """Where the blocks live: ``"cpu"``."""
        return "cpu"

    @property
    def frozen(self) -> bool:
        """Whether this is the result of ``pack()``: its values cannot be written."""
        return self._packed is not None

    @property
    def has_sorted_indices(self) -> bool:
        """Whether block columns ascend inside every block row; looked up at every access, not remembered."""
        return self._t or lay.is_sorted(self._indices, self._stacked)

    @property
    def has_canonical_format(self) -> bool:
        """Whether block columns ascend without duplicates."""
        return lay.is_sorted(self._indices, self._stacked, strictly=True) or (
            self._t and len(np.unique(self._keys())) == len(self._indices)
        )

    @property
    def mask(self) -> BlockMask:
        """Which blocks are stored; two-dimensional where a batch shares one pattern."""
        from prunus._mask import BlockMask

        self._check()
        rows, cols = self._grid
        members = math.prod(self._batch) if self._own else 1
        indices, indptr = lay.pattern_of(np.unique(self._keys()), members * rows, cols)
        batch = self._batch if self._own else ()
        stored = BlockMask._wrap(
            indices, lay.unstack_indptr(indptr, batch, rows), (*batch, *self._stored), self._data.shape[-2:]
        )
        return stored.T if self._t else stored

    @property
    def T(self) -> Self:  # noqa: N802
        """The transpose of the last two axes: shares all memory, and products need no physical transpose.

        In-place writes to ``W.data`` show in ``W.T`` and the other way round; ``W.T.T`` is ``W`` again.
        """
        return self._wrap(
            self._data,
            self._indices,
            self._indptr,
            self._stored,
            self._batch,
            not self._t,
        )
