"""Rows of values with dead branches, of tensors, as a block-sparse operand of those that are live."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunus._layout import blocks_along
from prunus.cuda.blocks import Operand
from prunus.cuda.configs import power
from prunus.cuda.runtime import Place, empty, launch, zeros
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["compact"]

# Values that a program copies at a time.
_VALUES = 4096
_MOST = 1024  # of a row


def compact(
    where: Place,
    h: torch.Tensor,
    live: torch.Tensor,
    lead: tuple[int, ...],
    branch: int,
    block: int,
    kind: Any,
) -> tuple[Operand, tuple[int, ...]]:
    """Return the live branches of ``h`` as an operand with room for all blocks, and its batch dimensions.

    Nothing is read back: the live blocks are counted, and each is copied to where those before it end.

    Parameters
    ----------
    where : Place
        Where the tensors live.
    h : Tensor
        Shape (rows, units), the last axis contiguous. What dead branches hold is not looked at.
    live : Tensor of bool
        Shape (rows, branches); a stride of 0 says that it is the same for all rows.
    lead : tuple of int
        What ``rows`` stands for: all but the last are a batch, each member with a pattern of its own.
    branch : int
        Units of a branch: columns of a block.
    block : int
        Rows of a block, at most; a member that has fewer is one line of blocks.
    kind : torch.dtype
        Of the result.
    """
    from prunus.cuda.kernels import compaction as kernels

    torch = libraries().torch
    units = int(h.shape[1])
    batch, height = (lead[:-1], lead[-1]) if lead else ((), 1)
    members, block = math.prod(batch), max(min(block, height), 1)
    lines, branches = blocks_along(height, block), blocks_along(units, branch)
    room = members * lines * branches
    # Offsets count through all members.
    index = torch.int32 if room < 1 << 31 else torch.int64
    data = empty((room, block, branch), kind, where)
    indices = empty((room,), torch.int32, where)
    shape = (members, lines + 1) if batch else (lines + 1,)
    if not room:
        return Operand(data, indices, zeros(shape, index, where), (height, units)), batch
    indptr = empty(shape, index, where)
    mask = live.view(torch.uint8)
    mask = mask if branches == 1 or mask.stride(1) == 1 else mask.contiguous()
    flags = empty((room,), torch.uint8, where)
    tm = power(block, 1, 16)
    tb = power(branches, 16, 4096 if where.interpreted else 256)
    across = blocks_along(branches, tb)
    launch(
        where,
        kernels.needed,
        (members * lines * across,),
        mask,
        flags,
        height,
        block,
        branches,
        lines,
        across,
        mask.stride(0),
        TM=tm,
        TB=tb,
        num_warps=4,
    )
    places = torch.cumsum(flags, 0, dtype=index)
    padded = branches * branch
    tu = power(padded, 16, (1 << 16) // tm if where.interpreted else min(_VALUES // tm, _MOST))
    across = blocks_along(padded, tu)
    launch(
        where,
        kernels.gather,
        (members * lines * across,),
        h,
        mask,
        flags,
        places,
        data,
        indices,
        indptr,
        height,
        block,
        units,
        branch,
        branches,
        lines,
        across,
        h.stride(0),
        mask.stride(0),
        TM=tm,
        TU=tu,
        num_warps=4,
    )
    return Operand(data, indices, indptr, (height, units)), batch
