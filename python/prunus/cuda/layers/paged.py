"""``matmul`` of tensors on a GPU and arrays on disk, which stream there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunus._trace import span
from prunus.cuda import dtypes
from prunus.cuda.arrays import BSR
from prunus.cuda.layers.matmul import prepare
from prunus.cuda.operands import as_tensor, where_of
from prunus.cuda.paged import dense, products
from prunus.paged import sparse_products
from prunus.paged.multiplying import Multiplying
from prunus.paged.reading import reading

if TYPE_CHECKING:
    import torch

__all__ = ["matmul"]


def matmul(
    a: Any,
    b: Any,
    out: torch.Tensor | None = None,
    dtype: Any = None,
    bias: Any = None,
    activation: str | None = None,
    densify: bool = False,
) -> torch.Tensor:
    """Return ``a @ b`` of an operand on disk and a tensor on a GPU; :func:`prunus.matmul` says what of what.

    The operand on disk is read once, in its order, and sent to the GPU ahead of the kernels that use it; the
    call returns when all of it was read and the last kernels are launched.

    Parameters
    ----------
    a, b : Tensor, and an array on disk
        One of each. Block-sparse or dense on disk.
    out, dtype, bias, activation
        As :func:`prunus.cuda.layers.matmul.matmul`; the last two for a block-sparse operand.
    densify : bool
        Must be False.

    Returns
    -------
    Tensor
        On the GPU of the dense operand.

    Raises
    ------
    ValueError, TypeError
        As :func:`prunus.matmul`.
    OSError
        If the file cannot be read, or was changed or closed. Nothing is under way then.
    PrunusError
        If operands live on different devices, the pager's budget is too small for a stream, or the call is
        captured in a CUDA graph.
    MemoryError
        If there is no room for buffers or the result.
    """
    if densify:
        raise TypeError("densify=True would load an array on disk; call .load() and multiply that")
    where = where_of(a, b)
    for one in (a, b):
        if isinstance(one, BSR):
            raise TypeError(
                "the product of a block-sparse array on the GPU with an array on disk needs both there; call "
                ".load() on the one on disk and move it to the GPU"
            )
    if not isinstance(a, Multiplying) and not isinstance(b, Multiplying):
        if bias is not None or activation is not None:
            raise TypeError("bias and activation need a BSR operand")
        return dense.matmul(where, a, b, out, dtype)
    flip = isinstance(b, Multiplying)
    w, x = (b, a) if flip else (a, b)
    x = as_tensor(x, "a" if flip else "b", where)
    if not x.ndim:
        raise ValueError("matmul takes arrays of at least one dimension; use * for scalars")
    operand = sparse_products.Operand.of(w)
    stored = dtypes.torch_of(w.dtype)
    kind = dtypes.result(x.dtype, stored, dtype) if flip else dtypes.result(stored, x.dtype, dtype)
    if flip:
        operand = operand.T
    shape = (*operand._batch, operand._rows, operand._cols)
    call = prepare(where, shape, None, x, out, kind, bias, activation, flip=flip)
    x = call.x.expand(*call.batch, *call.x.shape[-2:])
    values = operand.w.values
    with span("matmul") as at:
        with reading(at, [values._store], values.nbytes):
            products.multiply(where, operand, x, call.view, call.bias, activation)
            if at:
                at.ran("cuda")
        if at:
            sparse_products.count(at, operand, math.prod(call.batch) * x.shape[-1])
    return call.deliver()
