"""torch's dtypes and NumPy's, both ways; and what kernels compute in."""

from __future__ import annotations

from functools import cache
from typing import Any

from prunus._dtypes import (
    BFLOAT16,
    F16,
    F32,
    F64,
    I8,
    I32,
    DType,
    as_dtype,
    check_operand,
    input_dtype,
    result_dtype,
)
from prunus.cuda.versions import libraries

__all__ = ["as_torch", "compute", "numpy_of", "result", "sums", "torch_of"]


@cache
def _pairs() -> tuple[dict[DType, Any], dict[Any, DType]]:
    torch = libraries().torch
    there = {
        BFLOAT16: torch.bfloat16,
        F16: torch.float16,
        F32: torch.float32,
        F64: torch.float64,
        I8: torch.int8,
        I32: torch.int32,
    }
    return there, {value: key for key, value in there.items()}


def torch_of(dtype: DType) -> Any:
    """Return torch's dtype of the same name."""
    return _pairs()[0][dtype]


def numpy_of(dtype: Any, name: str = "the tensor") -> DType:
    """Return NumPy's (or ml_dtypes') dtype of the same name.

    Raises
    ------
    TypeError
        If products do not take it.
    """
    try:
        return _pairs()[1][dtype]
    except KeyError:
        raise TypeError(
            f"{name} has dtype {dtype}: products take float32, float64, float16, bfloat16 and int8. Convert "
            f"first, for instance with {name}.to(torch.float32)"
        ) from None


def as_torch(dtype: Any) -> Any:
    """Return torch's dtype of an operand that ``dtype`` names: torch's own, NumPy's, or a string.

    Raises
    ------
    TypeError
        If products do not take it.
    """
    if dtype in _pairs()[1]:
        return dtype
    if isinstance(dtype, libraries().torch.dtype):
        return torch_of(numpy_of(dtype, "dtype"))  # which raises
    kind = as_dtype(dtype)
    check_operand(kind, "dtype")
    return torch_of(kind)


def result(a: Any, b: Any, dtype: Any = None, names: tuple[str, str] = ("a", "b")) -> Any:
    """Return torch's dtype of a product; the rules are :func:`prunus._dtypes.result_dtype`'s."""
    if isinstance(dtype, libraries().torch.dtype):
        dtype = numpy_of(dtype, "dtype")
    return torch_of(result_dtype(numpy_of(a, names[0]), numpy_of(b, names[1]), dtype, names))


def compute(a: Any, b: Any, out: Any) -> Any:
    """Return torch's dtype that both operands of a product are read as."""
    pairs = _pairs()[1]
    kind = input_dtype(pairs[a], pairs[b], pairs[out])
    return torch_of(kind)


def sums(kind: Any) -> Any:
    """Return torch's dtype that sums of products of ``kind`` are kept in."""
    torch = libraries().torch
    return {torch.float64: torch.float64, torch.int8: torch.int32}.get(kind, torch.float32)
