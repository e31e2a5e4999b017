"""``BSR``: the block-sparse array that users hold. Algorithms live in the modules this one calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from prunus import _construct, _core, _elementwise, _format, _indexing, _reduce
from prunus import _layout as lay
from prunus._arrays import is_scipy, is_torch
from prunus._dtypes import Array, as_dtype, check_operand, check_storage
from prunus._errors import PrunusError
from prunus._operators import Operators
from prunus._scipy_names import ScipyNames
from prunus._storage import BlockStorage

if TYPE_CHECKING:
    import scipy.sparse
    import torch

    from prunus._mask import BlockMask

__all__ = ["BSR"]


class BSR(Operators, ScipyNames):
    """A block-sparse array: only some blocks of a matrix are stored, each as a small dense one.

    ``data``, ``indices``, ``indptr``, ``shape``, ``blocksize``, ``nnz`` and the constructor are those of
    ``scipy.sparse.bsr_array``; what only SciPy has is a call of ``to_scipy()`` away. Leading batch
    dimensions, ragged edges and a lazy transpose come on top. Blocks need not divide the shape: what hangs
    over the edge is never seen. Absent blocks contribute 0, also against infinities and NaN.

    Parameters
    ----------
    arg : tuple, array, SciPy sparse array, torch tensor or BSR
        * ``(data, indices, indptr)`` with data (n, br, bc), indices (n,), indptr (rows + 1,). A batch with
          one pattern has data (*B, n, br, bc); with a pattern each, indptr is (*B, rows + 1) and counts
          through all members' blocks in data (n, br, bc). torch's batched form is taken as well.
        * ``(data, (row, col))`` of single values, summed where positions repeat.
        * ``(m, n)`` or ``(*B, m, n)``: an array without blocks.
        * a dense array of at least two dimensions: keeps every block with a non-zero.
    shape : tuple of int, optional
        Shape with batch dimensions; inferred from the indices where left out.
    dtype : dtype-like, optional
        Converts the values.
    copy : bool, optional
        None copies only if needed, True always; False raises where a copy would be needed.
    blocksize : int or tuple of int, optional
        Rows and columns of a block. A dense array without it is cut into the largest square (at most 64)
        that is at least 70 % non-zero; coordinates and SciPy's arrays of single values likewise, where
        every stored value counts.

    Raises
    ------
    ValueError
        If lengths, offsets, indices, shape and blocks do not fit each other, or ``copy=False`` cannot be
        kept.
    TypeError
        If values are no numbers or indices no integers.

    Notes
    -----
    Unsorted and duplicate indices are accepted, as in SciPy: duplicates are summed, in stored order.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> data = np.ones((2, 2, 2), np.float32)
    >>> W = pr.BSR((data, [0, 1], [0, 1, 2]), shape=(4, 4))
    >>> W @ np.arange(4, dtype=np.float32)
    array([1., 1., 5., 5.], dtype=float32)
    >>> W
    <prunus.BSR (4, 4) float32: 2 blocks of 2 x 2, density 0.5, 72 bytes>
    """

    __slots__ = ()

    def __init__(
        self,
        arg: Any,
        shape: tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        copy: bool | None = None,
        blocksize: int | tuple[int, int] | None = None,
    ) -> None:
        if copy is not None and not isinstance(copy, (bool, np.bool_)):
            raise TypeError(f"copy must be None, True or False, got {copy!r}")
        if isinstance(arg, tuple) and _construct.is_shape(arg):
            if shape is not None and tuple(shape) != tuple(arg):
                raise ValueError(f"two shapes were given: {arg} and {shape}")
            self._set(*_construct.empty(arg, blocksize, dtype))
        elif isinstance(arg, tuple) and len(arg) == 3:
            self._set(*_construct.from_triple(arg, shape, blocksize, dtype, copy))
        elif (
            isinstance(arg, tuple)
            and len(arg) == 2
            and isinstance(arg[1], (tuple, list))
            and len(arg[1]) == 2
        ):
            if copy is False:
                raise ValueError("copy=False, but coordinates have to be sorted into blocks")
            self._set(*_construct.from_coordinates(arg[0], arg[1][0], arg[1][1], shape, blocksize, dtype))
        elif isinstance(arg, tuple) and not _numbers(arg):
            raise ValueError(
                f"a tuple of {len(arg)} is not understood: expected (data, indices, indptr), "
                "(data, (row, col)) or a shape"
            )
        else:
            self._from_array(arg, shape, blocksize, dtype, copy)

    def _from_array(
        self, arg: Any, shape: Any, blocksize: Any, dtype: DTypeLike | None, copy: bool | None
    ) -> None:
        """Fill this array from another one: BSR, SciPy, torch or dense."""
        if isinstance(arg, BlockStorage):
            other: Any = arg
        elif is_scipy(arg):
            from prunus.interop.scipy import from_scipy

            other = from_scipy(type(self), arg, blocksize, copy)
        elif is_torch(arg) and arg.layout is not _strided():
            other = self.from_torch(arg, copy=copy)
        else:
            from prunus._mask import BlockMask

            if isinstance(arg, BlockMask):
                raise TypeError("a BlockMask has no values; use BSR.from_mask(mask, w)")
            if copy is False:
                raise ValueError("copy=False, but a dense array has to be cut into blocks")
            other = self._wrap(*_construct.from_dense(arg, blocksize, dtype=dtype))
        if shape is not None and tuple(shape) != other.shape:
            raise ValueError(f"shape is {tuple(shape)}, but the array has {other.shape}")
        size = other.blocksize if blocksize is None else lay.as_blocksize(blocksize)
        kind = other.dtype if dtype is None else as_dtype(dtype)
        if copy is False and (size != other.blocksize or kind != other.dtype):
            raise ValueError(
                f"copy=False, but {other.dtype} blocks of {other.blocksize} have to become {kind} of {size}"
            )
        if size != other.blocksize:
            other = _elementwise.reblock(other, size)
        if kind != other.dtype:
            other = other.astype(kind)
        elif copy and other is arg:
            other = other.copy()
        self._set(other._data, other._indices, other._indptr, other._stored, other._batch, other._t)

    # Other ways to make one --------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        w: ArrayLike,
        blocksize: int | tuple[int, int] | None = None,
        density: float | None = None,
        norm: str = "fro",
        dtype: DTypeLike | None = None,
    ) -> Self:
        """Cut a dense array into blocks and store those that matter.

        Parameters
        ----------
        w : array_like
            Shape (*B, m, n); every member of a batch gets its own pattern.
        blocksize : int or tuple of int, optional
            Rows and columns of a block; estimated if left out.
        density : float, optional
            Keeps ``ceil(density * blocks)`` blocks of the largest norm, ties by lowest index; None keeps
            every block that has a non-zero (NaN is one), so that the result is exact.
        norm : {"fro", "max", "l1"}
            How strong a block is. A block with NaN counts as the strongest.
        dtype : dtype-like, optional
            Converts the values first.

        Raises
        ------
        ValueError
            If ``density`` is outside [0, 1] or NaN, ``w`` has fewer than two dimensions, or ``norm`` is
            unknown.
        TypeError
            If ``w`` holds no numbers.

        Examples
        --------
        >>> import numpy as np
        >>> import prunus as pr
        >>> pr.BSR.from_dense(np.diag([3.0, 1.0, 2.0, 0.0]), blocksize=1, density=0.1).toarray().max(axis=0)
        array([3., 0., 2., 0.])
        """
        return cls._wrap(*_construct.from_dense(w, blocksize, density, norm, dtype))

    @classmethod
    def from_mask(cls, mask: BlockMask, w: ArrayLike, dtype: DTypeLike | None = None) -> Self:
        """Store exactly the blocks of ``w`` that ``mask`` names, zeros among them included.

        Parameters
        ----------
        mask : BlockMask
            Shape (m, n), or (*B, m, n) with a pattern for every member.
        w : array_like
            Shape (*B, m, n); with a two-dimensional mask all members share its pattern, and a
            two-dimensional ``w`` serves every member of a batched mask.

        Raises
        ------
        ValueError
            If the shapes differ.
        """
        return cls._wrap(*_construct.from_mask(mask, w, dtype))

    @classmethod
    def from_torch(cls, tensor: torch.Tensor, copy: bool | None = None) -> Self:
        """Take a torch BSR tensor on the CPU, sharing its values (bfloat16 included).

        Raises
        ------
        TypeError
            If it is no tensor.
        ValueError
            If its layout is not ``torch.sparse_bsr``, or ``copy=False`` cannot be kept.
        PrunusError
            If it is not in host memory.
        """
        from prunus.interop.torch import from_torch

        return cls._wrap(*from_torch(tensor, copy))

    # Conversions -------------------------------------------------------------------------------------

    def toarray(self, order: str | None = None, out: Array | None = None) -> Array:
        """Return a dense ndarray of the same shape and dtype, zeros where no block is stored.

        Parameters
        ----------
        order : {"C", "F"}, optional
            Memory layout of a new array; "C" if left out.
        out : ndarray, optional
            Written and returned instead; its shape and dtype must be those of the result.
        """
        if out is None:
            out = np.zeros(self.shape, self.dtype, order="F" if order == "F" else "C")
        elif not isinstance(out, np.ndarray) or out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError(f"out must be an ndarray of shape {self.shape} and dtype {self.dtype}")
        else:
            out[...] = 0
        array = self._canonical()
        dense = np.swapaxes(out, -1, -2) if self._t else out
        for at in np.ndindex(*self._batch):
            one = array._member(at)
            lay.scatter(dense[at], one._values(), lay.block_rows(one._indptr), one._indices)
        return out

    def todense(self, order: str | None = None, out: Array | None = None) -> Array:
        """Return the same as ``toarray``; SciPy's name for it."""
        return self.toarray(order, out)

    def to_scipy(self, copy: bool | None = None) -> scipy.sparse.bsr_array:
        """Return a ``scipy.sparse.bsr_array`` that shares the blocks.

        A lazy transpose, a frozen array, and a shape that its blocks do not divide, need a copy (in the last
        case in smaller blocks, since SciPy knows no ragged edges).

        Raises
        ------
        TypeError
            If SciPy has no such dtype (float16, bfloat16): convert with ``astype`` first.
        ValueError
            If there are batch dimensions, or ``copy=False`` and a copy is needed.
        """
        from prunus.interop.scipy import to_scipy

        return to_scipy(self, copy)

    def to_torch(self, copy: bool | None = None) -> torch.Tensor:
        """Return a torch BSR tensor on the CPU that shares the values (bfloat16 included).

        A lazy transpose, a frozen array, a shape that its blocks do not divide, and a batch whose members
        have patterns of their own, need a copy; torch wants as many blocks in every member, so unequal
        numbers raise.

        Raises
        ------
        ValueError
            If members differ in their number of blocks, or ``copy=False`` and a copy is needed.
        """
        from prunus.interop.torch import to_torch

        return to_torch(self, copy)

    def astype(self, dtype: DTypeLike, copy: bool = True) -> Self:
        """Return the array with values of another dtype; itself if nothing changes and ``copy=False``."""
        kind = as_dtype(dtype)
        check_storage(kind, "dtype")
        if kind == self.dtype:
            return self.copy() if copy else self
        return self._with_data(self._clean().astype(kind))

    def copy(self) -> Self:
        """Return a writable copy that shares no memory; of a frozen array, an unfrozen one."""
        return self._with_data(self._data.copy())

    def to(self, device: Any) -> Any:
        """Return the array on a device: itself for ``"cpu"``, a :class:`prunus.cuda.BSR` for ``"cuda"``.

        Parameters
        ----------
        device : str or torch.device
            "cpu", "cuda" (torch's current GPU) or "cuda:1".

        Raises
        ------
        PrunusError
            If there is no such device, or torch is missing.
        TypeError
            If products do not take the dtype.
        MemoryError
            If the GPU has not that much memory left.
        """
        name = str(device)
        if name == "cpu":
            return self
        if name.partition(":")[0] != "cuda":
            raise PrunusError(f"no device {name!r}: blocks live on 'cpu' or 'cuda'")
        from prunus.cuda import arrays, runtime

        return arrays.BSR.from_host(self, runtime.named(name))

    def transpose(self, axes: tuple[int, ...] | None = None, copy: bool = False) -> Self:
        """Return the transpose of the last two axes, see ``T``; ``copy=True`` makes it a physical one.

        Raises
        ------
        ValueError
            If ``axes`` asks for any other order.
        """
        swapped = (*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)
        if axes is not None and tuple(a % self.ndim for a in axes) != swapped:
            raise ValueError(f"a BSR only swaps its last two axes, axes={swapped}; got {axes}")
        if axes is None and self.ndim > 2:
            raise ValueError("transpose() would reverse the batch axes as well; use W.T to swap the last two")
        return self.T._physical().copy() if copy else self.T

    def reblock(self, blocksize: int | tuple[int, int]) -> Self:
        """Return an equal array in blocks of another size; always a copy.

        A new block exists where a stored one touches it.
        """
        return _elementwise.reblock(self, lay.as_blocksize(blocksize))

    def pack(self) -> Self:
        """Return a frozen array in the CPU engine's own layout, for weights that stay.

        Its values cannot be written; products with it skip the packing that a plain array pays for in
        every call. It holds the values once, in that layout: ``data``, and whatever needs values other than
        products with dense operands, computes a copy in C order at every access.

        Raises
        ------
        ValueError
            If there are batch dimensions.
        TypeError
            If products do not take the dtype.
        """
        if self._batch:
            raise ValueError(f"pack() takes two dimensions, got shape {self.shape}; pack the members W[b]")
        if self._packed is not None:
            return self
        check_operand(self.dtype, "W")
        array = self._canonical()
        # The stored matrix is packed; both orientations multiply from it.
        packed = _core.pack(array._values(), array._indices, array._indptr, array._stored, False)
        indices, indptr = array._indices.copy(), array._indptr.copy()
        for part in (indices, indptr):
            part.flags.writeable = False
        return self._wrap(packed, indices, indptr, array._stored, (), array._t)

    # Arithmetic and reductions by name ---------------------------------------------------------------

    def multiply(self, other: Any) -> Self:
        """Multiply elementwise by a BSR, a scalar or a dense array that broadcasts to this shape.

        The result keeps this array's pattern (with a BSR: the common pattern); only what ``other`` holds
        under stored blocks is read.

        Raises
        ------
        ValueError
            If ``other`` does not broadcast to ``shape``.
        TypeError
            If it is a SciPy sparse array (wrap it with ``pr.BSR``), a masked array or one of objects.
        """
        return _elementwise.multiply(self, other)

    def sum(
        self,
        axis: Any = None,
        dtype: DTypeLike | None = None,
        out: Array | None = None,
        keepdims: bool = False,
    ) -> Any:
        """Sum over axes; a dense ndarray, or a scalar over all axes.

        float16 and bfloat16 accumulate in float32; integers sum in NumPy's default integer.

        Parameters
        ----------
        axis : int or tuple of int, optional
            None sums everything; at least one of the last two axes must be among them.

        Examples
        --------
        >>> import numpy as np
        >>> import prunus as pr
        >>> pr.BSR(np.diag([1.0, 2.0, 3.0]), blocksize=2).sum(axis=0)
        array([1., 2., 3.])
        """
        return _reduce.total(self, axis, dtype, out, keepdims)

    def mean(
        self,
        axis: Any = None,
        dtype: DTypeLike | None = None,
        out: Array | None = None,
        keepdims: bool = False,
    ) -> Any:
        """Return the mean over all elements along axes, absent blocks included."""
        return _reduce.mean(self, axis, dtype, out, keepdims)

    def max(self, axis: Any = None, out: Array | None = None, keepdims: bool = False) -> Any:
        """Return the maximum along axes, absent blocks counting as 0; NaN wins, as in NumPy."""
        return _reduce.extreme(self, np.maximum, axis, out, keepdims)

    def min(self, axis: Any = None, out: Array | None = None, keepdims: bool = False) -> Any:
        """Return the minimum along axes, absent blocks counting as 0; NaN wins, as in NumPy."""
        return _reduce.extreme(self, np.minimum, axis, out, keepdims)

    def count_nonzero(self) -> int:
        """Return how many values are not 0 (``nnz`` counts stored ones)."""
        return _reduce.count_nonzero(self)

    # Upkeep ------------------------------------------------------------------------------------------

    def sum_duplicates(self) -> None:
        """Sort the blocks and add up those at one position, in place."""
        _format.sum_duplicates(self)

    def sort_indices(self) -> None:
        """Sort the blocks of every block row by column, in place."""
        _format.sort_indices(self)

    def eliminate_zeros(self) -> None:
        """Drop blocks that hold nothing but zeros, in place."""
        _format.eliminate_zeros(self)

    def check_format(self, full_check: bool = True) -> None:
        """Raise ValueError if the arrays, which a caller may have written to, do not fit each other."""
        _format.check(self, full_check)

    def __getitem__(self, key: Any) -> Any:
        """Return a part.

        ``W[i, j]`` is a scalar; ``W[i]`` (two dimensions), ``W[i, :]`` and ``W[:, j]`` are dense vectors, and
        so are the paired positions ``W[rows, cols]`` of two index arrays. Ranges, steps, index arrays and
        boolean vectors, one or both, give a BSR of the same block size (``np.ix_`` for two arrays). Whole
        block rows, and rows from the start of a block, share memory with this array, unless it is frozen;
        anything else copies.
        With batch dimensions the leading keys pick members.

        Raises
        ------
        IndexError
            If a key is out of range or of another kind.
        """
        return _indexing.getitem(self, key)


def _numbers(arg: tuple[Any, ...]) -> bool:
    """Say whether a tuple is a dense array written out: sequences of equal length."""
    return all(isinstance(row, (list, tuple)) for row in arg) and len(arg) > 3


def _strided() -> Any:
    import torch

    return torch.strided
