"""From what a caller passes to ``BSR(...)`` to checked parts: nothing leaves here that is not consistent."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from prunus import _layout as lay
from prunus._arrays import as_array
from prunus._dtypes import Array, DType, as_dtype, check_storage, sum_dtype
from prunus._layout import Index, Int64

if TYPE_CHECKING:
    from prunus._mask import BlockMask


NORMS = frozenset({"fro", "max", "l1"})
# Values that norms look at in one go: 2 MiB of float64.
_STRIP = 1 << 18
# Square blocks that an estimate looks at, and how much of what they store must not be zero.
_ESTIMATES = (2, 4, 8, 16, 32, 64)
_FILL = 0.7


class Parts(NamedTuple):
    """What a BSR is made of, before the lazy transpose.

    ``data`` is (*batch, n, br, bc) with one-dimensional ``indptr``, or (n, br, bc) with ``indptr``
    (*batch, rows + 1); ``stored`` is the shape (m, k) of one member.
    """

    data: Array
    indices: Index
    indptr: Index
    stored: tuple[int, int]
    batch: tuple[int, ...]


def as_values(data: Any, dtype: DTypeLike | None, copy: bool | None, name: str) -> Array:
    """Return ``data`` as a C-contiguous ndarray in native byte order, copying as ``copy`` allows.

    Raises
    ------
    TypeError
        If it is no array of numbers.
    ValueError
        If ``copy=False`` and a copy is needed.
    """
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; pass {name}.filled(0)")
    array = np.asarray(data)
    if array.dtype == object and not isinstance(data, np.ndarray) and array.size == 0:
        array = array.astype(np.float64)
    check_storage(array.dtype, name)
    want = array.dtype.newbyteorder("=") if dtype is None else as_dtype(dtype)
    check_storage(want, "dtype")
    if array.dtype == want and array.flags.c_contiguous and array.flags.aligned:
        if not isinstance(data, np.ndarray) and copy is False:
            raise ValueError(f"{name} is not an ndarray, so copy=False cannot be kept")
        return array.copy() if copy and isinstance(data, np.ndarray) else array
    if copy is False:
        raise ValueError(
            f"copy=False, but {name} ({array.dtype}, C-contiguous: {array.flags.c_contiguous}) has to be "
            f"copied to C-contiguous {want}"
        )
    if array.dtype != want and array.dtype.kind == "c" and want.kind != "c":
        raise TypeError(f"{name} is complex: dtype={want} would drop the imaginary part")
    return np.array(array, dtype=want, order="C")


def as_index(index: Any, copy: bool | None, name: str) -> Index:
    """Return ``index`` as a contiguous int32 or int64 array; other integer types widen to int64.

    Raises
    ------
    TypeError
        If it does not hold integers.
    ValueError
        If a value does not fit int64, or ``copy=False`` and a copy is needed.
    """
    array = np.asarray(index)
    if array.size == 0 and not isinstance(index, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no integer type of its own
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.size and int(array.max()) > lay.MAX_INDEX:
        raise ValueError(f"{name} holds {int(array.max())}, which does not fit int64")
    want = array.dtype if array.dtype in (np.int32, np.int64) else np.dtype(np.int64)
    if array.dtype == want and array.flags.c_contiguous and array.flags.aligned:
        return array.copy() if copy and isinstance(index, np.ndarray) else array
    if copy is False:
        raise ValueError(f"copy=False, but {name} ({array.dtype}) has to be copied to contiguous {want}")
    return np.array(array, dtype=want, order="C")


def check_pattern(indices: Index, indptr: Index, cols: int | None) -> None:
    """Check offsets and columns of a pattern; ``indptr`` may carry batch dimensions.

    Raises
    ------
    ValueError
        If offsets do not start at 0, decrease, miss or exceed the number of blocks, or a column is outside
        ``[0, cols)``.
    """
    n = len(indices)
    if indptr.shape[-1] < 1:
        raise ValueError("indptr is empty: expected one offset more than there are block rows")
    table = indptr.reshape(-1, indptr.shape[-1])
    if len(table) == 0:
        if n:
            raise ValueError(f"there are {n} blocks but no batch member that could hold them")
        return
    if table[0, 0] != 0:
        raise ValueError(f"indptr must start at 0, got {table[0, 0]}")
    falls = np.argwhere(table[:, 1:] < table[:, :-1])
    if len(falls):
        at = int(falls[0, 1])
        raise ValueError(
            f"indptr must not decrease, but goes from {table[falls[0, 0], at]} to "
            f"{table[falls[0, 0], at + 1]} at block row {at}"
        )
    gaps = np.flatnonzero(table[1:, 0] != table[:-1, -1])
    if len(gaps):
        b = int(gaps[0])
        raise ValueError(
            f"each batch member must start where the one before ends, but member {b + 1} starts at "
            f"{table[b + 1, 0]} and member {b} ends at {table[b, -1]}"
        )
    if table[-1, -1] != n:
        raise ValueError(f"indptr ends at {table[-1, -1]}, but there are {n} indices")
    if n and int(indices.min()) < 0:
        raise ValueError(f"indices must not be negative, got {int(indices.min())}")
    if n and cols is not None and int(indices.max()) >= cols:
        raise ValueError(
            f"indices must be below {cols}, the number of block columns, got {int(indices.max())}"
        )


def from_triple(
    triple: tuple[Any, ...], shape: Any, blocksize: Any, dtype: DTypeLike | None, copy: bool | None
) -> Parts:
    """Check SciPy's ``(data, indices, indptr)``, or one of its batched forms."""
    data = as_values(triple[0], dtype, copy, "data")
    indices = as_index(triple[1], copy, "indices")
    indptr = as_index(triple[2], copy, "indptr")
    if data.ndim < 3:
        raise ValueError(f"data must have shape (blocks, rows, columns of a block), got {data.shape}")
    if indptr.ndim < 1 or indices.ndim < 1:
        raise ValueError("indices and indptr must be arrays, got a scalar")
    if indices.dtype != indptr.dtype:
        if copy is False:
            raise ValueError(f"copy=False, but indices is {indices.dtype} and indptr {indptr.dtype}")
        indices, indptr = indices.astype(np.int64, copy=False), indptr.astype(np.int64, copy=False)
    br, bc = data.shape[-2:]
    if br == 0 or bc == 0:
        raise ValueError(f"blocks must hold at least one value, got blocks of {br} x {bc}")
    if blocksize is not None and lay.as_blocksize(blocksize) != (br, bc):
        raise ValueError(f"blocksize is {lay.as_blocksize(blocksize)}, but data has blocks of {br} x {bc}")
    batch: tuple[int, ...]
    if indptr.ndim == 1:
        batch = data.shape[:-3]
        if indices.shape != (data.shape[-3],):
            raise ValueError(
                f"data has {data.shape[-3]} blocks, so indices must have shape ({data.shape[-3]},), "
                f"got {indices.shape}"
            )
    else:
        batch = indptr.shape[:-1]
        if indices.ndim == indptr.ndim and data.ndim == indptr.ndim + 2:
            data, indices, indptr = _from_rectangular(data, indices, indptr)
        elif indices.ndim != 1 or data.ndim != 3:
            raise ValueError(
                f"with indptr of shape {indptr.shape}, expected data (blocks, {br}, {bc}) and indices "
                f"(blocks,) over all members, or both with the batch dimensions {batch} in front; got data "
                f"{data.shape} and indices {indices.shape}"
            )
        if len(indices) != len(data):
            raise ValueError(f"data has {len(data)} blocks, but there are {len(indices)} indices")
    rows = indptr.shape[-1] - 1
    check_pattern(indices, indptr, None)
    if shape is None:
        cols = int(indices.max()) + 1 if len(indices) else 0
        full = lay.as_shape((*batch, rows * br, cols * bc))
    else:
        full = lay.as_shape(shape)
    if full[:-2] != batch:
        raise ValueError(f"shape is {full}, but data and indptr have batch dimensions {batch}")
    stored = full[-2], full[-1]
    if lay.blocks_along(stored[0], br) != rows:
        raise ValueError(
            f"{stored[0]} rows in blocks of {br} need an indptr of {lay.blocks_along(stored[0], br) + 1}, "
            f"got {rows + 1}"
        )
    cols = lay.blocks_along(stored[1], bc)
    lay.check_positions(math.prod(batch), rows, cols)
    check_pattern(indices, indptr, cols)
    return Parts(data, indices, indptr, stored, batch)


