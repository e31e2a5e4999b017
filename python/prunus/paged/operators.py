"""Python's operators in terms of ufuncs, and NumPy's protocols, for arrays on disk and expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from prunus._arrays import is_array_like
from prunus._dtypes import Array, DType, as_dtype
from prunus._storage import BlockStorage

__all__ = ["InPlace", "Operators"]


def _is_operand(value: Any) -> bool:
    """Say whether an operator may take ``value``; what has ideas of its own is asked first."""
    if isinstance(value, (Operators, BlockStorage, np.ndarray, np.generic, int, float, complex, list, tuple)):
        return True
    return is_array_like(value)


def _binary(ufunc: np.ufunc) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    def forward(self: Any, other: Any) -> Any:
        return ufunc(self, other) if _is_operand(other) else NotImplemented

    def backward(self: Any, other: Any) -> Any:
        return ufunc(other, self) if _is_operand(other) else NotImplemented

    return forward, backward


def _unary(ufunc: np.ufunc) -> Callable[[Any], Any]:
    def apply(self: Any) -> Any:
        return ufunc(self)

    return apply


def _in_place(ufunc: np.ufunc) -> Callable[[Any, Any], Any]:
    def apply(self: Any, other: Any) -> Any:
        return ufunc(self, other, out=(self,)) if _is_operand(other) else NotImplemented

    return apply


class Operators:
    """Arithmetic, comparisons and protocols; attributes that follow from shape and dtype."""

    __slots__ = ()
    __array_priority__: ClassVar[float] = 30.0
    __hash__: ClassVar[None]  # type: ignore[assignment]

    on_disk: ClassVar[bool] = True

    shape: tuple[int, ...]
    dtype: DType

    __add__, __radd__ = _binary(np.add)
    __sub__, __rsub__ = _binary(np.subtract)
    __mul__, __rmul__ = _binary(np.multiply)
    __truediv__, __rtruediv__ = _binary(np.true_divide)
    __floordiv__, __rfloordiv__ = _binary(np.floor_divide)
    __mod__, __rmod__ = _binary(np.remainder)
    __divmod__, __rdivmod__ = _binary(np.divmod)
    _, __rpow__ = _binary(np.power)
    __lshift__, __rlshift__ = _binary(np.left_shift)
    __rshift__, __rrshift__ = _binary(np.right_shift)
    __and__, __rand__ = _binary(np.bitwise_and)
    __or__, __ror__ = _binary(np.bitwise_or)
    __xor__, __rxor__ = _binary(np.bitwise_xor)
    __matmul__, __rmatmul__ = _binary(np.matmul)
    __lt__, _ = _binary(np.less)
    __le__, _ = _binary(np.less_equal)
    __gt__, _ = _binary(np.greater)
    __ge__, _ = _binary(np.greater_equal)
    __eq__, _ = _binary(np.equal)
    __ne__, _ = _binary(np.not_equal)
    __neg__ = _unary(np.negative)
    __pos__ = _unary(np.positive)
    __abs__ = _unary(np.absolute)
    __invert__ = _unary(np.invert)

    def __pow__(self, other: Any) -> Any:
        # NumPy's operator squares where the exponent is 2, which for booleans is another dtype.
        if self.dtype == bool and type(other) is int and other == 2:
            return np.square(self)
        return np.power(self, other) if _is_operand(other) else NotImplemented

    # What follows from shape and dtype -----------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __bool__(self) -> bool:
        if self.size == 1:
            return bool(self.item())
        raise ValueError(
            f"the truth value of an array of {self.size} values is ambiguous; use a.any() or a.all()"
        )

    def _scalar(self) -> Any:
        if self.size != 1:
            raise TypeError("only arrays of one value can be converted to a Python number")
        return self.item()

    def __int__(self) -> int:
        return int(self._scalar())

    def __float__(self) -> float:
        return float(self._scalar())

    def __complex__(self) -> complex:
        return complex(self._scalar())

    def __index__(self) -> int:
        if self.shape or self.dtype.kind not in "iu":
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return int(self.item())

    def item(self, *args: Any) -> Any:
        """Return one value as a Python number; the index may be left out where there is but one.

        Raises
        ------
        ValueError
            If there is more than one value and no index.
        """
        if not args:
            if self.size != 1:
                raise ValueError("can only convert an array of size 1 to a Python scalar")
            return self.load().item()
        key = args[0] if len(args) == 1 else args
        if isinstance(key, int) and self.ndim != 1:
            key = tuple(int(i) for i in np.unravel_index(key % self.size, self.shape))
        return np.asarray(self[key]).item()

    def tolist(self) -> Any:
        """Return the values as nested lists.

        Raises
        ------
        ValueError
            If there are more than a million; ``a.load().tolist()`` does it all the same.
        """
        if self.size > 1_000_000:
            raise ValueError(f"tolist() of {self.size} values; if that is meant, call .load().tolist()")
        return self.load().tolist()

    def load(self) -> Array:
        """Return all values as an ndarray in memory."""
        raise NotImplementedError

    def __getitem__(self, key: Any) -> Any:
        raise NotImplementedError

    # Protocols -----------------------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} of shape {self.shape} ({self.nbytes} bytes) is not made an ndarray "
            "behind your back; call .load() if it fits in memory"
        )

    def __dlpack__(self, **_: Any) -> NoReturn:
        raise BufferError("values on disk have no memory to share; call .load() and pass the ndarray")

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the host's number, so that who asks goes on to what refuses in words."""
        return 1, 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        from prunus.paged.protocols import array_ufunc

        return array_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from prunus.paged.protocols import array_function

        return array_function(func, args, kwargs)

    # Shape and dtype -----------------------------------------------------------------------------------

    def astype(self, dtype: Any, casting: str = "unsafe", copy: bool = True) -> Any:
        """Return the values in another dtype, as an expression: nothing is read yet.

        With ``copy=False`` an array that has the dtype already is returned itself.

        Raises
        ------
        TypeError
            If ``casting`` does not allow it.
        """
        from prunus.paged.expr import astype

        return self if not copy and as_dtype(dtype) == self.dtype else astype(self, dtype, casting)

    def transpose(self, *axes: Any) -> Any:
        """Return the same values with the axes in another order."""
        raise NotImplementedError

    def swapaxes(self, axis1: int, axis2: int) -> Any:
        """Return the same values with two axes exchanged; see ``numpy.swapaxes``."""
        order = list(range(self.ndim))
        first = normalize_axis_index(axis1, self.ndim, "axis1")
        second = normalize_axis_index(axis2, self.ndim, "axis2")
        order[first], order[second] = second, first
        return self.transpose(order)

    @property
    def mT(self) -> Any:  # noqa: N802 - NumPy's name
        """The transposes of the matrices in the last two axes.

        Raises
        ------
        ValueError
            If there are fewer than two axes.
        """
        if self.ndim < 2:
            raise ValueError("matrix transpose with ndim < 2 is undefined")
        return self.swapaxes(-1, -2)

    def take(self, indices: Any, axis: int | None = None, out: Any = None, mode: str = "raise") -> Any:
        """Return entries along an axis, or in C order, in memory; see ``numpy.take``."""
        return np.take(self, indices, axis, out, mode)  # type: ignore[call-overload]

    @property
    def real(self) -> Any:
        """The real parts, as an expression."""
        return np.real(self)

    @property
    def imag(self) -> Any:
        """The imaginary parts, as an expression."""
        return np.imag(self)

    def conj(self) -> Any:
        """Return complex conjugates, as an expression."""
        return np.conjugate(self)

    def clip(self, min: Any = None, max: Any = None, **kwargs: Any) -> Any:
        """Return values limited to a range; see ``numpy.clip``."""
        return np.clip(self, min, max, **kwargs)

    def round(self, decimals: int = 0, out: Any = None) -> Any:
        """Return values rounded; see ``numpy.round``."""
        return np.round(self, decimals, out=out)

    def dot(self, other: Any, out: Any = None) -> Any:
        """Return the product with ``other``; see ``numpy.dot``."""
        return np.dot(self, other, out=out)


class InPlace(Operators):
    """The operators that write."""

    __slots__ = ()

    __iadd__ = _in_place(np.add)
    __isub__ = _in_place(np.subtract)
    __imul__ = _in_place(np.multiply)
    __itruediv__ = _in_place(np.true_divide)
    __ifloordiv__ = _in_place(np.floor_divide)
    __imod__ = _in_place(np.remainder)
    __ipow__ = _in_place(np.power)
    __ilshift__ = _in_place(np.left_shift)
    __irshift__ = _in_place(np.right_shift)
    __iand__ = _in_place(np.bitwise_and)
    __ior__ = _in_place(np.bitwise_or)
    __ixor__ = _in_place(np.bitwise_xor)

    def __imatmul__(self, other: Any) -> Any:
        if not _is_operand(other) and not hasattr(other, "__rmatmul__"):
            return NotImplemented
        from prunus.paged.products import assign_product

        return assign_product(self, other)  # type: ignore[arg-type]
