"""The reductions as methods, in terms of :mod:`prunus.paged.statistics`."""

from __future__ import annotations

from typing import Any

__all__ = ["Reducible"]


class Reducible:
    """Methods that read all values once and return few.

    ``axis`` is None, an int or a tuple; ``keepdims``, ``dtype``, ``out``, ``where`` and ``initial`` are as
    in NumPy. Sums are formed in float64 (integers exactly, in 64 bits) whatever the dtype, and tile after
    tile in the order of storage; they do not depend on the number of threads.
    """

    __slots__ = ()

    def _reduce(self, name: str, axis: Any, **kwargs: Any) -> Any:
        from prunus.paged.statistics import reduce

        return reduce(self, name, axis, **kwargs)

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Return the sum of the values; see ``numpy.sum``."""
        return self._reduce("sum", axis, dtype=dtype, out=out, **kwargs)

    def prod(self, axis: Any = None, dtype: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Return the product of the values; see ``numpy.prod``."""
        return self._reduce("prod", axis, dtype=dtype, out=out, **kwargs)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Return the arithmetic mean; see ``numpy.mean``."""
        return self._reduce("mean", axis, dtype=dtype, out=out, **kwargs)

    def var(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, **kwargs: Any
    ) -> Any:
        """Return the variance, in one pass; see ``numpy.var``."""
        return self._reduce("var", axis, dtype=dtype, out=out, ddof=ddof, **kwargs)

    def std(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, **kwargs: Any
    ) -> Any:
        """Return the standard deviation, in one pass; see ``numpy.std``."""
        return self._reduce("std", axis, dtype=dtype, out=out, ddof=ddof, **kwargs)

    def min(self, axis: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Return the smallest value; see ``numpy.min``."""
        return self._reduce("min", axis, out=out, **kwargs)

    def max(self, axis: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Return the largest value; see ``numpy.max``."""
        return self._reduce("max", axis, out=out, **kwargs)

    def ptp(self, axis: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Return the largest value less the smallest."""
        return self._reduce("ptp", axis, out=out, **kwargs)

    def argmin(self, axis: int | None = None, out: Any = None, **kwargs: Any) -> Any:
        """Return the index of the first smallest value; see ``numpy.argmin``."""
        return self._reduce("argmin", axis, out=out, **kwargs)

    def argmax(self, axis: int | None = None, out: Any = None, **kwargs: Any) -> Any:
        """Return the index of the first largest value; see ``numpy.argmax``."""
        return self._reduce("argmax", axis, out=out, **kwargs)

    def any(self, axis: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Say whether any value is true; see ``numpy.any``."""
        return self._reduce("any", axis, out=out, **kwargs)

    def all(self, axis: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """Say whether all values are true; see ``numpy.all``."""
        return self._reduce("all", axis, out=out, **kwargs)

    def cumsum(self, axis: int | None = None, dtype: Any = None, out: Any = None) -> Any:
        """Return running sums, written to ``out`` or to a temporary array on disk."""
        from prunus.paged.running import cumulative

        return cumulative(self, "sum", axis, dtype, out)

    def cumprod(self, axis: int | None = None, dtype: Any = None, out: Any = None) -> Any:
        """Return running products, written to ``out`` or to a temporary array on disk."""
        from prunus.paged.running import cumulative

        return cumulative(self, "prod", axis, dtype, out)

    def stats(self, *names: str, axis: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return several reductions from one pass.

        Parameters
        ----------
        *names : str
            ``"sum"``, ``"prod"``, ``"mean"``, ``"var"``, ``"std"``, ``"min"``, ``"max"``, ``"ptp"``,
            ``"any"``, ``"all"``, ``"argmin"``, ``"argmax"``, ``"count_nonzero"``; by default mean, std, min
            and max.
        axis, **kwargs
            As the methods of these names have them.

        Returns
        -------
        dict
            The results by name.
        """
        from prunus.paged.statistics import several

        return several(self, names or ("mean", "std", "min", "max"), axis, **kwargs)

    def unique_count(self) -> int:
        """Return how many different values there are: exact up to 65536, about 0.8 % off above that.

        NaN counts once, and zeros of either sign as one.
        """
        from prunus.paged.sketches import unique_count

        return unique_count(self)

    def quantile(self, q: Any, axis: Any = None) -> Any:
        """Return quantiles from a sketch made in one pass; see :mod:`prunus.paged.sketches` for its error."""
        from prunus.paged.sketches import quantile

        return quantile(self, q, axis)

    def median(self, axis: Any = None) -> Any:
        """Return the median from a sketch; see :meth:`quantile`."""
        return self.quantile(0.5, axis)
