"""``BlockMask``: which blocks of an array exist, take part or are computed."""

from __future__ import annotations

import math
import operator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from prunus import _construct
from prunus import _layout as lay
from prunus._dtypes import Array
from prunus._layout import Index, Int64

__all__ = ["BlockMask"]


class BlockMask:
    """A set of blocks of an array, possibly with leading batch dimensions and a pattern for each member.

    Parameters
    ----------
    blocks : array_like of bool, or tuple
        The grid (*B, block rows, block columns), or ``(indices, indptr)`` as a BSR has them, with
        ``indptr`` (*B, rows + 1) counting through all members where there is a batch.
    blocksize : int or tuple of int
        Rows and columns of a block.
    shape : tuple of int, optional
        Shape in elements, batch dimensions in front; blocks may hang over its edges. Needed with
        ``(indices, indptr)``; otherwise whole blocks are assumed.

    Raises
    ------
    ValueError
        If grid and shape do not fit, or indices are out of range.
    TypeError
        If the grid holds no booleans.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> mask = pr.BlockMask(np.array([[True, False], [True, True]]), blocksize=2, shape=(4, 3))
    >>> mask.density
    0.75
    >>> mask.toarray().astype(int)
    array([[1, 1, 0],
           [1, 1, 0],
           [1, 1, 1],
           [1, 1, 1]])
    """

    __slots__ = ("__weakref__", "_blocksize", "_indices", "_indptr", "_shape")
    __hash__ = None  # type: ignore[assignment]
    # NumPy must not try to make an array of masks out of ``array & mask``.
    __array_ufunc__ = None

    _indices: Index
    _indptr: Index
    _shape: tuple[int, ...]
    _blocksize: tuple[int, int]

    def __init__(
        self,
        blocks: ArrayLike | tuple[ArrayLike, ArrayLike],
        blocksize: int | tuple[int, int],
        shape: tuple[int, ...] | None = None,
    ) -> None:
        size = lay.as_blocksize(blocksize)
        # Two rows of booleans are a grid, anything else in a pair a pattern.
        if isinstance(blocks, tuple) and len(blocks) == 2 and np.asarray(blocks[1]).dtype != bool:
            self._from_pattern(blocks, size, shape)
            return
        grid = np.asarray(blocks)
        if grid.dtype != bool:
            raise TypeError(f"the grid of blocks must hold booleans, got dtype {grid.dtype}")
        if grid.ndim < 2:
            raise ValueError(f"the grid of blocks must have at least two dimensions, got shape {grid.shape}")
        whole = (*grid.shape[:-2], grid.shape[-2] * size[0], grid.shape[-1] * size[1])
        full = lay.as_shape(whole if shape is None else shape)
        covered = (*full[:-2], *(lay.blocks_along(n, b) for n, b in zip(full[-2:], size, strict=True)))
        if covered != grid.shape:
            raise ValueError(f"shape {full} in blocks of {size} needs a grid of {covered}, got {grid.shape}")
        self._fill(grid, full, size)

    def _from_pattern(self, blocks: tuple[Any, Any], size: tuple[int, int], shape: Any) -> None:
        if shape is None:
            raise ValueError("a mask from (indices, indptr) needs shape=")
        full = lay.as_shape(shape)
        indices = _construct.as_index(blocks[0], None, "indices")
        indptr = _construct.as_index(blocks[1], None, "indptr")
        rows, cols = (lay.blocks_along(n, b) for n, b in zip(full[-2:], size, strict=True))
        if indices.ndim != 1 or indptr.shape != (*full[:-2], rows + 1):
            raise ValueError(
                f"expected indices (n,) and indptr {(*full[:-2], rows + 1)}, got {indices.shape} and "
                f"{indptr.shape}"
            )
        lay.check_positions(math.prod(full[:-2]), rows, cols)
        _construct.check_pattern(indices, indptr, cols)
        keys = np.unique(lay.keys_of(indices, lay.stack_indptr(indptr), cols))
        self._set(keys, full, size)

    def _set(self, keys: Int64, shape: tuple[int, ...], blocksize: tuple[int, int]) -> None:
        """Fill the slots from sorted, distinct keys over the stacked grid."""
        rows, cols = (lay.blocks_along(n, b) for n, b in zip(shape[-2:], blocksize, strict=True))
        members = math.prod(shape[:-2])
        lay.check_positions(members, rows, cols)
        indices, indptr = lay.pattern_of(keys, members * rows, cols)
        self._indices, self._indptr = indices, lay.unstack_indptr(indptr, shape[:-2], rows)
        self._shape, self._blocksize = shape, blocksize
        for part in (self._indices, self._indptr):
            part.flags.writeable = False

    def _fill(self, grid: Array, shape: tuple[int, ...], blocksize: tuple[int, int]) -> None:
        self._set(np.flatnonzero(grid).astype(np.int64, copy=False), shape, blocksize)

    @classmethod
    def _wrap(cls, indices: Index, indptr: Index, shape: tuple[int, ...], blocksize: tuple[int, ...]) -> Self:
        """Return a mask of parts that are known to be consistent, sorted and distinct."""
        self = object.__new__(cls)
        self._indices, self._indptr, self._shape = indices, indptr, shape
        self._blocksize = (int(blocksize[0]), int(blocksize[1]))
        return self

    @classmethod
    def _of_keys(cls, keys: Int64, shape: tuple[int, ...], blocksize: tuple[int, int]) -> Self:
        self = object.__new__(cls)
        self._set(keys, shape, blocksize)
        return self

    # Makers ------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        w: ArrayLike,
        blocksize: int | tuple[int, int],
        threshold: float | None = None,
        density: float | None = None,
        norm: str = "max",
    ) -> Self:
        """Return the live blocks of a dense array (*B, m, n).

        Parameters
        ----------
        w : array_like
            Numbers; members of a batch get a pattern each.
        blocksize : int or tuple of int
            Rows and columns of a block.
        threshold : float, optional
            A block is live unless its norm is at most this (so NaN is live); 0 if neither is given.
        density : float, optional
            Keeps ``ceil(density * blocks)`` blocks of the largest norm instead, ties by lowest index.
        norm : {"max", "fro", "l1"}
            How strong a block is.

        Raises
        ------
        ValueError
            If both or a NaN threshold are given, ``density`` is outside [0, 1] or ``norm`` is unknown.
        """
        dense = _construct.as_dense(w, None)
        size = lay.as_blocksize(blocksize)
        if threshold is not None and density is not None:
            raise ValueError("give threshold or density, not both")
        tau = 0.0 if threshold is None else float(threshold)
        if math.isnan(tau):
            raise ValueError("threshold must not be NaN")
        batch = dense.shape[:-2]
        rows, cols = (lay.blocks_along(n, b) for n, b in zip(dense.shape[-2:], size, strict=True))
        lay.check_positions(math.prod(batch), rows, cols)
        grid = np.zeros((math.prod(batch), rows, cols), bool)
        for live, one in zip(grid, dense.reshape(math.prod(batch), *dense.shape[-2:]), strict=True):
            if density is not None:
                live[...] = _construct.live_blocks(one, size, density, norm)
            else:
                live[...] = ~(_construct.block_norms(one, size, norm) <= tau)
        self = object.__new__(cls)
        self._fill(grid, dense.shape, size)
        return self

    @classmethod
    def _where(cls, n: int, m: int, blocksize: Any, low: int | None, high: int | None) -> Self:
        """Return the blocks with an element (i, j) for which low <= j - i <= high; None is unlimited."""
        size = lay.as_blocksize(blocksize)
        shape = lay.as_shape((n, m))
        rows, cols = (lay.blocks_along(s, b) for s, b in zip(shape, size, strict=True))
        first = np.arange(rows, dtype=np.int64) * size[0]
        last = np.minimum(first + size[0], shape[0]) - 1
        begin = np.zeros(rows, np.int64) if low is None else (first + low) // size[1]
        end = np.full(rows, cols) if high is None else (last + high) // size[1] + 1
        begin, end = np.clip(begin, 0, cols), np.clip(end, 0, cols)
        col, row = lay.expand(begin, np.maximum(end - begin, 0))
        return cls._of_keys(row * max(cols, 1) + col, shape, size)

    @classmethod
    def causal(cls, n: int, m: int | None = None, blocksize: int | tuple[int, int] = 64) -> Self:
        """Return the blocks in which a query may see a key that is not later, aligned bottom-right.

        Parameters
        ----------
        n, m : int
            Numbers of queries and keys (``m`` is ``n`` if left out); the last query sees the last key.

        Raises
        ------
        TypeError
            If ``n`` or ``m`` is no integer; a shape is passed as ``*shape``.

        Examples
        --------
        >>> import prunus as pr
        >>> pr.BlockMask.causal(3, 5, blocksize=1).to_blocks().astype(int)
        array([[1, 1, 1, 0, 0],
               [1, 1, 1, 1, 0],
               [1, 1, 1, 1, 1]])
        """
        n, m = lay.as_lengths("causal", n, m)
        return cls._where(n, m, blocksize, None, m - n)

    @classmethod
    def window(
        cls,
        n: int,
        m: int | None = None,
        left: int = 0,
        right: int = 0,
        blocksize: int | tuple[int, int] = 64,
    ) -> Self:
        """Return the blocks that touch a band: key j within ``left`` before and ``right`` after query i.

        Aligned bottom-right, as :meth:`causal`.

        Raises
        ------
        ValueError
            If ``left`` or ``right`` is negative.
        TypeError
            If a number is no integer; a shape is passed as ``*shape``.
        """
        n, m = lay.as_lengths("window", n, m)
        left, right = operator.index(left), operator.index(right)
        if left < 0 or right < 0:
            raise ValueError(f"left and right must not be negative, got {left} and {right}")
        return cls._where(n, m, blocksize, m - n - left, m - n + right)

    @classmethod
    def full(cls, shape: tuple[int, ...], blocksize: int | tuple[int, int]) -> Self:
        """Return all blocks of ``shape``."""
        return ~cls.empty(shape, blocksize)

    @classmethod
    def empty(cls, shape: tuple[int, ...], blocksize: int | tuple[int, int]) -> Self:
        """Return none of the blocks of ``shape``."""
        return cls._of_keys(np.zeros(0, np.int64), lay.as_shape(shape), lay.as_blocksize(blocksize))

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...],
        blocksize: int | tuple[int, int],
        density: float,
        rng: np.random.Generator | int | None = None,
    ) -> Self:
        """Return ``ceil(density * blocks)`` blocks of every member, drawn without replacement.

        Parameters
        ----------
        density : float
            From 0 to 1.
        rng : numpy Generator, int or None
            Source of randomness, or its seed.
        """
        full, size = lay.as_shape(shape), lay.as_blocksize(blocksize)
        share = _construct.as_fraction(density, "density")
        source = np.random.default_rng(rng)
        rows, cols = (lay.blocks_along(n, b) for n, b in zip(full[-2:], size, strict=True))
        total = rows * cols
        keep = _construct.count_of(share, total)
        drawn = [
            np.sort(source.choice(total, keep, replace=False, shuffle=False)) + b * total
            for b in range(math.prod(full[:-2]))
        ]
        keys = np.concatenate([np.zeros(0, np.int64), *drawn]).astype(np.int64)
        return cls._of_keys(keys, full, size)

    @classmethod
    def block_diagonal(cls, shape: tuple[int, ...], blocksize: int | tuple[int, int]) -> Self:
        """Return the blocks (i, i) of every member."""
        full, size = lay.as_shape(shape), lay.as_blocksize(blocksize)
        rows, cols = (lay.blocks_along(n, b) for n, b in zip(full[-2:], size, strict=True))
        at = np.arange(min(rows, cols), dtype=np.int64) * (cols + 1)
        starts = np.arange(math.prod(full[:-2]), dtype=np.int64)[:, None] * (rows * cols)
        return cls._of_keys((starts + at).reshape(-1), full, size)

    # Attributes --------------------------------------------------------------------------------------

    @property
    def indices(self) -> Index:
        """Block column of every block, ascending in every block row; read-only, (n,)."""
        return self._indices

    @property
    def indptr(self) -> Index:
        """Where every block row starts, (*B, rows + 1), counting through all members; read-only."""
        return self._indptr

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in elements, batch dimensions in front."""
        return self._shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._shape)

    @property
    def blocksize(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self._blocksize

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid of blocks, batch dimensions in front."""
        rows, cols = (lay.blocks_along(n, b) for n, b in zip(self._shape[-2:], self._blocksize, strict=True))
        return (*self._shape[:-2], rows, cols)

    @property
    def nnzb(self) -> int:
        """Number of blocks in the set, over all members."""
        return len(self._indices)

    @property
    def density(self) -> float:
        """Share of block positions in the set, 0.0 where there are none."""
        positions = math.prod(self.grid)
        return self.nnzb / positions if positions else 0.0

    @property
    def T(self) -> Self:  # noqa: N802
        """The transpose of the last two axes, as a new mask."""
        rows, cols = self.grid[-2:]
        member, rest = np.divmod(self._keys(), np.int64(max(rows * cols, 1)))
        i, j = np.divmod(rest, np.int64(max(cols, 1)))
        keys = np.sort(member * (rows * cols) + j * rows + i)
        shape = (*self._shape[:-2], self._shape[-1], self._shape[-2])
        return self._of_keys(keys, shape, (self._blocksize[1], self._blocksize[0]))

    def _keys(self) -> Int64:
        return lay.keys_of(self._indices, lay.stack_indptr(self._indptr), self.grid[-1])

    def to_blocks(self) -> Array:
        """Return the grid of blocks as a bool array (*B, block rows, block columns)."""
        grid = np.zeros(self.grid, bool)
        grid.reshape(-1)[self._keys()] = True
        return grid

    def toarray(self) -> Array:
        """Return a bool array of ``shape``: True for every element of a block in the set."""
        (br, bc), (m, n) = self._blocksize, self._shape[-2:]
        # The blocks are looked up element by element, so that the padding is never made.
        return self.to_blocks()[..., np.arange(m)[:, None] // br, np.arange(n) // bc]

    def copy(self) -> Self:
        """Return the mask itself: masks do not change."""
        return self

    def _broadcast(self, batch: tuple[int, ...]) -> Self:
        """Repeat the patterns along new or one-long batch dimensions."""
        grid = np.broadcast_to(self.to_blocks(), (*batch, *self.grid[-2:]))
        return self._of_keys(np.flatnonzero(grid), (*batch, *self._shape[-2:]), self._blocksize)

    # Set operations ----------------------------------------------------------------------------------

    def _pair(self, other: BlockMask) -> tuple[Self, BlockMask]:
        if self._shape[-2:] != other._shape[-2:] or self._blocksize != other._blocksize:
            raise ValueError(
                f"masks of shape {self._shape} in blocks of {self._blocksize} and {other._shape} in blocks "
                f"of {other._blocksize} do not match"
            )
        if self._shape == other._shape:
            return self, other
        batch = np.broadcast_shapes(self._shape[:-2], other._shape[:-2])
        return self._broadcast(batch), other._broadcast(batch)

    def _like(self, keys: Int64) -> Self:
        return self._of_keys(keys, self._shape, self._blocksize)

    def __and__(self, other: object) -> Self:
        if not isinstance(other, BlockMask):
            return NotImplemented
        a, b = self._pair(other)
        return a._like(np.intersect1d(a._keys(), b._keys(), assume_unique=True))

    def __or__(self, other: object) -> Self:
        if not isinstance(other, BlockMask):
            return NotImplemented
        a, b = self._pair(other)
        return a._like(np.union1d(a._keys(), b._keys()))

    def __xor__(self, other: object) -> Self:
        if not isinstance(other, BlockMask):
            return NotImplemented
        a, b = self._pair(other)
        return a._like(np.setxor1d(a._keys(), b._keys(), assume_unique=True))

    def __sub__(self, other: object) -> Self:
        if not isinstance(other, BlockMask):
            return NotImplemented
        a, b = self._pair(other)
        return a._like(np.setdiff1d(a._keys(), b._keys(), assume_unique=True))

    def __invert__(self) -> Self:
        return self._like(np.flatnonzero(~self.to_blocks()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockMask):
            return NotImplemented
        return (
            self._shape == other._shape
            and self._blocksize == other._blocksize
            and np.array_equal(self._indices, other._indices)
            and np.array_equal(self._indptr, other._indptr)
        )

    def __bool__(self) -> bool:
        raise ValueError("the truth value of a BlockMask is ambiguous; use mask.nnzb")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise TypeError(
            "a BlockMask is not turned into an array behind your back; call .toarray() or .to_blocks()"
        )

    def __getitem__(self, key: Any) -> Self:
        """Return batch members, or a part whose ranges start on blocks.

        Leading keys pick members (integers, ranges, index arrays); the last two, if given, are ranges in
        elements with step 1 that start on a block.

        Raises
        ------
        IndexError
            If a key is out of range or of another kind.
        """
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys[at : at + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        if len(keys) > self.ndim:
            raise IndexError(
                f"too many indices: the mask is {self.ndim}-dimensional, but {len(keys)} were indexed"
            )
        keys += [slice(None)] * (self.ndim - len(keys))
        sizes: list[int] = []
        for axis, n, b in zip((-2, -1), self._shape[-2:], self._blocksize, strict=True):
            part = keys[axis]
            if not isinstance(part, slice):
                raise IndexError("the last two axes of a BlockMask take ranges only; see to_blocks()")
            start, stop, step = part.indices(n)
            if step != 1 or start % b:
                raise IndexError(f"a range of a BlockMask starts on a block of {b} with step 1, got {part}")
            sizes.append(max(stop - start, 0))
            keys[axis] = slice(start // b, start // b + lay.blocks_along(sizes[-1], b))
        grid = self.to_blocks()[tuple(keys)]
        return self._of_keys(np.flatnonzero(grid), (*grid.shape[:-2], *sizes), self._blocksize)

    def __len__(self) -> int:
        raise TypeError("the length of a BlockMask is ambiguous; use mask.shape or mask.nnzb")

    def __iter__(self) -> Any:
        raise TypeError("a BlockMask is not iterated over; index it, or use mask.to_blocks()")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._indices, self._indptr, self._shape, self._blocksize)

    def __repr__(self) -> str:
        br, bc = self._blocksize
        return (
            f"<prunus.BlockMask {self._shape}: {self.nnzb} blocks of {br} x {bc}, density {self.density:.4g}>"
        )


def _restore(cls: type[BlockMask], *parts: Any) -> BlockMask:
    return cls._wrap(*parts)
