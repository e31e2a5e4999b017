"""``matmul`` and ``sddmm`` of tensors and block-sparse arrays on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus._errors import PrunusError
from prunus._layout import check_positions
from prunus._mask import BlockMask
from prunus._operands import is_on_disk
from prunus._storage import BlockStorage
from prunus._trace import Span
from prunus.cuda import dtypes, products
from prunus.cuda.arrays import BSR
from prunus.cuda.blocks import Operand, broadcast
from prunus.cuda.keeping import kept
from prunus.cuda.operands import as_tensor, check_place, where_of
from prunus.cuda.runtime import Place, empty
from prunus.cuda.tracing import blocks_in, traced
from prunus.cuda.versions import libraries
from prunus.engines.base import ACTIVATIONS

if TYPE_CHECKING:
    import torch

__all__ = [
    "Prepared",
    "check_out",
    "matmul",
    "matmul_where",
    "prepare",
    "sddmm",
    "shares",
    "torch_function",
]


def matmul(
    a: Any,
    b: Any,
    out: torch.Tensor | None = None,
    *,
    dtype: Any = None,
    bias: Any = None,
    activation: str | None = None,
    densify: bool = False,
) -> Any:
    """Return the matrix product of operands on a GPU; :func:`prunus.matmul` says what of what.

    Nothing waits for the GPU, but for a BSR times a BSR, whose number of blocks is read back (once, for all
    members of a batch).

    Parameters
    ----------
    a, b : Tensor or prunus.cuda.BSR
        Shapes (*A, m, k) or (k,), and (*B, k, n) or (k,), on one GPU.
    out : Tensor, optional
        Where to write: the result's shape and dtype, any strides. Of one that shares memory with an operand,
        the product is computed aside and copied.
    dtype : dtype, optional
        Of the result, torch's or NumPy's.
    bias : Tensor, optional
        One value for every output feature.
    activation : {"relu", "gelu", "silu"}, optional
        Applied as the result is stored.
    densify : bool
        Multiply ``W.toarray()`` instead.

    Returns
    -------
    Tensor or prunus.cuda.BSR

    Raises
    ------
    ValueError, TypeError
        As :func:`prunus.matmul`.
    PrunusError
        If operands live on different devices.
    """
    if activation is not None and activation not in ACTIVATIONS:
        known = ", ".join(repr(name) for name in sorted(ACTIVATIONS))
        raise ValueError(f"activation must be one of {known} or None, got {activation!r}")
    if is_on_disk(a) or is_on_disk(b):
        from prunus.cuda.layers.paged import matmul as with_disk  # it builds on this module

        return with_disk(a, b, out, dtype, bias, activation, densify)
    where = where_of(a, b)
    a, b = _operand(a, "a", where), _operand(b, "b", where)
    sparse_a, sparse_b = isinstance(a, BSR), isinstance(b, BSR)
    if not (sparse_a or a.ndim) or not (sparse_b or b.ndim):
        raise ValueError("matmul takes arrays of at least one dimension; use * for scalars")
    kind = dtypes.result(a.dtype, b.dtype, dtype)
    if sparse_a and sparse_b and not densify:
        if bias is not None or activation is not None:
            raise TypeError("bias and activation need a dense result; a BSR times a BSR is a BSR")
        if out is not None:
            raise TypeError("a BSR times a BSR is a new BSR: out= is not supported")
        return _sparse(where, a, b, kind)
    if (not sparse_a and not sparse_b) or densify:
        if bias is not None or activation is not None:
            raise TypeError("bias and activation need a BSR operand that is not densified")
        left, right = (one.toarray() if isinstance(one, BSR) else one for one in (a, b))
        return _dense(where, left, right, out, kind)
    if sparse_a:
        return _product(where, a, b, out, kind, bias, activation, flip=False)
    return _product(where, b.T, a, out, kind, bias, activation, flip=True)


def _operand(value: Any, name: str, where: Place) -> Any:
    """Return a BSR of this GPU, or a tensor there."""
    if isinstance(value, BSR):
        if value._place != where:
            raise PrunusError(
                f"{name} lives on {value._place}, the operation runs on {where}; move it with "
                f"{name}.to({str(where.device)!r})"
            )
        return value
    if isinstance(value, BlockStorage):
        raise PrunusError(
            f"{name} is a BSR in host memory, the operation runs on {where}; move it with {name}.to('cuda')"
        )
    return as_tensor(value, name, where, "a tensor on the GPU, or a BSR there")


def _dense(
    where: Place, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None, kind: Any
) -> torch.Tensor:
    """Multiply two dense tensors by torch, under this package's dtype rules."""
    torch = libraries().torch
    inner = dtypes.compute(a.dtype, b.dtype, kind)
    # No library multiplies int8 on all GPUs; float64 holds its sums exactly.
    inner = torch.float64 if inner == torch.int8 else inner
    inner = torch.float32 if inner in (torch.float16, torch.bfloat16) and kind == torch.float32 else inner
    result = torch.matmul(a.to(inner), b.to(inner)).to(kind)
    if out is None:
        return result
    check_out(out, tuple(result.shape), kind, where)
    return out.copy_(result)


