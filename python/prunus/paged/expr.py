"""Expressions over arrays on disk, evaluated in one pass when their values are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from prunus._dtypes import Array, DType, as_dtype
from prunus.paged.access import take
from prunus.paged.array import PagedArray
from prunus.paged.evaluate import Pass, Tile
from prunus.paged.fused import casts
from prunus.paged.graph import Call, Cast, Const, Leaf, Node, Pick, Stamps, as_node, call, check, stamps_of
from prunus.paged.indexing import Index, Whole, parse
from prunus.paged.operators import Operators
from prunus.paged.reducible import Reducible
from prunus.paged.store import Sink

__all__ = ["PagedExpr", "apply", "assign", "astype", "compress", "into"]


class PagedExpr(Operators, Reducible):
    """An elementwise expression over arrays on disk: immutable, and not computed yet.

    A reduction, an index, ``load()``, ``save(path)`` or ``out=`` computes it in one pass over its sources;
    what occurs in it twice is computed once. If a source is written in the meantime, it raises
    :class:`prunus.PrunusError`. Arrays in memory above 16 MiB are not copied into it: leave them as they are.
    """

    __slots__ = ("_node", "_stamps", "dtype", "shape")

    def __init__(self, node: Node, stamps: Stamps) -> None:
        self._node = node
        self._stamps = stamps
        self.shape = node.shape
        self.dtype = node.dtype

    def __repr__(self) -> str:
        names = sorted({name for _, _, name in self._stamps.values()})
        return f"<PagedExpr {self.shape} {self.dtype} of {', '.join(map(repr, names))}>"

    @property
    def T(self) -> PagedExpr:  # noqa: N802 - NumPy's name
        """The transpose, an expression."""
        return self.transpose()

    def transpose(self, *axes: Any) -> PagedExpr:
        """Return the expression with its axes in another order; reversed if none is given."""
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = () if axes[0] is None else tuple(axes[0])
        order = axes or tuple(range(self.ndim))[::-1]
        shape = self.shape

        def turn(value: Any) -> Any:
            if isinstance(value, PagedArray):
                return value._expand(len(shape)).transpose(*order)
            return value.reshape((1,) * (len(shape) - value.ndim) + value.shape).transpose(order)

        np.empty(shape and (1,) * len(shape)).transpose(order)  # raises as NumPy does
        return PagedExpr(_rebuild(self._node, turn), self._stamps)

    def load(self) -> Array:
        """Return the values as an ndarray."""
        found: Array = into(self, None)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Compute the values into a new .npy file, or whatever ``pr.save`` makes of the name; atomic."""
        from prunus.paged.working import save_array

        save_array(self, path)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (PagedArray, PagedExpr)) and key.dtype == bool and key.shape == self.shape:
            return compress(key, self)
        check(self._stamps)
        index = parse(key, self.shape)
        if index.group is None:
            view = self._window(index)
            if view is not None:
                return into(view, None)
        found = self._at(index)
        return found[()] if index.scalar else found

    def _window(self, index: Index) -> PagedExpr | None:
        """Return the expression of what a basic index selects if that is a run of bytes of each source."""

        def cut(value: Any) -> Any:
            if isinstance(value, PagedArray):
                own = _own(index, value.shape, len(self.shape))
                view = value._expand(len(self.shape))._contiguous(own)
                if view is None:
                    raise _NoWindow
                return view
            return _take(value, index)

        try:
            return PagedExpr(_rebuild(self._node, cut), self._stamps)
        except _NoWindow:
            return None

    def _at(self, index: Index) -> Array:
        """Return the values at an index, computed from those of the sources there."""

        def pick(value: Any) -> Any:
            if isinstance(value, PagedArray):
                own = _own(index, value.shape, len(self.shape))
                return value._expand(len(self.shape))._select(own).read()
            return _take(value, index)

        roots = _rebuild(self._node, pick)
        tiles = Pass([roots]).run(list)
        out = np.empty(index.shape, self.dtype)
        with closing(tiles):
            for tile in (t for job in tiles for t in job):
                out[tile.box] = tile.values[0]
        check(self._stamps)
        return out

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the first axis; rows are computed some at a time."""
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        row = max(self.nbytes // max(len(self), 1), 1)
        step = max((4 << 20) // row, 1)
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __reduce__(self) -> Any:
        raise TypeError("a PagedExpr does not pickle; save it, or pickle the arrays it is made of")


class _NoWindow(Exception):  # noqa: N818 - an answer, not an error
    """An index selects what is no run of bytes."""


def _rebuild(root: Node, change: Callable[[Any], Any]) -> Node:
    """Return the expression with ``change`` applied to each array in it, on disk or in memory."""
    made: dict[int, Node] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        if id(node) in made:
            stack.pop()
            continue
        below = node.args if isinstance(node, Call) else (node.call,) if isinstance(node, Pick) else ()
        missing = [b for b in below if id(b) not in made]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        new: Node = node
        if isinstance(node, Call):
            new = Call(node.func, [made[id(b)] for b in below], node.kwargs, node.dtypes)
        elif isinstance(node, Pick):
            source = made[id(node.call)]
            assert isinstance(source, Call)
            new = Pick(source, node.index)
        elif isinstance(node, Leaf) or (isinstance(node, Const) and isinstance(node.value, np.ndarray)):
            value = change(node.array if isinstance(node, Leaf) else node.value)
            new = Leaf(value) if isinstance(value, PagedArray) else Const(value)
        made[id(node)] = new
    return made[id(root)]


def _own(index: Index, shape: tuple[int, ...], ndim: int) -> Index:
    """Return what an index of a broadcast result means for an operand of ``shape``."""
    own = (1,) * (ndim - len(shape)) + shape
    axes: list[Any] = []
    for n, axis in zip(own, index.axes, strict=True):
        if n != 1:
            axes.append(axis)
        elif isinstance(axis, Whole):
            # An axis of length 1 stays one, unless nothing of it is wanted.
            axes.append(Whole(0, 1, 1 if axis.size else 0))
        else:
            axes.append(0 if isinstance(axis, int) else np.zeros_like(axis))
    return Index(tuple(axes), index.group, index.order, False)


def _take(value: Array, index: Index) -> Array:
    """Return what an index resolved against an expression selects of an operand in memory."""
    own = _own(index, value.shape, len(index.axes))
    return take(value.reshape((1,) * (len(index.axes) - value.ndim) + value.shape), own)


def astype(value: Any, dtype: DTypeLike | str, casting: str = "unsafe") -> PagedExpr:
    """Return an expression of ``value`` in another dtype."""
    to = as_dtype(dtype)
    if not np.can_cast(value.dtype, to, casting):  # type: ignore[arg-type]
        raise TypeError(f"cannot cast from {value.dtype} to {to} according to the rule {casting!r}")
    return PagedExpr(Call(Cast(to), (as_node(value),), {}, (to,)), stamps_of([value]))


def apply(func: Callable[..., Any], inputs: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
    """Return the expression ``func(*inputs, **kwargs)``; a tuple where the function returns one."""
    stamps = stamps_of(inputs)
    found = tuple(PagedExpr(node, stamps) for node in call(func, inputs, kwargs))
    return found if isinstance(getattr(found[0], "_node", None), Pick) else found[0]


def _value(source: Any) -> tuple[Node, Stamps]:
    return as_node(source), stamps_of([source])


def _cast(node: Node, to: DType) -> Node:
    """Return a node in the dtype that it is stored in, if the pass can convert it as it goes."""
    return Call(Cast(to), (node,), {}, (to,)) if node.dtype != to and casts(node.dtype, to) else node


def into(source: Any, out: Any) -> Any:
    """Compute an expression (or copy an array on disk) into an ndarray, a new one if ``out`` is None."""
    node, stamps = _value(source)
    check(stamps)
    if out is not None:
        node = _cast(node, out.dtype)
    work = Pass([node])
    if out is None:
        stored = np.empty([work.shape[axis] for axis in work.order], node.dtype)
        out = stored.transpose([work.order.index(axis) for axis in range(len(work.shape))])
    work.target = out

    def put(tiles: Iterator[Tile]) -> None:
        for _ in tiles:
            pass

    with closing(work.run(put)) as jobs:
        for _ in jobs:
            pass
    check(stamps)
    return out


def assign(target: PagedArray, source: Any) -> None:
    """Compute an expression into an array on disk; it may be among the expression's own sources.

    Raises
    ------
    ValueError
        If the shapes do not broadcast.
    """
    target._check_open()
    node, stamps = _value(source)
    check(stamps)
    if np.broadcast_shapes(node.shape, target.shape) != target.shape:
        raise ValueError(f"could not broadcast shape {node.shape} into shape {target.shape}")
    if node.shape != target.shape:  # broadcast: an empty operand of the target's shape carries it
        node = Call(_first, (node, Const(np.broadcast_to(np.int8(0), target.shape))), {}, (node.dtype,))
    early = [a for a in _arrays(node) if _overlaps(a, target)]
    large = [a for a in early if a.nbytes > min(64 << 20, int(a.pager.budget) // 4)]
    if large:
        from prunus.paged.working import empty

        work = empty(target.shape, node.dtype, pager=target.pager)
        assign(work, PagedExpr(node, stamps))
        assign(target, work)
        work._store.file.close()
        return
    order = tuple(target._perm.index(k) for k in range(len(target.shape)))
    dtype = target.dtype
    job = Pass([_cast(node, dtype)], order, early)

    def pack(tiles: Iterator[Tile]) -> list[Array]:
        return [
            np.ascontiguousarray(values.transpose(order).astype(dtype, copy=False)) for _, (values,) in tiles
        ]

    store = target._store
    begin = target._start
    stale = {k: s for k, s in stamps.items() if s[0] is not store.version}
    store.wrote()
    try:
        if target.size:
            streams = 1 + len(_arrays(node))
            with Sink(store, begin, begin + target.nbytes, streams) as sink, closing(job.run(pack)) as jobs:
                for parts in jobs:
                    for part in parts:
                        sink.write(part)
    finally:
        store.wrote()
    check(stale)


def _first(value: Any, _: Any) -> Any:
    return value


def _arrays(root: Node) -> list[PagedArray]:
    """Return the arrays on disk in an expression."""
    found: dict[int, PagedArray] = {}
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Leaf):
            found[id(node.array)] = node.array
        elif isinstance(node, Call):
            stack.extend(node.args)
        elif isinstance(node, Pick):
            stack.append(node.call)
    return list(found.values())


def _overlaps(a: PagedArray, target: PagedArray) -> bool:
    """Say whether writing ``target`` tile by tile could change what is yet to be read of ``a``."""
    if a._store.version is not target._store.version:
        return False
    same = (a._start, a._stored, a._perm, a.dtype) == (
        target._start, target._stored, target._perm, target.dtype,
    )  # fmt: skip
    apart = a._start + a.nbytes <= target._start or target._start + target.nbytes <= a._start
    return not same and not apart


def compress(mask: Any, values: Any) -> Array:
    """Return ``values[mask]`` in one pass over both, in C order."""
    stamps = stamps_of([mask, values])
    check(stamps)
    nodes = [as_node(mask), as_node(values)]
    job = Pass(nodes, tuple(range(len(nodes[0].shape))))

    def pick(tiles: Iterator[Tile]) -> list[Array]:
        return [chosen[keep] for _, (keep, chosen) in tiles]

    with closing(job.run(pick)) as jobs:
        parts = [part for found in jobs for part in found]
    check(stamps)
    return np.concatenate(parts) if parts else np.empty(0, nodes[1].dtype)
