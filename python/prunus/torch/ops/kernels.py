"""Who computes: the engine on host memory, or kernels of ``prunus.cuda`` where the tensors are on a GPU.

Tensors come without gradients here, and share their memory with the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from prunus import engines
from prunus._device import on_device
from prunus._dtypes import Array
from prunus.engines import Blocks
from prunus.interop.torch import as_array, as_tensor

if TYPE_CHECKING:
    from prunus.cuda.blocks import Operand

__all__ = ["Parts", "dsd", "operand", "sdd", "ssd", "ssd_at", "write_dsd", "write_sdd"]


class Parts(NamedTuple):
    """Component tensors of a block-sparse operand, with one batch dimension or none.

    ``data`` (n, br, bc), or (members, n, br, bc) where members share a pattern; ``indices`` (n,); ``indptr``
    (rows + 1,), or (members, rows + 1) with a pattern for each. ``rows`` and ``cols`` are a member's as it is
    stored; the operand is its transpose if ``transposed``.
    """

    data: torch.Tensor
    indices: torch.Tensor
    indptr: torch.Tensor
    rows: int
    cols: int
    transposed: bool

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a member after transposition."""
        return (self.cols, self.rows) if self.transposed else (self.rows, self.cols)

    @property
    def members(self) -> tuple[int, ...]:
        """The batch dimension, or none."""
        return tuple(self.indptr.shape[:-1]) or tuple(self.data.shape[:-3])

    def blocks(self) -> Blocks:
        """Return the operand as engines on the host see it; in the same memory where it is contiguous."""
        return Blocks(
            host(self.data.contiguous()),
            host(self.indices.contiguous()),
            host(self.indptr.contiguous()),
            (self.rows, self.cols),
            self.transposed,
        )


def host(tensor: torch.Tensor) -> Array:
    """Return a tensor in host memory as an ndarray that shares it; values under a lazy sign are made real."""
    return as_array(tensor.resolve_neg() if tensor.is_neg() else tensor)


def dsd(
    w: Parts, x: torch.Tensor, bias: torch.Tensor | None, flip: bool, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return ``w @ x``, or with ``flip`` ``x @ w.T``; see :func:`prunus.torch.ops.products.dsd`.

    ``dtype`` is the result's, the operands' unless told.
    """
    m, n = w.size[0], int(x.shape[-2 if flip else -1])
    out = x.new_empty((*w.members, n, m) if flip else (*w.members, m, n), dtype=dtype)
    write_dsd(w, x, bias, flip, out)
    return out


def write_dsd(w: Parts, x: torch.Tensor, bias: torch.Tensor | None, flip: bool, out: torch.Tensor) -> None:
    """Write what :func:`dsd` returns to a tensor of any strides."""
    view, columns = (out.transpose(-1, -2), x.transpose(-1, -2)) if flip else (out, x)
    if 0 in out.shape:
        return
    if on_device(x):
        from prunus.cuda.products import dsd as there
        from prunus.cuda.runtime import place_of

        there(place_of(x), operand(w), columns, view, bias=bias)
        return
    engine = engines.active()
    engine.dsd(w.blocks(), host(columns), host(view), None if bias is None else host(bias), None)


def sdd(
    a: torch.Tensor,
    b: torch.Tensor,
    indices: torch.Tensor,
    indptr: torch.Tensor,
    block: tuple[int, int],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the blocks of ``a @ b`` at a pattern; see :func:`prunus.torch.ops.products.sdd`.

    ``dtype`` is the result's, the operands' unless told.
    """
    shared = tuple(a.shape[:-2]) if indptr.ndim == 1 else ()
    out = a.new_empty((*shared, len(indices), *block), dtype=dtype)
    if not on_device(a) and int((indptr[..., -1] - indptr[..., 0]).sum()) != len(indices):
        out.zero_()  # blocks that offsets do not tell of are in no product
    write_sdd(a, b, indices, indptr, out)
    return out


def write_sdd(
    a: torch.Tensor, b: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, out: torch.Tensor
) -> None:
    """Write what :func:`sdd` returns to contiguous blocks."""
    if 0 in out.shape:
        return
    if on_device(a):
        from prunus.cuda.runtime import place_of
        from prunus.cuda.sdd import sdd as there

        there(place_of(a), a, b, indices.contiguous(), indptr.contiguous(), out)
        return
    engines.active().sdd(host(a), host(b), host(indices.contiguous()), host(indptr.contiguous()), host(out))


def ssd(a: Parts, b: Parts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return data, indices and indptr of a product of two block-sparse operands of two dimensions."""
    if on_device(a.data):
        from prunus.cuda.runtime import place_of
        from prunus.cuda.ssd import ssd as there

        made = there(place_of(a.data), operand(a), operand(b), a.data.dtype)
        count = int(made.indptr[-1])  # torch's tensors have the size that they say
        return (
            made.data[:count].clone(),
            made.indices[:count].to(a.indices.dtype, copy=True),
            made.indptr.to(a.indptr.dtype, copy=True),
        )
    data, indices, indptr = engines.active().ssd(a.blocks(), b.blocks(), host(a.data).dtype)
    return (
        as_tensor(data),
        as_tensor(indices).to(a.indices.dtype, copy=True),
        as_tensor(indptr).to(a.indptr.dtype, copy=True),
    )


def ssd_at(
    a: Parts, b: Parts, indices: torch.Tensor, indptr: torch.Tensor, block: tuple[int, int]
) -> torch.Tensor:
    """Return the blocks of ``a @ b`` at a pattern, 0 where no pair of blocks meets.

    Time and memory go with the pairs that meet in the pattern and with the operands, not with the product.
    """
    out = a.data.new_empty((len(indices), *block))
    if 0 in out.shape:
        return out
    if on_device(a.data):
        from prunus.cuda.runtime import place_of
        from prunus.cuda.ssd_at import ssd_at as there

        there(place_of(a.data), operand(a), operand(b), indices.contiguous(), indptr.contiguous(), out)
        return out
    if int(indptr[-1] - indptr[0]) != len(indices):
        out.zero_()  # blocks that offsets do not tell of are in no product
    left, right = a.blocks(), b.blocks()
    engines.active().ssd_at(left, right, host(indices.contiguous()), host(indptr.contiguous()), host(out))
    return out


def operand(w: Parts) -> Operand:
    """Return an operand as kernels on a GPU see it."""
    from prunus.cuda.blocks import Operand

    data, indices, indptr = (part.contiguous() for part in w[:3])
    return Operand(data, indices, indptr, (w.rows, w.cols), w.transposed)
