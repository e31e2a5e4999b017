"""Which blocks of two patterns meet in a product: lists that are expanded and sorted on the device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from prunus.cuda.blocks import Lists, Operand, lists
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Blocks", "Pairs", "Patterns", "blocks_of", "pairs_of", "starts_of"]

# What sorts after everything: the largest int64.
_BEYOND: Final = 2**63 - 1


class Patterns(NamedTuple):
    """The patterns of an operand's members, as those of a product's members need them.

    Attributes
    ----------
    lists : Lists
        Of the operand.
    indptr : Tensor of int64
        Shape (members, rows + 1) for the product's members; one where they all share a pattern. Those that
        broadcast are repeated, without copying what they point to.
    room : int
        Blocks that all of these members could have together.
    """

    lists: Lists
    indptr: torch.Tensor
    room: int

    @classmethod
    def of(cls, w: Operand, own: tuple[int, ...], batch: tuple[int, ...]) -> Patterns:
        """Return the patterns of an operand of the members ``own`` for those of ``batch``."""
        torch = libraries().torch
        found, members = lists(w), math.prod(batch)
        edges = found.indptr.to(torch.int64)
        wide = edges.shape[-1]
        if not w.own:
            return cls(found, edges.expand(members, wide), len(w.indices) * members)
        repeats = members // max(math.prod(own), 1)
        every = edges.reshape(*own, wide).expand(*batch, wide).reshape(members, wide)
        return cls(found, every, len(w.indices) * repeats)

    @property
    def rows(self) -> int:
        """Rows of blocks of a member."""
        return int(self.indptr.shape[-1]) - 1

    def stored(self, at: torch.Tensor) -> torch.Tensor:
        """Return where blocks are stored, by their places in the list."""
        return at if self.lists.order is None else self.lists.order[at]


class _Meetings(NamedTuple):
    """What each block of the left operand meets; (blocks,) each, ascending by row, repeated members apart.

    Attributes
    ----------
    stored : Tensor
        Where it is stored.
    row : Tensor
        Its row of blocks, counted through all members.
    inner : Tensor
        Its column, which is the row of the blocks that it meets.
    counts, first : Tensor
        How many those are, and the place of the first of them in the right operand's list; 0 of what there
        is only room for.
    """

    stored: torch.Tensor
    row: torch.Tensor
    inner: torch.Tensor
    counts: torch.Tensor
    first: torch.Tensor


def _expand(a: Patterns, b: Patterns) -> _Meetings:
    """Return what each block of ``a`` meets in ``b``; as many members have patterns in both."""
    torch = libraries().torch
    lines = a.indptr.shape[0] * a.rows
    t = torch.arange(a.room if lines else 0, device=a.indptr.device, dtype=torch.int64)
    counts = (a.indptr[:, 1:] - a.indptr[:, :-1]).reshape(-1)
    last = torch.cumsum(counts, 0)
    row = torch.searchsorted(last, t, right=True)
    there = row < lines
    row = row.clamp_(max=max(lines - 1, 0))
    # A member's list may begin anywhere: between two of them is what there is only room for.
    place = a.indptr[:, :-1].reshape(-1)[row] + t - (last[row] - counts[row])
    stored = a.stored(place.clamp_(0, max(len(a.lists.indices) - 1, 0)))
    # What there is only room for may hold anything.
    inner = a.lists.indices[stored].to(torch.int64).clamp_(0, max(b.rows - 1, 0))
    if not b.rows:
        none = torch.zeros_like(inner)
        return _Meetings(stored, row, inner, none, none)
    edge = row // max(a.rows, 1) * (b.rows + 1) + inner
    edges = b.indptr.reshape(-1)
    first = edges[edge]
    return _Meetings(stored, row, inner, torch.where(there, edges[edge + 1] - first, 0), first)


def _in_order(
    place: torch.Tensor, inner: torch.Tensor, exists: torch.Tensor, places: int, inners: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort pairs by ``place``, then by ``inner``; equal ones stay in order, and those not there come last.

    Parameters
    ----------
    place, inner : Tensor of int64
        Shape (pairs,): block of the result, and row of blocks of the right operand.
    exists : Tensor of bool
        Shape (pairs,).
    places, inners : int
        How many of each there could be.

    Returns
    -------
    place, inner, order : Tensor
        Sorted, and where each was. The first two hold anything where pairs do not exist, but no ``place``
        that is less than the others.
    """
    torch = libraries().torch
    if places * inners < _BEYOND:
        inners = max(inners, 1)
        key, order = torch.sort(torch.where(exists, place * inners + inner, _BEYOND), stable=True)
        return key // inners, key % inners, order
    inner, first = torch.sort(torch.where(exists, inner, _BEYOND), stable=True)
    place, order = torch.sort(torch.where(exists, place, _BEYOND)[first], stable=True)
    return place, inner[order], first[order]