def _product(
    where: Place,
    w: BSR,
    x: torch.Tensor,
    out: torch.Tensor | None,
    kind: Any,
    bias: Any,
    activation: str | None,
    *,
    flip: bool,
) -> torch.Tensor:
    """Return ``w @ x``, or with ``flip`` the product ``x @ w.T``, computed as ``(w @ x.T).T``."""
    call = prepare(where, w.shape, w._operand.data, x, out, kind, bias, activation, flip=flip)
    every = broadcast(w._operand, w.shape[:-2], call.batch)
    x, view = _members(call.x, call.view, call.batch)
    with traced("matmul", where) as at:
        products.dsd(where, every, x, view, bias=call.bias, activation=activation)
        if at:
            _count(at, w, math.prod(call.batch) * int(call.x.shape[-1]))
    return call.deliver()


def matmul_where(
    where: Place,
    x: torch.Tensor,
    w: BSR,
    wanted: products.Wanted,
    kind: Any,
    bias: torch.Tensor | None,
    activation: str | None,
) -> torch.Tensor:
    """Return ``activation(x @ w.T + bias)`` where it is wanted; elsewhere it may hold anything.

    Parameters
    ----------
    where : Place
        Where the operands live.
    x : Tensor
        Shape (rows, k).
    w : BSR
        Shape (units, k). Rows of blocks that no row of a tile wants are not read.
    wanted : Wanted
        Which branches of units each row wants.
    kind : torch.dtype
        Of the result.
    bias, activation
        As :func:`matmul`.
    """
    call = prepare(where, w.shape, w._operand.data, x, None, kind, bias, activation, flip=True)
    with traced("matmul", where) as at:
        walked = products.dsd(
            where, w._operand, call.x, call.view, bias=call.bias, activation=activation, wanted=wanted
        )
        if at and walked is not None:
            _count_walked(at, w, len(x), walked)
    return call.deliver()


class Prepared(NamedTuple):
    """A product that is about to run: checked operands, and where its result goes.

    Attributes
    ----------
    x, view : Tensor
        Shapes (*batch of x, k, n) and (*batch, m, n).
    bias : Tensor or None
        Shape (m,).
    batch : tuple of int
        Batch dimensions of the result.
    result : Tensor
        What ``view`` is a view of.
    out : Tensor or None
        Where the caller wants the result, if that is not ``result``.
    """

    x: torch.Tensor
    view: torch.Tensor
    bias: torch.Tensor | None
    batch: tuple[int, ...]
    result: torch.Tensor
    out: torch.Tensor | None

    def deliver(self) -> torch.Tensor:
        """Return the result where the caller wants it."""
        return self.result if self.out is None else self.out.copy_(self.result)


