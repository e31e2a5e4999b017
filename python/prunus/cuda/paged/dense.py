"""Products of dense matrices on disk, or of expressions over some, with tensors on a GPU.

The operand on disk is read once, some of its stored rows at a time, which torch multiplies: each gives rows
of the result where the operand is stored by rows, and adds to all sums otherwise. How many go together
follows from their length alone, so that a result depends neither on budgets nor on timing.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from prunus._dtypes import Array, check_operand
from prunus._trace import span
from prunus.cuda import dtypes
from prunus.cuda.layers.matmul import check_out, shares
from prunus.cuda.operands import as_tensor
from prunus.cuda.paged.sources import InOrder
from prunus.cuda.runtime import Place, empty
from prunus.cuda.streaming import borrowed
from prunus.cuda.transfer import upload
from prunus.cuda.versions import libraries
from prunus.paged import products
from prunus.paged.array import PagedArray
from prunus.paged.expr import PagedExpr
from prunus.paged.graph import as_node, stores_of
from prunus.paged.panels import by_rows, is_on_disk, kept, panels, stored
from prunus.paged.reading import reading

if TYPE_CHECKING:
    import torch

__all__ = ["matmul", "multiply"]


def matmul(where: Place, a: Any, b: Any, out: torch.Tensor | None, dtype: Any) -> torch.Tensor:
    """Return ``a @ b`` where one is a dense array on disk and the other a tensor on a GPU.

    Parameters
    ----------
    where : Place
        Where the tensor lives.
    a, b : Tensor, PagedArray or PagedExpr
        One of them on disk; shapes as for ``np.matmul``.
    out : Tensor, optional
        Where to write.
    dtype : dtype, optional
        Of the result.

    Raises
    ------
    ValueError, TypeError, OSError, PrunusError, MemoryError
        As :func:`prunus.cuda.layers.paged.matmul`.
    """
    torch = libraries().torch
    a, b = _operand(a, "a", where), _operand(b, "b", where)
    if not a.ndim or not b.ndim:
        raise ValueError("matmul takes arrays of at least one dimension; use * for scalars")
    inner, other = a.shape[-1], b.shape[-2] if b.ndim > 1 else b.shape[0]
    if inner != other:
        raise ValueError(f"matmul: the inner sizes differ, a has {inner} columns and b has {other} rows")
    left, right = (dtypes.torch_of(x.dtype) if is_on_disk(x) else x.dtype for x in (a, b))
    kind = dtypes.result(left, right, dtype)
    rows, columns = tuple(a.shape[-2:-1]), () if b.ndim == 1 else (b.shape[-1],)
    try:
        batch = np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    except ValueError:
        raise ValueError(
            f"matmul: batch dimensions {tuple(a.shape[:-2])} and {tuple(b.shape[:-2])} do not broadcast"
        ) from None
    shape = (*batch, *rows, *columns)
    if out is not None:
        check_out(out, shape, kind, where)
    direct = out is not None and not shares(out, *(x for x in (a, b) if isinstance(x, torch.Tensor)))
    result = out if direct and out is not None else empty(shape, kind, where)
    stores = stores_of([as_node(x) for x in (a, b) if is_on_disk(x)])
    with span("matmul") as at, reading(at, stores):
        _every(where, a, b, result.view(*batch, *(rows or (1,)), *(columns or (1,))), batch)
        if at:
            at.ran("cuda")
            at.count(flops=2 * math.prod(shape) * inner)
    return result if out is None or direct else out.copy_(result)


def _operand(value: Any, name: str, where: Place) -> Any:
    """Return a tensor on the GPU, or what is on disk; a vector of that is as large as a side of the other."""
    if not is_on_disk(value):
        return as_tensor(value, name, where, "a tensor on the GPU, or an array on disk")
    check_operand(value.dtype, name)
    if value.ndim < 2:
        return upload(np.ascontiguousarray(value.load()), where)
    return kept(value) if isinstance(value, PagedExpr) and value.ndim > 2 else value


def _every(where: Place, a: Any, b: Any, out: torch.Tensor, batch: tuple[int, ...]) -> None:
    """Write all members' products of matrices or vectors to ``out``, which has two more dimensions."""
    if 0 in out.shape:
        return
    if isinstance(a, PagedArray) and a.ndim > 2 and b.ndim <= 2 and a._perm == tuple(range(a.ndim)):
        # All members' rows are one matrix's.
        a, batch = a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), ()
        try:
            out = out.view(-1, out.shape[-1])
        except RuntimeError:
            aside = out.new_empty((len(a), out.shape[-1]))
            _every(where, a, b, aside, ())
            out.copy_(aside.view(out.shape))
            return
    for at in np.ndindex(*batch):
        left, right = _member(a, at, where), _member(b, at, where)
        left = left[None, :] if left.ndim == 1 else left
        right = right[:, None] if right.ndim == 1 else right
        part = out[at] if at else out
        if is_on_disk(left):
            multiply(where, left, right, part)
        elif is_on_disk(right):
            multiply(where, right.T, left.T, part.T)
        else:  # a vector on disk, which is here by now
            kind = _inner(left.dtype, right.dtype, part.dtype)
            part.copy_(libraries().torch.matmul(left.to(kind), right.to(kind)))