def _from_rectangular(data: Array, indices: Index, indptr: Index) -> tuple[Array, Index, Index]:
    """Turn torch's batched form (offsets from 0 in every member) into absolute offsets, values uncopied."""
    batch, n = indptr.shape[:-1], indices.shape[-1]
    if indices.shape[:-1] != batch or data.shape[:-2] != indices.shape:
        raise ValueError(
            f"data {data.shape}, indices {indices.shape} and indptr {indptr.shape} disagree: expected "
            f"(*B, n, br, bc), (*B, n) and (*B, rows + 1)"
        )
    if indptr.shape[-1] < 1:
        raise ValueError("indptr is empty: expected one offset more than there are block rows")
    if np.any(indptr[..., 0] != 0) or np.any(indptr[..., -1] != n):
        raise ValueError(f"every member's indptr must go from 0 to {n}, the number of blocks of a member")
    start = np.arange(math.prod(batch), dtype=np.int64).reshape(*batch, 1) * n
    shifted = (indptr + start).astype(lay.index_dtype(math.prod(batch) * n))
    flat = indices.reshape(-1)
    return data.reshape(-1, *data.shape[-2:]), flat.astype(shifted.dtype, copy=False), shifted


def empty(shape: Any, blocksize: Any, dtype: DTypeLike | None) -> Parts:
    """Return parts without a block: SciPy's ``bsr_array((m, n))``, float64 and 1 x 1 unless told."""
    full = lay.as_shape(shape)
    br, bc = lay.as_blocksize((1, 1) if blocksize is None else blocksize)
    kind = as_dtype(np.float64 if dtype is None else dtype)
    check_storage(kind, "dtype")
    rows, cols = lay.blocks_along(full[-2], br), lay.blocks_along(full[-1], bc)
    lay.check_positions(math.prod(full[:-2]), rows, cols)
    index = lay.index_dtype(max(cols, 1))
    return Parts(
        np.zeros((*full[:-2], 0, br, bc), kind),
        np.zeros(0, index),
        np.zeros(rows + 1, index),
        (full[-2], full[-1]),
        full[:-2],
    )


