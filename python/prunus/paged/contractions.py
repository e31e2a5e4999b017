"""NumPy's other products of arrays on disk, in terms of ``matmul`` and sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prunus.paged import statistics
from prunus.paged.array import PagedArray
from prunus.paged.expr import PagedExpr, apply
from prunus.paged.multiplying import Multiplying, refusal
from prunus.paged.operators import Operators
from prunus.paged.panels import kept
from prunus.paged.products import matmul, operand, types

__all__ = ["dot", "einsum", "tensordot", "vdot"]


def dot(a: Any, b: Any, out: Any = None) -> Any:
    """Run ``numpy.dot``: a product of matrices, vectors or with a scalar."""
    if not np.ndim(a) or not np.ndim(b):
        return np.multiply(a, b) if out is None else np.multiply(a, b, out=out)
    if np.ndim(b) > 2:
        raise TypeError(
            "np.dot with a second operand of more than two dimensions is not supported; use np.matmul"
        )
    return matmul(a, b, out=out)


def vdot(a: Any, b: Any) -> Any:
    """Run ``numpy.vdot``: the inner product of flattened arrays, the first conjugated."""
    a, b = (x if isinstance(x, Operators) else np.asarray(x) for x in (a, b))
    if a.shape != b.shape:
        raise TypeError(f"np.vdot of arrays on disk takes operands of one shape, got {a.shape} and {b.shape}")
    to, work = types(a.dtype, b.dtype, None)
    x = apply(np.conjugate, [a]) if isinstance(a, Operators) else np.conjugate(a)
    return statistics.reduce(apply(np.multiply, [x.astype(work), b]), "sum").astype(to)


def _check_dense(name: str, *operands: Any) -> None:
    if any(isinstance(one, Multiplying) for one in operands):
        raise TypeError(refusal(name))


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    """Run ``numpy.tensordot`` where the product is one of matrices without moving values on disk.

    Raises
    ------
    TypeError
        If the contracted axes of an operand on disk are neither its first nor its last in the order of
        storage.
    """
    _check_dense("tensordot", a, b)
    a, b = operand(a, "a"), operand(b, "b")
    if isinstance(axes, int):
        axes = (list(range(a.ndim - axes, a.ndim)), list(range(axes)))
    of_a, of_b = ([int(k)] if np.ndim(k) == 0 else [int(i) for i in k] for k in axes)
    of_a, of_b = [k % a.ndim for k in of_a], [k % b.ndim for k in of_b]
    if len(of_a) != len(of_b) or any(a.shape[i] != b.shape[j] for i, j in zip(of_a, of_b, strict=True)):
        raise ValueError("shape-mismatch for sum")
    rest_a = [k for k in range(a.ndim) if k not in of_a]
    rest_b = [k for k in range(b.ndim) if k not in of_b]
    shape = [a.shape[k] for k in rest_a] + [b.shape[k] for k in rest_b]
    left = _as_matrix(a, rest_a, of_a)
    right = _as_matrix(b, of_b, rest_b)
    return np.asarray(matmul(left, right)).reshape(shape)[()]


def _as_matrix(a: Any, rows: list[int], columns: list[int]) -> Any:
    """Return ``a`` as a matrix whose rows and columns are some of its axes, without moving values on disk."""
    m, n = (math.prod(a.shape[k] for k in ks) for ks in (rows, columns))
    if isinstance(a, PagedExpr):
        if len(rows) == len(columns) == 1:
            return a.transpose(*rows, *columns)
        a = kept(a)
    if not isinstance(a, PagedArray):
        return a.transpose(rows + columns).reshape(m, n)
    for first, second, turned in ((rows, columns, False), (columns, rows, True)):
        view = a.transpose(*first, *second) if a.ndim else a
        try:
            return view.reshape(n, m).T if turned else view.reshape(m, n)
        except ValueError:
            continue
    raise TypeError(
        "this contraction would have to move values on disk: the contracted axes must come first or last, in "
        "the order of storage; load() one of the operands"
    )


def einsum(subscripts: Any, *operands: Any, out: Any = None, optimize: Any = False, **kwargs: Any) -> Any:
    """Run ``numpy.einsum`` for one or two operands, where it comes down to a sum or a product of matrices.

    Raises
    ------
    TypeError
        For other forms.
    """
    _check_dense("einsum", *operands)
    if not isinstance(subscripts, str) or kwargs or "." in subscripts or len(operands) not in (1, 2):
        raise TypeError("np.einsum with arrays on disk takes a string without '...', and one or two operands")
    text = subscripts.replace(" ", "")
    inputs, arrow, result = text.partition("->")
    terms = inputs.split(",")
    if not arrow:
        result = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
    values = [v if isinstance(v, Operators) else np.asarray(v) for v in operands]
    if len(terms) != len(values) or any(len(t) != v.ndim for t, v in zip(terms, values, strict=True)):
        raise ValueError(f"einsum {text!r} does not fit operands of {[v.ndim for v in values]} dimensions")
    if any(len(set(t)) != len(t) for t in (*terms, result)) or not set(result) <= set(inputs):
        raise TypeError(f"einsum {text!r} takes a diagonal, which is not supported for arrays on disk")
    if len(values) == 1:
        return _deliver(_summed(values[0], terms[0], result), out)
    (ta, tb), (a, b) = terms, values
    common = [c for c in ta if c in tb]
    if not set(result) & set(common) and set(ta) | set(tb) == set(result) | set(common):
        found = tensordot(a, b, ([ta.index(c) for c in common], [tb.index(c) for c in common]))
        have = [c for c in ta + tb if c in result]
        return _deliver(np.asarray(found).transpose([have.index(c) for c in result])[()], out)
    if set(tb) > set(ta):
        ta, tb, a, b = tb, ta, b, a
    if not set(tb) <= set(ta):
        raise TypeError(f"einsum {text!r} is neither a sum nor a product of matrices; load() the operands")
    order = [tb.index(c) for c in ta if c in tb]
    turned: Any = np.transpose(b, order)
    spread = [n if c in tb else 1 for c, n in zip(ta, a.shape, strict=True)]
    return _deliver(_summed(apply(np.multiply, [a, turned.reshape(spread)]), ta, result), out)


def _summed(value: Any, term: str, result: str) -> Any:
    gone = tuple(k for k, c in enumerate(term) if c not in result)
    left = [c for c in term if c in result]
    order = [left.index(c) for c in result]
    if gone:
        return np.asarray(statistics.reduce(value, "sum", gone, dtype=value.dtype)).transpose(order)[()]
    return value.transpose(*order) if order else value


def _deliver(value: Any, out: Any) -> Any:
    if out is None:
        return value
    out[...] = value
    return out