def _member(a: Any, at: tuple[int, ...], where: Place) -> Any:
    """Return the matrix of an operand that a member of the broadcast batch takes."""
    own = tuple(a.shape[:-2])
    key = tuple(0 if n == 1 else i for n, i in zip(own, at[len(at) - len(own) :], strict=True))
    if not key:
        return a
    if not is_on_disk(a):
        return a[key]
    found = products.member_of(a, key)
    return found if is_on_disk(found) else upload(np.ascontiguousarray(found), where)


def multiply(where: Place, a: Any, x: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``a @ x`` for a matrix on disk; dtypes are those that products take.

    Parameters
    ----------
    where : Place
        Where x and the result live.
    a : PagedArray or PagedExpr
        Shape (m, k).
    x : Tensor
        Shape (k, n), any strides.
    out : Tensor
        Shape (m, n), any strides, overlapping no operand: written.
    """
    if 0 in out.shape:
        return
    if not a.shape[1]:
        out.zero_()
        return
    stored_as = dtypes.torch_of(a.dtype)
    rows = by_rows(a)  # panels are rows of the result; otherwise they are parts of its sums
    kind = _inner(stored_as, x.dtype, out.dtype)
    sums = dtypes.sums(dtypes.compute(stored_as, x.dtype, out.dtype))
    width = a.shape[1 if rows else 0]
    if rows:
        x = x.to(kind)
        for start, panel in _panels(where, a, width):
            out[start : start + len(panel)].copy_(libraries().torch.matmul(panel.to(kind), x))
        return
    total = out if out.dtype == sums else empty(tuple(out.shape), sums, where)
    for start, panel in _panels(where, a, width):
        part = _wide(panel.T, x[start : start + len(panel)], kind, sums, where)
        if start:
            total.add_(part)
        else:
            total.copy_(part)
    if total is not out:
        out.copy_(total)


def _inner(a: Any, b: Any, out: Any) -> Any:
    """Return torch's dtype that a product of dense matrices is computed in."""
    torch = libraries().torch
    kind = dtypes.compute(a, b, out)
    # No library multiplies int8 on all GPUs; float64 holds its sums exactly.
    kind = torch.float64 if kind == torch.int8 else kind
    return torch.float32 if kind in (torch.float16, torch.bfloat16) and out == torch.float32 else kind


def _wide(a: torch.Tensor, b: torch.Tensor, kind: Any, sums: Any, where: Place) -> torch.Tensor:
    """Return ``a @ b`` in the dtype that sums have, which halves are not rounded on the way to."""
    torch = libraries().torch
    if kind not in (torch.float16, torch.bfloat16):
        made: Any = torch.matmul(a.to(kind), b.to(kind)).to(sums)
    elif where.interpreted:  # torch has this on GPUs only
        made = torch.matmul(a.to(sums), b.to(sums))
    else:
        made = torch.mm(a.to(kind), b.to(kind), out_dtype=sums)
    return made


def _panels(where: Place, a: Any, width: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield stored rows of a matrix that are on their way to the GPU, and the first one's index."""
    kind, row = dtypes.torch_of(a.dtype), width * a.dtype.itemsize
    count = math.prod(a.shape) // width
    with borrowed(where, row) as ring:
        step = ring.size // row
        with closing(_runs(a, step)) as runs:
            source = InOrder(runs)

            def fill(start: int, view: Array) -> int:
                used = min(step, count - start) * row
                source.take(view[:used])
                return used

            for start, there in ring.pieces(range(0, count, step), fill):
                yield start, there.view(kind).view(-1, width)


def _runs(a: Any, step: int) -> Generator[Array, None, None]:
    """Yield a matrix's bytes in the order of storage: where they were read to, if it is stored as it is."""
    disk = isinstance(a, PagedArray)
    found = stored(a, 0, 1) if disk else panels(a if by_rows(a) else a.T, step)
    with closing(found) as every:
        for _, rows in every:
            yield np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
