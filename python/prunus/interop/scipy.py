"""SciPy's sparse arrays, both ways."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from prunus import _construct, _elementwise
from prunus._dtypes import HALVES
from prunus._storage import BlockStorage

if TYPE_CHECKING:
    import scipy.sparse

S = TypeVar("S", bound=BlockStorage)


def from_scipy(cls: type[S], array: Any, blocksize: Any, copy: bool | None) -> S:
    """Return a SciPy sparse array as a BSR; a SciPy BSR shares its blocks.

    Parameters
    ----------
    cls : type
        What to build.
    array : SciPy sparse array or matrix
        Two dimensions; formats other than BSR are sorted into blocks of ``blocksize``, which is estimated
        from the stored positions if None.

    Raises
    ------
    ValueError
        If the array has not two dimensions, or ``copy=False`` and a copy is needed.
    """
    if array.ndim != 2:
        raise ValueError(f"expected a sparse array of two dimensions, got shape {array.shape}")
    if array.format == "bsr":
        triple = (array.data, array.indices, array.indptr)
        return cls._wrap(*_construct.from_triple(triple, array.shape, None, None, copy))
    if copy is False:
        raise ValueError(f"copy=False, but a SciPy {array.format} array has to be sorted into blocks")
    coo = array.tocoo()
    return cls._wrap(*_construct.from_coordinates(coo.data, coo.row, coo.col, array.shape, blocksize, None))


def to_scipy(a: BlockStorage, copy: bool | None) -> scipy.sparse.bsr_array:
    """Return ``a`` as a SciPy BSR; see ``BSR.to_scipy``."""
    a._check()
    import scipy.sparse

    if a.ndim != 2:
        raise ValueError(
            f"SciPy arrays have two dimensions, this one has shape {a.shape}; convert members W[b]"
        )
    if a.dtype in HALVES:
        raise TypeError(f"SciPy has no sparse {a.dtype}; convert first, W.astype(np.float32).to_scipy()")
    m, n = a.shape
    br, bc = a.blocksize
    ragged = bool(m % br or n % bc)
    reasons = {
        "a lazy transpose has to be made physical": a._t,
        "SciPy's blocks must divide the shape": ragged,
        "a frozen array has a layout of its own": a.frozen,
    }
    if copy is False and any(reasons.values()):
        raise ValueError("copy=False, but " + next(why for why, true in reasons.items() if true))
    array = a._physical()._thawed()
    if ragged:
        # The largest blocks that divide both the shape and ours.
        array = _elementwise.reblock(array, (math.gcd(br, m) or br, math.gcd(bc, n) or bc))
    data, indices, indptr = array._values(), array._indices, array._indptr
    if copy and array is a:
        data, indices, indptr = data.copy(), indices.copy(), indptr.copy()
    return scipy.sparse.bsr_array((data, indices, indptr), shape=(m, n), copy=False)


__all__ = ["from_scipy", "to_scipy"]
