"""What the records of a comparison say: ratios between contestants, and the density that breaks even."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from prunus.bench.record import Case, Record

__all__ = ["Race", "break_even", "races", "single_column_limit"]


@dataclass(frozen=True, slots=True)
class Race:
    """The records of one case.

    Attributes
    ----------
    case : Case
        What the contestants had in common.
    dense : Record or None
        The fastest of the dense contestants, if there was one.
    sparse : dict
        By density, ascending: the sparse contestants' records by name.
    """

    case: Case
    dense: Record | None
    sparse: dict[float, dict[str, Record]]

    def rate_ratio(self, density: float, contestant: str) -> float | None:
        """Rate on the stored blocks, over the rate of the best dense product."""
        record = self.sparse[density].get(contestant)
        if record is None or self.dense is None:
            return None
        return record.gflops / self.dense.gflops

    def speed_up(self, density: float, contestant: str, peer: str) -> float | None:
        """How many times faster `contestant` is than `peer` on the same sparse product."""
        record, other = (self.sparse[density].get(name) for name in (contestant, peer))
        if record is None or other is None:
            return None
        return other.median / record.median

    def points(self, contestant: str) -> list[tuple[float, float]]:
        """Density and median seconds of a contestant, by ascending density."""
        return [(d, found[contestant].median) for d, found in self.sparse.items() if contestant in found]


def races(records: Iterable[Record]) -> list[Race]:
    """Sort records into races, in the order in which the races were run."""
    by_case: dict[Case, list[Record]] = {}
    for record in records:
        by_case.setdefault(record.case, []).append(record)
    found = []
    for case, group in by_case.items():
        dense = min((r for r in group if r.dense), key=lambda r: r.median, default=None)
        sparse: dict[float, dict[str, Record]] = {}
        for record in sorted((r for r in group if not r.dense), key=lambda r: r.density):
            sparse.setdefault(record.density, {})[record.contestant] = record
        found.append(Race(case, dense, sparse))
    return found


def break_even(points: list[tuple[float, float]], dense: float) -> tuple[str, float] | None:
    """Find the density at which a sparse product takes as long as the dense one.

    Parameters
    ----------
    points : list of (float, float)
        Density and seconds, by ascending density.
    dense : float
        Seconds of the dense product.

    Returns
    -------
    (str, float) or None
        ``("=", density)``, interpolated between the two neighbours; ``("<", lowest)`` or ``(">", highest)``
        where the crossing is outside of what was measured; None without points.

    Examples
    --------
    >>> break_even([(0.25, 1.0), (0.75, 3.0)], 2.0)
    ('=', 0.5)
    >>> break_even([(0.25, 1.0), (0.75, 3.0)], 4.0)
    ('>', 0.75)
    """
    if not points:
        return None
    if points[0][1] > dense:
        return "<", points[0][0]
    # The last crossing: noise at low densities must not hide that the curve stays below the dense time.
    for (d0, t0), (d1, t1) in reversed(list(pairwise(points))):
        if t0 <= dense < t1:
            return "=", d0 + (d1 - d0) * (dense - t0) / (t1 - t0)
    return ">", points[-1][0]


def single_column_limit(density: float, dense: float) -> float:
    """Seconds that a product with one column may take: its share of the dense time, and a call's overhead."""
    return 1.25 * density * dense + 20e-6
