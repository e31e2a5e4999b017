"""torch's BSR tensors in host memory, both ways; bfloat16 goes through 16-bit views."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from prunus import _construct, _elementwise
from prunus._dtypes import BFLOAT16, Array
from prunus._errors import PrunusError
from prunus._storage import BlockStorage

if TYPE_CHECKING:
    import torch

__all__ = ["as_array", "as_tensor", "from_torch", "to_torch"]


def as_array(tensor: torch.Tensor, name: str = "the tensor") -> Array:
    """Return a strided host tensor as an ndarray that shares its memory; bfloat16 as ml_dtypes' type.

    Raises
    ------
    PrunusError
        If the tensor is not in host memory.

    Examples
    --------
    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> as_array(torch.ones(2, dtype=torch.bfloat16)).dtype
    dtype(bfloat16)
    """
    import torch

    if tensor.device.type != "cpu":
        raise PrunusError(f"{name} lives on {tensor.device}, this build computes on 'cpu'; use .cpu()")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        # torch has no NumPy bfloat16: the same 16 bits under another name.
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(BFLOAT16)
    array: Array = tensor.numpy()
    return array


def as_tensor(array: Array) -> torch.Tensor:
    """Return an ndarray as a torch tensor that shares its memory; ml_dtypes' bfloat16 as torch's.

    Raises
    ------
    ValueError
        If the array is read-only, which torch does not know.
    """
    import torch

    if not array.flags.writeable:
        raise ValueError("the array is read-only, which a torch tensor cannot be; pass a copy")
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: Any, copy: bool | None) -> _construct.Parts:
    """Return the checked parts of a torch BSR tensor; see ``BSR.from_torch``."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"expected a torch tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.sparse_bsr:
        raise ValueError(
            f"expected a tensor with layout torch.sparse_bsr, got {tensor.layout}; see to_sparse_bsr()"
        )
    if tensor.dense_dim():
        raise ValueError("a BSR tensor with dense trailing dimensions has no counterpart here")
    triple = tuple(as_array(part) for part in (tensor.values(), tensor.col_indices(), tensor.crow_indices()))
    data, indices, indptr = triple
    if indptr.ndim > 1 and copy is False:
        indices = np.ascontiguousarray(indices)
        if not data.flags.c_contiguous:
            raise ValueError("copy=False, but the tensor's values are not contiguous")
    return _construct.from_triple((data, indices, indptr), tuple(tensor.shape), None, None, copy)


def to_torch(a: BlockStorage, copy: bool | None) -> torch.Tensor:
    """Return ``a`` as a torch BSR tensor; see ``BSR.to_torch``."""
    import torch

    (m, n), (br, bc) = a.shape[-2:], a.blocksize
    ragged = bool(m % br or n % bc)
    reasons = {
        "a lazy transpose has to be made physical": a._t,
        "torch's blocks must divide the shape": ragged,
        "a frozen array has a layout of its own": a.frozen,
        "the values are read-only": not (a.frozen or a._values().flags.writeable),
        "torch wants indices sorted and without duplicates": not a.has_canonical_format,
    }
    if copy is False and any(reasons.values()):
        raise ValueError("copy=False, but " + next(why for why, true in reasons.items() if true))
    a = a._thawed()
    array = a._physical()._canonical()
    if ragged:
        array = _elementwise.reblock(array, (math.gcd(br, m) or br, math.gcd(bc, n) or bc))
    data, indices, indptr = array._values(), array._indices, array._indptr
    batch = array._batch
    if array._own:
        counts = indptr[..., -1] - indptr[..., 0]
        if counts.size and counts.min() != counts.max():
            raise ValueError(
                f"torch wants as many blocks in every member, here are {counts.min()} to {counts.max()}; "
                "convert members W[b]"
            )
        each = int(counts.max(initial=0))
        data = data.reshape(*batch, each, *data.shape[1:])
        indices = indices.reshape(*batch, each)
        indptr = indptr - indptr[..., :1]
    elif batch:
        indices = np.broadcast_to(indices, (*batch, len(indices))).copy()
        indptr = np.broadcast_to(indptr, (*batch, len(indptr))).copy()
    if np.shares_memory(data, a._values()) and (copy or not data.flags.writeable):
        data = data.copy()
    if not indices.flags.writeable or (copy and np.shares_memory(indices, a._indices)):
        indices = indices.copy()
    if not indptr.flags.writeable or (copy and np.shares_memory(indptr, a._indptr)):
        indptr = indptr.copy()
    # Said explicitly, as torch warns otherwise: this array was checked when it was made.
    parts = as_tensor(indptr), as_tensor(indices), as_tensor(data)
    return torch.sparse_bsr_tensor(*parts, size=a.shape, check_invariants=False)
