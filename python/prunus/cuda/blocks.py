"""Block-sparse operands in a place's memory, and the lists that kernels walk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Lists", "Operand", "broadcast", "lists", "rows_of"]


class Operand(NamedTuple):
    """A block-sparse operand, as kernels see it: :class:`prunus.engines.Blocks` of tensors.

    ``data`` may have more blocks than ``indptr`` tells of: what comes after them is not looked at.

    Attributes
    ----------
    data : Tensor
        Shape (n, br, bc), or (members, n, br, bc) where members share a pattern; blocks are contiguous.
    indices : Tensor of int32 or int64
        Shape (n,).
    indptr : Tensor of int32 or int64
        Shape (rows + 1,), or (members, rows + 1) where each has its own pattern: offsets count through all.
    shape : tuple of int
        Rows and columns of a member as it is stored.
    transposed : bool
        The operand is the transpose of what is stored.
    lists : Lists or None
        What :func:`lists` returns, where it is known.
    """

    data: torch.Tensor
    indices: torch.Tensor
    indptr: torch.Tensor
    shape: tuple[int, int]
    transposed: bool = False
    lists: Lists | None = None

    @property
    def stored(self) -> tuple[int, int]:
        """Rows and columns of a stored block."""
        return int(self.data.shape[-2]), int(self.data.shape[-1])

    @property
    def own(self) -> bool:
        """Whether every member has a pattern of its own."""
        return bool(self.indptr.ndim > 1)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a member after transposition."""
        m, k = self.shape
        return (k, m) if self.transposed else (m, k)

    @property
    def T(self) -> Operand:  # noqa: N802
        """The transpose, of the same memory."""
        return self._replace(transposed=not self.transposed, lists=None)


class Lists(NamedTuple):
    """For each row of blocks of an operand, which blocks it has, in ascending order of their columns.

    Attributes
    ----------
    indices : Tensor
        Inner index of each block; of stored blocks where there is an ``order``.
    indptr : Tensor
        Shape (rows + 1,) or (members, rows + 1).
    order : Tensor or None
        Positions of blocks; None: as they are stored.
    """

    indices: torch.Tensor
    indptr: torch.Tensor
    order: torch.Tensor | None


def rows_of(indptr: torch.Tensor, n: int) -> torch.Tensor:
    """Return the row of blocks of each of ``n`` blocks, counted through all members; rows past the end."""
    torch = libraries().torch
    flat = indptr if indptr.ndim == 1 else torch.cat([indptr[:, :-1].reshape(-1), indptr[-1:, -1]])
    at = torch.arange(n, device=indptr.device, dtype=indptr.dtype)
    return torch.searchsorted(flat[1:].contiguous(), at, right=True)


def lists(w: Operand) -> Lists:
    """Return the lists of an operand; of a transposed one they are sorted out here, without a round trip."""
    if w.lists is not None:
        return w.lists
    if not w.transposed:
        return Lists(w.indices, w.indptr, None)
    torch = libraries().torch
    n = len(w.indices)
    br, bc = w.stored
    down, across = blocks_along(w.shape[0], br), blocks_along(w.shape[1], bc)
    row = rows_of(w.indptr, n)
    members = w.indptr.shape[0] if w.own else 1
    member = row // max(down, 1)
    # What is not there comes last, and no list ends there.
    keys = torch.where(row < members * down, member * across + w.indices, members * across)
    sorted_keys, order = torch.sort(keys, stable=True)
    edges = torch.arange(members * across + 1, device=keys.device, dtype=keys.dtype)
    starts = torch.searchsorted(sorted_keys, edges)
    if w.own:
        first = torch.arange(members, device=keys.device)[:, None] * across
        starts = starts[first + torch.arange(across + 1, device=keys.device)]
    return Lists(row - member * down, starts, order)


def broadcast(w: Operand, own: tuple[int, ...], batch: tuple[int, ...]) -> Operand:
    """Return an operand whose members are those of a batch, without copying a block.

    Parameters
    ----------
    w : Operand
        Of the members ``own``, or of none.
    own, batch : tuple of int
        Batch dimensions; the former broadcast to the latter.
    """
    if not own or own == batch:
        return w
    torch = libraries().torch
    found = lists(w)  # before members repeat, whose blocks lie side by side until then
    if not w.own:  # a pattern for each member, all in one list
        members, n = math.prod(own), len(w.indices)
        start = torch.arange(members, device=w.indptr.device, dtype=torch.int64)[:, None] * n
        # Each member's list of its own: between two of them is what there is only room for.
        found = Lists(
            found.indices.repeat(members),
            found.indptr.to(torch.int64) + start,
            None if found.order is None else (found.order + start).reshape(-1),
        )
        data = w.data.reshape(-1, *w.data.shape[-2:])
        w = Operand(data, w.indices.repeat(members), w.indptr.to(torch.int64) + start, w.shape, w.transposed)

    def every(indptr: Any) -> Any:
        rows = indptr.shape[-1]
        return indptr.reshape(*own, rows).expand(*batch, rows).reshape(-1, rows)

    return w._replace(indptr=every(w.indptr), lists=found._replace(indptr=every(found.indptr)))
