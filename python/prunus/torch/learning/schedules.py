"""How dense, and how much changes, over time and over layers: plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunus._construct import as_fraction

__all__ = ["cosine", "cubic", "erdos_renyi"]


def cubic(step: int, begin: int, end: int, initial: float, final: float) -> float:
    """Return the density at a step that goes from ``initial`` to ``final``, fast first.

    ``final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3``, from Zhu and Gupta, *To prune,
    or not to prune* (2017); before ``begin`` the initial density, from ``end`` on the final one.

    Examples
    --------
    >>> [cubic(step, 0, 4, 1.0, 0.5) for step in (0, 2, 4, 9)]
    [1.0, 0.5625, 0.5, 0.5]
    """
    if step >= end:
        return final
    left = min(1.0, 1 - (step - begin) / (end - begin))
    return final + (initial - final) * left**3


def cosine(step: int, end: int, fraction: float) -> float:
    """Return the fraction of blocks that change at a step: ``fraction / 2 * (1 + cos(pi * step / end))``.

    From Dettmers and Zettlemoyer (2019) and Evci et al., *Rigging the lottery* (2020); 0 from ``end`` on.

    Examples
    --------
    >>> [round(cosine(step, 100, 0.3), 3) for step in (0, 50, 100)]
    [0.3, 0.15, 0.0]
    """
    return 0.0 if step >= end else fraction / 2 * (1 + math.cos(math.pi * step / end))


def erdos_renyi(shapes: Sequence[tuple[int, int]], density: float) -> list[float]:
    """Return a density for each matrix, so that all together have ``density``: small ones are kept denser.

    A matrix (m, n) gets a density in proportion to ``(m + n) / (m * n)``; where that is more than 1 it is
    dense, and the others make up for it. Mocanu et al. (2018); as in Evci et al. (2020), without kernels.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Rows and columns of each matrix.
    density : float
        The share of all values that stay.

    Returns
    -------
    list of float
        A density for each.

    Raises
    ------
    ValueError
        If ``density`` is not in [0, 1].

    Examples
    --------
    >>> [round(one, 3) for one in erdos_renyi([(1000, 1000), (100, 100)], 0.1)]
    [0.092, 0.918]
    """
    share = as_fraction(density, "density")
    sizes = [rows * cols for rows, cols in shapes]
    dense = {at for at, size in enumerate(sizes) if size == 0}
    while True:
        room = share * sum(sizes) - sum(sizes[at] for at in dense)
        ends = sum(sum(shapes[at]) for at in range(len(shapes)) if at not in dense)
        scale = max(room, 0.0) / ends if ends else 0.0
        made = [1.0 if at in dense else scale * sum(shape) / sizes[at] for at, shape in enumerate(shapes)]
        over = {at for at, one in enumerate(made) if one > 1}
        if not over:
            return made
        dense |= over
