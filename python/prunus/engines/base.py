"""What an engine is: the small set of operations everything else is composed from."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, runtime_checkable

from prunus._core import Packed
from prunus._dtypes import Array, DType
from prunus._layout import Index

__all__ = ["ACTIVATIONS", "Blocks", "Engine"]

# What may follow a product inside the store. gelu is the exact one, with erf, as torch's default.
ACTIVATIONS = frozenset({"relu", "gelu", "silu"})


class Blocks(NamedTuple):
    """A block-sparse operand, as engines see it.

    ``data`` (n, br, bc), ``indices`` (n,) and ``indptr`` (rows + 1,) describe an array of ``shape``; the
    operand is its transpose if ``transposed``. Blocks at the edge may hang over: engines ignore that padding,
    whatever it holds. Of a frozen array, ``data`` is the CPU engine's packed form, which other engines read
    through ``values``.

    With a batch, members that share a pattern have ``data`` (*batch, n, br, bc). Where each has its own,
    ``indptr`` is (*batch, rows + 1), whose offsets count through all members' blocks.
    """

    data: Array | Packed
    indices: Index
    indptr: Index
    shape: tuple[int, int]
    transposed: bool

    @property
    def values(self) -> Array:
        """The blocks as an ndarray; of a packed operand a new one."""
        return self.data.copy() if isinstance(self.data, Packed) else self.data

    def member(self, at: tuple[int, ...]) -> Self:
        """Return the two-dimensional operand at ``at`` of the batch; itself where there is none."""
        if self.indptr.ndim > 1:
            indptr = self.indptr[at]
            part = slice(int(indptr[0]), int(indptr[-1]))
            return self._replace(
                data=self.values[part], indices=self.indices[part], indptr=indptr - indptr[0]
            )
        return self._replace(data=self.values[at]) if len(self.data.shape) > 3 else self


@runtime_checkable
class Engine(Protocol):
    """An engine multiplies checked operands into memory it is given.

    Callers have matched shapes, resolved dtypes and made sure that ``out`` overlaps no input. Absent blocks
    contribute 0, duplicates sum in stored order, and each output sums its blocks in ascending order, so the
    result depends on neither threads nor timing.
    """

    name: str

    def dsd(self, w: Blocks, x: Array, out: Array, bias: Array | None, activation: str | None) -> None:
        """Write ``activation(w @ x + bias[:, None])`` to ``out``, for every member of a batch.

        Parameters
        ----------
        w : Blocks
            Shape (m, k) after its transposition, with the batch's dimensions or none.
        x : ndarray
            Shape (*batch, k, n), any strides.
        out : ndarray
            Shape (*batch, m, n), any strides that do not overlap.
        bias : ndarray, optional
            Shape (m,).
        activation : str, optional
            One of ``ACTIVATIONS``.
        """
        ...

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """Return data, indices and indptr of ``a @ b`` in sorted, distinct blocks of ``dtype``.

        The operands are two-dimensional. After their transposition, ``a``'s block columns are as wide as
        ``b``'s block rows are high.
        """
        ...

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """Write the blocks (``indices``, ``indptr``) of ``a @ b`` to ``out``, for every member of a batch.

        ``a`` is (*batch, m, k) and ``b`` (*batch, k, n); ``out`` and the pattern have the form of
        :class:`Blocks`. ``out`` may hold anything: all of it is written, with zeros past the edge of
        ``a`` and ``b``.
        """
        ...