def prepare(
    where: Place,
    shape: tuple[int, ...],
    data: torch.Tensor | None,
    x: torch.Tensor,
    out: torch.Tensor | None,
    kind: Any,
    bias: Any,
    activation: str | None,
    *,
    flip: bool,
) -> Prepared:
    """Check a product ``w @ x``, or with ``flip`` ``x @ w.T``, and make room for its result.

    Parameters
    ----------
    where : Place
        Where it runs.
    shape : tuple of int
        Of w: (*W, m, k).
    data : Tensor, optional
        Memory of w on the device, which the result must not share.
    x : Tensor
        The dense operand, one dimension at least.
    out, kind, bias, activation
        As :func:`matmul`; ``kind`` is the result's dtype.

    Raises
    ------
    ValueError, TypeError, PrunusError
        As :func:`matmul`.
    """
    torch = libraries().torch
    vector = x.ndim == 1
    if vector:
        x = x[:, None]
    elif flip:
        x = x.transpose(-1, -2)
    m, k = shape[-2:]
    if x.shape[-2] != k:
        left, right = (x.shape[-2], k) if flip else (k, x.shape[-2])
        raise ValueError(f"matmul: the inner sizes differ, a has {left} columns and b has {right} rows")
    n = x.shape[-1]
    batch = _broadcast(shape[:-2], tuple(x.shape[:-2]))
    shape = (*batch, m) if vector else (*batch, n, m) if flip else (*batch, m, n)
    if bias is not None:
        bias = as_tensor(bias, "bias", where)
        if tuple(bias.shape) != (m,):
            raise ValueError(
                f"bias must have one value for each of {m} output features, got shape {tuple(bias.shape)}"
            )
        dtypes.numpy_of(bias.dtype, "bias")
        if kind == torch.int32 and bias.dtype not in (torch.int8, torch.int32):
            raise TypeError(
                f"bias has dtype {bias.dtype}, but the product is int32: pass an int8 or int32 bias, or "
                "dtype=torch.float32"
            )
    if kind == torch.int32 and activation not in (None, "relu"):
        raise TypeError(f"{activation} of an int8 product needs a float result: pass dtype=torch.float32")
    if out is not None:
        check_out(out, shape, kind, where)
    direct = out is not None and not shares(out, x, data, bias) and _is_written(out, len(batch))
    result = out if direct and out is not None else empty(shape, kind, where)
    view = result[..., None] if vector else result.transpose(-1, -2) if flip else result
    return Prepared(x, view, bias, batch, result, None if direct else out)


def _count(at: Span, w: BSR, columns: int) -> None:
    """Count a product of ``w`` with so many columns in all, when somebody asks how many blocks there are."""
    o, (m, k) = w._operand, w.shape[-2:]
    ends, own = blocks_in(o.indptr), o.own
    members = max(math.prod(w.shape[:-2]), 1)
    each, size, block = columns // members, o.data.element_size(), math.prod(o.stored)

    def numbers() -> dict[str, int]:
        read = int(ends.max()) * block * (1 if own else members) if ends.numel() else 0
        left = max(m * k * members - read, 0)
        return {
            "flops": 2 * read * each,
            "flops_skipped": 2 * left * each,
            "bytes_loaded": read * size,
            "bytes_skipped": left * size,
        }

    at.later(numbers)


def _count_walked(at: Span, w: BSR, columns: int, walked: products.Walked) -> None:
    """Count a product of which tiles of columns walked some lists only."""
    o, (m, k) = w._operand, w.shape[-2:]
    size, block = o.data.element_size(), math.prod(o.stored)

    def numbers() -> dict[str, int]:
        lengths = (walked.ends[..., 1] - walked.ends[..., 0]).cpu()
        tiles = len(lengths)
        widths = [min(walked.wide, columns - tile * walked.wide) for tile in range(tiles)]
        done = sum(int(each) * wide for each, wide in zip(lengths.sum(1), widths, strict=True)) * block
        read = int(lengths.amax(0).sum()) * block if tiles else 0
        return {
            "flops": 2 * done,
            "flops_skipped": 2 * max(m * k * columns - done, 0),
            "bytes_loaded": read * size,
            "bytes_skipped": max(m * k - read, 0) * size,
        }

    at.later(numbers)


