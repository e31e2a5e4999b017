"""Products with a layer's matrices, wherever each is: on the GPU or on disk, dense or block-sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus._operands import is_on_disk
from prunus.cuda import deciding, dense, dtypes, rows
from prunus.cuda.arrays import BSR
from prunus.cuda.grouped import everything
from prunus.cuda.grouped_blocks import Member, members, project_blocks, together
from prunus.cuda.paged import tables
from prunus.cuda.paged.tables import Judged
from prunus.cuda.runtime import Place, empty
from prunus.cuda.versions import libraries
from prunus.paged.tables import Table, as_table
from prunus.pruning.policies import Policy

if TYPE_CHECKING:
    import torch

__all__ = ["Matrix", "find", "kind_of", "outputs", "project", "table_of"]

#: A tensor, the blocks of an expert, a table on disk, or a block-sparse array there.
Matrix = Any


def kind_of(w: Matrix) -> Any:
    """Return torch's dtype of a matrix."""
    torch = libraries().torch
    return w.dtype if isinstance(w.dtype, torch.dtype) else dtypes.torch_of(w.dtype)


def table_of(w: Matrix, name: str, *, down: bool = False) -> tuple[Matrix, bool]:
    """Return a matrix as products take it, and for a down-projection whether it is stored by units.

    Parameters
    ----------
    w : Tensor, Member, PagedArray or PagedBSR
        Checked but for how it lies on disk.
    name : str
        What it is called in messages.
    down : bool
        It is (outputs, units), and may be a transposed view of what is stored by units: the table is then
        (units, outputs).

    Raises
    ------
    TypeError, ValueError
        As :func:`prunus.paged.tables.as_table`.
    """
    if not is_on_disk(w):
        in_line = down and not isinstance(w, Member) and w.stride(0) == 1 and w.stride(1) != 1
        return w, bool(in_line)
    if hasattr(w, "blocksize"):
        return w, False
    if down and getattr(w, "_perm", None) == (1, 0):
        return as_table(w.T, name), True
    return as_table(w, name), False


def find(
    where: Place,
    policy: Policy,
    x: torch.Tensor,
    w: Matrix,
    out: torch.Tensor,
    branch: int,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    clear: bool = True,
) -> tuple[Judged, bool]:
    """Compute units, and which branches of them are live; as :func:`prunus.cuda.deciding.find`."""
    if isinstance(w, Table):
        return tables.find(where, policy, x, w, out, branch, bias, activation, clear=clear)
    units = int(out.shape[1])
    judged = tables.foreseen(where, policy, x, units, branch)
    if judged is not None:
        project(where, x, w, out, judged, bias, activation, clear=clear)
        return judged, True
    if not _is_sparse(w):
        live, _ = deciding.find(where, policy, x, w, out, branch, bias, activation, ask=False, clear=clear)
        return Judged(live, branch), False
    sums = rows.sums_of(x.dtype, kind_of(w), out.dtype)
    h = out if out.dtype == sums else empty(tuple(out.shape), sums, where)
    project(where, x, w, h, None, bias, activation)
    live = deciding.judge(where, policy, h, branch)
    if h is not out:
        out.copy_(h)
    if clear:
        out.masked_fill_(~deciding.spread(live, branch, units), 0)
    return Judged(live, branch), False


def project(
    where: Place,
    x: torch.Tensor,
    w: Matrix,
    out: torch.Tensor,
    live: Judged | None = None,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    scale: torch.Tensor | None = None,
    *,
    clear: bool = True,
) -> None:
    """Write ``activation(x @ w.T + bias) * scale`` where it is live, and 0 elsewhere (with ``clear``).

    Block-sparse matrices have no bias. Their results are of the dtype that sums have.
    """
    if isinstance(w, Table):
        tables.project(where, x, w, out, live, bias, activation, scale, clear=clear)
    elif isinstance(w, Member):
        each = None if live is None else live.each.contiguous()
        branch = 1 if live is None else live.branch
        _blocks(where, x, w, out, activation, scale, each, branch)
    elif _is_sparse(w):
        _stored(x, w, out, activation)
        if scale is not None:
            out.mul_(scale)
        if live is not None:
            out.masked_fill_(~deciding.spread(live.each, live.branch, int(out.shape[1])), 0)
    else:
        each = None if live is None else live.each
        branch = 1 if live is None else live.branch
        rows.dots(where, x, w, out, each, branch, bias, activation, scale, clear=clear)


def outputs(
    where: Place,
    h: torch.Tensor,
    w: Matrix,
    out: torch.Tensor,
    in_line: bool,
    live: Judged | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """Write ``h @ w.T + bias`` where only live units take part.

    Parameters
    ----------
    h : Tensor
        Shape (rows, units), contiguous, 0 where it is dead.
    w : Matrix
        What :func:`table_of` made of a down-projection, with ``in_line``.
    out : Tensor
        Shape (rows, outputs), contiguous: written.
    """
    if isinstance(w, Table):
        (tables.combine if in_line else tables.contribute)(where, h, w, out, live, bias)
        return
    each = None if live is None else live.each
    branch = 1 if live is None else live.branch
    if isinstance(w, Member):
        _blocks(where, h, w, out, None, None, None if each is None else each.contiguous(), branch, inner=True)
    elif _is_sparse(w):
        _stored(h, w, out)
        # A dead unit's 0 is harmless unless it met an infinity or NaN. The host is here anyway.
        if each is not None and not bool(libraries().torch.isfinite(out).all()):
            (one,) = members(BSR.from_host(w.load(), where)._operand, ())
            _blocks(where, h, one, out, None, None, each.contiguous(), branch, inner=True)
    elif in_line:
        rows.combine(where, h, w.T, out, each, branch, bias)
    elif each is None:
        dense.linear(where, h, w, bias, out.dtype, out=out)
    else:
        dense.contribute(where, h, w, out, each, branch, bias)


def _is_sparse(w: Matrix) -> bool:
    """Say whether a matrix is block-sparse."""
    return isinstance(w, Member) or (is_on_disk(w) and hasattr(w, "blocksize"))


def _stored(x: torch.Tensor, w: Matrix, out: torch.Tensor, activation: str | None = None) -> None:
    """Write ``activation(x @ w.T)`` for a block-sparse array on disk, all of which is read."""
    from prunus.cuda.layers.paged import matmul

    matmul(x, w.T, out, out.dtype, None, activation)


def _blocks(
    where: Place,
    x: torch.Tensor,
    w: Member,
    out: torch.Tensor,
    activation: str | None,
    scale: torch.Tensor | None,
    live: torch.Tensor | None,
    branch: int,
    *,
    inner: bool = False,
) -> None:
    routes = everything(len(x), where)
    project_blocks(
        where,
        x,
        routes,
        together([w], where),
        out,
        activation=activation,
        scale=scale,
        live=live,
        branch=branch,
        inner=inner,
    )
