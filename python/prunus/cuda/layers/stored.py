"""``linear``, ``ffn`` and experts on a GPU of matrices of which some are on disk, and stream there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus._layout import blocks_along
from prunus._operands import is_on_disk
from prunus._trace import Span, span
from prunus.cuda import dtypes
from prunus.cuda.arrays import BSR
from prunus.cuda.compaction import compact
from prunus.cuda.counting import Table, count_rows
from prunus.cuda.deciding import judge
from prunus.cuda.grouped_blocks import Member
from prunus.cuda.layers.arguments import as_rows, as_table, as_vector
from prunus.cuda.layers.experts import Expert
from prunus.cuda.layers.packed import kept_as
from prunus.cuda.layers.paged import matmul
from prunus.cuda.layers.paged_ffn import call
from prunus.cuda.operands import where_of
from prunus.cuda.paged import matrices, tables
from prunus.cuda.paged.matrices import Matrix, kind_of, table_of
from prunus.cuda.paged.tables import Judged
from prunus.cuda.policies import foreseen
from prunus.cuda.rows import sums_of
from prunus.cuda.runtime import Place, empty
from prunus.paged import tables as host
from prunus.pruning._rows import check_activation, check_branch, watched
from prunus.pruning.experts import Style
from prunus.pruning.policies import Fixed, Policy, Threshold, as_policy

if TYPE_CHECKING:
    import torch

__all__ = ["at_rows", "expert", "ffn", "linear", "prefetch"]


def linear(
    x: Any,
    w: Any,
    b: Any,
    activation: str | None,
    prune: Any,
    branch: int,
    blockrows: int,
) -> Any:
    """Return ``activation(x @ w.T + b)`` for weights on disk; see :func:`prunus.cuda.layers.linear.linear`.

    Dense weights stream once. Of what a policy foresees, only rows that any row of ``x`` needs are read:
    which these are is read back, but for ``Fixed``. Blocks on disk are all read.

    Raises
    ------
    ValueError, TypeError, PrunusError
        As :func:`prunus.cuda.layers.linear.linear`.
    OSError
        If the file cannot be read, or was changed or closed. Nothing is under way then.
    MemoryError
        If there is no room for buffers or the result.
    """
    check_activation(activation)
    policy = as_policy(prune)
    blockrows = check_branch(blockrows, name="blockrows")
    where = where_of(x, b)
    sparse = hasattr(w, "blocksize")
    if sparse and w.ndim != 2:
        raise ValueError(f"w must have two dimensions (out, in), got shape {w.shape}")
    table = None if sparse else host.as_table(w, "w")
    units, features = w.shape
    branch = check_branch(branch, units)
    rows, lead = as_rows(x, features, where)
    bias = as_vector(b, units, "b", where)
    kind = dtypes.result(rows.dtype, dtypes.torch_of(w.dtype), names=("x", "w"))
    with span("linear") as at, watched(at, *([] if table is None else [table])):
        if at:
            at.ran("cuda")
        if policy is None:
            if table is None:
                y = matmul(rows, w.T, bias=bias, activation=activation)
            else:
                y = empty((len(rows), units), kind, where)
                tables.linear(where, rows, table, y, bias, activation)
                _count(at, None, 1, [(table, True)], len(rows), units)
            return y if len(lead) == 1 else y.reshape(*lead, units)
        if table is None:
            sums = sums_of(rows.dtype, dtypes.torch_of(w.dtype))
            h = matmul(rows, w.T, bias=bias, activation=activation, dtype=sums)
            live = foreseen(policy, rows, blocks_along(units, branch), where)
            live = judge(where, policy, h, branch) if live is None else live
            _count(at, live, branch, [], len(rows), units)
        else:
            h = empty((len(rows), units), kind, where)
            found, known = tables.find(where, policy, rows, table, h, branch, bias, activation, clear=False)
            live = found.each
            _count(at, live, branch, [(table, not known)], len(rows), units)
        return BSR._wrap(*compact(where, h, live, lead, branch, blockrows, kind), where)


def ffn(
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any,
    b_up: Any,
    b_down: Any,
    activation: str | None,
    prune: Any,
    branch: int,
) -> torch.Tensor:
    """Return a feed-forward layer's output; see :func:`prunus.cuda.layers.ffn.ffn`.

    The matrix that decides is read whole, unless the policy foresees. Of the others, only rows of live units
    are read: of ``w_down`` where it is a transposed view of an array (H, d_out), of which
    nothing is left out otherwise.

    Raises
    ------
    ValueError, TypeError, PrunusError, OSError, MemoryError
        As :func:`linear`.
    """
    check_activation(activation)
    policy = Threshold(0.0) if prune is None else as_policy(prune)
    assert policy is not None
    branch = check_branch(branch)
    where = where_of(x, w_up, w_down, w_gate, b_up, b_down)

    def matrix(w: Any, name: str, *, down: bool = False) -> tuple[Matrix, bool]:
        return table_of(w if is_on_disk(w) else as_table(w, name, where), name, down=down)

    for w, name in ((w_up, "w_up"), (w_down, "w_down"), (w_gate, "w_gate")):
        if is_on_disk(w) and hasattr(w, "blocksize"):
            host.as_table(w, name)  # which raises
    (up, _), (down, in_line) = matrix(w_up, "w_up"), matrix(w_down, "w_down", down=True)
    gate = None if w_gate is None else matrix(w_gate, "w_gate")[0]
    units, features = w_up.shape
    branch = check_branch(branch, units)
    if w_down.shape[1] != units:
        raise ValueError(
            f"w_down has shape {tuple(w_down.shape)}, expected (d_out, {units}) for w_up {tuple(w_up.shape)}"
        )
    if gate is not None and tuple(gate.shape) != tuple(w_up.shape):
        raise ValueError(f"w_gate has shape {tuple(gate.shape)}, w_up {tuple(w_up.shape)}")
    outs = int(w_down.shape[0])
    flat, lead = as_rows(x, features, where)
    biases = as_vector(b_up, units, "b_up", where), as_vector(b_down, outs, "b_down", where)
    kind = dtypes.result(dtypes.result(flat.dtype, kind_of(up)), kind_of(down))
    inner = kept_as(where, len(flat), flat.dtype, kind_of(up), kind)
    stored = [w for w in (up, down, gate) if isinstance(w, host.Table)]
    with span("ffn") as at, watched(at, *stored):
        h, live, known = _hidden(where, policy, flat, (up, gate), inner, branch, biases[0], activation)
        y = empty((len(flat), outs), kind, where)
        matrices.outputs(where, h, down, y, in_line, live, biases[1])
        if at:
            at.ran("cuda")
            assert live is not None
            first = up if gate is None else gate
            every = [(w, w is first and not known) for w in (up, gate) if w is not None]
            every += [(down if _is_table(down) else down.T, False)] if in_line else []
            _count(at, live.each, branch, every, len(flat), units)
            if not in_line:
                _count(at, None, 1, [(down, True)], len(flat), outs)
    return y.reshape(*lead, outs)


def _hidden(
    where: Place,
    policy: Policy | None,
    x: torch.Tensor,
    matrices_of: tuple[Matrix, Matrix | None],
    kind: Any,
    branch: int,
    bias: torch.Tensor | None,
    activation: str | None,
) -> tuple[torch.Tensor, Judged | None, bool]:
    """Return hidden units, 0 where they are dead; which are live, None: all; and whether that was foreseen.

    Parameters
    ----------
    where : Place
        Where ``x`` lives.
    policy : Policy, optional
        What decides.
    x : Tensor
        Shape (rows, features).
    matrices_of : (Matrix, Matrix or None)
        The up-projection and the gate, which decides if there is one.
    kind : torch.dtype
        To keep hidden units in.
    branch, bias, activation
        As :func:`ffn`.
    """
    up, gate = matrices_of
    first = up if gate is None else gate
    units = int(first.shape[0])
    h = empty((len(x), units), kind, where)
    live, known = None, False
    how = (bias, activation) if gate is None else (None, activation)
    if policy is None:
        matrices.project(where, x, first, h, None, *how)
    else:
        live, known = matrices.find(where, policy, x, first, h, branch, *how)
    if gate is not None:
        scale, h = h, empty((len(x), units), kind, where)
        matrices.project(where, x, up, h, live, bias, None, scale)
    return h, live, known


class _Known(Policy):
    """What is known to be live of some rows.

    Parameters
    ----------
    live : Tensor of bool
        Shape (rows, branches).
    """

    scope = "row"

    def __init__(self, live: torch.Tensor) -> None:
        self.live = live

    def select(self, statistics: Any) -> Any:
        return self.live

    def foresee(self, x: Any, branches: int) -> Any:
        return self.live


def at_rows(where: Place, style: Style, x: torch.Tensor, at: torch.Tensor, one: Expert) -> Style:
    """Return the style of an expert that the rows ``at`` of ``x`` chose."""
    policy = style.policy
    if not isinstance(policy, Fixed) or policy.mask.ndim == 1:
        return style
    branches = blocks_along(one.units, min(style.branch, max(one.units, 1)))
    live = foreseen(policy, x, branches, where)
    assert live is not None
    return style._replace(policy=_Known(live.index_select(0, at)))


def prefetch(one: Expert, policy: Policy | None) -> None:
    """Have the pager fetch what a call that prunes so reads of an expert on disk whatever is live."""
    sees = policy is not None and type(policy).foresee is Policy.foresee
    if one.layer is not None:
        wanted: list[Any] = [one.layer] if policy is None or sees else []
    elif policy is None:
        wanted = one.matrices
    else:
        wanted = [one.up if one.gate is None else one.gate] if sees else []
        wanted += [w for w in one.matrices if is_on_disk(w) and hasattr(w, "blocksize")]
        wanted += [] if table_of(one.down, "w_down", down=True)[1] else [one.down]
    for w in wanted:
        if is_on_disk(w):
            w.prefetch()


def expert(where: Place, x: torch.Tensor, one: Expert, style: Style, kind: Any, y: torch.Tensor) -> None:
    """Write what an expert of which some is on disk gives for the rows of ``x``.

    Parameters
    ----------
    where : Place
        Where ``x`` lives.
    x : Tensor
        Shape (rows, features).
    one : Expert
        Whose weights.
    style : Style
        What decides, and the activation.
    kind : torch.dtype
        Of the mixture's result.
    y : Tensor
        Shape (rows, outputs), contiguous: written.

    Raises
    ------
    OSError, PrunusError, MemoryError
        As :func:`linear`.
    """
    if one.layer is not None:
        y.copy_(call(one.layer, x, style.activation, style.policy, style.branch))
        return
    (up, _), (down, in_line) = table_of(one.up, "w_up"), table_of(one.down, "w_down", down=True)
    gate = None if one.gate is None else table_of(one.gate, "w_gate")[0]
    every = [w for w in (up, down, gate) if w is not None]
    branch = min(style.branch, max(one.units, 1))
    inner = kept_as(where, len(x), x.dtype, kind)
    with span("expert") as at, watched(at, *(w for w in every if is_on_disk(w))):
        h, live, known = _hidden(where, style.policy, x, (up, gate), inner, branch, None, style.activation)
        matrices.outputs(where, h, down, y, in_line, live)
        if at:
            at.ran("cuda")
            first = up if gate is None else gate
            each = None if live is None else live.each
            used = [(w, w is first and not known) for w in (up, gate) if w is not None and _is_dense(w)]
            used += [(down if _is_table(down) else down.T, False)] if in_line else []
            _count(at, each, branch, used, len(x), one.units)
            if not in_line and _is_dense(down):
                _count(at, None, 1, [(down, True)], len(x), one.outputs)
            for w in every:
                if isinstance(w, Member):
                    _count_blocks(at, w, len(x))


def _is_dense(w: Matrix) -> bool:
    return not isinstance(w, Member) and not hasattr(w, "blocksize")


def _count_blocks(at: Span, w: Member, rows: int) -> None:
    stored, full = w.stored(), w.numel()

    def numbers() -> dict[str, int]:
        done = int(stored)
        return {
            "flops": 2 * done * rows,
            "flops_skipped": 2 * max(full - done, 0) * rows,
            "bytes_loaded": done * w.element_size(),
            "bytes_skipped": max(full - done, 0) * w.element_size(),
        }

    at.later(numbers)


def _is_table(w: Matrix) -> bool:
    """Say whether a matrix is a dense one on disk."""
    return isinstance(w, host.Table)


def _count(
    at: Span,
    live: torch.Tensor | None,
    branch: int,
    used: list[tuple[Any, bool]],
    rows: int,
    units: int,
) -> None:
    """Count what was done with tables of one row a unit, of which some are on disk."""
    if not at:
        return
    shown = [Table(int(w.shape[1]), w.dtype.itemsize, whole, isinstance(w, host.Table)) for w, whole in used]
    count_rows(at, live, branch, shown, rows, units)
