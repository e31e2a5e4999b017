"""Products: shapes and dtypes are checked here once, then an engine writes into memory chosen here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from prunus import _core, _elementwise, engines
from prunus import _layout as lay
from prunus._device import on_device
from prunus._dtypes import HALVES, I8, I32, Array, DType, check_operand, result_dtype
from prunus._mask import BlockMask
from prunus._operands import as_operand as _operand
from prunus._operands import is_on_disk
from prunus._storage import BlockStorage
from prunus._trace import Span, span
from prunus.engines.base import ACTIVATIONS

__all__ = ["matmul", "sddmm"]

S = TypeVar("S", bound=BlockStorage)


def _on_disk(value: Any) -> bool:
    """Say whether an operand is an array on disk, or an expression over some."""
    return type(value) is not np.ndarray and getattr(type(value), "on_disk", False)


@engines.timed
def matmul(
    a: Any,
    b: Any,
    out: Array | None = None,
    *,
    dtype: DTypeLike | None = None,
    bias: Array | None = None,
    activation: str | None = None,
    densify: bool = False,
) -> Any:
    """Return the matrix product of dense and block-sparse operands, in any mix.

    Shapes follow ``np.matmul``: one-dimensional operands are a row on the left and a column on the right,
    leading dimensions broadcast. Two BSRs give a BSR, anything else an ndarray. Dense operands are read with
    the strides they have. As everywhere in this package, they are what NumPy reads as an array, torch tensors
    in host memory (without a gradient) and other tensors that speak DLPack among them; none is copied where
    its memory can be shared.

    Parameters
    ----------
    a, b : array_like, BSR, or either on disk
        Shapes (*A, m, k) or (k,), and (*B, k, n) or (k,); float32, float64, float16, bfloat16 or int8.
    out : ndarray, optional
        Where to write: the result's shape and dtype, any strides, writeable. If it overlaps an operand, the
        product is computed aside and copied, as NumPy does.
    dtype : dtype-like, optional
        Result dtype; without it, see DESIGN "Types": equal floats keep their dtype, the wider one wins,
        the halves meet in float32, ``int8 @ int8`` is int32.
    bias : ndarray, optional
        Added before the activation, one value for every output feature, that is for every row of a BSR on
        the left, and for every column of a BSR on the right.
    activation : {"relu", "gelu", "silu"}, optional
        Applied to the result as it is stored; None is the identity.
    densify : bool, default False
        Multiply ``W.toarray()`` with NumPy instead, where a pattern is too dense to gain from.

    Returns
    -------
    ndarray or BSR
        Shape (*broadcast(A, B), m, n), without the axis of a one-dimensional operand.

    Raises
    ------
    ValueError
        If shapes do not match, ``out`` does not fit, or the blocks of two BSRs do not chain.
    TypeError
        If products do not take a dtype or a kind of operand; nothing is converted silently.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> W = pr.BSR(np.eye(4, dtype=np.float32), blocksize=2)
    >>> pr.matmul(np.ones((3, 4), np.float32), W).shape
    (3, 4)
    >>> pr.matmul(W, np.array([-1, 2, -3, 4], np.float32), activation="relu")
    array([0., 2., 0., 4.], dtype=float32)
    """
    if on_device(a, b):
        from prunus.cuda.layers.matmul import matmul as on_gpu  # torch is only imported where it is used

        return on_gpu(a, b, out, dtype=dtype, bias=bias, activation=activation, densify=densify)
    if activation is not None and activation not in ACTIVATIONS:
        known = ", ".join(repr(name) for name in sorted(ACTIVATIONS))
        raise ValueError(f"activation must be one of {known} or None, got {activation!r}")
    if is_on_disk(a) or is_on_disk(b) or is_on_disk(out):
        from prunus.paged.sparse_products import matmul as with_disk  # it builds on this module

        return with_disk(a, b, out, dtype=dtype, bias=bias, activation=activation, densify=densify)
    sparse_a, sparse_b = isinstance(a, BlockStorage), isinstance(b, BlockStorage)
    if sparse_a and sparse_b and not densify:
        if bias is not None or activation is not None:
            raise TypeError("bias and activation need a dense result; a BSR times a BSR is a BSR")
        if out is not None:
            raise TypeError("a BSR times a BSR is a new BSR: out= is not supported")
        return _sparse(a, b, dtype)
    if _on_disk(a) or _on_disk(b):
        if bias is not None or activation is not None or densify:
            raise TypeError("products with arrays on disk take no bias=, activation= and densify=")
        from prunus.paged import products

        return products.matmul(a, b, out, dtype)
    a = a if sparse_a else _operand(a, "a")
    b = b if sparse_b else _operand(b, "b")
    kind = result_dtype(a.dtype, b.dtype, dtype)
    if not (sparse_a or a.ndim) or not (sparse_b or b.ndim):
        raise ValueError("matmul takes arrays of at least one dimension; use * for scalars")
    if (not sparse_a and not sparse_b) or densify:
        if bias is not None or activation is not None:
            raise TypeError("bias and activation need a BSR operand that is not densified")
        return _dense(_undone(a), _undone(b), out, kind)
    if sparse_a:
        return _product(a, b, out, kind, bias, activation, flip=False)
    return _product(b.T, a, out, kind, bias, activation, flip=True)


def _undone(value: Any) -> Array:
    dense: Array = value.toarray() if hasattr(value, "toarray") else value
    return dense


def _dense(a: Array, b: Array, out: Array | None, kind: DType) -> Array:
    """Multiply two dense arrays under this package's dtype rules."""
    engine = engines.active()
    if engine.dense is not None:
        return _dense_on(engine.dense, a, b, out, kind)
    inner = np.dtype(np.float32) if kind in HALVES else kind
    if kind in HALVES or kind == I32 or a.dtype != inner or b.dtype != inner:
        a, b = a.astype(inner, copy=False), b.astype(inner, copy=False)
    result: Array = np.matmul(a, b).astype(kind, copy=False)
    if out is None:
        return result
    _check_out(out, np.shape(result), kind)
    out[...] = result
    return out