def _members(x: torch.Tensor, out: torch.Tensor, batch: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an operand and a result with one dimension for the batch, or none; results are never copied."""
    if not batch:
        return x, out
    # What a result is flattened from was made here in one piece, or is the caller's: that must be a view.
    return products.flat(x.expand(*batch, *x.shape[-2:])), out.view(math.prod(batch), *out.shape[-2:])


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if not a or not b or a == b:
        return tuple(a or b)
    try:
        return tuple(libraries().torch.broadcast_shapes(a, b))
    except RuntimeError:
        raise ValueError(f"matmul: batch dimensions {tuple(a)} and {tuple(b)} do not broadcast") from None


def check_out(out: Any, shape: tuple[int, ...], kind: Any, where: Place) -> None:
    """Raise unless ``out`` is a tensor of a shape and dtype that can be written where the operation runs."""
    torch = libraries().torch
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out must be a tensor, got {type(out).__name__}")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out has shape {tuple(out.shape)}, the result has {tuple(shape)}")
    if out.dtype != kind:
        raise TypeError(f"out has dtype {out.dtype}, the result has {kind}; dtype= chooses another")
    if out.requires_grad:
        raise TypeError("out is a tensor that requires grad, and results have none; pass out.detach()")
    check_place(out, "out", where)
    if any(length > 1 and stride == 0 for length, stride in zip(out.shape, out.stride(), strict=True)):
        raise ValueError("out overlaps itself: several of its elements share memory")


def _is_written(out: torch.Tensor, batch: int) -> bool:
    """Say whether kernels can write a result in place: one stride for all members, and no negated values."""
    if out.is_neg():
        return False
    try:
        out.view(math.prod(out.shape[:batch]), *out.shape[batch:])
    except RuntimeError:
        return False
    return True


def shares(out: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Say whether a result shares an allocation with an operand."""
    own = out.untyped_storage().data_ptr()
    return own != 0 and any(one is not None and one.untyped_storage().data_ptr() == own for one in others)


def _sparse(where: Place, a: BSR, b: BSR, kind: Any) -> BSR:
    from prunus.cuda.ssd import ssd

    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matmul: the inner sizes differ, a has {a.shape[-1]} columns and b {b.shape[-2]} rows"
        )
    if a.blocksize[1] != b.blocksize[0]:
        raise ValueError(
            f"matmul: a's blocks are {a.blocksize[1]} wide and b's {b.blocksize[0]} high; they must be equal"
        )
    batch = _broadcast(a._batch, b._batch)
    check_positions(max(math.prod(batch), 1), a.grid[0], b.grid[1])
    with traced("matmul", where) as at:
        made = ssd(where, a._operand, b._operand, kind, batches=(a._batch, b._batch))
        if at:
            at.later(_read(a, b))
    shape = int(a.shape[-2]), int(b.shape[-1])
    return BSR._wrap(Operand(made.data, made.indices, made.indptr, shape), batch, where)


def _read(*operands: BSR) -> Callable[[], dict[str, int]]:
    """Return what counts the bytes of stored blocks, when somebody asks how many there are."""
    each = []
    for w in operands:
        o = w._operand
        members = math.prod(o.data.shape[:-3])
        each.append((blocks_in(o.indptr), members * math.prod(o.stored) * o.data.element_size()))

    def numbers() -> dict[str, int]:
        return {"bytes_loaded": sum(int(ends.max()) * size for ends, size in each if ends.numel())}

    return numbers


