"""Medians of paired ratios, and how far they can be trusted."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "estimate", "ratios"]

_COVERAGE = 0.9


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and its interval.

    Attributes
    ----------
    median, low, high : float
        The median, and the interval that covers the true one in at least nine of ten cases; where there are
        too few values for that (four or less), the smallest and the largest.
    count : int
        How many values there were.
    """

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median of some values and its interval from order statistics.

    Nothing is assumed of their distribution: the number of values below the true median is binomial, so the
    interval between the k-th smallest and the k-th largest covers it with a probability that is known.

    Raises
    ------
    ValueError
        If there is no value.

    Examples
    --------
    >>> estimate([5, 1, 4, 2, 3])
    Estimate(median=3, low=1, high=5, count=5)
    """
    if not values:
        raise ValueError("no values: a median needs at least one")
    ordered = sorted(values)
    count = len(ordered)
    outside, left_out = 0.0, 0
    while left_out < (count - 1) // 2:
        outside += 2 * math.comb(count, left_out) / 2**count
        more = 2 * math.comb(count, left_out + 1) / 2**count
        if outside + more > 1 - _COVERAGE:
            break
        left_out += 1
    return Estimate(statistics.median(ordered), ordered[left_out], ordered[-1 - left_out], count)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide what was measured side by side, pair by pair.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    return [a / b for a, b in zip(above, below, strict=True)]