def _dense_on(multiply: Callable[..., None], a: Array, b: Array, out: Array | None, kind: DType) -> Array:
    """Multiply by an engine's own product of (*batch, m, k) and (*batch, k, n)."""
    left = a[None] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(f"matmul: the inner sizes differ, a is {a.shape} and b is {b.shape}")
    batch = _broadcast(left.shape[:-2], right.shape[:-2])
    result = np.empty((*batch, left.shape[-2], right.shape[-1]), kind)
    with span("matmul") as at:
        multiply(
            np.broadcast_to(left, (*batch, *left.shape[-2:])),
            np.broadcast_to(right, (*batch, *right.shape[-2:])),
            result,
        )
        if at:
            at.ran(engines.active().name)
    if a.ndim == 1:
        result = result[..., 0, :]
    if b.ndim == 1:
        result = result[..., 0]
    if out is None:
        return result
    _check_out(out, result.shape, kind)
    out[...] = result
    return out


# BSR with dense ------------------------------------------------------------------------------------------


def _product(
    w: BlockStorage,
    x: Array,
    out: Array | None,
    kind: DType,
    bias: Array | None,
    activation: str | None,
    *,
    flip: bool,
) -> Array:
    """Return ``w @ x``, or with ``flip`` the product ``x @ w.T``, computed as ``(w @ x.T).T``."""
    vector = x.ndim == 1
    if vector:
        x = x[:, None]
    elif flip:
        x = x.swapaxes(-1, -2)
    m, k = w._rows, w._cols
    if x.shape[-2] != k:
        left, right = (x.shape[-2], k) if flip else (k, x.shape[-2])
        raise ValueError(f"matmul: the inner sizes differ, a has {left} columns and b has {right} rows")
    n = x.shape[-1]
    batch = _broadcast(w._batch, x.shape[:-2])
    # The result as a caller sees it, and the same memory as (*batch, m, n).
    shape = (*batch, m) if vector else (*batch, n, m) if flip else (*batch, m, n)
    if bias is not None:
        bias = _bias(bias, m, kind)
    result = np.empty(shape, kind) if out is None else _target(out, shape, kind, w, x, bias)
    view = result[..., None] if vector else result.swapaxes(-1, -2) if flip else result
    if kind == I32 and activation not in (None, "relu"):
        raise TypeError(f"{activation} of an int8 product needs a float result: pass dtype=np.float32")
    if batch:
        x, view = _together(w, x, view, (*batch, k, n))
    with span("matmul") as at:
        engine = engines.active()
        engine.dsd(w._blocks(view.shape[:-2]), x, view, bias, activation)
        if at:
            at.ran(engine.name)
            count(at, w, math.prod(batch) * n)
    if out is not None and result is not out:
        out[...] = result
        return out
    return result


