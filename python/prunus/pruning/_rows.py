"""What the operations on rows share: checked inputs, tables, liveness and how it is counted."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

import numpy as np

from prunus import _core, engines
from prunus._arrays import as_floats
from prunus._dtypes import F32, F64, Array, DType, result_dtype
from prunus._layout import blocks_along
from prunus._operands import is_on_disk
from prunus._trace import Span
from prunus.engines import Found
from prunus.engines.base import ACTIVATIONS
from prunus.pruning._checks import check_count
from prunus.pruning.policies import Policy, Threshold, decide, foreseen

__all__ = [
    "Rows",
    "as_rows",
    "as_table",
    "as_vector",
    "check_activation",
    "check_branch",
    "combine",
    "contribute",
    "count_rows",
    "dots",
    "find",
    "norms_of",
    "spread",
    "sums_dtype",
    "watched",
]

# Rows that share one reading of the weights: what ``union_live`` is counted over.
TILE: Final = 128


class Rows(NamedTuple):
    """An input as a matrix, and the leading dimensions that its result gets back."""

    x: Array
    lead: tuple[int, ...]

    def restore(self, y: Array) -> Array:
        """Return (rows, n) with the input's leading dimensions; one dimension for a vector."""
        return y if len(self.lead) == 1 else y.reshape(*self.lead, y.shape[-1])


def as_rows(x: Any, features: int, name: str = "x") -> Rows:
    """Return ``x`` (*lead, features) as a matrix, without a copy where its strides allow it.

    Raises
    ------
    TypeError
        If it is no array of floats.
    ValueError
        If its last axis is not ``features`` long.
    """
    x = as_floats(x, name)
    if x.ndim == 0:
        raise ValueError(f"{name} must have at least one dimension")
    if x.shape[-1] != features:
        raise ValueError(f"{name} has {x.shape[-1]} features, the weights expect {features}")
    lead = x.shape[:-1]
    return Rows(x if x.ndim == 2 else x.reshape(math.prod(lead), features), lead)


def as_table(w: Any, name: str) -> Any:
    """Return weights (units, features) with contiguous rows; a copy only where they are not.

    Those on disk stay there: they become a :class:`prunus.paged.tables.Table`, which :func:`dots` and
    :func:`combine` take like an ndarray.

    Raises
    ------
    TypeError
        If they are no array of floats.
    ValueError
        If they are not two-dimensional.
    """
    if is_on_disk(w):
        from prunus.paged import tables  # it builds on this package

        return tables.as_table(w, name)
    w = as_floats(w, name)
    if w.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (out, in), got shape {w.shape}")
    return w if w.strides[1] == w.itemsize or w.shape[1] == 1 else np.ascontiguousarray(w)


