"""Checked parts of block-sparse arrays on a GPU: from tensors, from dense ones, from and to torch's BSR."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunus._layout import blocks_along
from prunus.cuda.blocks import Operand
from prunus.cuda.dtypes import numpy_of
from prunus.cuda.operands import as_tensor, is_tensor, where_of
from prunus.cuda.runtime import place_of
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["from_dense", "from_torch", "from_triple", "grid_of", "to_torch"]

Parts = tuple[Operand, tuple[int, ...]]


def grid_of(w: Operand) -> tuple[int, int]:
    """Return rows and columns of stored blocks of one member."""
    br, bc = w.stored
    return blocks_along(w.shape[0], br), blocks_along(w.shape[1], bc)


def from_triple(arg: tuple[Any, Any, Any], shape: tuple[int, ...] | None) -> Parts:
    """Return checked parts of ``(data, indices, indptr)``; see :class:`prunus.cuda.BSR`."""
    torch = libraries().torch
    data, indices, indptr = arg
    if not is_tensor(data):
        raise TypeError(f"data must be a tensor on the GPU, got {type(data).__name__}")
    where = where_of(data)
    data = as_tensor(data, "data", where)
    indices, indptr = as_tensor(indices, "indices", where), as_tensor(indptr, "indptr", where)
    numpy_of(data.dtype, "data")
    for name, part in (("indices", indices), ("indptr", indptr)):
        if part.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must hold int32 or int64, got {part.dtype}")
    if data.ndim < 3 or indices.ndim != 1 or indptr.ndim < 1:
        raise ValueError(
            "expected data (n, br, bc) or (*batch, n, br, bc), indices (n,) and indptr (rows + 1,) or "
            f"(*batch, rows + 1); got {tuple(data.shape)}, {tuple(indices.shape)} and {tuple(indptr.shape)}"
        )
    if data.ndim > 3 and indptr.ndim > 1:
        raise ValueError("a batch has either data (*batch, n, br, bc) or indptr (*batch, rows + 1), not both")
    n, br, bc = data.shape[-3:]
    if len(indices) != n or indptr.shape[-1] < 1:
        raise ValueError(f"data has {n} blocks, indices {len(indices)}, and indptr ends after row 0 at least")
    if not br or not bc:
        raise ValueError(f"blocks must have values, got blocks of {(br, bc)}")
    batch = tuple(data.shape[:-3]) or tuple(indptr.shape[:-1])
    rows = indptr.shape[-1] - 1
    if shape is None:
        width = int(indices.max()) + 1 if n else 0  # one number is read back
        member = rows * br, width * bc
    else:
        if tuple(shape[:-2]) != batch:
            raise ValueError(f"shape {tuple(shape)} does not begin with the batch dimensions {batch}")
        member = int(shape[-2]), int(shape[-1])
    if blocks_along(member[0], br) != rows:
        raise ValueError(
            f"indptr tells of {rows} rows of blocks, {member[0]} rows in blocks of {br} are "
            f"{blocks_along(member[0], br)}"
        )
    if len(batch) > 0:
        data = data.reshape(math.prod(batch), *data.shape[-3:]) if data.ndim > 3 else data
        indptr = indptr.reshape(-1, indptr.shape[-1]) if indptr.ndim > 1 else indptr
    return Operand(data.contiguous(), indices.contiguous(), indptr.contiguous(), member), batch


def from_torch(tensor: torch.Tensor) -> Parts:
    """Return the parts of a torch BSR tensor, sharing its values."""
    torch = libraries().torch
    if tensor.dense_dim():
        raise ValueError("a BSR tensor with dense trailing dimensions has no counterpart here")
    data, indices, indptr = tensor.values(), tensor.col_indices(), tensor.crow_indices()
    data = as_tensor(data, "the tensor", place_of(data))
    batch = tuple(indptr.shape[:-1])
    if batch:
        # Each member has a pattern and as many blocks as the others: one after another.
        each = indices.shape[-1]
        members = math.prod(batch)
        start = torch.arange(members, device=data.device)[:, None] * each
        indptr = indptr.reshape(members, -1) + start
        indices = indices.reshape(-1)
        data = data.reshape(-1, *data.shape[-2:])
    numpy_of(data.dtype, "the tensor")
    shape = int(tensor.shape[-2]), int(tensor.shape[-1])
    return Operand(data.contiguous(), indices.contiguous(), indptr.contiguous(), shape), batch


def to_torch(w: Operand, batch: tuple[int, ...], count: int) -> torch.Tensor:
    """Return an operand of ``count`` blocks as a torch BSR tensor; see :meth:`prunus.cuda.BSR.to_torch`."""
    torch = libraries().torch
    (br, bc), (m, k) = w.stored, w.shape
    if w.transposed:
        raise ValueError("a lazy transpose is not one of torch's: W.T.to_torch() and transpose that")
    if m % br or k % bc:
        raise ValueError(f"torch's blocks must divide the shape, got {(m, k)} in blocks of {(br, bc)}")
    if w.own:
        raise ValueError("members have patterns of their own, of which torch wants as many blocks each")
    if batch:
        count //= max(math.prod(batch), 1)
        indices = w.indices[:count].expand(*batch, count).contiguous()
        indptr = w.indptr.expand(*batch, -1).contiguous()
        data = w.data.reshape(*batch, *w.data.shape[-3:])[..., :count, :, :]
    else:
        data, indices, indptr = w.data[:count], w.indices[:count], w.indptr
    return torch.sparse_bsr_tensor(indptr, indices, data, size=(*batch, m, k), check_invariants=False)


def from_dense(w: torch.Tensor, block: tuple[int, int], density: float | None) -> Parts:
    """Return the parts of a dense tensor's strongest blocks; see :meth:`prunus.cuda.BSR.from_dense`."""
    torch = libraries().torch
    if not is_tensor(w):
        raise TypeError(
            f"w must be a tensor on the GPU, got {type(w).__name__}; prunus.BSR.from_dense(w, ...).to('cuda')"
            " cuts an array of the host"
        )
    where = place_of(w) if isinstance(w, torch.Tensor) else where_of(w)
    w = as_tensor(w, "w", where)
    numpy_of(w.dtype, "w")
    if w.ndim != 2:
        raise ValueError(f"w must have two dimensions, got shape {tuple(w.shape)}")
    if density is not None and not 0 <= density <= 1:
        raise ValueError(f"density must be from 0 to 1, got {density!r}")
    (m, k), (br, bc) = w.shape, block
    down, across = blocks_along(m, br), blocks_along(k, bc)
    whole = torch.nn.functional.pad(w, (0, across * bc - k, 0, down * br - m))
    tiles = whole.reshape(down, br, across, bc).permute(0, 2, 1, 3).reshape(down * across, br, bc)
    if density is None:
        keep = (tiles != 0).flatten(1).any(1).nonzero()[:, 0]
    else:
        # Squares of large values do not fit float32, and blocks that have them must not all be alike.
        whole = tiles.flatten(1)
        whole = whole.double() if whole.dtype == torch.int8 else whole
        norms = torch.linalg.vector_norm(whole, dim=1, dtype=torch.float64)
        norms = torch.where(norms.isnan(), math.inf, norms)
        count = math.ceil(density * down * across * (1 - 1e-12))
        order = torch.sort(norms, descending=True, stable=True)[1]
        keep = torch.sort(order[:count])[0]
    row = torch.div(keep, max(across, 1), rounding_mode="floor")
    indices = (keep - row * across).to(torch.int32)
    edges = torch.arange(down + 1, device=w.device) * across
    indptr = torch.searchsorted(keep, edges).to(torch.int32)
    return Operand(tiles[keep].contiguous(), indices, indptr, (m, k)), ()
