"""Products with an operand on disk: checked here, read in the file's order, multiplied by the active engine.

A block-sparse array on disk is read once whatever the number of columns: the loop over blocks is outermost.
Block rows are summed as in memory, those of more than ``blocks.GROUP`` bytes in parts of that size; so is a
product with the transpose of what is stored, to all of whose rows every part adds. Sums go on from part to
part in ascending order, so that with more than four columns a result is to the bit that of memory, wherever
it was cut; with fewer, the sums of a part are added as they are. A dense operand that kernels would copy into
a layout of their own for each part is copied once (``Engine.hold``), in memory of its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from prunus import _core, engines, ops
from prunus._dtypes import F32, F64, HALVES, I32, Array, DType, check_operand, result_dtype
from prunus._operands import as_operand
from prunus._storage import BlockStorage
from prunus._trace import span
from prunus.engines.base import ACTIVATIONS, Blocks, Streams
from prunus.paged import products
from prunus.paged.array import PagedArray
from prunus.paged.blocks import BlockFile, Piece
from prunus.paged.expr import PagedExpr
from prunus.paged.multiplying import Multiplying, PagedTranspose
from prunus.paged.reading import reading
from prunus.paged.sparse import PagedBSR

__all__ = ["Operand", "count", "finish", "is_paged", "matmul", "multiply"]

# Columns up to which the engine reads blocks faster than they could be put together.
_FEW: Final = 4
# Bytes of columns of a dense operand and a result on disk that are in memory at a time.
_COLUMNS: Final = 32 << 20
# Bytes of a dense operand that are kept ready for all pieces, and columns that go together.
_HELD: Final = 24 << 20
_STRIP: Final = 64


def is_paged(value: Any) -> bool:
    """Say whether a value is an array on disk, dense or block-sparse, or an expression over some."""
    return isinstance(value, (PagedArray, PagedExpr, Multiplying))


def matmul(
    a: Any,
    b: Any,
    out: Any = None,
    *,
    dtype: DTypeLike | None = None,
    bias: Array | None = None,
    activation: str | None = None,
    densify: bool = False,
) -> Any:
    """Return ``a @ b`` where an operand is on disk; what :func:`prunus.matmul` calls for it.

    Raises
    ------
    ValueError
        If shapes do not match or ``out`` does not fit.
    TypeError
        For kinds of operands or dtypes that do not go together.
    PrunusError
        If the pager's budget is too small.
    OSError
        If a file cannot be read, or was changed or closed.
    """
    if densify:
        raise TypeError("densify=True would load an array on disk; call .load() and multiply that")
    sparse_a, sparse_b = _is_sparse(a), _is_sparse(b)
    if sparse_a and sparse_b:
        raise TypeError(
            "the product of two block-sparse arrays needs both in memory; call .load() on the one on disk"
        )
    if not sparse_a and not sparse_b:
        if bias is not None or activation is not None:
            raise TypeError("bias and activation need a BSR operand")
        if is_paged(a) or is_paged(b):
            return products.matmul(a, b, out, dtype)
        out[...] = ops.matmul(a, b, dtype=dtype)
        return out
    w, x = (a, b) if sparse_a else (b, a)
    if not is_paged(x):
        x = as_operand(x, "b" if sparse_a else "a")
    flip = not sparse_a
    kind = result_dtype(x.dtype, w.dtype, dtype) if flip else result_dtype(w.dtype, x.dtype, dtype)
    if not x.shape:
        raise ValueError("matmul takes arrays of at least one dimension; use * for scalars")
    if isinstance(w, BlockStorage):
        from prunus.paged.rows import sparse_with_rows  # it builds on this module

        return sparse_with_rows(w, x, out, kind, bias, activation, flip=flip)
    operand = Operand.of(w)
    call = _Call(operand, kind, bias, activation, flip)
    if is_paged(x) or is_paged(out):
        return call.by_columns(x, out)
    return call.run(x, out)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, (BlockStorage, Multiplying))


@dataclass(frozen=True, slots=True)
class Operand:
    """A block-sparse array on disk, transposed or not, as products see it: what they ask of a BSR."""

    w: PagedBSR
    _t: bool
    _batch: tuple[int, ...]
    _rows: int
    _cols: int

    @classmethod
    def of(cls, w: Any) -> Operand:
        """Return the operand for an array, or a transpose."""
        check_operand(w.dtype, "the array on disk")
        turned = isinstance(w, PagedTranspose)
        return cls(w.T if turned else w, turned, w.shape[:-2], *w.shape[-2:])

    @property
    def T(self) -> Operand:  # noqa: N802
        """The transpose of the last two axes."""
        return replace(self, _t=not self._t, _rows=self._cols, _cols=self._rows)

    def member(self, at: tuple[int, ...]) -> BlockFile:
        """Return one two-dimensional member."""
        w = self.w
        values = w.values
        size = w.blocksize
        each = math.prod(size) * values.itemsize
        at = tuple(0 if n == 1 else i for i, n in zip(at, self._batch, strict=True))
        first, indices, indptr = 0, w.indices, w.indptr
        if indptr.ndim > 1:
            indptr = indptr[at]
            first = int(indptr[0])
            indices, indptr = indices[first : int(indptr[-1])], indptr - indptr[0]
        elif at:
            first = int(np.ravel_multi_index(at, self._batch)) * len(indices)
        return BlockFile(
            values._store,
            values._start + first * each,
            values.dtype,
            size,
            indices,
            indptr,
            (w.shape[-2], w.shape[-1]),
            self._t,
        )


class _Call(NamedTuple):
    """A product ``w @ x``, or with ``flip`` ``x @ w``, that is about to run."""

    w: Operand
    kind: DType
    bias: Array | None
    activation: str | None
    flip: bool

    def run(self, x: Array, out: Array | None) -> Array:
        """Return the product with a dense operand in memory."""
        w, kind, flip, activation = self._turned(), self.kind, self.flip, self.activation
        if activation is not None and activation not in ACTIVATIONS:
            known = ", ".join(repr(name) for name in sorted(ACTIVATIONS))
            raise ValueError(f"activation must be one of {known} or None, got {activation!r}")
        vector = x.ndim == 1
        if vector:
            x = x[:, None]
        elif flip:
            x = x.swapaxes(-1, -2)
        m, k, n = w._rows, w._cols, x.shape[-1]
        if x.shape[-2] != k:
            left, right = (x.shape[-2], k) if flip else (k, x.shape[-2])
            raise ValueError(f"matmul: the inner sizes differ, a has {left} columns and b has {right} rows")
        batch = ops._broadcast(w._batch, x.shape[:-2])
        shape = (*batch, m) if vector else (*batch, n, m) if flip else (*batch, m, n)
        bias = None if self.bias is None else ops._bias(self.bias, m, kind)
        if kind == I32 and activation not in (None, "relu"):
            raise TypeError(f"{activation} of an int8 product needs a float result: pass dtype=np.float32")
        result = np.empty(shape, kind)
        if out is not None:
            ops._check_out(out, shape, kind)
            if type(out) is np.ndarray and _core.writes_apart(out, x, x, w.w.indices, w.w.indptr, bias):
                result = out
        view = result[..., None] if vector else result.swapaxes(-1, -2) if flip else result
        if batch:
            x, view = ops._together(w, x, view, (*batch, k, n))  # type: ignore[arg-type]
        with span("matmul") as at:
            store = w.w.values._store
            with reading(at, [store], w.w.values.nbytes):
                multiply(w, x, view, bias, activation)
                if at:
                    at.ran(engines.active().name)
            if at:
                count(at, w, math.prod(batch) * n)
        if out is not None and result is not out:
            out[...] = result
            return out
        return result

    def _turned(self) -> Operand:
        """Return the operand that stands on the left; with ``flip`` w.T, as (x @ w) is (w.T @ x.T).T."""
        return self.w.T if self.flip else self.w

    def by_columns(self, x: Any, out: Any) -> Any:
        """Return the product with a dense operand or a result on disk, some columns at a time.

        Each takes one pass over the blocks. With ``flip``, columns are rows of ``x`` and of the result.
        """
        if out is not None and not is_paged(out):
            ops._check_out(out, self._shape(x), self.kind)
        if isinstance(out, PagedExpr):
            raise TypeError("out must be an ndarray or an array on disk, got an expression")
        shape = self._shape(x)
        if out is None:
            out = np.empty(shape, self.kind)
        elif out.shape != shape:
            raise ValueError(f"out has shape {out.shape}, the result has {shape}")
        elif out.dtype != self.kind:
            raise TypeError(f"out has dtype {out.dtype}, the result has {self.kind}; dtype= chooses another")
        if len(x.shape) == 1 or self.w._batch or len(x.shape) > 2:
            out[...] = self.run(x.load() if is_paged(x) else x, None)
            return out
        columns = x.shape[0] if self.flip else x.shape[1]
        each = x.dtype.itemsize * sum(x.shape) // max(columns, 1)
        each = self.w._rows * self.kind.itemsize + self.w._cols * x.dtype.itemsize + each
        step = max(_COLUMNS // max(each, 1), 1)
        for first in range(0, columns, step):
            stop = min(first + step, columns)
            part = slice(first, stop) if self.flip else (slice(None), slice(first, stop))
            out[part] = self.run(x[part], None)
        return out

    def _shape(self, x: Any) -> tuple[int, ...]:
        """Return the result's shape; raises if the inner sizes differ."""
        m, k = (self.w._cols, self.w._rows) if self.flip else (self.w._rows, self.w._cols)
        inner = x.shape[-1] if self.flip or len(x.shape) == 1 else x.shape[-2]
        if inner != k:
            left, right = (inner, k) if self.flip else (k, inner)
            raise ValueError(f"matmul: the inner sizes differ, a has {left} columns and b has {right} rows")
        if len(x.shape) == 1:
            return (*self.w._batch, m)
        batch = ops._broadcast(self.w._batch, tuple(x.shape[:-2]))
        return (*batch, x.shape[-2], m) if self.flip else (*batch, m, x.shape[-1])


