"""Methods of SciPy's arrays that users look for on a BSR, and where to find the rest."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from prunus import _indexing
from prunus._dtypes import Array, sum_dtype
from prunus._storage import BlockStorage

if TYPE_CHECKING:
    import scipy.sparse

# What scipy.sparse.bsr_array and bsr_matrix have and a BSR has not.
_ELSEWHERE: Final = frozenset(
    {
        "arcsin", "arcsinh", "arctan", "arctanh", "argmax", "argmin", "asformat", "asfptype", "ceil",
        "conj", "conjugate", "deg2rad", "expm1", "floor", "format", "getH", "get_shape", "getcol",
        "getformat", "getmaxprint", "getnnz", "getrow", "imag", "log1p", "maximum", "minimum", "nanmax",
        "nanmin", "nonzero", "power", "prune", "rad2deg", "real", "reshape", "resize", "rint", "set_shape",
        "setdiag", "sign", "sin", "sinh", "sorted_indices", "sqrt", "tan", "tanh", "tocsc", "todia",
        "todok", "tolil", "trunc",
    }
)  # fmt: skip


class ScipyNames(BlockStorage):
    """Diagonals, and SciPy's other formats; see :class:`prunus.BSR`."""

    __slots__ = ()

    def diagonal(self, k: int = 0) -> Array:
        """Return the values at (i, i + k) as a dense array (*B, length), zeros where no block is stored.

        Parameters
        ----------
        k : int
            Which diagonal: above the main one if positive, below it if negative. One outside of the array
            is empty.

        Examples
        --------
        >>> import numpy as np
        >>> import prunus as pr
        >>> pr.BSR(np.arange(6.0).reshape(2, 3), blocksize=2).diagonal(1)
        array([1., 5.])
        """
        k = operator.index(k)
        first = max(-k, 0)
        rows = np.arange(first, max(min(self._rows, self._cols - k), first), dtype=np.int64)
        return _indexing.points(self, rows, rows + k)

    def trace(self, offset: int = 0) -> Any:
        """Return the sum of a diagonal: a scalar, or an array (*B) of a batch; see :meth:`diagonal`.

        float16 and bfloat16 accumulate in float32; integers sum in NumPy's default integer.
        """
        wide, natural = sum_dtype(self.dtype)
        total = np.asarray(self.diagonal(offset).astype(wide, copy=False).sum(axis=-1, dtype=wide))
        return total.astype(natural, copy=False)[()]

    def tobsr(self, blocksize: tuple[int, int] | None = None, copy: bool = False) -> scipy.sparse.bsr_array:
        """Return a SciPy BSR array, see ``to_scipy``; in blocks of ``blocksize`` if given."""
        return self._scipy(copy).tobsr(blocksize)

    def tocoo(self, copy: bool = True) -> scipy.sparse.coo_array:
        """Return a SciPy COO array: ``to_scipy().tocoo()``."""
        return self._scipy().tocoo(copy=copy)

    def tocsr(self, copy: bool = False) -> scipy.sparse.csr_array:
        """Return a SciPy CSR array: ``to_scipy().tocsr()``."""
        return self._scipy().tocsr(copy=copy)

    def _scipy(self, copy: bool = False) -> scipy.sparse.bsr_array:
        from prunus.interop.scipy import to_scipy

        # SciPy's False means: only if needed.
        return to_scipy(self, copy or None)

    if not TYPE_CHECKING:  # a type checker must not think that a BSR has every attribute

        def __getattr__(self, name: str) -> NoReturn:
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _ELSEWHERE:
                message += f"; SciPy's arrays have it: W.to_scipy().{name}"
            raise AttributeError(message, name=name, obj=self)


__all__ = ["ScipyNames"]