def sddmm(a: Any, b: Any, mask: Any, dtype: Any = None) -> BSR:
    """Return ``a @ b`` at a mask's blocks, on a GPU; see :func:`prunus.sddmm`.

    Parameters
    ----------
    a, b : Tensor
        Shapes (*batch, m, k) and (*batch, k, n), on one GPU.
    mask : BlockMask or prunus.cuda.BSR
        Shape (m, n), or (*batch, m, n) with a pattern for each member: which blocks. Of a BSR its pattern.
    dtype : dtype, optional
        Of the result.

    Returns
    -------
    prunus.cuda.BSR

    Raises
    ------
    ValueError, TypeError, PrunusError
        As :func:`matmul`.
    """
    from prunus.cuda.sdd import sdd

    where = where_of(a, b, mask)
    a, b = as_tensor(a, "a", where), as_tensor(b, "b", where)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"sddmm takes a (*batch, m, k) and b (*batch, k, n), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    kind = dtypes.result(a.dtype, b.dtype, dtype)
    m, n = int(a.shape[-2]), int(b.shape[-1])
    if not isinstance(mask, (BlockMask, BSR)):
        raise TypeError(f"mask must be a BlockMask or a BSR on the GPU, got {type(mask).__name__}")
    if tuple(mask.shape[-2:]) != (m, n):
        raise ValueError(f"sddmm: the product has shape {(m, n)}, the mask {tuple(mask.shape[-2:])}")
    batch = _broadcast(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    if isinstance(mask, BSR):
        o = mask._operand
        if o.transposed:
            raise ValueError("mask is a lazy transpose: its blocks are in another order; use W.T's product")
        indices, indptr, block = o.indices, o.indptr, o.stored
    else:
        if mask.ndim > 2:
            batch = _broadcast(batch, mask.shape[:-2])
        indices, indptr = _uploaded(mask, batch, where)
        block = mask.blocksize
    own = indptr.ndim > 1
    if own and tuple(indptr.shape[:-1]) != batch:
        # A pattern that serves several members would have to be repeated, block by block.
        raise ValueError(
            f"a BSR with a pattern for each member takes operands with its batch dimensions, "
            f"{tuple(indptr.shape[:-1])}; got {batch}"
        )
    a, b = (products.flat(one.expand(*batch, *one.shape[-2:])) if batch else one for one in (a, b))
    members = (math.prod(batch),) if batch and not own else ()
    out = empty((*members, len(indices), *block), kind, where)
    if own:
        indptr = indptr.reshape(-1, indptr.shape[-1])
    sdd(where, a, b, indices, indptr, out)
    return BSR._wrap(Operand(out, indices.clone(), indptr.clone(), (m, n)), batch, where)


def _uploaded(mask: BlockMask, batch: tuple[int, ...], where: Place) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and indptr of a mask, of all members of a batch where it has members of its own."""
    made: list[BlockMask] = []

    def every() -> BlockMask:
        if not made:
            repeats = mask.ndim > 2 and tuple(mask.shape[:-2]) != batch
            made.append(mask._broadcast(batch) if repeats else mask)
        return made[0]

    members = batch if mask.ndim > 2 else None
    indices = kept(mask, ("indices", members), where, lambda: every().indices)
    return indices, kept(mask, ("indptr", members), where, lambda: every().indptr)


def torch_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do what torch asks of a BSR among its operands; NotImplemented where it is no product."""
    torch = libraries().torch
    products_of = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm)
    if function in products_of and len(args) == 2:
        return matmul(*args, **kwargs)
    if function is torch.Tensor.__rmatmul__ and len(args) == 2:
        return matmul(args[1], args[0])
    if function is torch.nn.functional.linear:
        return _linear(*args, **kwargs)
    return NotImplemented


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """Return ``torch.nn.functional.linear`` of a block-sparse weight."""
    return matmul(input, weight.T, bias=bias) if isinstance(weight, BSR) else NotImplemented
