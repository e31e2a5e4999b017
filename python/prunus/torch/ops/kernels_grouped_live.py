"""Who computes products of rows sorted by group that leave out dead units of each row.

On host memory each group's rows take one of the routes of :mod:`prunus.torch.ops.kernels_live`: its share of
what is live decides. On a GPU the kernels of ``prunus.cuda.grouped`` leave out what no row of a tile needs,
but for :func:`outer`: there dead units are cleared, and multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunus._device import on_device
from prunus.torch.ops import kernels_live as routes

if TYPE_CHECKING:
    from prunus.cuda.grouped import Matrices

__all__ = ["combine", "linear", "outer"]


def linear(
    x: Tensor, w: Sequence[Tensor], live: Tensor | None, branch: int, offsets: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return ``x @ w[e].T`` where it is live; see :func:`prunus.torch.ops.grouped_live.grouped_live_linear`.

    ``dtype`` is the result's: x's, or one that is wider.
    """
    out = x.new_empty((x.shape[0], w[0].shape[-2]), dtype=dtype)
    if on_device(x):
        from prunus.cuda.grouped import Routes, project
        from prunus.cuda.runtime import place_of

        where, to = place_of(x), Routes(offsets, None, None, None, None, x.shape[0])
        alive = None if live is None else live.contiguous()
        # Of rows past the last group nothing is written.
        project(where, x, to, _matrices(w, False), out.zero_(), gather=False, live=alive, branch=branch)
        return out
    for e, rows in _groups(out, offsets):
        routes.write_linear(x[rows], _matrix(w, e), None, _of(live, rows), branch, out[rows])
    return out


def combine(
    h: Tensor, w: Sequence[Tensor], live: Tensor, branch: int, offsets: Tensor, zeroed: bool, flip: bool
) -> Tensor:
    """Return ``h @ w[e]`` of live units; see :func:`prunus.torch.ops.grouped_live.grouped_live_combine`."""
    out = h.new_empty((h.shape[0], w[0].shape[-2 if flip else -1]))
    if on_device(h):
        from prunus.cuda.grouped import Routes, project_live
        from prunus.cuda.runtime import place_of

        where, to = place_of(h), Routes(offsets, None, None, None, None, h.shape[0])
        matrices, alive = _matrices(w, not flip), live.contiguous()
        project_live(where, h.contiguous(), to, matrices, alive, branch, out.zero_())
        return out
    for e, rows in _groups(out, offsets):
        one = _matrix(w, e)
        one = one.mT if flip else one
        routes.write_combine(h[rows], one, _of(live, rows), branch, zeroed, out[rows])
    return out


def outer(
    h: Tensor, x: Tensor, live: Tensor, branch: int, offsets: Tensor, zeroed: bool, flip: bool
) -> Tensor:
    """Return ``h.T @ x`` of live units; see :func:`prunus.torch.ops.grouped_live.grouped_live_outer`."""
    size = (x.shape[1], h.shape[1]) if flip else (h.shape[1], x.shape[1])
    out = h.new_empty((offsets.shape[0] - 1, *size))
    if on_device(h):
        from prunus.cuda.grouped import outer as there
        from prunus.cuda.runtime import place_of

        h = h if zeroed else torch.where(routes.spread(live, branch, h.shape[1]), h, 0)
        there(place_of(h), *((x, h) if flip else (h, x)), offsets, out)
        return out
    for e, (first, last) in enumerate(pairwise(offsets.tolist())):
        rows = slice(first, last)
        if last == first:
            out[e] = 0
        elif out.numel():
            routes.write_outer(h[rows], x[rows], _of(live, rows), branch, zeroed, flip, out[e])
    return out


def _groups(out: Tensor, offsets: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield groups that have rows in ``out``, and which; rows past the last group become 0."""
    ends = offsets.tolist()
    out[ends[-1] :] = 0
    for e, (first, last) in enumerate(pairwise(ends)):
        if last > first and out.shape[1]:
            yield e, slice(first, last)


def _of(live: Tensor | None, rows: slice) -> Tensor | None:
    """Return what is live of some rows; None, where all is."""
    if live is None:
        return None
    mine = live[rows]
    return None if bool(mine.all()) else mine


def _matrix(w: Sequence[Tensor], e: int) -> Tensor:
    return w[0][e] if w[0].ndim == 3 else w[e]


def _matrices(w: Sequence[Tensor], turned: bool) -> Matrices:
    from prunus.cuda.grouped import Matrices, by_themselves
    from prunus.cuda.runtime import place_of

    each = [one.mT for one in w] if turned else w
    return Matrices(each[0]) if w[0].ndim == 3 else by_themselves(each, place_of(w[0]))
