"""Block-sparse matrices of experts, and their products with rows that are sorted by expert, of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda import dtypes, moe_configs
from prunus.cuda.blocks import Operand, lists
from prunus.cuda.configs import power
from prunus.cuda.grouped import ROWS, Routes, computed_in, constant
from prunus.cuda.products import precision, triton_of
from prunus.cuda.runtime import Place, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Blocks", "Member", "members", "project_blocks", "together"]


class Member(NamedTuple):
    """The block-sparse matrix of one expert.

    Attributes
    ----------
    data : Tensor
        Shape (n, br, bc): stored blocks.
    indices, indptr, order : Tensor
        Its lists, as in :class:`prunus.cuda.blocks.Lists`; those of its own, or of a batch that it is of.
    shape : tuple of int
        Rows and columns after transposition.
    transposed : bool
        Whether it is the transpose of what is stored.
    made : bool
        Whether the lists were made in this call, and are elsewhere in the next one.
    """

    data: torch.Tensor
    indices: torch.Tensor
    indptr: torch.Tensor
    order: torch.Tensor | None
    shape: tuple[int, int]
    transposed: bool
    made: bool

    @property
    def dtype(self) -> Any:
        """Torch's dtype of the values."""
        return self.data.dtype

    @property
    def form(self) -> tuple[Any, ...]:
        """What members have in common that one kernel computes."""
        kinds = self.data.dtype, self.indices.dtype, self.indptr.dtype
        ordered = self.order is not None
        return (self.shape, self.transposed, self.made, ordered, tuple(self.data.shape[-2:]), *kinds)

    def numel(self) -> int:
        """Return how many values it has, were it dense."""
        return self.shape[0] * self.shape[1]

    def element_size(self) -> int:
        """Return the bytes of a value."""
        return self.data.element_size()

    def stored(self) -> torch.Tensor:
        """Return how many values are stored, counted on the device."""
        return (self.indptr[-1] - self.indptr[0]) * math.prod(self.data.shape[-2:])


class Blocks(NamedTuple):
    """A block-sparse matrix of each expert, all of one form.

    Attributes
    ----------
    like : Member
        One of them.
    table : Tensor of int64
        Shape (E, 4): addresses of blocks, inner indices, where lists begin, and their order.
    aligned : int
        What divides all addresses of blocks, up to 16 bytes.
    every : sequence of Member
        All of them.
    kept : tuple of Tensor
        What the addresses are of.
    """

    like: Member
    table: torch.Tensor
    aligned: int
    every: Sequence[Member]
    kept: tuple[torch.Tensor, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        return self.like.shape


def members(w: Operand, batch: tuple[int, ...]) -> list[Member]:
    """Return the matrices of a block-sparse operand of a batch of at most one dimension."""
    found = lists(w)
    made = w.transposed and w.lists is None
    order = None if found.order is None else found.order
    if not batch:
        return [Member(w.data, found.indices, found.indptr, order, w.size, w.transposed, made)]
    every = []
    for e in range(batch[0]):
        data = w.data[e] if w.data.ndim > 3 else w.data
        indptr = found.indptr[e] if found.indptr.ndim > 1 else found.indptr
        every.append(Member(data, found.indices, indptr, order, w.size, w.transposed, made))
    return every


def together(every: Sequence[Member], where: Place) -> Blocks:
    """Return matrices of one form as one operand; their blocks stay where they are.

    Lists that were made in this call are put side by side, so that nothing need be uploaded to say where they
    are.
    """
    torch = libraries().torch
    first = every[0]
    addresses = tuple(one.data.data_ptr() for one in every)
    aligned = math.gcd(16, *addresses)
    roles: list[list[Any]] = [[one.indices for one in every], [one.indptr for one in every]]
    roles.append([one.indices if one.order is None else one.order for one in every])
    if not first.made:
        flat = zip(addresses, *([part.data_ptr() for part in role] for role in roles), strict=True)
        table = constant(tuple(address for one in flat for address in one), "int64", where)
        return Blocks(first, table.view(len(every), 4), aligned, every)
    columns, kept = [constant(addresses, "int64", where)], []
    for role in roles:
        same = all(part is role[0] for part in role)
        joined = role[0] if same else torch.cat(role)
        starts, at = [], 0
        for part in role:
            starts.append(at * joined.element_size())
            at += 0 if same else int(part.numel())
        columns.append(constant(tuple(starts), "int64", where) + joined.data_ptr())
        kept.append(joined)
    return Blocks(first, torch.stack(columns, 1), aligned, every, tuple(kept))


def project_blocks(
    where: Place,
    x: torch.Tensor,
    routes: Routes,
    w: Blocks,
    out: torch.Tensor,
    *,
    gather: bool = True,
    activation: str | None = None,
    scale: torch.Tensor | None = None,
    live: torch.Tensor | None = None,
    branch: int = 1,
    inner: bool = False,
    active: torch.Tensor | None = None,
) -> None:
    """Write ``activation(x @ w.T) * scale`` for each copy and its expert.

    Parameters
    ----------
    where, x, routes, out, gather, activation, scale, active
        As in :func:`prunus.cuda.grouped.project`.
    w : Blocks
        Shape (units, d) each.
    live : Tensor of bool, optional
        Shape (copies, branches), contiguous: elsewhere the result is 0.
    branch : int
        Units of a branch.
    inner : bool
        ``live`` is of the values of ``x``: dead ones contribute nothing, and what they hold is not looked at.
    """
    from prunus.cuda.kernels import grouped_blocks as kernels

    torch = libraries().torch
    units, features = w.size
    if 0 in out.shape:
        return
    kind = dtypes.result(x.dtype, w.like.dtype)
    compute, sums = computed_in(kind, where)
    stored = tuple(int(size) for size in w.like.data.shape[-2:])
    block = stored[::-1] if w.like.transposed else stored
    average = blocks_along(routes.copies, routes.experts)
    tile, programs = moe_configs.grouped_blocks(
        where, average, (block[0], block[1]), kind.itemsize * 8, inner and live is not None
    )
    down = min(blocks_along(routes.copies, tile.m) + routes.experts, routes.copies)
    across = blocks_along(units, block[0]) * blocks_along(block[0], tile.n)
    gathered = gather and routes.rows is not None
    launch(
        where,
        kernels.grouped_blocks,
        (min(programs, down * across),),
        x,
        routes.rows if gathered else routes.offsets,
        routes.offsets,
        routes.offsets if active is None else active,
        w.table,
        w.like.data,
        w.like.indices,
        w.like.indptr,
        out if scale is None else scale,
        routes.offsets if live is None else live.view(torch.uint8),
        out,
        routes.experts,
        units,
        features,
        1 if live is None else int(live.shape[1]),
        branch,
        *x.stride(),
        SR=stored[0],
        SC=stored[1],
        TRANSPOSED=w.like.transposed,
        ORDERED=w.like.order is not None,
        ALIGNED=w.aligned,
        GATHER=gathered,
        ACTIVE=active is not None,
        SCALED=scale is not None,
        LIVE=None if live is None else "inner" if inner else "units",
        ACTIVATION=activation,
        COMPUTE=compute,
        SUMS=sums,
        WIDE=triton_of(torch.float64 if dtypes.sums(kind) == torch.float64 else torch.float32),
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        TE=power(routes.experts, 1, 1 << 16),
        ROWS=ROWS,
        **tile.options,
    )
