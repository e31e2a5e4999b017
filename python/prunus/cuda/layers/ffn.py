"""``ffn`` on a GPU: a feed-forward layer of weights as they are, whose dead hidden units are left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus._operands import is_on_disk
from prunus.cuda import dense, dtypes, rows
from prunus.cuda.counting import Table, count_rows
from prunus.cuda.deciding import find
from prunus.cuda.layers.arguments import as_rows
from prunus.cuda.layers.packed import Weights, kept_as
from prunus.cuda.operands import where_of
from prunus.cuda.runtime import empty
from prunus.cuda.tracing import traced
from prunus.pruning._rows import check_activation, check_branch
from prunus.pruning.policies import Threshold, as_policy

if TYPE_CHECKING:
    import torch

__all__ = ["ffn"]


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
) -> torch.Tensor:
    """Return a feed-forward layer's output, leaving out what is dead: :class:`FFN` without packing.

    The gate decides, or the up-projection where there is none. Rows of ``w_up`` and ``w_gate`` are skipped
    in place. So are those of ``w_down`` where it is a transposed view of a tensor (H, d_out); stored by
    outputs, as torch has it, it is read whole: columns of dead units share cache lines with those of live
    ones. Weights that are used more than once are better packed.

    Parameters
    ----------
    x : Tensor
        Shape (*lead, d), floats, any strides.
    w_up, w_gate : Tensor, or an array on disk
        Shape (H, d).
    w_down : Tensor, or an array on disk
        Shape (d_out, H). What is on disk streams: :func:`prunus.cuda.layers.stored.ffn`.
    b_up, b_down : Tensor, optional
        Biases.
    activation : {"relu", "gelu", "silu"} or None
        Of the gate, or of the up-projection; None is the identity.
    prune : policy, optional
        What decides; ``Threshold(0.0)`` by default.
    branch : int, default 1
        Neighbouring hidden units that live and die together.

    Returns
    -------
    Tensor
        Shape (*lead, d_out).

    Raises
    ------
    ValueError, TypeError, PrunusError
        As :meth:`FFN.pack` and calls of an FFN.
    """
    if is_on_disk(w_up) or is_on_disk(w_down) or is_on_disk(w_gate):
        from prunus.cuda.layers import stored  # it builds on layers

        return stored.ffn(x, w_up, w_down, w_gate, b_up, b_down, activation, prune, branch)
    check_activation(activation)
    policy = Threshold(0.0) if prune is None else as_policy(prune)
    assert policy is not None
    branch = check_branch(branch)
    where = where_of(x, w_up, w_down, w_gate, b_up, b_down)
    w = Weights.of(w_up, w_down, w_gate, b_up, b_down, where)
    units, features = (int(size) for size in w.up.shape)
    branch = check_branch(branch, units)
    flat, lead = as_rows(x, features, where)
    kind = dtypes.result(dtypes.result(flat.dtype, w.up.dtype), w.down.dtype)
    if w.gate is not None:
        dtypes.numpy_of(w.gate.dtype, "w_gate")
    count = len(flat)
    inner = kept_as(where, count, flat.dtype, w.up.dtype, kind)
    in_line = w.down.stride(0) == 1 and w.down.stride(1) != 1
    with traced("ffn", where) as at:
        h = empty((count, units), inner, where)
        first_table = w.up if w.gate is None else w.gate
        if w.gate is None:
            live, known = find(where, policy, flat, w.up, h, branch, w.b_up, activation, clear=not in_line)
        else:
            first = empty((count, units), inner, where)
            live, known = find(where, policy, flat, w.gate, first, branch, None, activation, clear=False)
            rows.dots(where, flat, w.up, h, live, branch, w.b_up, None, first, clear=not in_line)
        y = empty((count, len(w.down)), kind, where)
        if in_line:
            rows.combine(where, h, w.down.T, y, live, branch, w.b_down)
        else:
            dense.contribute(where, h, w.down, y, live, branch, w.b_down)
        if at:
            tables = [Table.of(t, t is first_table and not known) for t in (w.up, w.gate) if t is not None]
            tables += [Table.of(w.down.T, False)] if in_line else []
            count_rows(at, live, branch, tables, count, units)
            if not in_line:
                count_rows(at, None, 1, [Table.of(w.down, True)], count, len(w.down))
    return y.reshape(*lead, len(w.down))
