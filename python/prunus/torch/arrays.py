"""``prunus.torch.BSR``: a block-sparse operand of component tensors, which gradients flow through."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from prunus import _bsr
from prunus import _layout as lay
from prunus._construct import as_fraction, count_of
from prunus._mask import BlockMask
from prunus.interop.torch import as_array, as_tensor
from prunus.torch import blocks

if TYPE_CHECKING:
    from prunus import cuda

__all__ = ["BSR"]


class BSR:
    """A block-sparse operand: dense blocks, and where they lie; on the CPU or on a CUDA GPU.

    Names are those of :class:`prunus.BSR`. ``data`` is an ordinary tensor that may require grad or be what an
    operation computed; ``indices`` and ``indptr`` are data as well, never part of what is compiled. Blocks
    need not divide the shape: what hangs over is never seen, and its gradient is 0. Nothing is copied:
    writing through ``data`` is seen by the next product, and by torch's checks of tensors saved for backward.

    Parameters
    ----------
    arg : tuple of Tensor
        ``(data, indices, indptr)``: data (*batch, n, br, bc), indices (n,), indptr (rows + 1,). With a
        pattern for each member of a batch data is (n, br, bc) and indptr (*batch, rows + 1), whose offsets
        count through all members' blocks. Products take indices in any order; what patterns learn wants them
        ascending within a row, each once.
    shape : tuple of int
        Shape with batch dimensions.

    Raises
    ------
    ValueError
        If lengths, shapes and devices do not fit each other. What indices hold is only looked at by
        :meth:`check_format`, and by products on the CPU.
    TypeError
        For values that are no floats, or indices that are no integers.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> data = torch.ones(2, 2, 2, requires_grad=True)
    >>> W = pt.BSR((data, torch.tensor([0, 1]), torch.tensor([0, 1, 2])), shape=(4, 4))
    >>> y = W @ torch.arange(4.0)
    >>> y
    tensor([1., 1., 5., 5.], grad_fn=<...>)
    >>> y.sum().backward()
    >>> data.grad[1]
    tensor([[2., 3.],
            [2., 3.]])
    """

    __slots__ = ("_stored", "_t", "data", "indices", "indptr")
    # NumPy's arrays leave operators to this class.
    __array_ufunc__: ClassVar[None] = None

    data: torch.Tensor
    indices: torch.Tensor
    indptr: torch.Tensor
    _stored: tuple[int, ...]
    _t: bool

    def __init__(self, arg: tuple[torch.Tensor, torch.Tensor, torch.Tensor], shape: tuple[int, ...]) -> None:
        if not (isinstance(arg, tuple) and len(arg) == 3 and all(isinstance(x, torch.Tensor) for x in arg)):
            raise TypeError(
                "expected (data, indices, indptr) of tensors; BSR.from_dense(tensor, blocksize) cuts a dense "
                f"one, BSR.from_array takes a prunus.BSR. Got {type(arg).__name__}"
            )
        shape = lay.as_shape(shape)
        blocks.check_pattern(*arg, shape)
        self._fill(*arg, shape)

    def _fill(
        self,
        data: torch.Tensor,
        indices: torch.Tensor,
        indptr: torch.Tensor,
        stored: tuple[int, ...],
        transposed: bool = False,
    ) -> None:
        self.data, self.indices, self.indptr = data, indices, indptr
        self._stored, self._t = stored, transposed

    @classmethod
    def _wrap(
        cls,
        data: torch.Tensor,
        indices: torch.Tensor,
        indptr: torch.Tensor,
        stored: tuple[int, ...],
        transposed: bool = False,
    ) -> Self:
        """Return an operand of consistent parts, checking nothing."""
        self = object.__new__(cls)
        self._fill(data, indices, indptr, stored, transposed)
        return self

    def _with(self, data: torch.Tensor) -> Self:
        return self._wrap(data, self.indices, self.indptr, self._stored, self._t)

    # Making ------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        w: torch.Tensor,
        blocksize: int | tuple[int, int],
        density: float | None = None,
        mask: BlockMask | None = None,
    ) -> Self:
        """Cut a dense matrix into blocks and keep those that matter; gradients flow back into it.

        Parameters
        ----------
        w : Tensor
            Shape (m, n), floats.
        blocksize : int or tuple of int
            Rows and columns of a block.
        density : float, optional
            Keeps ``ceil(density * blocks)`` blocks of the largest Frobenius norm, ties by lowest index. None
            keeps every block that has a non-zero.
        mask : BlockMask, optional
            Which blocks to keep, in place of ``density``.

        Raises
        ------
        ValueError
            If ``w`` has not two dimensions, ``density`` is not in [0, 1], or ``mask`` does not fit.
        """
        if not isinstance(w, torch.Tensor):
            raise TypeError(f"w must be a tensor, got {type(w).__name__}")
        if w.layout != torch.strided:
            raise TypeError(f"w must be a dense tensor, got layout {w.layout}")
        blocks.check_floats(w.dtype, "w")
        if w.ndim != 2:
            raise ValueError(f"w must have two dimensions, got shape {tuple(w.shape)}")
        block = lay.as_blocksize(blocksize)
        if mask is not None:
            if density is not None:
                raise ValueError("density and mask are two ways to say which blocks: pass one")
            if not isinstance(mask, BlockMask):
                raise TypeError(f"mask must be a BlockMask, got {type(mask).__name__}")
            if mask.shape != tuple(w.shape) or mask.blocksize != block:
                raise ValueError(
                    f"mask has shape {mask.shape} in blocks of {mask.blocksize}, w has {tuple(w.shape)} and "
                    f"blocksize is {block}"
                )
            indices, indptr = blocks.from_mask(mask, w.device)
            return cls._wrap(blocks.gather(w, indices, indptr, block), indices, indptr, mask.shape)
        down, across = (lay.blocks_along(length, size) for length, size in zip(w.shape, block, strict=True))
        everything = torch.ones(down, across, dtype=torch.bool, device=w.device)
        indices, indptr = blocks.pattern_of(everything)
        with torch.no_grad():
            every = blocks.gather(w, indices, indptr, block)
            if density is None:
                keep = (every != 0).flatten(1).any(1)
            else:
                # In double precision, so that ties are those of the values.
                norms = every.double().square().sum((-1, -2))
                count = count_of(as_fraction(density, "density"), len(norms))
                order = torch.sort(norms.nan_to_num(torch.inf), descending=True, stable=True).indices
                keep = torch.zeros_like(norms, dtype=torch.bool).index_fill(0, order[:count], True)
        indices, indptr = blocks.pattern_of(keep.reshape(down, across))
        return cls._wrap(blocks.gather(w, indices, indptr, block), indices, indptr, tuple(w.shape))

    @classmethod
    def zeros(
        cls, mask: BlockMask, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """Return an operand of zeros at a mask's blocks, of its shape."""
        if not isinstance(mask, BlockMask):
            raise TypeError(f"mask must be a BlockMask, got {type(mask).__name__}")
        if dtype is not None:
            blocks.check_floats(dtype, "the operand")
        own = mask.indptr.ndim > 1
        lead = () if own else mask.shape[:-2]
        data = torch.zeros(*lead, len(mask.indices), *mask.blocksize, dtype=dtype, device=device)
        return cls._wrap(data, *blocks.from_mask(mask, device), tuple(mask.shape))

    @classmethod
    def from_array(cls, array: _bsr.BSR | cuda.BSR) -> Self:
        """Return a :class:`prunus.BSR`, or a :class:`prunus.cuda.BSR`, as an operand in the same memory.

        Raises
        ------
        TypeError
            If it holds no floats.
        ValueError
            If it is frozen, or read-only: ``.copy()`` gives one that is neither.
        """
        if not isinstance(array, _bsr.BSR) and getattr(type(array), "on_cuda", False):
            operand = array._operand
            batch, shared = array.shape[:-2], operand.data.ndim > 3
            ends = operand.indptr.reshape(-1)
            count = int(ends[-1]) if ends.numel() else 0  # what there is beyond is only room
            data = operand.data[..., :count, :, :]
            data = data.reshape(*batch, *data.shape[-3:]) if shared else data
            indptr = operand.indptr.reshape(*batch, -1) if operand.own else operand.indptr
            stored = (*batch, *operand.shape)
            blocks.check_pattern(data, operand.indices[:count], indptr, stored)
            return cls._wrap(data, operand.indices[:count], indptr, stored, operand.transposed)
        if not isinstance(array, _bsr.BSR):
            raise TypeError(f"expected a prunus.BSR, got {type(array).__name__}")
        if array.frozen:
            raise ValueError("the array is frozen, its values cannot be shared; pass W.copy()")
        data, indices, indptr = (as_tensor(part) for part in (array._values(), array._indices, array._indptr))
        stored = (*array._batch, *array._stored)
        blocks.check_pattern(data, indices, indptr, stored)
        return cls._wrap(data, indices, indptr, stored, array._t)

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> Self:
        """Return a tensor of layout ``torch.sparse_bsr`` as an operand of the same memory, without gradients.

        Raises
        ------
        TypeError, ValueError
            If it is none, or has more than two dimensions.
        """
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.sparse_bsr:
            got = tensor.layout if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"expected a tensor of layout torch.sparse_bsr, got {got}; see to_sparse_bsr()")
        if tensor.ndim != 2 or tensor.dense_dim():
            raise ValueError(f"expected two dimensions, all of blocks, got shape {tuple(tensor.shape)}")
        parts = (one.detach() for one in (tensor.values(), tensor.col_indices(), tensor.crow_indices()))
        return cls(tuple(parts), tuple(tensor.shape))

    def to_torch(self) -> torch.Tensor:
        """Return it as a tensor of layout ``torch.sparse_bsr`` of the same memory, without gradients.

        Raises
        ------
        ValueError
            If it is a transpose or has batch dimensions, blocks do not divide the shape, or columns do not
            ascend within each row of blocks, each once: torch trusts in that, and in offsets. They are read.
        """
        if self._t or self.ndim > 2 or any(n % b for n, b in zip(self.shape, self.blocksize, strict=True)):
            raise ValueError(
                f"torch's BSR has two dimensions that blocks divide, and no transposes; this is {self!r}"
                f"{', transposed' if self._t else ''}"
            )
        parts = (self.indptr, self.indices, self.data.detach())
        try:
            # As a context, not an argument: beside that torch 2.11 warns that nothing is checked.
            with torch.sparse.check_sparse_tensor_invariants(not self.data.is_meta):
                return torch.sparse_bsr_tensor(*parts, size=self.shape)
        except RuntimeError as error:
            raise ValueError(f"{self!r} cannot be a tensor of torch: {error}") from None

    # What it holds -----------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with batch dimensions."""
        *batch, m, n = self._stored
        return (*batch, n, m) if self._t else self._stored

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self._stored)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.data.device

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow into ``data``."""
        return self.data.requires_grad

    @property
    def grad(self) -> torch.Tensor | None:
        """The gradient of ``data``, in the shape of ``data``."""
        return self.data.grad

    @property
    def blocksize(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        br, bc = self.data.shape[-2:]
        return (int(bc), int(br)) if self._t else (int(br), int(bc))

    @property
    def nnzb(self) -> int:
        """How many blocks are stored, of all members."""
        return math.prod(self.data.shape[:-2])

    @property
    def nnz(self) -> int:
        """How many values are stored, padding at the edges included, as in SciPy."""
        return self.data.numel()

    @property
    def density(self) -> float:
        """The share of blocks that are stored."""
        *batch, m, n = self.shape
        br, bc = self.blocksize
        full = math.prod(batch) * lay.blocks_along(m, br) * lay.blocks_along(n, bc)
        return self.nnzb / full if full else 0.0

    @property
    def T(self) -> Self:  # noqa: N802
        """The transpose of the last two dimensions; of the same tensors."""
        return self._wrap(self.data, self.indices, self.indptr, self._stored, not self._t)

    mT = T  # noqa: N815

    @property
    def mask(self) -> BlockMask:
        """Which blocks are stored, on the host."""
        return self.detach().numpy().mask

    def check_format(self) -> None:
        """Raise ValueError unless indices and offsets are what a pattern's are; reads them."""
        bc = int(self.data.shape[-1])
        blocks.check_values(self.indices, self.indptr, lay.blocks_along(self._stored[-1], bc))

    # Converting --------------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return it with ``data`` converted as by ``torch.Tensor.to``, and the pattern on the same device."""
        data = self.data.to(*args, **kwargs)
        blocks.check_floats(data.dtype, "the operand")
        parts = (self.indices.to(data.device), self.indptr.to(data.device))
        return self._wrap(data, *parts, self._stored, self._t)

    def detach(self) -> Self:
        """Return it without gradients, of the same memory."""
        return self._with(self.data.detach())

    def clone(self) -> Self:
        """Return a copy, which gradients flow through."""
        parts = (self.data.clone(), self.indices.clone(), self.indptr.clone())
        return self._wrap(*parts, self._stored, self._t)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Have gradients recorded for ``data``, or not; returns this operand."""
        self.data.requires_grad_(requires_grad)
        return self

    def toarray(self) -> torch.Tensor:
        """Return the dense tensor, which gradients flow back from."""
        *batch, m, n = self._stored
        data, indptr = self.data, self.indptr
        if indptr.ndim > 1:
            indptr = indptr.reshape(-1, indptr.shape[-1])
        else:
            data = data.reshape(math.prod(batch), *data.shape[-3:])
        dense = blocks.scatter(data, self.indices, indptr, (m, n)).reshape(*batch, m, n)
        return dense.mT if self._t else dense

    to_dense = toarray

    def numpy(self) -> _bsr.BSR:
        """Return it as a :class:`prunus.BSR` in the same memory.

        Raises
        ------
        TypeError
            If it requires grad.
        PrunusError
            If it is not in host memory.
        """
        if self.requires_grad:
            raise TypeError("the values require grad, which arrays have not: use W.detach().numpy()")
        parts = (as_array(part) for part in (self.data, self.indices, self.indptr))
        array = _bsr.BSR(tuple(parts), shape=self._stored)
        return array.T if self._t else array

    # Operators ---------------------------------------------------------------------------------------

    def __matmul__(self, other: Any) -> Any:
        """Multiply by a tensor or another BSR: see :func:`prunus.torch.matmul`.

        What ``torch.compile`` compiles says ``matmul``: it swaps the operands of ``W @ x``, and an error says
        so.
        """
        from prunus.torch.functional import matmul

        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        """Multiply from the left."""
        from prunus.torch.functional import matmul

        return matmul(other, self)

    def __mul__(self, scale: Any) -> Self:
        """Scale by a number, or a tensor of one value."""
        if isinstance(scale, torch.Tensor):
            if scale.numel() != 1 or scale.is_complex():
                return NotImplemented
            # Without dimensions, so that the values keep theirs, and their dtype.
            return self._with(self.data * scale.reshape(()))
        if not isinstance(scale, Real):
            return NotImplemented
        return self._with(self.data * float(scale))

    __rmul__ = __mul__

    def __truediv__(self, scale: Any) -> Self:
        """Divide by a number."""
        return self._with(self.data / float(scale)) if isinstance(scale, Real) else NotImplemented

    def __neg__(self) -> Self:
        """Change all signs."""
        return self._with(-self.data)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let ``torch.matmul``, ``tensor @ W`` and ``torch.nn.functional.linear`` take it."""
        from prunus.torch.functional import torch_function

        return torch_function(function, args, kwargs or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as its tensors, which ``torch.load`` reads with ``weights_only`` too."""
        return _restore, (self.data, self.indices, self.indptr, self._stored, self._t)

    def __repr__(self) -> str:
        """Return shape, dtype, blocks and where it lives."""
        shape = ", ".join(map(str, self.shape))
        br, bc = self.blocksize
        where = "" if self.device.type == "cpu" else f" on {self.device}"
        grad = ", requires_grad" if self.requires_grad else ""
        return (
            f"<prunus.torch.BSR ({shape}) {str(self.dtype).removeprefix('torch.')}{where}: {self.nnzb} "
            f"blocks of {br} x {bc}, density {self.density:.3g}{grad}>"
        )


def _restore(
    data: torch.Tensor,
    indices: torch.Tensor,
    indptr: torch.Tensor,
    stored: tuple[int, ...],
    transposed: bool,
) -> BSR:
    """Return what was pickled, checked as a new operand is."""
    made = BSR((data, indices, indptr), stored)
    return made.T if transposed else made


# It makes nothing but an operand of tensors.
torch.serialization.add_safe_globals([_restore])


def _flatten(w: BSR) -> tuple[list[Any], Any]:
    return [w.data, w.indices, w.indptr], (w._stored, w._t)


def _unflatten(parts: Any, context: Any) -> BSR:
    return BSR._wrap(*parts, *context)


def _flatten_with_keys(w: BSR) -> tuple[list[Any], Any]:
    names = ("data", "indices", "indptr")
    keys = [torch.utils._pytree.GetAttrKey(name) for name in names]
    return [(key, getattr(w, name)) for key, name in zip(keys, names, strict=True)], (w._stored, w._t)


def _context_from_json(context: Any) -> Any:
    stored, transposed = context
    return tuple(stored), transposed  # JSON has lists only


# What torch.compile, torch.export and torch.func need, to see tensors within.
torch.utils._pytree.register_pytree_node(
    BSR,
    _flatten,
    _unflatten,
    serialized_type_name="prunus.torch.BSR",
    to_dumpable_context=lambda context: context,
    from_dumpable_context=_context_from_json,
    flatten_with_keys_fn=_flatten_with_keys,
)
