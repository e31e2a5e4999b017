"""What an engine is: the small set of operations everything else is composed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from prunus import _layout as lay
from prunus._core import Packed
from prunus._dtypes import Array, DType
from prunus._layout import Index

__all__ = ["ACTIVATIONS", "Blocks", "Engine", "Found", "Streams", "pick"]

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


class Found(NamedTuple):
    """Where a product writes which branches of its result are live.

    Attributes
    ----------
    branch : int
        Neighbouring columns of the result that live and die together; the last branch may be shorter.
    norm : str
        "max" (largest absolute value) or "l2" (root of the sum of squares).
    norms : ndarray
        Shape (rows, branches), of the dtype that sums are kept in, float32 or float64: written.
    live : ndarray of bool, optional
        Shape (rows, branches): written, ``not (norm <= tau)``; the result is 0 where a branch is dead.
    tau : float
        The threshold that goes with ``live``, compared in double precision.
    """

    branch: int
    norm: str
    norms: Array
    live: Array | None = None
    tau: float = 0.0


def pick(made: tuple[Array, Index, Index], indices: Index, indptr: Index, out: Array) -> None:
    """Write the blocks of a product that :meth:`Engine.ssd` made, at another pattern; see `Engine.ssd_at`."""
    data, columns, starts = made
    cols = 1 + int(max(columns.max(initial=0), indices.max(initial=0)))
    part = slice(int(indptr[0]), int(indptr[-1]))
    have, want = lay.keys_of(columns, starts, cols), lay.keys_of(indices[part], indptr, cols)
    target = out[part]
    target[...] = 0
    if len(have):
        at = np.minimum(np.searchsorted(have, want), len(have) - 1)
        there = have[at] == want
        target[there] = data[at[there]]


@runtime_checkable
class Engine(Protocol):
    """An engine multiplies checked operands into memory it is given.

    Callers have matched shapes, resolved dtypes and made sure that ``out`` overlaps no input. Absent blocks
    contribute 0, duplicates sum in stored order, and each output sums its blocks in ascending order, so the
    result depends on neither threads nor timing.
    """

    name: str
    #: Dtypes of operands and results.
    dtypes: frozenset[DType]

    #: Whether results have values; an engine that only takes time leaves zeros.
    computes: bool

    def rounding(self, dtype: DType) -> float:
        """Return the largest relative error of a product of two values of a dtype, before it is summed.

        0 where products are exact or rounded as sums are, in float32 or better.
        """
        ...

    #: Writes the product of (*batch, m, k) and (*batch, k, n) to its third argument; None leaves it to NumPy.
    dense: Callable[[Array, Array, Array], None] | None

    def hold(self, x: Array, w: DType, out: DType, blocksize: tuple[int, int]) -> Any:
        """Return what makes many products with one dense operand faster, or None.

        Parameters
        ----------
        x : ndarray
            Shape (k, n). It must not be written while what is returned is in use.
        w, out : dtype
            Of the block-sparse operands, and of what they are multiplied into.
        blocksize : tuple of int
            Rows and columns of the operands' blocks, after transposition.
        """
        ...

    def dsd(
        self,
        w: Blocks,
        x: Array,
        out: Array,
        bias: Array | None,
        activation: str | None,
        held: Any = None,
        add: bool = False,
    ) -> None:
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
        held : object, optional
            What :meth:`hold` made of ``x``, which has no batch then.
        add : bool
            Add the product to what ``out`` holds, of the dtype that sums have; without ``bias`` and
            ``activation``.
        """
        ...

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """Return data, indices and indptr of ``a @ b`` in sorted, distinct blocks of ``dtype``.

        The operands are two-dimensional. After their transposition, ``a``'s block columns are as wide as
        ``b``'s block rows are high.
        """
        ...

    def ssd_at(self, a: Blocks, b: Blocks, indices: Index, indptr: Index, out: Array) -> None:
        """Write the blocks (``indices``, ``indptr``) of ``a @ b`` to ``out``; 0 where no pair meets.

        The operands are those of :meth:`ssd`. Pairs that meet in no block of the pattern need not be
        multiplied; an engine that has no such product may take :func:`pick` of the whole one.

        Parameters
        ----------
        a, b : Blocks
            Two-dimensional; after their transposition, ``a``'s block columns are as wide as ``b``'s block
            rows are high.
        indices, indptr : ndarray
            Shapes (n,) and (rows + 1,); in any order in a row, and several may name one place.
        out : ndarray
            Shape (n, br, bc) in C order. It may hold anything: all that ``indptr`` tells of is written, with
            zeros past the edge.
        """
        ...

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """Write the blocks (``indices``, ``indptr``) of ``a @ b`` to ``out``, for every member of a batch.

        ``a`` is (*batch, m, k) and ``b`` (*batch, k, n); ``out`` and the pattern have the form of
        :class:`Blocks`. ``out`` may hold anything: all of it is written, with zeros past the edge of
        ``a`` and ``b``.
        """
        ...

    def dots(
        self,
        x: Array,
        w: Array,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
        bias: Array | None = None,
        activation: str | None = None,
        scale: Array | None = None,
        found: Found | None = None,
    ) -> None:
        """Write ``activation(x @ w.T + bias) * scale`` where it is live, and 0 elsewhere.

        Rows of ``w`` that no row of ``x`` needs are not read. Each value is the same whatever other rows and
        columns are computed with it.

        Parameters
        ----------
        x : ndarray
            Shape (rows, k), any strides.
        w : ndarray
            Shape (units, k), the last axis contiguous.
        out : ndarray
            Shape (rows, units), the last axis contiguous.
        live : ndarray of bool, optional
            Shape (rows, branches): which ``branch`` neighbouring units to compute. None: all.
        branch : int
            Units in a branch of ``live``.
        bias : ndarray, optional
            Shape (units,).
        activation : str, optional
            One of ``ACTIVATIONS``.
        scale : ndarray, optional
            Shape (rows, units), float32 (float64 if ``out`` is), the last axis contiguous.
        found : Found, optional
            Where to write the liveness of the result.
        """
        ...

    def combine(
        self,
        h: Array,
        w: Array,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
        bias: Array | None = None,
        add: bool = False,
    ) -> None:
        """Write ``h @ w + bias``, where only live branches of each row of ``h`` take part.

        Rows of ``w`` that no row of ``h`` needs are not read. Each row of the result is summed over its live
        units in ascending order, so it is the same whatever other rows are computed with it.

        Parameters
        ----------
        h : ndarray
            Shape (rows, units), the last axis contiguous.
        w : ndarray
            Shape (units, n), the last axis contiguous; or (panels, units, columns of a panel) in C order, the
            last panel padded.
        out : ndarray
            Shape (rows, n), the last axis contiguous.
        live : ndarray of bool, optional
            Shape (rows, branches). None: all.
        branch : int
            Units in a branch.
        bias : ndarray, optional
            Shape (n,).
        add : bool
            Go on from the sums that ``out`` holds, of the dtype that sums have, as if units before these had
            been summed first.
        """
        ...

    def feed_forward(
        self,
        x: Array,
        up: Array,
        gate: Array | None,
        down: Array,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
        b_up: Array | None = None,
        b_down: Array | None = None,
        activation: str | None = None,
    ) -> None:
        """Write ``h @ down + b_down``, with ``h = activation(x @ gate.T) * (x @ up.T + b_up)`` where live.

        The same, to the bit, as :meth:`dots` for the gate, for the units with that as ``scale``, and
        :meth:`combine`; without a gate the activation is the units' own.

        Parameters
        ----------
        x : ndarray
            Shape (rows, k), floats, any strides.
        up, gate : ndarray
            Shape (units, k), the last axis contiguous.
        down : ndarray
            Shape (units, n), or panels of its columns; as in :meth:`combine`.
        out : ndarray
            Shape (rows, n), the last axis contiguous.
        live : ndarray of bool, optional
            Shape (rows, branches). None: all.
        branch : int
            Units in a branch.
        b_up, b_down : ndarray, optional
            Shapes (units,) and (n,).
        activation : str, optional
            One of :data:`ACTIVATIONS`; None is the identity.
        """
        ...

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        out: Array,
        live: Array | None,
        scale: float,
        causal: bool,
        blocksize: int,
    ) -> None:
        """Write ``softmax(scale * q @ k.T) @ v`` over the keys that each query sees; 0 where it sees none.

        Blocks of keys that are not live are not read.

        Parameters
        ----------
        q : ndarray
            Shape (*batch, heads, n, d), any strides.
        k, v : ndarray
            Shapes (*batch, groups, m, d) and (*batch, groups, m, features), any strides. ``groups`` divides
            ``heads``: neighbouring heads share keys and values.
        out : ndarray
            Shape (*batch, heads, n, features), any strides that do not overlap.
        live : ndarray of bool, optional
            Shape (*batch, heads, ceil(n / blocksize), ceil(m / blocksize)): which blocks of queries see which
            blocks of keys. None: all see all.
        scale : float
            Factor of the scores, finite.
        causal : bool
            Query i sees keys j <= i + m - n only.
        blocksize : int
            Rows and columns of a block of ``live``.
        """
        ...

    def pooled_scores(self, q: Array, k: Array, out: Array, scale: float, blocksize: int) -> None:
        """Write ``scale`` times the means of blocks of queries times those of blocks of keys.

        Parameters
        ----------
        q, k : ndarray
            Shapes (*batch, heads, n, d) and (*batch, groups, m, d), as in :meth:`attention`.
        out : ndarray
            Shape (*batch, heads, ceil(n / blocksize), ceil(m / blocksize)), float32, or float64 if an operand
            is.
        scale : float
            Factor of the scores, finite.
        blocksize : int
            Rows in a block; the last one may have fewer.
        """
        ...

    def scan(
        self,
        u: Array,
        delta: Array,
        a: Array,
        b: Array,
        c: Array,
        d: Array | None,
        z: Array | None,
        bias: Array | None,
        softplus: bool,
        state: Array | None,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
    ) -> None:
        """Write ``(c . h + d * u) * silu(z)``, with ``h = exp(delta * a) * h + delta * b * u`` step by step.

        It computes in float64 if any operand is float64, else in float32 or better. Each channel's values are
        the same whatever else is computed with it, and its state does not depend on what is live.

        Parameters
        ----------
        u, delta, z : ndarray
            Shape (*batch, length, channels), any strides; without ``z`` there is no gate.
        a : ndarray
            Shape (channels, states).
        b, c : ndarray
            Shape (*batch, length, states).
        d, bias : ndarray, optional
            Shape (channels,); ``bias`` is added to ``delta``.
        softplus : bool
            Take ``log(1 + exp(delta + bias))`` in place of ``delta + bias``.
        state : ndarray, optional
            Shape (*batch, channels, states), any strides that do not overlap, float32 or float64 as computed
            in: the state before the first step, overwritten by that after the last. Without it, zeros.
        out : ndarray
            Shape (*batch, length, channels): written, 0 where dead.
        live : ndarray of bool, optional
            Shape (rows, branches) in C order, a row for each step of each member of the batch. Without a
            state, channels need not be computed past their last live step.
        branch : int
            Channels in a branch of ``live``.
        """
        ...

    def gates(self, z: Array, branch: int, norm: str, norms: Array) -> None:
        """Write the norms of ``silu(z)`` over branches of neighbouring channels.

        Parameters
        ----------
        z : ndarray
            Shape (*batch, length, channels), any strides.
        branch : int
            Channels in a branch; the last one may have fewer.
        norm : str
            "max" or "l2".
        norms : ndarray of float32
            Shape (rows, branches): written, a row for each step of each member of the batch; 0 only where the
            norm is 0.
        """
        ...


@runtime_checkable
class Streams(Protocol):
    """An engine with a memory of its own, to which it sends what is on disk by itself.

    Others are given what was read piece by piece, and sums between the pieces are in the host's memory.
    """

    def multiply_from_disk(
        self, w: Any, x: Array, out: Array, bias: Array | None, activation: str | None
    ) -> None:
        """Write ``activation(w @ x + bias[:, None])`` for a block-sparse ``w`` on disk.

        Parameters
        ----------
        w : prunus.paged.sparse_products.Operand
            Shape (*W, m, k).
        x : ndarray
            Shape (*batch, k, n), where ``batch`` is W broadcast with other dimensions.
        out : ndarray
            Shape (*batch, m, n), overlapping no operand.
        bias, activation
            As :meth:`Engine.dsd`.
        """
        ...

    def dense_from_disk(self, a: Any, x: Array, out: Array) -> None:
        """Write ``a @ x`` for a dense matrix on disk, or an expression over some.

        Parameters
        ----------
        a : PagedArray or PagedExpr
            Shape (m, k), of a dtype that products take.
        x, out : ndarray
            Shapes (k, n) and (m, n), any strides; ``out`` overlaps no operand.
        """
        ...
