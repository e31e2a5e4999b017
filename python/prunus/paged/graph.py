"""Expressions over arrays on disk: what is computed, and nothing about how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np

from prunus._arrays import as_array
from prunus._dtypes import BFLOAT16, F16, F32, Array, DType, weak
from prunus._errors import PrunusError
from prunus.paged.array import PagedArray
from prunus.paged.operators import Operators
from prunus.paged.store import Store, Version

__all__ = [
    "Call",
    "Cast",
    "Const",
    "Leaf",
    "Node",
    "Pick",
    "Stamps",
    "as_node",
    "call",
    "check",
    "stamps_of",
    "stores_of",
]

_COPIED: Final = 16 << 20  # operands in memory up to this many bytes are copied: the caller may change them


class Node:
    """A value of an expression: an array of ``shape`` and ``dtype``."""

    __slots__ = ("dtype", "shape")
    shape: tuple[int, ...]
    dtype: DType


class Leaf(Node):
    """An array on disk."""

    __slots__ = ("array",)

    def __init__(self, array: PagedArray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    @property
    def key(self) -> tuple[Any, ...]:
        """What says that two leaves are the same bytes seen the same way."""
        a = self.array
        return (id(a._store), a._start, a._stored, a._perm, a.dtype)


class Const(Node):
    """An array in memory, or a scalar."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value
        self.shape = np.shape(value)
        self.dtype = value.dtype if isinstance(value, (np.ndarray, np.generic)) else np.asarray(value).dtype


class Call(Node):
    """An elementwise function of nodes; with several results, ``shape`` and ``dtype`` are the first's."""

    __slots__ = ("args", "dtypes", "func", "kwargs")

    def __init__(
        self,
        func: Callable[..., Any],
        args: Sequence[Node],
        kwargs: dict[str, Any],
        dtypes: tuple[DType, ...],
    ) -> None:
        self.func, self.args, self.kwargs, self.dtypes = func, tuple(args), kwargs, dtypes
        self.shape = np.broadcast_shapes(*(a.shape for a in args))
        self.dtype = dtypes[0]


class Cast:
    """The conversion of values to a dtype, as a function of them."""

    __slots__ = ("to",)

    def __init__(self, to: DType) -> None:
        self.to = to

    def __call__(self, values: Any) -> Array:
        """Convert values."""
        return np.asarray(values).astype(self.to, copy=False)


class Pick(Node):
    """One of the results of a call."""

    __slots__ = ("call", "index")

    def __init__(self, source: Call, index: int) -> None:
        self.call, self.index, self.shape, self.dtype = source, index, source.shape, source.dtypes[index]


def stores_of(nodes: Iterable[Node]) -> list[Store]:
    """Return where the sources of some nodes lie, each once."""
    found: dict[int, Store] = {}
    seen: set[int] = set()
    ahead = list(nodes)
    while ahead:
        node = ahead.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Leaf):
            found[id(node.array._store)] = node.array._store
        elif isinstance(node, Call):
            ahead += node.args
        elif isinstance(node, Pick):
            ahead.append(node.call)
    return list(found.values())


Stamps = dict[int, tuple[Version, int, str]]


def stamps_of(values: Sequence[Any]) -> Stamps:
    """Return how often each source of some operands had been written, when they became operands."""
    stamps: Stamps = {}
    for value in values:
        if isinstance(value, PagedArray):
            version = value._store.version
            stamps.setdefault(id(version), (version, version.value, value.name or value.path))
        else:
            for key, stamp in getattr(value, "_stamps", {}).items():
                known = stamps.get(key)
                stamps[key] = stamp if known is None or stamp[1] < known[1] else known
    return stamps


def check(stamps: Stamps) -> None:
    """Raise PrunusError if a source was written since its stamp was taken."""
    for version, value, name in stamps.values():
        if version.value != value:
            raise PrunusError(
                f"{name} was written after this expression was made, so its value is not defined; make the "
                "expression again"
            )


def as_node(value: Any) -> Node:
    """Return what ``value`` is in an expression.

    Raises
    ------
    TypeError
        If it is no operand.
    """
    node = getattr(value, "_node", None)
    if node is not None and isinstance(value, Operators):
        return node  # type: ignore[no-any-return]
    if isinstance(value, PagedArray):
        return Leaf(value)
    if isinstance(value, (bool, int, float, complex, np.generic)):
        return Const(value)
    array = as_array(value, "an operand", "an array of numbers")
    return Const(array.copy() if array.nbytes <= _COPIED else array)


def _probe(node: Node) -> Any:
    """Return something small with a node's dtype that promotes as the node does."""
    if isinstance(node, Const) and not node.shape:
        return node.value
    return np.empty((0,), node.dtype)


def _as_f32(node: Node) -> Node:
    return Call(Cast(F32), (node,), {}, (F32,)) if node.dtype == F16 else node


def call(func: Callable[..., Any], inputs: Sequence[Any], kwargs: dict[str, Any] | None = None) -> list[Node]:
    """Return the nodes of ``func(*inputs, **kwargs)``, one for each result.

    Shapes broadcast and dtypes promote as NumPy has it: the function is asked, on empty arrays. float16 and
    bfloat16 meet in float32, and Python numbers are weak against bfloat16 too.

    Raises
    ------
    ValueError
        If the shapes do not broadcast.
    TypeError
        If the function does not take these dtypes.
    """
    options = {k: v for k, v in (kwargs or {}).items() if k not in ("order", "subok") and v is not None}
    nodes = [as_node(value) for value in inputs]
    kinds = {n.dtype for n in nodes if n.shape or not isinstance(n, Const) or isinstance(n.value, np.generic)}
    if {F16, BFLOAT16} <= kinds:
        nodes = [_as_f32(n) for n in nodes]
    elif BFLOAT16 in kinds and all(k == BFLOAT16 or k.kind not in "fc" for k in kinds):
        nodes = [Const(weak(n.value, BFLOAT16)) if isinstance(n, Const) and not n.shape else n for n in nodes]
    try:
        np.broadcast_shapes(*(n.shape for n in nodes))
    except ValueError:
        shapes = " ".join(str(n.shape) for n in nodes)
        raise ValueError(f"operands could not be broadcast together with shapes {shapes}") from None
    with np.errstate(all="ignore"):
        found = func(*(_probe(n) for n in nodes), **options)
    if isinstance(found, tuple):
        made = Call(func, nodes, options, tuple(f.dtype for f in found))
        return [Pick(made, i) for i in range(len(found))]
    return [Call(func, nodes, options, (found.dtype,))]
