"""The operators of a BSR: ``@`` with its fast path, arithmetic, comparisons, and what is refused."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from prunus import _core, _elementwise, _format, _protocols, ops
from prunus._arrays import is_array_like, is_scipy
from prunus._dtypes import Array
from prunus._operands import is_on_disk
from prunus._storage import BlockStorage
from prunus._threads import THREADS
from prunus._trace import ACTIVE as TRACING
from prunus._trace import span
from prunus.engines import ACTIVE

# Bound once: the fast path below is what a small product consists of.
_ndarray = np.ndarray
_matmul = np.matmul
_dsd = _core.dsd
_dsd_packed = _core.dsd_packed
_writes_apart = _core.writes_apart
_empty = np.empty
_engine = ACTIVE.get
_traced = TRACING.get
_threads = THREADS.get


class Operators(BlockStorage):
    """Python's and NumPy's operators; see :class:`prunus.BSR`."""

    __slots__ = ()
    __array_priority__: ClassVar[float] = 20.0
    __hash__: ClassVar[None]  # type: ignore[assignment]

    # Products ----------------------------------------------------------------------------------------

    def __matmul__(self, other: Any) -> Any:
        # The plain cases first: no batch, one dtype, the CPU. Everything else goes through ops.
        if type(other) is _ndarray:
            fast = self._fast
            if other.dtype is fast and _engine() is None:
                shape = other.shape
                if shape and shape[0] == self._cols:
                    if len(shape) == 2:
                        out = _empty((self._rows, shape[1]), fast)
                        self._multiply(self._t, other, out)
                        return out
                    if len(shape) == 1:
                        out = _empty(self._rows, fast)
                        self._multiply(self._t, other[:, None], out[:, None])
                        return out
        elif not _is_operand(other):
            return NotImplemented
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        # The same, as (self.T @ other.T).T on the same memory.
        if type(other) is _ndarray:
            fast = self._fast
            if other.dtype is fast and _engine() is None:
                shape = other.shape
                if shape and shape[-1] == self._rows:
                    if len(shape) == 2:
                        out = _empty((shape[0], self._cols), fast)
                        self._multiply(not self._t, other.T, out.T)
                        return out
                    if len(shape) == 1:
                        out = _empty(self._cols, fast)
                        self._multiply(not self._t, other[:, None], out[:, None])
                        return out
        elif not _is_operand(other):
            return NotImplemented
        return ops.matmul(other, self)

    def _multiply(self, t: bool, x: Array, out: Array) -> None:
        """Call the kernel with this array, transposed if ``t``, on checked operands."""
        if _traced() is not None:
            with span("matmul") as at:
                self._call(t, x, out)
                at.ran("cpu")
                ops.count(at, self, x.shape[1])
        else:
            self._call(t, x, out)

    def _call(self, t: bool, x: Array, out: Array) -> None:
        packed = self._packed
        if packed is None:
            data: Any = self._data  # an ndarray, as nothing is packed
            _dsd(data, self._indices, self._indptr, self._stored, t, x, out, None, None, _threads())
        else:
            _dsd_packed(packed, t, x, out, None, None, _threads())

    def _into(self, x: Any, out: Any) -> bool:
        """Write ``self @ x`` to ``out`` if the plain case needs no more than that; else do nothing."""
        if not (type(x) is type(out) is _ndarray and x.dtype is out.dtype is self._fast and not _engine()):
            return False
        shape, vector = x.shape, x.ndim == 1
        fits = shape[0] == self._cols if shape else False
        if not fits or out.shape != (self._rows, *shape[1:]) or len(shape) > 2 or not out.flags.writeable:
            return False
        if not _writes_apart(out, x, self._data, self._indices, self._indptr):
            return False
        self._multiply(self._t, x[:, None] if vector else x, out[:, None] if vector else out)
        return True

    def dot(self, other: Any) -> Any:
        """Return ``self @ other``; with a scalar, the elementwise product, as NumPy and SciPy have it."""
        return self * other if _elementwise.is_scalar(other) else ops.matmul(self, other)

    # Arithmetic --------------------------------------------------------------------------------------

    def _apply(self, ufunc: np.ufunc, other: Any, left: bool = False) -> Any:
        """Apply a binary function, with ``other`` as its first argument if ``left``."""
        if not _is_operand(other) and not _elementwise.is_scalar(other):
            return NotImplemented
        return _elementwise.apply(ufunc, other, self) if left else _elementwise.apply(ufunc, self, other)

    def __add__(self, other: Any) -> Any:
        return self._apply(np.add, other)

    def __radd__(self, other: Any) -> Any:
        return self._apply(np.add, other, left=True)

    def __sub__(self, other: Any) -> Any:
        return self._apply(np.subtract, other)

    def __rsub__(self, other: Any) -> Any:
        return self._apply(np.subtract, other, left=True)

    def __mul__(self, other: Any) -> Any:
        return self._apply(np.multiply, other)

    def __rmul__(self, other: Any) -> Any:
        return self._apply(np.multiply, other, left=True)

    def __truediv__(self, other: Any) -> Any:
        return self._apply(np.divide, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._apply(np.divide, other, left=True)

    def __pow__(self, other: Any) -> Any:
        return self._apply(np.power, other)

    def __imul__(self, other: Any) -> Self:
        if not _elementwise.is_scalar(other):
            return NotImplemented
        return _elementwise.in_place(np.multiply, self, other)

    def __itruediv__(self, other: Any) -> Self:
        if not _elementwise.is_scalar(other):
            return NotImplemented
        return _elementwise.in_place(np.divide, self, other)

    def __neg__(self) -> Self:
        return _elementwise.unary(np.negative, self)

    def __pos__(self) -> Self:
        return self._with_data(self._data.copy())

    def __abs__(self) -> Self:
        return _elementwise.unary(np.absolute, self)

    # Comparisons: a BSR of booleans where 0 compares false, else an error -------------------------------

    def __eq__(self, other: object) -> Any:
        return self._apply(np.equal, other)

    def __ne__(self, other: object) -> Any:
        return self._apply(np.not_equal, other)

    def __lt__(self, other: Any) -> Any:
        return self._apply(np.less, other)

    def __le__(self, other: Any) -> Any:
        return self._apply(np.less_equal, other)

    def __gt__(self, other: Any) -> Any:
        return self._apply(np.greater, other)

    def __ge__(self, other: Any) -> Any:
        return self._apply(np.greater_equal, other)

    # NumPy's protocols ---------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        # ``ndarray @ BSR`` arrives here, as NumPy's operators do not defer to a type with this method.
        if ufunc is _matmul and len(inputs) == 2 and method == "__call__":
            a, b = inputs
            if kwargs:
                if len(kwargs) == 1 and "out" in kwargs:
                    out = kwargs["out"][0]
                    return out if a is self and self._into(b, out) else ops.matmul(a, b, out)
            elif type(a) is _ndarray:
                return b.__rmatmul__(a)
            elif a is self and type(b) is _ndarray:
                return self.__matmul__(b)
        return _protocols.array_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _protocols.array_function(func, args, kwargs)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError("a BSR is not turned into a dense array behind your back; call W.toarray()")

    @property
    def _mask(self) -> NoReturn:
        # What np.ma reads of an operand it does not know, beside its ``_data``, which are blocks here.
        raise TypeError("a masked array's mask would be lost in a BSR; use its .filled(0)")

    # What an array of several values refuses -----------------------------------------------------------

    def __bool__(self) -> bool:
        if self.shape[-2:] == (1, 1) and not self._batch:
            return bool(_reduced(self))
        raise ValueError(
            "the truth value of a BSR is ambiguous; W.count_nonzero() or W.toarray() says what you mean"
        )

    def __len__(self) -> int:
        raise TypeError("the length of a sparse array is ambiguous; use W.shape[0] or W.nnz")

    def __iter__(self) -> NoReturn:
        raise TypeError("a BSR is not iterated over; index rows with W[i], or iterate over W.toarray()")

    def __contains__(self, value: object) -> NoReturn:
        raise TypeError("a BSR is not searched with 'in'; use W.toarray() or W.data")

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError("values of a BSR are set through W.data, whose blocks it stores")

    def __delitem__(self, key: Any) -> NoReturn:
        raise TypeError("parts of a BSR are not deleted; W[rows] and W[:, cols] keep those that are named")

    # Copies, pickles, text -------------------------------------------------------------------------------

    def __copy__(self) -> Self:
        # A frozen array does not change, so it is its own copy; W.copy() is how it is unpacked.
        return self if self.frozen else self._with_data(self._data.copy())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self._values(), self._indices, self._indptr, self._stored, self._batch, self._t)
        return _restore, (type(self), parts, self._packed is not None)

    def __repr__(self) -> str:
        return _format.describe(self)


def _restore(cls: Any, parts: tuple[Any, ...], packed: bool) -> Any:
    """Undo ``__reduce__``; a frozen array is packed again for the machine that loads it."""
    array = cls._wrap(*parts)
    return array.pack() if packed else array


def _reduced(a: BlockStorage) -> Array:
    return np.asarray(a._canonical()._clean().sum())


def _is_operand(other: Any) -> bool:
    """Say whether operators take ``other``; what has a better idea is asked, what would be copied raises.

    Raises
    ------
    TypeError
        For SciPy sparse arrays, naming the conversion.
    """
    if isinstance(other, (BlockStorage, np.ndarray, list, tuple)):
        return True
    if is_scipy(other):
        raise TypeError("a SciPy sparse array is not converted behind your back; wrap it with pr.BSR(...)")
    return is_on_disk(other) or is_array_like(other)
