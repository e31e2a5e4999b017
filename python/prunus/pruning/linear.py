"""``linear``: a layer whose output keeps only its live branches."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from prunus import _construct, engines
from prunus._bsr import BSR
from prunus._device import on_device
from prunus._dtypes import Array, DType, result_dtype
from prunus._layout import blocks_along
from prunus._operands import is_on_disk
from prunus._trace import span
from prunus.ops import matmul
from prunus.pruning import _rows
from prunus.pruning.policies import as_policy, decide, foreseen

__all__ = ["linear"]

# From so many rows on, a product with stored blocks sums every row in one order.
_MANY: Final = 5
# Bytes of an input on disk that are in memory at a time.
_READ: Final = 16 << 20


@engines.timed
def linear(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    activation: str | None = None,
    prune: Any = None,
    branch: int = 32,
    blockrows: int = 16,
) -> Any:
    """Return ``activation(x @ w.T + b)``; with a policy, as a BSR of its live branches.

    Parameters
    ----------
    x : array_like
        Shape (*lead, in), floats, any strides. Without a policy it may be on disk, or an expression on such:
        some rows of it are in memory at a time.
    w : array_like, BSR, or either on disk
        Weights, (out, in). Of a matrix on disk only rows are read that a policy foresees to be live; where
        the policy sees results, it is read once.
    b : array_like, optional
        Bias, (out,).
    activation : {"relu", "gelu", "silu"}, optional
        Applied to the sums; None is the identity.
    prune : policy, optional
        Decides for every row which branches of the output are live: :class:`Threshold`, :class:`TopK`,
        :class:`Fixed`, :class:`Predictor`, or your own. A branch that is known to be dead beforehand
        (``Fixed``, ``Predictor``) is not computed. Without a policy the result is dense.
    branch : int, default 32
        Neighbouring outputs that live and die together: the width of the result's blocks.
    blockrows : int, default 16
        Rows in a block of the result. A row that is dead in a stored block holds 0 there, and 0 times an
        infinity is NaN: with weights that are not finite, 1 keeps rows apart in what follows.

    Returns
    -------
    BSR or ndarray
        Shape (*lead, out); a BSR of at least two dimensions: (1, out) for a vector. Every leading index but
        the last has a pattern of its own.

    Raises
    ------
    ValueError
        If shapes do not fit, or for an unknown activation.
    TypeError
        For operands that are no floats, or a policy that is none.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> x = np.array([[1.0, 2.0]], np.float32)
    >>> w = np.array([[1, 1], [2, 0], [-1, -1], [0, -3]], np.float32)
    >>> h = pr.linear(x, w, activation="relu", prune=pr.Threshold(0.0), branch=2)
    >>> h.nnzb, h.toarray()
    (1, array([[3., 2., 0., 0.]], dtype=float32))
    >>> h @ np.ones((4, 1), np.float32)
    array([[5.]], dtype=float32)
    """
    if on_device(x, w, b):
        from prunus.cuda.layers.linear import linear as there  # torch may be missing

        return there(x, w, b, activation=activation, prune=prune, branch=branch, blockrows=blockrows)
    _rows.check_activation(activation)
    policy = as_policy(prune)
    blockrows = _rows.check_branch(blockrows, name="blockrows")
    given = w
    if isinstance(w, BSR) or (is_on_disk(w) and hasattr(w, "blocksize")):
        if w.ndim != 2:
            raise ValueError(f"w must have two dimensions (out, in), got shape {w.shape}")
        table = None
    else:
        table = _rows.as_table(w, "w")
        w = table
    units, features = w.shape
    if policy is None and is_on_disk(x) and not hasattr(x, "blocksize"):
        return _by_rows(x, given, b, activation, (features, units), result_dtype(x.dtype, w.dtype))
    branch = _rows.check_branch(branch, units)
    rows = _rows.as_rows(x, features)
    bias = _rows.as_vector(b, units, "b")
    kind = result_dtype(rows.x.dtype, w.dtype)
    with span("linear") as at, _rows.watched(at, table):
        if policy is None:
            if table is None:
                return rows.restore(matmul(rows.x, w.T, bias=bias, activation=activation))
            y = np.empty((len(rows.x), units), kind)
            _rows.dots(rows.x, table, y, None, 1, bias, activation)
            if at:
                at.ran(engines.active().name)
                _rows.count_rows(at, None, 1, [(table, True)], len(rows.x))
            return rows.restore(y)
        if table is None:
            h, live = _sparse(rows.x, w, bias, activation, policy, branch, kind)
            if at:
                at.ran(engines.active().name)
                _rows.count_rows(at, live, branch, [], len(rows.x), units)
        else:
            h = np.empty((len(rows.x), units), kind)
            live, known = _rows.find(policy, rows.x, table, h, branch, bias, activation)
            if at:
                at.ran(engines.active().name)
                _rows.count_rows(at, live, branch, [(table, not known)], len(rows.x))
        return _compact(h, live, rows.lead, branch, blockrows)


def _by_rows(x: Any, w: Any, b: Any, activation: str | None, shape: tuple[int, int], kind: DType) -> Array:
    """Return a layer's output for inputs on disk, of which so many are in memory at a time."""
    features, units = shape
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(f"x has shape {x.shape}, the weights expect {features} features")
    if x.ndim == 1:
        return np.asarray(linear(x.load(), w, b, activation=activation))
    y = np.empty((*x.shape[:-1], units), kind)
    # Parts of about one size, of some rows at least: few are summed in another order than many.
    rows = max(_READ * len(x) // max(x.nbytes, 1), _MANY)
    rows = -(-len(x) // max(-(-len(x) // rows), 1))
    for start in range(0, len(x), max(rows, 1)):
        y[start : start + rows] = linear(x[start : start + rows], w, b, activation=activation)
    return y


def _sparse(
    x: Array, w: Any, bias: Array | None, activation: str | None, policy: Any, branch: int, kind: DType
) -> tuple[Array, Array]:
    """Decide after a product with stored blocks."""
    sums = _rows.sums_dtype(x.dtype, w.dtype)
    rows = len(x)
    # A few columns are summed in another order than many. Nothing may depend on how many rows there are.
    if rows < _MANY:
        x = np.concatenate([x, np.zeros((_MANY - rows, x.shape[1]), x.dtype)])
    h = matmul(x, w.T, bias=bias, activation=activation, dtype=sums)[:rows]
    branches = blocks_along(h.shape[1], branch)
    live = foreseen(policy, x[:rows], branches)
    if live is None:
        live = decide(policy, _rows.norms_of(h, branch, policy.norm))
    h[~_rows.spread(live, branch, h.shape[1])] = 0
    return h.astype(kind, copy=False), live


def _compact(h: Array, live: Array, lead: tuple[int, ...], branch: int, blockrows: int) -> BSR:
    """Return the live branches of ``h`` (rows, units) as a BSR of shape (*lead, units)."""
    units = h.shape[1]
    batch, height = (lead[:-1], lead[-1]) if lead else ((), 1)
    block = max(min(blockrows, height), 1)
    tiles = blocks_along(height, block)
    members = live.reshape(*batch, height, live.shape[1])
    starts = np.arange(0, height, block)
    if starts.size and members.size:
        grid = np.logical_or.reduceat(members, starts, axis=-2)
    else:
        grid = np.zeros((*batch, tiles, live.shape[1]), bool)
    parts = _construct.from_grid(h.reshape(*batch, height, units), grid, (block, branch))
    return BSR._wrap(*parts)