def multiply(w: Operand, x: Array, out: Array, bias: Array | None, activation: str | None) -> None:
    """Write ``activation(w @ x + bias[:, None])`` to ``out``; operands are checked.

    Parameters
    ----------
    w : Operand
        Shape (*W, m, k).
    x : ndarray
        Shape (*batch, k, n), where ``batch`` is W broadcast with other dimensions.
    out : ndarray
        Shape (*batch, m, n), overlapping no operand.
    bias : ndarray, optional
        Shape (m,).
    activation : str, optional
        One of the engines' activations.
    """
    engine = engines.active()
    if isinstance(engine, Streams):
        engine.multiply_from_disk(w, x, out, bias, activation)
        return
    for at in np.ndindex(*w._batch):
        # Of the broadcast dimensions, those that W has pick a member; the rest go with it.
        own = tuple(slice(None) if n == 1 else i for i, n in zip(at, w._batch, strict=True))
        index = (..., *own, slice(None), slice(None)) if own else ...
        run = _Member(w.member(at), x[index], out[index], bias, activation)
        if w._t:
            run.transposed()
        else:
            run.rows()


class _Member(NamedTuple):
    """The product of one matrix on disk with its dense operand."""

    w: BlockFile
    x: Array
    out: Array
    bias: Array | None
    activation: str | None

    @property
    def _sums(self) -> DType:
        kind = self.out.dtype
        return kind if kind in (F64, I32) else F32

    def rows(self) -> None:
        """Compute each block row where all of its blocks are there, in parts where they are too many."""
        w = self.w
        parts = self._columns()
        few = math.prod(self.x.shape[:-2]) * self.x.shape[-1] <= _FEW
        sums: Array | None = None
        for piece in w.pieces(few or all(held is not None for _, held in parts)):
            rows = w.rows(piece)
            bias = None if self.bias is None else self.bias[rows]
            out = self.out[..., rows, :]
            if piece.whole:
                self._add(parts, piece, out, bias, self.activation)
                continue
            if sums is None:
                sums = np.empty(out.shape, self._sums)
                self._add(parts, piece, sums)
            else:
                self._add(parts, piece, sums, add=True)
            if piece.first + len(piece.data) == w.indptr[piece.rows.stop]:
                finish(sums, out, bias, self.activation)
                sums = None

    def _columns(self) -> list[tuple[slice, Any]]:
        """Return columns of the dense operand, and what the engine made of them; None: as they are.

        It is made ready once, not for each piece, but for what would take memory without bound.
        """
        x, w = self.x, self.w
        if x.ndim != 2:
            return [(slice(None), None)]
        count = x.shape[1]
        room = _HELD // max(x.shape[0] * max(x.itemsize, 4), 1) // _STRIP * _STRIP
        first = count if room >= count else room
        if 0 < count - first <= _FEW:  # so few are summed in another order
            first = max(first - _STRIP, 0)
        made: list[tuple[slice, Any]] = []
        if first > 0 or not count:
            ready = x[:, :first]
            held = engines.active().hold(ready, w.dtype, self.out.dtype, w.blocksize)
            made.append((slice(0, first), held))
        if first < count:
            made.append((slice(first, count), None))
        return made

    def _add(
        self,
        parts: list[tuple[slice, Any]],
        piece: Piece,
        out: Array,
        bias: Array | None = None,
        activation: str | None = None,
        add: bool = False,
    ) -> None:
        """Write or add a piece's product to its rows of the result."""
        blocks, engine = self.w.part(piece), engines.active()
        for part, held in parts:
            engine.dsd(blocks, self.x[..., part], out[..., part], bias, activation, held, add=add)

    def transposed(self) -> None:
        """Add what each piece contributes to all rows of the result."""
        direct = self.bias is None and self.activation is None and self.out.dtype == self._sums
        sums = self.out if direct else np.empty(self.out.shape, self._sums)
        few = math.prod(self.x.shape[:-2]) * self.x.shape[-1] <= _FEW
        for number, piece in enumerate(self.w.pieces(few)):
            x = self.x[..., self.w.rows(piece), :]
            engines.active().dsd(self.w.part(piece), x, sums, None, None, add=number > 0)
        if not direct:
            finish(sums, self.out, self.bias, self.activation)


