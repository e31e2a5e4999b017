"""``prune`` and ``grow``: stored patterns that change between the steps of a training loop.

Dropping the weakest blocks and growing others where a score asks for them is dynamic sparse training:
magnitude pruning (Han et al., 2015, arXiv:1506.02626), and RigL (Evci et al., 2020, arXiv:1911.11134), which
grows where the gradient is largest and starts new weights at 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prunus import _layout as lay
from prunus._arrays import as_array
from prunus._bsr import BSR
from prunus._construct import as_fraction, block_norms, count_of
from prunus._device import what
from prunus._dtypes import BFLOAT16, Array
from prunus._layout import Int64
from prunus._mask import BlockMask
from prunus._storage import BlockStorage
from prunus.pruning._checks import check_count

__all__ = ["grow", "prune"]

_BY = {"l2": "fro", "max": "max"}


def prune(W: BSR, density: float, by: str | ArrayLike = "l2") -> BSR:
    """Return an array that keeps the strongest stored blocks.

    Parameters
    ----------
    W : BSR
        Shape (*B, m, n). It stays as it is.
    density : float
        From 0 to 1: keeps ``ceil(density * blocks)`` of all block positions of a matrix, as
        ``BSR.from_dense(density=)`` does; all that are stored, where there are fewer.
    by : {"l2", "max"} or array_like
        How strong a block is: root of the sum of squares of its values, or the largest absolute one, where a
        block with NaN is the strongest. Or scores, real and without NaN: one for each stored block in the
        order of ``W.data`` (its shape without the last two axes), or a grid (*B, block rows, block columns).

    Returns
    -------
    BSR
        Writable, sorted, without duplicates, of W's shape, dtype and block size; a lazy transpose has become
        a physical one. Of equal blocks the first are kept. In a batch every member with a pattern of its own
        keeps that many; members that share one go on sharing: a block's strength is then pooled over them
        (sum of squares, or maximum; the sum of scores), unless ``by`` is a grid with the batch's dimensions,
        which gives each its own.

    Raises
    ------
    ValueError
        If ``density`` is NaN or outside [0, 1], scores hold NaN or have another shape, or W has duplicate
        blocks and there is a score for each.
    TypeError
        If W is no BSR, or scores are no real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> W = pr.BSR(np.diag([3.0, 1.0, 2.0, 0.5]), blocksize=1)
    >>> pr.prune(W, density=0.125).toarray().max(axis=0)
    array([3., 0., 2., 0.])
    """
    _check_array(W, "prune")
    share = as_fraction(density, "density")
    if isinstance(by, str):
        if by not in _BY:
            raise ValueError(f'by must be "l2", "max" or an array of scores, got {by!r}')
        array = W._physical()._canonical()
        strength = _norms(array, by)
    else:
        scores = _real(by)
        if _is_grid(scores, W):
            array = W._physical()._canonical()
            if scores.ndim > 2 and not array._own:
                array = array._with_own()
            strength = scores.reshape(-1)[array._keys()]
        else:
            array, strength = _by_block(W, scores)
    keys, positions = array._keys(), math.prod(array._grid)
    member = keys // max(positions, 1)
    # By member, then strongest first; the sort is stable, so that equal blocks stay in order.
    order = np.lexsort((-strength, member))
    rank = np.arange(len(keys)) - np.searchsorted(member, member)
    kept = np.sort(order[rank < count_of(share, positions)])
    # Indexing with an array copies, in an order of its own where there are leading axes.
    return _assemble(array, np.ascontiguousarray(array._values()[..., kept, :, :]), keys[kept])


def grow(
    W: BSR,
    mask: BlockMask | ArrayLike | None = None,
    scores: ArrayLike | None = None,
    *,
    count: int | None = None,
    density: float | None = None,
) -> BSR:
    """Return an array with more blocks: new ones hold zeros, those that are there stay as they are.

    Parameters
    ----------
    W : BSR
        Shape (*B, m, n). It stays as it is.
    mask : BlockMask or array_like of bool, optional
        Where blocks may be added: a mask of W's shape and block size, or a grid (*B, block rows, block
        columns). None: everywhere. Without ``scores``, all of them are added.
    scores : array_like, optional
        The same grid, real and without NaN: the absent blocks with the highest are added, of equal ones the
        first; -inf is never. In RigL, norms of the gradient's blocks. Needs ``count`` or ``density``.
    count : int, optional
        How many blocks to add at most, to every member with a pattern of its own.
    density : float, optional
        From 0 to 1: adds up to ``ceil(density * blocks)`` blocks in all, and none where there are more
        already.

    Returns
    -------
    BSR
        Writable, sorted, without duplicates. A mask or scores with the batch's dimensions give every member a
        pattern of its own.

    Raises
    ------
    ValueError
        If shapes do not fit, scores hold NaN, a number is out of range, or it is not said what to add.
    TypeError
        If W is no BSR, the mask no booleans, or scores no real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> W = pr.BSR(np.diag([1.0, 2.0]), blocksize=1)
    >>> pr.grow(W, scores=[[0.0, 3.0], [4.0, 0.0]], count=1).indices
    array([0, 0, 1], dtype=int32)
    """
    _check_array(W, "grow")
    if scores is None and (count is not None or density is not None):
        raise ValueError("count= and density= choose by scores: pass scores=")
    if scores is None and mask is None:
        raise ValueError("grow takes a mask, scores, or both")
    if scores is not None and (count is None) == (density is None):
        raise ValueError("grow by scores takes either count= or density=")
    array = W._physical()._canonical()
    allowed = None if mask is None else _grid_of(mask, array)
    values = None if scores is None else _real(scores)
    size = array._data.shape[-2:]
    for name, grid in (("mask", allowed), ("scores", values)):
        if grid is None:
            continue
        if not _is_grid(grid, array):
            shapes = dict.fromkeys((array._grid, (*array._batch, *array._grid)))
            raise ValueError(
                f"{name} must have a value for each block of {size[0]} x {size[1]}, shape "
                f"{' or '.join(str(shape) for shape in shapes)}; got shape {grid.shape}"
            )
        if grid.ndim > 2:
            array = array._with_own()
    positions = math.prod(array._grid)
    members = math.prod(array._batch) if array._own else 1
    stored = np.zeros((members, positions), bool)
    stored.reshape(-1)[array._keys()] = True
    free = ~stored if allowed is None else ~stored & allowed.reshape(-1, positions)
    if values is not None:
        wanted = np.zeros(members, np.int64) + check_count(count, "count") if density is None else None
        if wanted is None:
            wanted = np.maximum(count_of(as_fraction(density, "density"), positions) - stored.sum(axis=1), 0)
        free = _highest(np.broadcast_to(values.reshape(-1, positions), free.shape), free, wanted)
    keys = array._keys()
    every = np.union1d(keys, np.flatnonzero(free)).astype(np.int64)
    old = array._values()
    data = np.zeros((*old.shape[:-3], len(every), *old.shape[-2:]), old.dtype)
    data[..., np.searchsorted(every, keys), :, :] = old
    return _assemble(array, data, every)


def _check_array(W: Any, name: str) -> None:
    if not isinstance(W, BlockStorage):
        raise TypeError(f"{name} takes a BSR, got {what(W)}")


def _assemble(like: BSR, data: Array, keys: Int64) -> BSR:
    """Return an array with these blocks at sorted, distinct keys, and the rest as ``like``."""
    rows, cols = like._grid
    members = math.prod(like._batch) if like._own else 1
    indices, indptr = lay.pattern_of(keys, members * rows, cols)
    indptr = lay.unstack_indptr(indptr, like._batch if like._own else (), rows)
    return like._wrap(data, indices, indptr, like._stored, like._batch)


def _norms(array: BlockStorage, by: str) -> Array:
    """Return the strength of every stored block in float64, pooled over members that share a pattern."""
    data = array._clean()
    blocks, size = data.shape[-3], data.shape[-2:]
    every: Array = block_norms(data.reshape(-1, size[1]), size, _BY[by])
    norms = np.where(np.isnan(every), np.inf, every).reshape(math.prod(data.shape[:-3]), blocks)
    if len(norms) == 1:
        return np.asarray(norms[0])
    pooled = norms.max(axis=0, initial=0.0)
    if by == "l2":
        # Over the largest, so that squares neither overflow nor vanish.
        top = np.where((pooled > 0) & np.isfinite(pooled), pooled, 1.0)
        pooled = np.sqrt(((norms / top) ** 2).sum(axis=0)) * top
    return np.asarray(pooled)


def _by_block(W: BSR, scores: Array) -> tuple[BSR, Array]:
    """Return W with sorted blocks, and the score of each."""
    shape = W._data.shape[:-2]
    if scores.shape not in (shape, shape[-1:]):
        raise ValueError(
            f"scores must have a value for each of {shape[-1]} stored blocks, or for each block of the grid; "
            f"got shape {scores.shape}"
        )
    if scores.ndim > 1:
        scores = scores.reshape(-1, shape[-1]).sum(axis=0)
    array = W._physical()
    order = lay.sort_order(array._indices, array._stacked)
    if not W.has_canonical_format and len(np.unique(W._keys())) < len(order):
        raise ValueError(
            "W has duplicate blocks, which have no score of their own; W.sum_duplicates() adds them"
        )
    return array._canonical(), scores[order]


def _real(scores: Any) -> Array:
    """Return scores as float64.

    Raises
    ------
    TypeError, ValueError
        If they are no real numbers, or hold NaN.
    """
    array = as_array(scores, "scores", "an array of real numbers")
    if array.dtype.kind not in "biuf" and array.dtype != BFLOAT16:
        raise TypeError(f"scores must hold real numbers, got dtype {array.dtype}")
    wide: Array = array.astype(np.float64)
    bad = np.argwhere(np.isnan(wide))
    if len(bad):
        raise ValueError(f"scores hold NaN, first at {tuple(bad[0].tolist())}")
    return wide


def _is_grid(grid: Array, W: BlockStorage) -> bool:
    """Say whether ``grid`` has one value for each block of W, or of a member."""
    size = W._grid[::-1] if W._t else W._grid
    return grid.shape == (*W._batch, *size) or (grid.shape == size and not W._own)


def _grid_of(mask: Any, array: BlockStorage) -> Array:
    """Return a mask as a grid of booleans."""
    if isinstance(mask, BlockMask):
        size = array._data.shape[-2:]
        if mask.blocksize != size or mask.shape[-2:] != array._stored:
            raise ValueError(
                f"mask must have the array's shape {array.shape} in blocks of {size}, got {mask.shape} in "
                f"blocks of {mask.blocksize}"
            )
        return np.asarray(mask.to_blocks())
    grid = as_array(mask, "mask", "a BlockMask or an array of booleans")
    if grid.dtype != bool:
        raise TypeError(f"mask must be a BlockMask or an array of booleans, got dtype {grid.dtype}")
    return grid


def _highest(values: Array, free: Array, wanted: Int64) -> Array:
    """Return where each row has its ``wanted`` highest free values; of equal ones the first, -inf never."""
    chosen = np.zeros(free.shape, bool)
    for i, number in enumerate(wanted):
        at = np.flatnonzero(free[i] & (values[i] > -np.inf))
        chosen[i, at[np.argsort(-values[i, at], kind="stable")[:number]]] = True
    return chosen
