"""Which dtypes exist, and what a product of two of them gives.

The table follows DESIGN "Types". It differs from NumPy in two places: ``int8 @ int8`` gives int32, and the
half types accumulate in float32.
"""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "BFLOAT16",
    "FLOATS",
    "OPERANDS",
    "Array",
    "DType",
    "as_dtype",
    "check_operand",
    "check_storage",
    "elementwise_dtype",
    "input_dtype",
    "result_dtype",
    "sum_dtype",
    "weak",
]


Array = NDArray[Any]
DType = np.dtype[Any]

BFLOAT16: Final[DType] = np.dtype(ml_dtypes.bfloat16)
F16: Final[DType] = np.dtype(np.float16)
F32: Final[DType] = np.dtype(np.float32)
F64: Final[DType] = np.dtype(np.float64)
I8: Final[DType] = np.dtype(np.int8)
I32: Final[DType] = np.dtype(np.int32)

HALVES: Final = frozenset({F16, BFLOAT16})
FLOATS: Final = frozenset({F16, BFLOAT16, F32, F64})
OPERANDS: Final = FLOATS | {I8}
_NAMES: Final = "float32, float64, float16, bfloat16 and int8"


def as_dtype(spec: DTypeLike | str) -> DType:
    """Return the dtype that ``spec`` names; ``"bfloat16"`` is ml_dtypes' one.

    Raises
    ------
    TypeError
        If ``spec`` names no dtype.
    """
    if isinstance(spec, str) and spec == "bfloat16":
        return BFLOAT16
    return np.dtype(spec)


def check_storage(dtype: DType, name: str) -> None:
    """Raise TypeError unless blocks of ``dtype`` can be stored: bool, integers, floats, complex, bfloat16."""
    if dtype.kind not in "biufc" and dtype != BFLOAT16:
        raise TypeError(
            f"{name} has dtype {dtype}: blocks hold numbers or booleans. Convert first, "
            f"for instance with {name}.astype(np.float32)"
        )


def check_operand(dtype: DType, name: str) -> None:
    """Raise TypeError unless products take ``dtype``; nothing is converted behind the user's back."""
    if dtype in OPERANDS:
        return
    if dtype.newbyteorder("=") in OPERANDS:
        raise TypeError(
            f"{name} has dtype {dtype}, whose byte order is not this machine's; pass "
            f'{name}.astype({name}.dtype.newbyteorder("="))'
        )
    raise TypeError(
        f"{name} has dtype {dtype}: products take {_NAMES}. Convert first, for instance with "
        f"{name}.astype(np.float32)"
    )


def _natural(a: DType, b: DType) -> DType:
    """Return the result dtype of a product before ``dtype=`` has its say."""
    if a == b:
        return I32 if a == I8 else a
    if a == I8:
        return b
    if b == I8:
        return a
    # Two different floats: the wider one wins, and the two halves meet in float32.
    return F64 if F64 in (a, b) else F32


_TABLE: Final = {(a, b): _natural(a, b) for a in OPERANDS for b in OPERANDS}


def result_dtype(
    a: DType, b: DType, dtype: DTypeLike | None = None, names: tuple[str, str] = ("a", "b")
) -> DType:
    """Return the dtype of the product of an ``a`` and a ``b``.

    Parameters
    ----------
    a, b : dtype
        Operand dtypes.
    dtype : dtype-like, optional
        Overrides the natural result: any supported float, or int32 for ``int8 @ int8``.
    names : tuple of str
        What the operands are called in an error message.

    Raises
    ------
    TypeError
        If products do not take an operand's dtype, or cannot give ``dtype``.

    Examples
    --------
    >>> result_dtype(np.dtype("int8"), np.dtype("int8"))
    dtype('int32')
    >>> result_dtype(BFLOAT16, np.dtype("float16"))
    dtype('float32')
    """
    natural = _TABLE.get((a, b))
    if natural is None:
        check_operand(a, names[0])
        check_operand(b, names[1])
        raise AssertionError("unreachable: a dtype that passed the check is in the table")
    if dtype is None:
        return natural
    out = as_dtype(dtype)
    if out in FLOATS or out == natural:
        return out
    raise TypeError(
        f"dtype={out} is not a result of {a} @ {b}: expected float16, bfloat16, float32 or float64"
        + (", or int32" if natural == I32 else "")
    )


def input_dtype(a: DType, b: DType, out: DType) -> DType:
    """Return the one dtype in which an engine without mixed kernels reads both operands.

    ``int8 @ int8`` stays int8 (the sums are exact in int32); asking for a float64 result of narrower floats
    means float64 arithmetic.
    """
    if a == b == I8:
        return I8
    common = _TABLE[a, b]
    return F64 if out == F64 else common


def weak(scalar: Any, dtype: DType) -> Any:
    """Give a Python number the array's dtype where the array holds floats.

    NumPy 2 does so itself, but not for bfloat16, and NumPy 1 looks at the value.
    """
    if dtype in FLOATS and type(scalar) in (int, float, bool):
        return dtype.type(scalar)
    return scalar


def elementwise_dtype(a: DType, b: DType) -> DType:
    """Return the dtype of ``a + b``: NumPy's promotion, with the two halves meeting in float32."""
    if {a, b} == HALVES:
        return F32
    return np.promote_types(a, b)


def sum_dtype(dtype: DType) -> tuple[DType, DType]:
    """Return the dtypes in which a sum over ``dtype`` accumulates and is returned.

    Halves accumulate in float32 and come back as halves; integers and booleans sum in NumPy's integer.
    """
    if dtype in HALVES:
        return F32, dtype
    wide = np.add.reduce(np.empty(0, dtype)).dtype if dtype.kind in "biu" else dtype
    return wide, wide
