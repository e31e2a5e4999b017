"""Running sums and products, from one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from prunus._dtypes import Array, as_dtype
from prunus.paged.array import PagedArray
from prunus.paged.evaluate import Pass, Tile
from prunus.paged.graph import as_node, check, stamps_of
from prunus.paged.statistics import _sum_dtype, axes_of
from prunus.paged.store import Sink

__all__ = ["cumulative"]


def cumulative(  # noqa: PLR0915 - two ways out of one loop
    source: Any, name: str, axis: Any, dtype: Any = None, out: Any = None
) -> Any:
    """Return running sums (``name="sum"``) or products (``"prod"``) of an array on disk or an expression.

    They are formed in float64, or for integers in 64 bits.

    Parameters
    ----------
    axis : int or None
        Along which axis; None is the flattened array.
    dtype : dtype-like, optional
        The result's dtype; by default NumPy's.
    out : PagedArray or ndarray, optional
        Where to; by default a new temporary array on disk.
    """
    from prunus.paged.expr import _arrays, _overlaps, assign
    from prunus.paged.working import empty

    node, stamps = as_node(source), stamps_of([source])
    check(stamps)
    nd = len(node.shape)
    flat = axis is None
    along = None if flat else axes_of(int(axis), nd)[0]
    if dtype is not None:
        to = as_dtype(dtype)
    else:
        to = node.dtype if node.dtype.kind not in "biu" else np.add.reduce(np.empty(0, node.dtype)).dtype
    wide = _sum_dtype(to if to.kind in "fc" or node.dtype.kind in "biu" else node.dtype)
    shape = (source.size,) if flat else node.shape
    sources = _arrays(node)
    if isinstance(out, tuple):
        (out,) = out
    target = out
    if out is None or (isinstance(out, PagedArray) and any(_overlaps(a, out) for a in sources)):
        target = empty(shape, to, pager=sources[0].pager)
    if target.shape != shape:
        raise ValueError(f"out has shape {target.shape}, expected {shape}")
    if not np.can_cast(to, target.dtype, "same_kind"):
        raise TypeError(f"cannot cast the result from {to} to out's {target.dtype}")
    paged = isinstance(target, PagedArray)
    order = tuple(range(nd)) if flat or not paged else tuple(target._perm.index(k) for k in range(nd))
    func: Any = np.cumsum if name == "sum" else np.cumprod
    join: Any = np.add if name == "sum" else np.multiply
    start = 0 if name == "sum" else 1
    carry = np.full(() if flat else [1 if k == along else n for k, n in enumerate(shape)], start, wide)
    job = Pass([node], order)

    def work(tiles: Iterator[Tile]) -> list[tuple[Any, Array]]:
        return [
            (box, func(v.reshape(-1) if flat else v, axis=0 if flat else along, dtype=wide))
            for box, (v,) in tiles
        ]

    def pieces() -> Iterator[tuple[Any, Array]]:
        """Yield the finished values of each tile, in order."""
        with closing(job.run(work)) as jobs:
            for part in jobs:
                for box, values in part:
                    at = () if flat else tuple(slice(0, 1) if k == along else b for k, b in enumerate(box))
                    join(values, carry[at], out=values)
                    last = values[-1] if flat else np.take(values, [-1], axis=along)
                    carry[at] = last
                    yield box, values.astype(target.dtype)

    if paged:
        target._check_writable()
        if target.size:
            target._store.wrote()
            begin = target._start
            with Sink(target._store, begin, begin + target.nbytes, 2) as sink:
                for _, values in pieces():
                    sink.write(np.ascontiguousarray(values if flat else values.transpose(order)))
            target._store.wrote()
    else:
        at = 0
        for box, values in pieces():
            if flat:
                target[at : at + len(values)] = values
                at += len(values)
            else:
                target[box] = values
    if out is not None and target is not out:
        assign(out, target)
        return out
    return target
