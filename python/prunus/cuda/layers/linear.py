"""``linear`` of tensors on a GPU: a layer whose output keeps only its live branches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus._errors import PrunusError
from prunus._layout import blocks_along
from prunus._operands import is_on_disk
from prunus._storage import BlockStorage
from prunus.cuda import dense, dtypes
from prunus.cuda.arrays import BSR
from prunus.cuda.compaction import compact
from prunus.cuda.counting import Table, count_rows
from prunus.cuda.deciding import find, judge
from prunus.cuda.layers.arguments import as_rows, as_table, as_vector
from prunus.cuda.layers.matmul import matmul, matmul_where
from prunus.cuda.operands import where_of
from prunus.cuda.policies import foreseen
from prunus.cuda.products import Wanted
from prunus.cuda.rows import sums_of
from prunus.cuda.runtime import Place, empty
from prunus.cuda.tracing import traced
from prunus.pruning._rows import check_activation, check_branch
from prunus.pruning.policies import Policy, as_policy

if TYPE_CHECKING:
    import torch

__all__ = ["linear"]


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

    As :func:`prunus.linear`, on tensors. A threshold is decided as the product is stored; other policies see
    norms of all rows; what a policy foresees to be dead is neither read nor multiplied: of block-sparse
    weights, rows of blocks that are dead for a whole tile of rows. Nothing is read back: the result has room
    for all its blocks.

    Parameters
    ----------
    x : Tensor
        Shape (*lead, in), floats, any strides.
    w : Tensor or prunus.cuda.BSR, or on disk
        Weights, (out, in). What is on disk streams: :func:`prunus.cuda.layers.stored.linear`.
    b : Tensor, optional
        Bias, (out,).
    activation : {"relu", "gelu", "silu"}, optional
        Applied to the sums; where nothing is pruned and weights are dense, to sums of the result's dtype.
    prune : policy, optional
        Decides for every row which branches of the output are live. Without one the result is dense.
    branch : int, default 32
        Neighbouring outputs that live and die together: the width of the result's blocks.
    blockrows : int, default 16
        Rows in a block of the result.

    Returns
    -------
    prunus.cuda.BSR or Tensor
        Shape (*lead, out); a BSR of at least two dimensions.

    Raises
    ------
    ValueError
        If shapes do not fit, or for an unknown activation.
    TypeError
        For operands that are no floats, or a policy that is none.
    PrunusError
        If operands live in different places.
    """
    if is_on_disk(w):
        from prunus.cuda.layers import stored  # it builds on layers

        return stored.linear(x, w, b, activation, prune, branch, blockrows)
    check_activation(activation)
    policy = as_policy(prune)
    blockrows = check_branch(blockrows, name="blockrows")
    where = where_of(x, w, b)
    table = _weights(w, where)
    units, features = (int(size) for size in table.shape)
    branch = check_branch(branch, units)
    rows, lead = as_rows(x, features, where)
    bias = as_vector(b, units, "b", where)
    kind = dtypes.result(rows.dtype, table.dtype, names=("x", "w"))
    with traced("linear", where) as at:
        if policy is None:
            if isinstance(table, BSR):
                y = matmul(rows, table.T, bias=bias, activation=activation)
            else:
                y = dense.linear(where, rows, table, bias, kind, activation)
                if at:
                    count_rows(at, None, 1, [Table.of(table, True)], len(rows), units)
            return y if len(lead) == 1 else y.reshape(*lead, units)
        tables = []
        if isinstance(table, BSR):
            h, live = _sparse(where, rows, table, bias, activation, policy, branch)
        else:
            h = empty((len(rows), units), kind, where)
            live, known = find(where, policy, rows, table, h, branch, bias, activation, clear=False)
            tables = [Table.of(table, not known)]
        if at:
            count_rows(at, live, branch, tables, len(rows), units)
        return BSR._wrap(*compact(where, h, live, lead, branch, blockrows, kind), where)


def _weights(w: Any, where: Place) -> BSR | torch.Tensor:
    """Return weights, checked."""
    if isinstance(w, BlockStorage):
        raise PrunusError(
            f"w is a BSR in host memory, the operation runs on {where}; move it with w.to('cuda')"
        )
    if not isinstance(w, BSR):
        return as_table(w, "w", where)
    if w._place != where:
        raise PrunusError(
            f"w lives on {w._place}, the operation runs on {where}; move it with w.to({str(where.device)!r})"
        )
    if w.ndim != 2:
        raise ValueError(f"w must have two dimensions (out, in), got shape {w.shape}")
    return w


def _sparse(
    where: Place,
    x: torch.Tensor,
    w: BSR,
    bias: torch.Tensor | None,
    activation: str | None,
    policy: Policy,
    branch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decide after a product with stored blocks, or compute what is foreseen to be live."""
    kind = sums_of(x.dtype, w.dtype)
    live = foreseen(policy, x, blocks_along(int(w.shape[0]), branch), where)
    if live is not None and len(x) and live.shape[1]:
        return matmul_where(where, x, w, Wanted(live, branch), kind, bias, activation), live
    h = matmul(x, w.T, bias=bias, activation=activation, dtype=kind)
    return h, judge(where, policy, h, branch) if live is None else live
