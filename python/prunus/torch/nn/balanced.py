"""Random patterns that burden every row and every column of blocks alike."""

from __future__ import annotations

import torch

__all__ = ["balanced"]


def balanced(rows: int, cols: int, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return a random grid of ``count`` blocks, spread evenly over rows and over columns.

    Columns are dealt like cards: all of them in a random order, then all of them in another one, and so on,
    and each row takes the next ``count / rows``. So the numbers of blocks of two rows differ by one at most,
    and those of two columns as well. Where one deal ends within a row, the next one begins with columns that
    the row has not.

    Parameters
    ----------
    rows, cols : int
        Blocks down and across.
    count : int
        Blocks in all, from 0 to ``rows * cols``.
    generator : torch.Generator, optional
        Source of randomness; torch's own for the CPU otherwise.

    Returns
    -------
    Tensor
        Booleans, (rows, cols), in host memory.

    Examples
    --------
    >>> grid = balanced(4, 6, 10, torch.Generator().manual_seed(0))
    >>> sorted(grid.sum(1).tolist()), sorted(grid.sum(0).tolist())
    ([2, 2, 3, 3], [1, 1, 2, 2, 2, 2])
    """
    grid = torch.zeros(rows, cols, dtype=torch.bool, device="cpu")
    if not count:
        return grid
    sizes = torch.full((rows,), count // rows, dtype=torch.int64, device="cpu")
    sizes[_shuffled(rows, generator)[: count % rows]] += 1
    row = torch.repeat_interleave(torch.arange(rows, device="cpu"), sizes)
    dealt: list[torch.Tensor] = []
    taken = 0
    for _ in range(-(-count // cols)):
        # What the row that this deal begins in has, and how much it still takes.
        has = dealt[-1][row[taken - cols : taken] == row[taken]] if dealt else row[:0]
        wants = int((row[taken : taken + cols] == row[taken]).sum()) if len(has) else 0
        order = _shuffled(cols, generator)
        free = order[~torch.isin(order, has)]
        rest = torch.cat([free[wants:], has])
        dealt.append(torch.cat([free[:wants], rest[_shuffled(len(rest), generator)]]))
        taken += cols
    grid[row, torch.cat(dealt)[:count]] = True
    return grid[_shuffled(rows, generator)]


def _shuffled(count: int, generator: torch.Generator | None) -> torch.Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randperm(count, generator=generator, device=device).cpu()