def as_vector(b: Any, length: int, name: str) -> Array | None:
    """Return a bias (length,), or None.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    if b is None:
        return None
    vector = as_floats(b, name)
    if vector.shape != (length,):
        raise ValueError(f"{name} must have shape {(length,)}, got {vector.shape}")
    return vector


def check_activation(activation: str | None) -> None:
    """Raise ValueError unless the activation has a name that engines know, or is None: the identity."""
    if activation is not None and activation not in ACTIVATIONS:
        known = ", ".join(repr(name) for name in sorted(ACTIVATIONS))
        raise ValueError(f"activation must be one of {known} or None, got {activation!r}")


def check_branch(branch: Any, units: int | None = None, name: str = "branch") -> int:
    """Return the width of a branch, no wider than there are units.

    Raises
    ------
    TypeError, ValueError
        If it is not a positive integer.
    """
    width = check_count(branch, name)
    return width if units is None else min(width, max(units, 1))


def sums_dtype(*dtypes: DType) -> DType:
    """Return the dtype that sums of these are kept in."""
    kind = dtypes[0]
    for other in dtypes[1:]:
        kind = result_dtype(kind, other)
    return F64 if kind == F64 else F32


def spread(live: Array, branch: int, units: int) -> Array:
    """Return the liveness of every unit (rows, units) from that of branches."""
    every: Array = live if branch == 1 else np.repeat(live, branch, axis=1)[:, :units]
    return every


def norms_of(h: Array, branch: int, norm: str) -> Array:
    """Return the norms of branches of ``h`` (rows, units), in its dtype."""
    starts = np.arange(0, h.shape[1], branch)
    if not starts.size:
        return np.zeros((len(h), 0), h.dtype)
    most: Array = np.maximum.reduceat(np.abs(h), starts, axis=1)
    if norm == "max":
        return most
    # Shares of the largest value: squares of what is very large or small are out of range.
    with np.errstate(invalid="ignore"):
        unit = np.where((most > 0) & np.isfinite(most), most, 1)
        shares = h / np.repeat(unit, np.diff([*starts, h.shape[1]]), axis=1)
        norms: Array = unit * np.sqrt(np.add.reduceat(shares * shares, starts, axis=1))
    return np.where(np.isfinite(most), norms, most)


def dots(
    x: Array,
    w: Any,
    out: Array,
    live: Array | None = None,
    branch: int = 1,
    bias: Array | None = None,
    activation: str | None = None,
    scale: Array | None = None,
    found: Found | None = None,
) -> None:
    """Compute units as :meth:`prunus.engines.base.Engine.dots`, with a table in memory or on disk."""
    if isinstance(w, np.ndarray):
        engines.active().dots(x, w, out, live, branch, bias, activation, scale, found)
    else:
        w.dots(x, out, live, branch, bias, activation, scale, found)


def combine(
    h: Array, w: Any, out: Array, live: Array | None = None, branch: int = 1, bias: Array | None = None
) -> None:
    """Add what units contribute as :meth:`prunus.engines.base.Engine.combine`, with any table."""
    if isinstance(w, np.ndarray):
        engines.active().combine(h, w, out, live, branch, bias)
    else:
        w.combine(h, out, live, branch, bias)


def find(
    policy: Policy,
    x: Array,
    w: Any,
    out: Array,
    branch: int,
    bias: Array | None = None,
    activation: str | None = None,
    *,
    ask: bool = True,
    clear: bool = True,
) -> tuple[Array, bool]:
    """Compute units, and which branches of them are live; dead ones are 0 in ``out``.

    What the policy foresees is all that is computed. A threshold is decided as the units are stored, other
    policies see the norms of all rows afterwards. Without ``ask``, the policy foresees nothing; without
    ``clear``, dead units hold anything: enough for what is told which are live.

    Returns
    -------
    live : ndarray of bool
        Shape (rows, branches).
    known : bool
        Whether the policy foresaw it.
    """
    branches = blocks_along(len(w), branch)
    live = foreseen(policy, x, branches) if ask else None
    if live is not None:
        live = np.ascontiguousarray(live)
        dots(x, w, out, live, branch, bias, activation)
        return live, True
    norms = np.empty((len(x), branches), sums_dtype(x.dtype, w.dtype, out.dtype))
    # A class derived from Threshold may select otherwise: then it is asked like any other policy.
    if isinstance(policy, Threshold) and type(policy).select is Threshold.select and policy.rows == 1:
        live = np.empty((len(x), branches), bool)
        found = Found(branch, policy.norm, norms, live, policy.tau)
        dots(x, w, out, None, branch, bias, activation, None, found)
        return live, False
    dots(x, w, out, None, branch, bias, activation, None, Found(branch, policy.norm, norms))
    live = np.ascontiguousarray(decide(policy, norms))
    if clear and not live.all():
        out[~spread(live, branch, len(w))] = 0
    return live, False


def contribute(h: Array, w: Any, out: Array, live: Array, branch: int, bias: Array | None = None) -> None:
    """Write ``h @ w.T + bias`` where only live units take part, for weights (out, units) that lie by outputs.

    They are read whole: a dead unit's column shares cache lines with live ones.
    """
    dots(h, w, out, None, 1, bias)
    # A dead unit's 0 is harmless unless it meets an infinity or NaN in w. Such rows are done again without
    # their dead units.
    wrong = np.flatnonzero(~np.isfinite(out).all(axis=1))
    if len(wrong) and not isinstance(w, np.ndarray):
        w.contribute_again(h, out, spread(live, branch, h.shape[1]), bias, wrong)
        return
    engine = engines.active()
    for row in wrong:
        at = np.flatnonzero(spread(live[row : row + 1], branch, h.shape[1])[0])
        engine.dots(h[row : row + 1, at], np.ascontiguousarray(w[:, at]), out[row : row + 1], None, 1, bias)


def watched(at: Span, *tables: Any) -> AbstractContextManager[None]:
    """Check the files of tables on disk around an operation, and count what it reads."""
    paged = [table for table in tables if table is not None and not isinstance(table, np.ndarray)]
    if not paged:
        return nullcontext()
    from prunus.paged.reading import reading, stores_of  # it builds on this package

    stores = [store for table in paged for store in stores_of(table)]
    return reading(at, stores)


def count_rows(
    at: Span,
    live: Array | None,
    branch: int,
    tables: list[tuple[Any, bool]],
    rows: int,
    units: int | None = None,
) -> None:
    """Count what was done with tables of one row a unit.

    Parameters
    ----------
    at : Span
        Where to count.
    live : ndarray of bool, optional
        Shape (rows, branches).
    branch : int
        Units in a branch.
    tables : list of (ndarray or Table, bool)
        Each table, and whether all of it was computed, live or not.
    rows : int
        Rows of the input.
    units : int, optional
        Units of a row, where there is no table that has as many rows.
    """
    seen = None if live is None else live.view(np.uint8)
    paged = [(table, whole) for table, whole in tables if not isinstance(table, np.ndarray)]
    tables = [(getattr(table, "like", table), whole) for table, whole in tables]
    numbers = _core.count_rows(
        seen, branch, rows, len(tables[0][0]) if units is None else units, TILE, tables
    )
    if paged:  # what is read is counted where it is read; here what stayed on disk
        dead = 0
        if live is not None and live.size:
            needed = np.logical_or.reduce(live, axis=0, keepdims=True)
            dead = int((~spread(needed, branch, len(paged[0][0]))).sum())
        left = sum(dead * table.row_bytes for table, whole in paged if not whole)
        numbers = (*numbers[:2], 0, left, *numbers[4:])
    at.add(*numbers)
