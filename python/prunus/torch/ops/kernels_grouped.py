"""Who computes products of rows that are sorted by group with a matrix of each group: experts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from prunus._device import on_device
from prunus.torch.ops import kernels
from prunus.torch.ops.kernels import Parts

__all__ = ["dsd", "mm", "outer", "route", "sdd"]


def mm(x: Tensor, w: Tensor | Sequence[Tensor], offsets: Tensor, features: int) -> Tensor:
    """Return ``x @ w[e].T`` for each group's rows; see :func:`prunus.torch.ops.grouped.grouped_mm`."""
    if on_device(x):
        from prunus.cuda.grouped import Matrices, Routes, by_themselves, project
        from prunus.cuda.runtime import place_of

        where = place_of(x)
        out = x.new_zeros((x.shape[0], features))  # of rows past the last group nothing is written
        matrices = Matrices(w) if isinstance(w, Tensor) else by_themselves(w, where)
        routes = Routes(offsets, None, None, None, None, x.shape[0])
        project(where, x, routes, matrices, out, gather=False)
        return out
    out = x.new_empty((x.shape[0], features))
    ends = offsets.tolist()
    for e, (first, last) in enumerate(pairwise(ends)):
        if last > first:
            torch.mm(x[first:last], w[e].T, out=out[first:last])
    out[ends[-1] :] = 0
    return out


def outer(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """Return ``a.T @ b`` of each group's rows; see :func:`prunus.torch.ops.grouped.grouped_outer`."""
    out = a.new_empty((offsets.shape[0] - 1, a.shape[1], b.shape[1]))
    if on_device(a):
        from prunus.cuda.grouped import outer as there
        from prunus.cuda.runtime import place_of

        there(place_of(a), a, b, offsets, out)
        return out
    ends = offsets.tolist()
    for e, (first, last) in enumerate(pairwise(ends)):
        if last > first:
            torch.mm(a[first:last].T, b[first:last], out=out[e])
        else:
            out[e] = 0
    return out


def dsd(w: Parts, x: Tensor, offsets: Tensor) -> Tensor:
    """Return ``x @ w[e].T`` for each group's rows, of block-sparse matrices."""
    out = x.new_zeros((x.shape[0], w.size[0]))
    if 0 in out.shape:
        return out
    if on_device(x):
        from prunus.cuda.grouped import Routes
        from prunus.cuda.grouped_blocks import members, project_blocks, together
        from prunus.cuda.runtime import place_of

        where = place_of(x)
        routes = Routes(offsets, None, None, None, None, x.shape[0])
        every = members(kernels.operand(w), (offsets.shape[0] - 1,))
        project_blocks(where, x, routes, together(every, where), out, gather=False)
        return out
    ends = offsets.tolist()
    for e, (first, last) in enumerate(pairwise(ends)):
        if last > first:
            kernels.write_dsd(_member(w, e), x[first:last], None, True, out[first:last])
    return out


def sdd(a: Tensor, b: Tensor, offsets: Tensor, indices: Tensor, indptr: Tensor, br: int, bc: int) -> Tensor:
    """Return the blocks of ``a.T @ b`` of each group's rows at a pattern.

    How many rows a group has is read, on a GPU as well.
    """
    ends = offsets.tolist()
    shared = indptr.ndim == 1
    out = a.new_zeros((*((len(ends) - 1,) if shared else ()), indices.shape[0], br, bc))
    w = Parts(out, indices, indptr, a.shape[1], b.shape[1], False)
    for e, (first, last) in enumerate(pairwise(ends)):
        if last > first:
            one = _member(w, e)
            kernels.write_sdd(a[first:last].T, b[first:last], one.indices, one.indptr, one.data)
    return out


def _member(w: Parts, e: int) -> Parts:
    """Return one matrix of a batch, in the same memory."""
    if w.indptr.ndim == 1:
        return w._replace(data=w.data[e])
    first, last = int(w.indptr[e, 0]), int(w.indptr[e, -1])
    part = slice(first, last)
    return w._replace(data=w.data[part], indices=w.indices[part], indptr=w.indptr[e] - first)


def route(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return who runs through what; see :func:`prunus.torch.ops.grouped.route`."""
    count = logits.shape[1]
    if not on_device(logits):
        _check(logits)
    values, found = torch.sort(logits, dim=1, descending=True, stable=True)
    experts = found[:, :top].masked_fill(values[:, :top] == -torch.inf, count).sort(1).values
    flat = experts.reshape(-1)
    each, order = torch.sort(flat, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    ends = torch.arange(1, count + 1, device=order.device)
    offsets = torch.zeros(count + 1, dtype=torch.int32, device=order.device)
    offsets[1:] = torch.searchsorted(each, ends)
    return experts, order, place.reshape(experts.shape), offsets


def _check(logits: Tensor) -> None:
    top = logits.amax(1) if logits.shape[1] else logits.new_zeros(len(logits))
    for wrong, what in (
        (logits.isnan().any(1), "hold NaN"),
        (top == torch.inf, "hold +inf"),
        (top == -torch.inf, "are all -inf"),
    ):
        if wrong.any():
            raise ValueError(f"the router's logits of row {int(wrong.long().argmax())} {what}")