def count(at: Span, w: BlockStorage, columns: int) -> None:
    """Count a product of ``w`` with dense operands of ``columns`` columns in all."""
    data, each = w._data, columns
    stored, full = data.size, w._rows * w._cols
    read = stored
    if w._batch:
        members = max(math.prod(w._batch), 1)
        full *= members
        # One set of blocks may stand for all members.
        stored *= 1 if w._own else members // max(math.prod(data.shape[:-3]), 1)
        each //= members
    left = max(full - stored, 0)
    size = data.dtype.itemsize
    at.add(2 * stored * each, 2 * left * each, read * size, max(full - read, 0) * size)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Return the common batch dimensions of two operands; np.broadcast_shapes takes microseconds."""
    if not a or not b or a == b:
        return a or b
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise ValueError(f"matmul: batch dimensions {a} and {b} do not broadcast") from None


def _member(w: S, at: tuple[int, ...]) -> S:
    """Return the member of ``w`` that takes part at ``at`` of the broadcast batch."""
    inner = at[len(at) - len(w._batch) :]
    return w._member(tuple(0 if size == 1 else i for i, size in zip(inner, w._batch, strict=True)))


def _together(w: BlockStorage, x: Array, out: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return ``x`` broadcast to ``shape``, and ``out``; each as one wide matrix where strides allow it."""
    if not w._batch:
        wide_x, wide_out = _side_by_side(x), _side_by_side(out)
        if wide_x is not None and wide_out is not None:
            return wide_x, wide_out
    return np.broadcast_to(x, shape), out


def _side_by_side(x: Array) -> Array | None:
    """Return (*batch, k, n) as a view (k, batch * n), or None if its strides do not allow one."""
    n = x.ndim
    moved = x.transpose(n - 2, *range(n - 2), n - 1)
    size, step = 1, None
    for length, stride in zip(reversed(moved.shape[1:]), reversed(moved.strides[1:]), strict=True):
        if length == 1:
            continue
        if step is not None and stride != step * size:
            return None
        if step is None:
            step = stride
        size *= length
    return moved.reshape(x.shape[-2], math.prod(moved.shape[1:]))


def _bias(bias: Any, m: int, kind: DType) -> Array:
    vector = np.asarray(_operand(bias, "bias"))
    if vector.shape != (m,):
        raise ValueError(
            f"bias must have one value for each of {m} output features, got shape {vector.shape}"
        )
    if kind == I32:
        if vector.dtype not in (I8, I32):
            raise TypeError(
                f"bias has dtype {vector.dtype}, but the product is int32: pass an int8 or int32 bias, or "
                "dtype=np.float32"
            )
    else:
        check_operand(vector.dtype, "bias")
    return vector


