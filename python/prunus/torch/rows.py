"""Sums and softmax along rows of block-sparse operands, in plain torch operations."""

from __future__ import annotations

import torch

__all__ = ["softmax", "sums"]


def sums(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return sums (count, *sizes) of values (n, *sizes), by the row of each."""
    return values.new_zeros((count, *values.shape[1:])).index_add(0, rows, values)


def softmax(scores: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return the softmax along rows that are cut into blocks; 0 in rows that have nothing but -inf.

    Parameters
    ----------
    scores : Tensor
        Shape (n, *batch, br, bc).
    rows : Tensor of int64
        Shape (n,): the row of blocks that each block is in.
    count : int
        How many rows of blocks there are.
    """
    with torch.no_grad():  # what is subtracted changes no value
        each = scores.amax(-1)
        peak = each.new_full((count, *each.shape[1:]), -torch.inf)
        at = rows.reshape(-1, *[1] * (each.ndim - 1)).expand_as(each)
        peak = peak.scatter_reduce(0, at, each, "amax")
        peak = peak.masked_fill(peak == -torch.inf, 0)
    power = (scores - peak[rows][..., None]).exp()
    total = sums(power.sum(-1), rows, count)
    total = total.masked_fill(total == 0, 1)
    return power / total[rows][..., None]
