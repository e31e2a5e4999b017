"""How block-sparse arrays on disk take part in ``@`` and NumPy's calls, and their lazy transpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prunus import ops
from prunus._arrays import is_array_like, is_scipy
from prunus._dtypes import Array, DType
from prunus._storage import BlockStorage

if TYPE_CHECKING:
    from prunus._bsr import BSR
    from prunus._mask import BlockMask
    from prunus.paged.sparse import PagedBSR

__all__ = ["Multiplying", "PagedTranspose", "refusal"]


def _is_operand(value: Any) -> bool:
    if isinstance(value, (BlockStorage, np.ndarray, np.generic, list, tuple, Multiplying)):
        return True
    if is_scipy(value):
        raise TypeError("a SciPy sparse array is not converted behind your back; wrap it with pr.BSR(...)")
    return type(value).__module__.startswith("prunus.paged.") or is_array_like(value)


def refusal(name: str) -> str:
    """Return what a NumPy function says that does not take block-sparse arrays on disk."""
    return (
        f"np.{name} is not supported for a block-sparse array on disk: products run as W @ x, x @ W or "
        "pr.matmul(W, x); for the rest call .load() or .toarray() first"
    )


class Multiplying:
    """Products of a block-sparse array on disk; all else raises and names ``load()``."""

    __slots__ = ()
    __array_priority__: ClassVar[float] = 40.0

    def __matmul__(self, other: Any) -> Any:
        return ops.matmul(self, other) if _is_operand(other) else NotImplemented

    def __rmatmul__(self, other: Any) -> Any:
        return ops.matmul(other, self) if _is_operand(other) else NotImplemented

    def dot(self, other: Any) -> Any:
        """Return ``self @ other``."""
        return ops.matmul(self, other)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if ufunc is not np.matmul or method != "__call__":
            raise TypeError(
                f"np.{ufunc.__name__} is not supported for a block-sparse array on disk; call .load() first"
            )
        out = kwargs.pop("out", None)
        dtype = kwargs.pop("dtype", None)
        if kwargs:
            raise TypeError(
                f"np.matmul with a block-sparse array takes out= and dtype=, not {', '.join(kwargs)}="
            )
        a, b = inputs
        return ops.matmul(a, b, out=out[0] if isinstance(out, tuple) else out, dtype=dtype)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is np.dot:
            return ops.matmul(*args, **kwargs)
        if func in (np.shape, np.ndim):
            return getattr(args[0], func.__name__)
        raise TypeError(refusal(func.__name__))

    def toarray(self) -> Array:
        """Return the array as a dense one in memory, zeros and all; ``load`` keeps it block-sparse."""
        return self.load().toarray()

    def load(self) -> BSR:
        """Return the array in memory."""
        raise NotImplementedError

    def _refuse(self, other: Any = None) -> Any:
        raise TypeError("a block-sparse array on disk has products only; call .load() for the rest")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __neg__ = __abs__ = __getitem__ = __iter__ = __len__ = __bool__ = _refuse

    @property
    def T(self) -> Any:  # noqa: N802 - NumPy's name
        """The transpose of the last two axes; nothing is read."""
        raise NotImplementedError


class PagedTranspose(Multiplying):
    """The transpose of a block-sparse array on disk: the same blocks, read in the same order.

    Attributes
    ----------
    T : PagedBSR
        The array that it is the transpose of.
    """

    __slots__ = ("_of",)

    def __init__(self, of: PagedBSR) -> None:
        self._of = of

    @property
    def T(self) -> PagedBSR:  # noqa: N802
        """The array that this is the transpose of."""
        return self._of

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, with batch dimensions in front."""
        *batch, m, k = self._of.shape
        return (*batch, k, m)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._of.shape)

    @property
    def blocksize(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        br, bc = self._of.blocksize
        return bc, br

    @property
    def dtype(self) -> DType:
        """Dtype of the values."""
        return self._of.dtype

    @property
    def nnzb(self) -> int:
        """Number of stored blocks, over all batch members."""
        return self._of.nnzb

    @property
    def density(self) -> float:
        """Share of block positions that are stored."""
        return self._of.density

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices."""
        return self._of.nbytes

    @property
    def mask(self) -> BlockMask:
        """Which blocks are stored."""
        return self._of.mask.T

    def load(self) -> BSR:
        """Return the array in memory."""
        return self._of.load().T

    def prefetch(self) -> None:
        """Have the pager fetch the blocks, as far as its budget goes; returns at once."""
        self._of.prefetch()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Refuse: nothing is read or densified behind the user's back."""
        raise TypeError(
            "a block-sparse array on disk is not made dense implicitly; call .load() or .toarray()"
        )

    def __repr__(self) -> str:
        return f"<transpose of {self._of!r}>"