class Pairs(NamedTuple):
    """Pairs of blocks that meet, (room,) each, sorted by block of the result and the column they meet in.

    Attributes
    ----------
    left, right : Tensor
        Where the blocks are stored.
    place : Tensor
        Block of the result: its row of blocks, counted through all members, times columns, plus its column.
    inner : Tensor
        The column of the left block, and row of the right one.
    exists : Tensor of bool
        False from as many on as there are.
    total : Tensor
        Shape (1,): how many there are.
    """

    left: torch.Tensor
    right: torch.Tensor
    place: torch.Tensor
    inner: torch.Tensor
    exists: torch.Tensor
    total: torch.Tensor


def pairs_of(a: Patterns, b: Patterns, columns: int, room: int | None) -> Pairs:
    """Return the pairs of a product of so many columns of blocks; without ``room``, their number is read."""
    torch = libraries().torch
    found = _expand(a, b)
    ends = torch.cumsum(found.counts, 0)
    total = ends[-1:] if len(ends) else ends.new_zeros(1)
    pairs = int(total.item()) if room is None else room
    p = torch.arange(pairs, device=total.device, dtype=torch.int64)
    exists = p < total
    if len(ends) and len(b.lists.indices):
        t = torch.searchsorted(ends, p, right=True).clamp_(max=len(ends) - 1)
        at = found.first[t] + p - (ends[t] - found.counts[t])
        right = b.stored(at.clamp_(0, len(b.lists.indices) - 1))
        left, inner = found.stored[t], found.inner[t]
        place = found.row[t] * columns + b.lists.indices[right]
    else:
        left = right = place = inner = p
    lines = a.indptr.shape[0] * a.rows
    place, inner, order = _in_order(place, inner, exists, lines * columns, b.rows)
    return Pairs(left[order], right[order], place, inner, exists, total)


class Blocks(NamedTuple):
    """The blocks of a product.

    Attributes
    ----------
    starts : Tensor
        Shape (room + 1,): which pairs each of them has.
    rows, columns : Tensor
        Shape (room,): where each is; rows are counted through all members, and those past the last one are of
        blocks that are not there.
    indptr : Tensor
        Shape (lines + 1,): where each row of blocks begins.
    total : Tensor
        Shape (1,): how many there are.
    """

    starts: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    indptr: torch.Tensor
    total: torch.Tensor


def blocks_of(pairs: Pairs, lines: int, columns: int, room: int | None) -> Blocks:
    """Return the blocks that pairs add to; without ``room``, their number is read back."""
    torch = libraries().torch
    place, exists = pairs.place, pairs.exists
    fresh = exists.clone()
    fresh[1:] &= place[1:] != place[:-1]
    number = torch.cumsum(fresh, 0) - 1
    made = number[-1:] + 1 if len(place) else pairs.total
    blocks = int(made.item()) if room is None else room
    # Where each block's pairs begin; those that are not there have none, and come last.
    edges = torch.arange(blocks + 1, device=place.device, dtype=torch.int64)
    starts = torch.searchsorted(torch.where(exists, number, _BEYOND), edges)
    spots = place[starts[:-1].clamp(max=len(place) - 1)] if len(place) else edges[:-1]
    there = edges[:-1] < made
    row = torch.where(there, spots // max(columns, 1), lines)
    column = torch.where(there, spots % max(columns, 1), 0)
    all_rows = torch.arange(lines + 1, device=place.device, dtype=torch.int64)
    return Blocks(starts, row, column, torch.searchsorted(row, all_rows), made)


def starts_of(w: Operand, own: tuple[int, ...], batch: tuple[int, ...]) -> torch.Tensor | None:
    """Return where the blocks of each member of ``batch`` start, (members,); None where all have the same."""
    if w.data.ndim == 3 or 0 in batch:
        return None
    torch = libraries().torch
    start = torch.arange(math.prod(own), device=w.data.device, dtype=torch.int64) * len(w.indices)
    return start.reshape(own).expand(batch).reshape(-1).contiguous()  # kernels walk it
