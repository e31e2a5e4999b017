"""Products of block-sparse arrays on disk with dense operands on a GPU.

Each block is read once, in the file's order, whatever the number of columns. Sums go on from piece to piece
in ascending order, so that a result is that of the same array on the GPU: to the bit where a kernel's step
over the inner dimension lies within a block (blocks of 16, 32, 64 and 128 values along it, but of int8 from
32 on), or where the array is not transposed. Elsewhere, with a transpose of small or odd blocks, sums of a
step are cut where pieces are, which follows from the pattern alone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunus._layout import blocks_along
from prunus.cuda import configs, dtypes, products
from prunus.cuda.blocks import Operand
from prunus.cuda.finishing import finish
from prunus.cuda.paged.blocks import Cut, Pieces, least_buffer
from prunus.cuda.paged.sources import InOrder
from prunus.cuda.runtime import Place, empty
from prunus.cuda.streaming import Ring, borrowed
from prunus.paged import sparse_products
from prunus.paged.blocks import BlockFile

if TYPE_CHECKING:
    import torch

__all__ = ["multiply"]


def multiply(
    where: Place,
    w: sparse_products.Operand,
    x: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
) -> None:
    """Write ``activation(w @ x + bias[:, None])`` to ``out``; operands are checked.

    Parameters
    ----------
    where : Place
        Where x and the result live.
    w : Operand
        On disk, shape (*W, m, k).
    x : Tensor
        Shape (*batch, k, n), where ``batch`` is W broadcast with other dimensions; any strides.
    out : Tensor
        Shape (*batch, m, n), overlapping no operand; any strides.
    bias : Tensor, optional
        Shape (m,).
    activation : str, optional
        One of the engines' activations.

    Raises
    ------
    OSError
        If the file cannot be read; nothing is under way then.
    PrunusError
        If the pager's budget is too small for a stream, or the call is captured in a CUDA graph.
    MemoryError
        If there is no room for buffers; the message has the size.
    """
    if 0 in out.shape:
        return
    one = w.member((0,) * len(w._batch)) if 0 not in w._batch else None
    if one is None:
        return
    tile = _tile(where, w, x, out, activation)
    with borrowed(where, least_buffer(one)) as ring:
        for at in np.ndindex(*w._batch):
            # Of the broadcast dimensions, those that W has pick a member; the rest go with it.
            own = tuple(slice(None) if n == 1 else i for i, n in zip(at, w._batch, strict=True))
            index = (..., *own, slice(None), slice(None)) if own else ...
            with _one_batch(out[index]) as part:
                member = _Member(where, w.member(at), products.flat(x[index]), part, tile, bias, activation)
                if w._t:
                    member.transposed(ring)
                else:
                    member.rows(ring)


@contextmanager
def _one_batch(out: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give a result with one batch dimension; what strides do not let be seen so is computed aside."""
    if out.ndim <= 3:
        yield out
        return
    try:
        yield out.view(-1, *out.shape[-2:])
        return
    except RuntimeError:
        pass
    aside = out.new_empty(out.shape)
    yield aside.view(-1, *out.shape[-2:])
    out.copy_(aside)


def _tile(
    where: Place, w: sparse_products.Operand, x: torch.Tensor, out: torch.Tensor, activation: str | None
) -> configs.Tile | None:
    """Return the tile that all pieces are computed in, in the whole array's steps; None for small blocks."""
    br, bc = w.w.blocksize[::-1] if w._t else w.w.blocksize
    if min(br, bc) < products.SMALLEST:
        return None
    rows, members = blocks_along(w._rows, br), math.prod(out.shape[:-2])
    own = w.w.indptr.ndim > 1
    return configs.dsd(
        where,
        (br, bc),
        int(x.shape[-1]),
        8 * dtypes.compute(dtypes.torch_of(w.w.dtype), x.dtype, out.dtype).itemsize,
        precision=products.precision(),
        rows=rows * members,
        blocks=blocks_along(len(w.w.indices), max(rows * (members if own else 1), 1)),
        activation=activation,
        add=True,
    )


def _like(out: torch.Tensor, kind: Any, where: Place) -> torch.Tensor:
    """Return room for sums (members, m, n) of a result, that lies as the result does."""
    *members, m, n = out.shape
    if out.stride(-2) < out.stride(-1):
        return empty((*members, n, m), kind, where).transpose(-1, -2)
    return empty(tuple(out.shape), kind, where)


class _Member(NamedTuple):
    """The product of one matrix on disk with its dense operand."""

    where: Place
    w: BlockFile
    x: torch.Tensor
    out: torch.Tensor
    tile: configs.Tile | None
    bias: torch.Tensor | None
    activation: str | None

    @property
    def _sums(self) -> Any:
        return dtypes.sums(dtypes.compute(dtypes.torch_of(self.w.dtype), self.x.dtype, self.out.dtype))

    def rows(self, ring: Ring) -> None:
        """Compute each row of blocks where all of its blocks are there, in parts where they are too many."""
        sums: torch.Tensor | None = None
        with closing(self._pieces(ring)) as pieces:
            for cut, rows, piece in pieces:
                bias = None if self.bias is None else self.bias[rows]
                out = self.out[..., rows, :]
                if cut.begins and cut.ends:
                    products.dsd(self.where, piece, self.x, out, bias, self.activation, tile=self.tile)
                    continue
                if sums is None:
                    sums = _like(out, self._sums, self.where)
                products.dsd(self.where, piece, self.x, sums, add=not cut.begins, tile=self.tile)
                if cut.ends:
                    finish(self.where, sums, out, bias, self.activation)
                    sums = None

    def transposed(self, ring: Ring) -> None:
        """Add what each piece contributes to all rows of the result."""
        kind = self._sums
        direct = self.bias is None and self.activation is None and self.out.dtype == kind
        sums = self.out if direct else _like(self.out, kind, self.where)
        begun = False
        with closing(self._pieces(ring)) as pieces:
            for _, rows, piece in pieces:
                products.dsd(self.where, piece, self.x[..., rows, :], sums, add=begun, tile=self.tile)
                begun = True
        if not begun:
            sums.zero_()
        if not direct:
            finish(self.where, sums, self.out, self.bias, self.activation)

    def _pieces(self, ring: Ring) -> Generator[tuple[Cut, slice, Operand], None, None]:
        """Yield pieces that are on their way: where they were cut, their rows of what is stored, blocks."""
        w = self.w
        pieces = Pieces(w, ring.size)
        with w.panels() as panels:
            source = InOrder(panels)
            for cut, there in ring.pieces(pieces.cuts(), lambda cut, view: pieces.fill(source, cut, view)):
                yield cut, pieces.rows(cut), pieces.operand(cut, there)