def from_coordinates(
    values: Any, row: Any, col: Any, shape: Any, blocksize: Any, dtype: DTypeLike | None
) -> Parts:
    """Build from COO: value k stands at (``row[k]``, ``col[k]``); equal positions are summed.

    Without ``blocksize`` it is estimated, as for a dense array.
    """
    data = as_values(values, dtype, None, "data")
    i, j = as_index(row, None, "row").astype(np.int64), as_index(col, None, "col").astype(np.int64)
    if data.ndim != 1 or i.shape != data.shape or j.shape != data.shape:
        raise ValueError(
            f"data, row and col must be equally long vectors, got {data.shape}, {i.shape}, {j.shape}"
        )
    if shape is None:
        shape = (int(i.max()) + 1, int(j.max()) + 1) if len(i) else (0, 0)
    full = lay.as_shape(shape)
    if len(full) != 2:
        raise ValueError(f"coordinates give a two-dimensional array, got shape={full}")
    for name, at, size in (("row", i, full[0]), ("col", j, full[1])):
        if len(at) and not 0 <= int(at.min()) <= int(at.max()) < size:
            raise ValueError(f"{name} must lie in [0, {size}), got {int(at.min())} to {int(at.max())}")
    br, bc = estimate_from_pattern(i, j, full) if blocksize is None else lay.as_blocksize(blocksize)
    rows, cols = lay.blocks_along(full[0], br), lay.blocks_along(full[1], bc)
    lay.check_positions(1, rows, cols)
    keys, at = np.unique((i // br) * max(cols, 1) + j // bc, return_inverse=True)
    wide = sum_dtype(data.dtype)[0]
    blocks = np.zeros((len(keys), br, bc), data.dtype if wide.kind in "biu" else wide)
    np.add.at(blocks, (at, i % br, j % bc), data.astype(blocks.dtype, copy=False))
    indices, indptr = lay.pattern_of(keys, rows, cols)
    return Parts(blocks.astype(data.dtype, copy=False), indices, indptr, (full[0], full[1]), ())


# Dense arrays --------------------------------------------------------------------------------------------


def as_dense(w: Any, dtype: DTypeLike | None) -> Array:
    """Return ``w`` as an ndarray of at least two dimensions, any strides.

    Raises
    ------
    TypeError, ValueError
        If it holds no numbers, or has fewer than two dimensions.
    """
    dense = as_array(w, "the array")
    check_storage(dense.dtype, "the array")
    want = dense.dtype.newbyteorder("=") if dtype is None else as_dtype(dtype)
    check_storage(want, "dtype")
    if dense.ndim < 2:
        raise ValueError(f"expected an array of at least two dimensions, got shape {dense.shape}")
    return dense.astype(want, copy=False)


def _grid(op: np.ufunc, dense: Array, br: int, bc: int, dtype: DType | None = None) -> Array:
    """Reduce every block of ``dense`` (m, n) with ``op``; ragged blocks at the edge are whole ones here."""
    m, n = dense.shape
    if m == 0 or n == 0:
        return np.zeros((lay.blocks_along(m, br), lay.blocks_along(n, bc)), dtype or dense.dtype)
    across = op.reduceat(dense, np.arange(0, n, bc), axis=1, dtype=dtype)
    return np.asarray(op.reduceat(across, np.arange(0, m, br), axis=0, dtype=dtype))


def block_norms(dense: Array, blocksize: tuple[int, int], norm: str) -> Array:
    """Return the norm of every block of ``dense`` (m, n) in float64: "fro", "max" or "l1"; NaN stays NaN."""
    if norm not in NORMS:
        raise ValueError(f'norm must be "fro", "max" or "l1", got {norm!r}')
    br, bc = blocksize
    # In strips of whole block rows that stay in the cache: the float64 values are only passing through.
    rows = max(_STRIP // max(br * dense.shape[1], 1), 1) * br
    norms = np.zeros((lay.blocks_along(dense.shape[0], br), lay.blocks_along(dense.shape[1], bc)))
    for start in range(0, dense.shape[0], rows):
        strip = _strip_norms(dense[start : start + rows], blocksize, norm)
        norms[start // br : start // br + len(strip)] = strip
    return norms


def _strip_norms(dense: Array, blocksize: tuple[int, int], norm: str) -> Array:
    br, bc = blocksize
    size = np.abs(dense.astype(np.float64) if dense.dtype.kind != "c" else dense).astype(
        np.float64, copy=False
    )
    if norm == "max":
        return _grid(np.maximum, size, br, bc)
    if norm == "l1":
        return _grid(np.add, size, br, bc)
    # Scaled near 1, so that squares of float64 neither overflow nor vanish; by a power of two, which rounds
    # nothing, so that equal blocks of two strips tie.
    top = float(size.max(initial=0.0))
    if not np.isfinite(top):
        top = float(np.max(size, initial=0.0, where=np.isfinite(size)))
    scale = math.ldexp(1.0, math.frexp(top)[1] - 1) if top > 0 else 1.0
    size /= scale
    size *= size
    return np.asarray(np.sqrt(_grid(np.add, size, br, bc)) * scale)


def live_blocks(dense: Array, blocksize: tuple[int, int], density: float | None, norm: str) -> Array:
    """Return the grid (bool) of blocks to keep: those with a non-zero, or the strongest by ``density``."""
    br, bc = blocksize
    if density is None:
        return _grid(np.logical_or, dense != 0, br, bc)
    share = as_fraction(density, "density")
    return strongest(block_norms(dense, blocksize, norm), share)


def strongest(norms: Array, share: float) -> Array:
    """Return the grid (bool) of the share of blocks with the largest norms, rounded up; ties: the first."""
    # A NaN block is never the weakest: it is kept first, as liveness has it.
    order = np.argsort(np.where(np.isnan(norms), -np.inf, -norms).reshape(-1), kind="stable")
    grid = np.zeros(norms.size, bool)
    grid[order[: count_of(share, norms.size)]] = True
    return grid.reshape(norms.shape)


def as_fraction(value: Any, name: str) -> float:
    """Return ``value`` as a float in [0, 1]; NaN and everything else raises."""
    try:
        fraction = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number from 0 to 1, got {value!r}") from None
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {fraction}")
    return fraction


def count_of(fraction: float, total: int) -> int:
    """Return ``ceil(fraction * total)``, forgiving the rounding of ``fraction`` itself (0.1 of 30 is 3)."""
    return min(total, math.ceil(fraction * total * (1 - 1e-12)))


def estimate_blocksize(dense: Array) -> tuple[int, int]:
    """Return the largest square block (at most 64) whose stored values are at least 70 % non-zero.

    The 70 % are SciPy's; its candidates stop at 6.
    """
    members = dense.reshape(math.prod(dense.shape[:-2]), *dense.shape[-2:])
    used = int(np.count_nonzero(members))
    for size in reversed(_ESTIMATES):
        if size > max(members.shape[1:], default=0):
            continue
        blocks = sum(int(_grid(np.logical_or, one != 0, size, size).sum()) for one in members)
        if used >= _FILL * blocks * size * size:
            return size, size
    return 1, 1


def estimate_from_pattern(row: Int64, col: Int64, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return what :func:`estimate_blocksize` does, for stored positions in place of non-zeros."""
    lay.check_positions(1, shape[0], shape[1])
    found, used = 1, -1
    for size in (1, *_ESTIMATES):
        if size > max(shape):
            break
        # The blocks so far lie within these, so each turn has fewer to go through.
        cols = np.int64(max(lay.blocks_along(shape[1], size), 1))
        row, col = np.divmod(np.unique(row // (size // found) * cols + col // (size // found)), cols)
        used = len(row) if used < 0 else used
        # Blocks do not fill up as they grow: none of the larger ones will do if this one does not.
        if used < _FILL * len(row) * size * size:
            break
        found = size
    return found, found


def from_grid(dense: Array, grids: Array, blocksize: tuple[int, int]) -> Parts:
    """Take the blocks that ``grids`` (*B or nothing, rows, cols; bool) marks out of ``dense`` (*B, m, n)."""
    br, bc = blocksize
    batch = dense.shape[:-2]
    m, n = dense.shape[-2:]
    rows, cols = lay.blocks_along(m, br), lay.blocks_along(n, bc)
    lay.check_positions(math.prod(batch), rows, cols)
    members = dense.reshape(math.prod(batch), m, n)
    shared = grids.ndim == 2
    stacked = grids.reshape(math.prod(grids.shape[:-1]), cols)
    row, col = np.nonzero(stacked)
    indices, indptr = lay.pattern_of(row * np.int64(max(cols, 1)) + col, len(stacked), cols)
    if shared:
        parts = [lay.gather(one, row, col, br, bc) for one in members]
        data = (
            np.stack(parts).reshape(*batch, len(row), br, bc)
            if parts
            else np.zeros((*batch, len(row), br, bc))
        )
        return Parts(data.astype(dense.dtype, copy=False), indices, indptr, (m, n), batch)
    data = np.empty((len(row), br, bc), dense.dtype)
    edges = np.searchsorted(row, np.arange(len(members) + 1) * rows)
    for b, one in enumerate(members):
        part = slice(int(edges[b]), int(edges[b + 1]))
        data[part] = lay.gather(one, row[part] - b * rows, col[part], br, bc)
    return Parts(data, indices, lay.unstack_indptr(indptr, batch, rows), (m, n), batch)


def from_dense(
    w: Any, blocksize: Any, density: float | None = None, norm: str = "fro", dtype: DTypeLike | None = None
) -> Parts:
    """Cut a dense array into blocks and keep those that matter; members of a batch get a pattern each."""
    dense = as_dense(w, dtype)
    size = estimate_blocksize(dense) if blocksize is None else lay.as_blocksize(blocksize)
    batch = dense.shape[:-2]
    if norm not in NORMS:
        raise ValueError(f'norm must be "fro", "max" or "l1", got {norm!r}')
    rows, cols = (lay.blocks_along(n, b) for n, b in zip(dense.shape[-2:], size, strict=True))
    lay.check_positions(math.prod(batch), rows, cols)
    grids = np.zeros((math.prod(batch), rows, cols), bool)
    members = dense.reshape(math.prod(batch), *dense.shape[-2:])
    for b, one in enumerate(members):
        grids[b] = live_blocks(one, size, density, norm)
    return from_grid(dense, grids.reshape(*batch, rows, cols), size)


def from_mask(mask: BlockMask, w: Any, dtype: DTypeLike | None = None) -> Parts:
    """Take ``mask``'s blocks out of a dense array; see ``BSR.from_mask``."""
    dense = as_dense(w, dtype)
    if dense.shape[-2:] != mask.shape[-2:]:
        raise ValueError(f"the array has shape {dense.shape}, the mask {mask.shape}")
    batch = mask.shape[:-2]
    if batch and dense.shape[:-2] != batch:
        if dense.shape[:-2] not in ((),):
            raise ValueError(f"the array has shape {dense.shape}, the mask {mask.shape}")
        dense = np.broadcast_to(dense, mask.shape)
    return from_grid(dense, mask.to_blocks(), mask.blocksize)


def is_shape(arg: tuple[Any, ...]) -> bool:
    """Say whether a constructor's tuple is a shape: integers throughout."""
    for size in arg:
        if isinstance(size, np.ndarray) and size.ndim:
            return False
        try:
            operator.index(size)
        except TypeError:
            return False
    return len(arg) > 0
