"""``ffn``: a feed-forward layer of weights as they are, whose dead hidden units are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus import engines
from prunus._device import on_device
from prunus._dtypes import result_dtype
from prunus._trace import span
from prunus.pruning import _rows
from prunus.pruning.policies import Threshold, as_policy

__all__ = ["ffn"]


@engines.timed
def ffn(
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    activation: str | None = "relu",
    prune: Any = None,
    branch: int = 1,
) -> Any:
    """Return a feed-forward layer's output, leaving out what is dead: :class:`FFN` without packing.

    The gate decides, or the up-projection where there is none. Rows of ``w_up`` and ``w_gate`` are skipped
    in place. ``w_down`` is stored by outputs: its columns of dead units share cache lines with those of live
    ones and are read all the same, unless a branch fills cache lines; weights that are used more than once
    are better packed.

    Parameters
    ----------
    x : array_like
        Shape (*lead, d).
    w_up, w_gate : array_like or PagedArray
        Shape (H, d).
    w_down : array_like or PagedArray
        Shape (d_out, H).
    b_up, b_down : array_like, optional
        Biases.
    activation : {"relu", "gelu", "silu"} or None
        Of the gate, or of the up-projection; None is the identity.
    prune : policy, optional
        What decides; ``Threshold(0.0)``, which is exact with ReLU and leaves out no more than zeros with
        anything else, by default.
    branch : int, default 1
        Neighbouring hidden units that live and die together.

    Returns
    -------
    ndarray
        Shape (*lead, d_out).

    Raises
    ------
    ValueError, TypeError
        As :meth:`FFN.pack` and calls of an FFN.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> x = np.array([1.0, -1.0], np.float32)
    >>> up, down = np.eye(2, dtype=np.float32), np.array([[2.0, 5.0]], np.float32)
    >>> pr.ffn(x, up, down)
    array([2.], dtype=float32)
    """
    if on_device(x, w_up, w_down, w_gate, b_up, b_down):
        from prunus.cuda.layers.ffn import ffn as there  # torch may be missing

        return there(x, w_up, w_down, w_gate, b_up, b_down, activation, prune, branch)
    _rows.check_activation(activation)
    policy, branch = Threshold(0.0) if prune is None else as_policy(prune), _rows.check_branch(branch)
    assert policy is not None
    up, down = _rows.as_table(w_up, "w_up"), _rows.as_table(w_down, "w_down")
    gate = None if w_gate is None else _rows.as_table(w_gate, "w_gate")
    units, features = up.shape
    branch = _rows.check_branch(branch, units)
    if down.shape[1] != units:
        raise ValueError(f"w_down has shape {down.shape}, expected (d_out, {units}) for w_up {up.shape}")
    if gate is not None and gate.shape != up.shape:
        raise ValueError(f"w_gate has shape {gate.shape}, w_up {up.shape}")
    rows = _rows.as_rows(x, features)
    bias_up, bias_down = _rows.as_vector(b_up, units, "b_up"), _rows.as_vector(b_down, len(down), "b_down")
    kind = result_dtype(result_dtype(rows.x.dtype, up.dtype), down.dtype)
    with span("ffn") as at, _rows.watched(at, up, down, gate):
        h = np.empty((len(rows.x), units), _rows.sums_dtype(kind))
        if gate is None:
            live, known = _rows.find(policy, rows.x, up, h, branch, bias_up, activation)
        else:
            first = np.empty_like(h)
            live, known = _rows.find(policy, rows.x, gate, first, branch, None, activation)
            _rows.dots(rows.x, up, h, live, branch, bias_up, None, first)
        y = np.empty((len(rows.x), len(down)), kind)
        _rows.contribute(h, down, y, live, branch, bias_down)
        if at:
            at.ran(engines.active().name)
            first_table = up if gate is None else gate
            tables = [(t, t is first_table and not known) for t in (up, gate) if t is not None]
            _rows.count_rows(at, live, branch, tables, len(rows.x))
            _rows.count_rows(at, None, 1, [(down, True)], len(rows.x))
    return rows.restore(y)
