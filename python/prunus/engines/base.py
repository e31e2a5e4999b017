"""What an engine is: the small set of operations everything else is composed from."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from prunus._dtypes import Array, DType
from prunus._layout import Index

__all__ = ["ACTIVATIONS", "Blocks", "Engine"]

# What may follow a product inside the store. gelu is the exact one, with erf, as torch's default.
ACTIVATIONS = frozenset({"relu", "gelu", "silu"})


class Blocks(NamedTuple):
    """One two-dimensional block-sparse operand, as engines see it.

    ``data`` (n, br, bc), ``indices`` (n,) and ``indptr`` (rows + 1,) describe an array of ``shape``; the
    operand is its transpose if ``transposed``. Blocks at the edge may hang over; what hangs over is never
    read. ``packed`` is the engine's own frozen form, if there is one.
    """

    data: Array
    indices: Index
    indptr: Index
    shape: tuple[int, int]
    transposed: bool
    packed: Any = None


@runtime_checkable
class Engine(Protocol):
    """An engine multiplies checked operands into memory it is given.

    Callers have matched shapes, resolved dtypes and made sure that ``out`` overlaps no input. Absent blocks
    contribute 0, duplicates sum in stored order, and each output sums its blocks in ascending order, so the
    result depends on neither threads nor timing.
    """

    name: str

    def dsd(self, w: Blocks, x: Array, out: Array, bias: Array | None, activation: str | None) -> None:
        """Write ``activation(w @ x + bias[:, None])`` to ``out``.

        Parameters
        ----------
        w : Blocks
            Shape (m, k) after its transposition.
        x : ndarray
            Shape (k, n), any strides.
        out : ndarray
            Shape (m, n), any strides that do not overlap.
        bias : ndarray, optional
            Shape (m,).
        activation : str, optional
            One of ``ACTIVATIONS``.
        """
        ...

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """Return data, indices and indptr of ``a @ b`` in sorted, distinct blocks of ``dtype``.

        Neither operand is transposed, ``a``'s block columns are as wide as ``b``'s block rows are high, and
        what hangs over the inner edge is 0.
        """
        ...

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """Write the blocks (``indices``, ``indptr``) of ``a @ b`` to ``out`` (n, br, bc).

        What hangs over the edge of ``a`` (m, k) or ``b`` (k, n) is left as it is.
        """
        ...