def _check_out(out: Any, shape: tuple[int, ...], kind: DType) -> None:
    """Raise unless ``out`` can take a result of this shape and dtype."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an ndarray, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, the result has {shape}")
    if out.dtype != kind:
        raise TypeError(f"out has dtype {out.dtype}, the result has {kind}; dtype= chooses another")
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out is read-only")
    if not flags.forc and any(
        length > 1 and stride == 0 for length, stride in zip(out.shape, out.strides, strict=True)
    ):
        raise ValueError("out overlaps itself: several of its elements share memory")


def _target(
    out: Any, shape: tuple[int, ...], kind: DType, w: BlockStorage, x: Array, bias: Array | None
) -> Array:
    """Return ``out`` if the product can be written to it directly, else fresh memory to copy from."""
    _check_out(out, shape, kind)
    direct = type(out) is np.ndarray and _core.writes_apart(out, x, w._data, w._indices, w._indptr, bias)
    return out if direct else np.empty(shape, kind)


# BSR with BSR --------------------------------------------------------------------------------------------


def _sparse(a: S, b: BlockStorage, dtype: DTypeLike | None) -> S:
    """Return the product of two BSRs as a BSR."""
    kind = result_dtype(a.dtype, b.dtype, dtype)
    if a._cols != b._rows:
        raise ValueError(f"matmul: the inner sizes differ, a has {a._cols} columns and b has {b._rows} rows")
    (_, inner_a), (inner_b, _) = a.blocksize, b.blocksize
    if inner_a != inner_b:
        raise ValueError(
            f"matmul: a's blocks are {inner_a} wide and b's {inner_b} high; they must be equal, which "
            f"b.reblock(({inner_a}, {b.blocksize[1]})) achieves in a copy"
        )
    batch = _broadcast(a._batch, b._batch)
    engine = engines.active()
    stored = a._rows, b._cols
    size = a.blocksize[0], b.blocksize[1]
    rows, cols = lay.blocks_along(stored[0], size[0]), lay.blocks_along(stored[1], size[1])
    lay.check_positions(max(math.prod(batch), 1), rows, cols)

    def pair(at: tuple[int, ...]) -> S:
        left, right = _member(a, at), _member(b, at)
        with span("matmul") as running:
            parts = engine.ssd(left._blocks(), right._blocks(), kind)
            if running:
                running.ran(engine.name)
                running.count(bytes_loaded=left._data.nbytes + right._data.nbytes)
        return a._wrap(*_narrow(*parts), stored)

    if not batch:
        return pair(())
    members = [pair(at) for at in np.ndindex(*batch)]
    if members and not a._own and not b._own:
        first = members[0]  # shared patterns give a shared pattern
        data = np.stack([one._values() for one in members]).reshape(*batch, *first._data.shape)
        return a._wrap(data, first._indices, first._indptr, stored, batch)
    void = a._wrap(np.zeros((0, *size), kind), np.zeros(0, np.int32), np.zeros(rows + 1, np.int32), stored)
    return _elementwise.stack(members, batch, void)


def _narrow(data: Array, indices: Array, indptr: Array) -> tuple[Array, Array, Array]:
    """Return the pattern in int32 where it fits, as constructors do."""
    dtype = lay.index_dtype(max(int(indptr[-1]), int(indices.max(initial=0))))
    return data, indices.astype(dtype, copy=False), indptr.astype(dtype, copy=False)


# Dense with dense, at chosen blocks ----------------------------------------------------------------------


@engines.timed
def sddmm(a: Any, b: Any, mask: BlockMask | BlockStorage, *, dtype: DTypeLike | None = None) -> Any:
    """Return ``a @ b`` at the blocks of ``mask`` only, as a BSR.

    Parameters
    ----------
    a : array_like
        Shape (*A, m, k).
    b : array_like
        Shape (*B, k, n).
    mask : BlockMask or BSR
        Shape (m, n), one pattern for all members, or (*C, m, n) with a pattern for each; A, B and C
        broadcast. Of a BSR only the pattern counts.
    dtype : dtype-like, optional
        Result dtype; see :func:`matmul`.

    Returns
    -------
    BSR
        Shape (*broadcast(A, B, C), m, n) in ``mask``'s blocks.

    Raises
    ------
    ValueError
        If the shapes do not match.
    TypeError
        If products do not take the operands' dtypes, or ``mask`` is no mask.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> scores = pr.sddmm(np.ones((4, 3)), np.ones((3, 4)), pr.BlockMask.causal(4, blocksize=2))
    >>> scores.nnzb, float(scores.sum())
    (3, 36.0)
    """
    if on_device(a, b):
        from prunus.cuda.layers.matmul import sddmm as on_gpu

        return on_gpu(a, b, mask, dtype=dtype)
    from prunus._bsr import BSR

    if isinstance(mask, BlockStorage):
        mask = mask.mask
    if not isinstance(mask, BlockMask):
        raise TypeError(
            f"mask must be a BlockMask or a BSR, got {type(mask).__name__}; BlockMask(grid, blocksize)"
        )
    a, b = _operand(a, "a"), _operand(b, "b")
    if isinstance(a, BlockStorage) or isinstance(b, BlockStorage):
        raise TypeError("sddmm multiplies dense arrays; (a @ b) of BSRs is a BSR already")
    kind = result_dtype(a.dtype, b.dtype, dtype)
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"sddmm takes arrays of at least two dimensions, got {a.shape} and {b.shape}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"sddmm: the inner sizes differ, a has {a.shape[-1]} columns and b has {b.shape[-2]} rows"
        )
    m, n = a.shape[-2], b.shape[-1]
    if mask.shape[-2:] != (m, n):
        raise ValueError(f"sddmm: the product has shape {(m, n)}, the mask {mask.shape[-2:]}")
    own = mask.shape[:-2]
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2], own)
    except ValueError:
        raise ValueError(
            f"sddmm: batch dimensions {a.shape[:-2]}, {b.shape[:-2]} and {own} do not broadcast"
        ) from None
    if own and own != batch:
        mask = mask._broadcast(batch)
        own = batch
    indices, indptr = mask.indices, mask.indptr
    br, bc = mask.blocksize
    lead = () if own else batch
    data = np.empty((*lead, len(indices), br, bc), kind)
    every_a = np.broadcast_to(a, (*batch, *a.shape[-2:]))
    every_b = np.broadcast_to(b, (*batch, *b.shape[-2:]))
    with span("sddmm") as at:
        engine = engines.active()
        engine.sdd(every_a, every_b, indices, indptr, data)
        if at:
            at.ran(engine.name)
            full = m * n * max(math.prod(batch), 1)
            at.count(
                flops=2 * a.shape[-1] * data.size, flops_skipped=2 * a.shape[-1] * max(full - data.size, 0)
            )
    return BSR._wrap(data, indices.copy(), indptr.copy(), (m, n), batch)
