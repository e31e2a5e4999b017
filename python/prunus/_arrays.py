"""What is taken for a dense array: one rule for the operands of all operations.

An ndarray; a list, a number, or anything else that NumPy reads as an array of numbers; a torch tensor, or
another tensor in host memory that speaks DLPack. Memory is shared where it can be, and results are ndarrays.
What would lose something without a word raises, and the message says what to call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from prunus._dtypes import FLOATS, Array
from prunus._errors import PrunusError

__all__ = [
    "as_array",
    "as_floats",
    "from_panels",
    "in_panels",
    "is_array_like",
    "is_scipy",
    "is_torch",
    "side_by_side",
]

# DLPack's numbers of devices whose memory a host can read: the host's own, and pages pinned for CUDA or ROCm.
_HOST: Final = (1, 3, 11)
_LINE: Final = 64  # bytes of a cache line
_ARRAYS: Final = ("__array__", "__array_interface__", "__array_struct__")


def as_array(value: Any, name: str, expected: str = "an array of numbers") -> Array:
    """Return a dense operand as an ndarray that shares its memory where that can be.

    Parameters
    ----------
    value : array_like
        What the caller passed.
    name : str
        The argument's name, for messages.
    expected : str
        What the argument may be, for messages.

    Raises
    ------
    TypeError
        If it is no array of numbers; a masked array, whose mask would be lost; a sparse one; or a tensor that
        requires grad where torch records gradients.
    ValueError
        If it is a sequence of which NumPy makes no array.
    PrunusError
        If its memory is not the host's.

    Examples
    --------
    >>> as_array([[1.0, 2.0]], "x").shape
    (1, 2)
    >>> as_array(np.ma.ones(2), "x")
    Traceback (most recent call last):
    TypeError: x is a masked array, whose mask would be lost; pass x.filled(0)
    """
    if type(value) is np.ndarray:
        array: Array = value
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; pass {name}.filled(0)")
    elif is_scipy(value):
        raise TypeError(f"{name} is a SciPy sparse array; wrap it with pr.BSR({name})")
    elif is_torch(value):
        array = _of_torch(value, name)
    else:
        array = _read(value, name)
    if array.dtype.kind in "OSU":
        given = isinstance(value, (np.ndarray, list, tuple)) or array.ndim
        got = f"dtype {array.dtype}" if given else type(value).__name__
        how = f"; convert with {name}.astype(np.float32)" if isinstance(value, np.ndarray) else ""
        raise TypeError(f"{name} must be {expected}, got {got}{how}")
    return array


def as_floats(value: Any, name: str) -> Array:
    """Return a dense operand like :func:`as_array`, of a dtype that layers compute with.

    Raises
    ------
    TypeError
        If it does not hold floats in this machine's byte order, or as :func:`as_array`.
    ValueError, PrunusError
        As :func:`as_array`.
    """
    array = as_array(value, name)
    if array.dtype not in FLOATS:
        raise TypeError(
            f"{name} must hold floats (float32, float64, float16 or bfloat16), got dtype {array.dtype}; "
            f"convert with {name}.astype(np.float32)"
        )
    return array


def is_array_like(value: Any) -> bool:
    """Say whether operators read ``value`` as an array, although it is none of NumPy's.

    What has a ``__array_ufunc__`` of its own has a better idea of what an operator means.
    """
    if isinstance(value, type) or hasattr(value, "__array_ufunc__"):
        return False
    return any(hasattr(value, name) for name in (*_ARRAYS, "__dlpack__"))


def _of_torch(tensor: Any, name: str) -> Array:
    """Return a strided torch tensor in host memory as an ndarray."""
    from prunus.interop.torch import as_array as share

    if tensor.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise TypeError(
            f"{name} is a tensor that requires grad, and results have none; pass {name}.detach(), or call "
            "within torch.no_grad()"
        )
    if str(tensor.layout) != "torch.strided":
        raise TypeError(
            f"{name} is a torch tensor with layout {tensor.layout}, expected a dense one; pr.BSR takes those "
            "with layout torch.sparse_bsr"
        )
    try:
        return share(tensor, name)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} cannot be read as an ndarray: {error}") from error


def _read(value: Any, name: str) -> Array:
    """Return what NumPy, or DLPack, makes of an object."""
    # A class has its instances' methods, and is no array for all that.
    where = None if isinstance(value, type) else getattr(value, "__dlpack_device__", None)
    if where is not None and not isinstance(value, (np.ndarray, np.generic)):
        try:
            kind = int(where()[0])
        except (BufferError, RuntimeError, TypeError, ValueError):
            # It lies on no one device, as a sharded array: NumPy may read it all the same, or says why not.
            kind = _HOST[0]
        if kind not in _HOST:
            raise PrunusError(
                f"{name} ({type(value).__name__}) lives on a device (DLPack's number {kind}), expected host "
                "memory; copy it to the host first"
            )
        if not any(hasattr(value, attribute) for attribute in _ARRAYS):
            try:
                return np.from_dlpack(value)
            except (TypeError, ValueError, RuntimeError, BufferError) as error:
                raise TypeError(f"{name} cannot be read through DLPack: {error}") from error
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error


def is_scipy(arg: Any) -> bool:
    """Say whether ``arg`` is a SciPy sparse array, without importing SciPy."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(arg))


def is_torch(arg: Any) -> bool:
    """Say whether ``arg`` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(arg, torch.Tensor)


def side_by_side(arrays: Sequence[Array]) -> list[Array]:
    """Return copies of arrays, in C order, that share one piece of memory, each from a cache line on.

    NumPy asks for large pages where a piece has several MiB: matrices below that, each by itself, take longer
    to read, as their addresses are looked up in small pages.
    """
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // _LINE) * _LINE
    raw = np.empty(size + _LINE, np.uint8)
    first = -raw.ctypes.data % _LINE
    copies: list[Array] = []
    for array, start in zip(arrays, starts, strict=True):
        copy: Array = np.ndarray(array.shape, array.dtype, buffer=raw, offset=first + start)
        copy[...] = array
        copies.append(copy)
    return copies


def in_panels(table: Array, width: int) -> Array:
    """Return a table (units, n) as panels of ``width`` columns, (panels, units, width), the last with zeros.

    Who sums some columns of a table reads pieces of its rows, with gaps; of a panel everything in order.

    Examples
    --------
    >>> in_panels(np.arange(6).reshape(2, 3), 2).tolist()
    [[[0, 1], [3, 4]], [[2, 0], [5, 0]]]
    """
    units, n = table.shape
    made = np.zeros((-(-n // width), units, width), table.dtype)
    for i, panel in enumerate(made):
        part = table[:, i * width : (i + 1) * width]
        panel[:, : part.shape[1]] = part
    return made


def from_panels(table: Array, n: int) -> Array:
    """Return the table (units, n) that panels are of; a table that is in none as it is.

    Examples
    --------
    >>> from_panels(in_panels(np.arange(6).reshape(2, 3), 2), 3).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    if table.ndim == 2:
        return table
    panels, units, width = table.shape
    whole: Array = table.swapaxes(0, 1).reshape(units, panels * width)[:, :n]
    return whole