def finish(sums: Array, out: Array, bias: Array | None, activation: str | None) -> None:
    """Write ``activation(sums + bias[:, None])`` to ``out``, in the engine's own arithmetic.

    ``sums`` is (*batch, m, n) of the dtype that sums have, ``out`` of the same shape.
    """
    if bias is None and activation is None and out.dtype not in HALVES:
        out[...] = sums
        return
    if out.dtype == I32:
        value = sums if bias is None else sums + bias.astype(I32)[:, None]
        out[...] = value if activation is None else np.maximum(value, 0)
        return
    # The identity in blocks of one value: activations and roundings are the engine's.
    m = sums.shape[-2]
    at = np.arange(m + 1, dtype=np.int64)
    one = Blocks(np.ones((m, 1, 1), sums.dtype), np.arange(m), at, (m, m), False)
    engines.active().dsd(one, sums, out, bias, activation)


def count(at: Any, w: Operand, columns: int) -> None:
    """Count a product with so many columns, over all members of the batch."""
    stored, full = int(w.w.values.size), w._rows * w._cols * max(math.prod(w._batch), 1)
    size = w.w.dtype.itemsize
    each = columns // max(math.prod(w._batch), 1)
    left = max(full - stored, 0)
    at.add(2 * stored * each, 2 * left * each, 0, left * size)
