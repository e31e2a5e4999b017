"""``prunus.cuda.BSR``: a block-sparse array whose blocks and pattern live on a GPU, as torch tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import numpy as np

from prunus import _bsr
from prunus._dtypes import check_operand
from prunus._errors import PrunusError
from prunus._layout import as_blocksize, blocks_along
from prunus._mask import BlockMask
from prunus.cuda import construct, elementwise
from prunus.cuda.blocks import Lists, Operand, lists
from prunus.cuda.dtypes import as_torch, numpy_of
from prunus.cuda.repeats import Plans, again, multiply
from prunus.cuda.runtime import Place, named, place_of, zeros
from prunus.cuda.transfer import download, upload
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["BSR"]


class BSR:
    """A block-sparse array on a GPU; made by ``W.to("cuda")`` and by operations on tensors there.

    Names are those of :class:`prunus.BSR`; values, indices and results are torch tensors on the same GPU.
    ``data`` may have room for more blocks than there are: how many an operation left is known to the GPU, and
    is only read back where Python asks (``nnz``, ``density``, ``mask``, ``to("cpu")``, ``repr``). The first
    ``indptr[-1]`` blocks count.

    Parameters
    ----------
    arg : tuple of tensors
        ``(data, indices, indptr)``: data (n, br, bc), or (*B, n, br, bc) where members of a batch share a
        pattern; indices (n,) of blocks' columns; indptr (rows + 1,), or (*B, rows + 1) with a pattern for
        each member, whose offsets count through all members' blocks. They are shared where they are
        contiguous. Also a torch tensor of layout ``torch.sparse_bsr``, or a dense one with ``blocksize``.
    shape : tuple of int, optional
        Shape with batch dimensions; without it, blocks fill it and indices must be read to find its width.
    blocksize : int or tuple of int, optional
        For a dense tensor: rows and columns of a block.

    Raises
    ------
    ValueError
        If lengths and shapes do not fit each other. What indices hold is data of the GPU and is not looked
        at; see :meth:`check_format`.
    TypeError
        If products do not take the dtype, or indices are no integers.
    PrunusError
        If the tensors live on different devices, or on none where kernels run.
    """

    __slots__ = ("_batch", "_frozen", "_lists", "_operand", "_place", "_plans")

    on_cuda: ClassVar[bool] = True
    __hash__: ClassVar[None]  # type: ignore[assignment]
    # NumPy's arrays leave operators to this class, which refuses them by name.
    __array_ufunc__: ClassVar[None] = None

    _operand: Operand
    _batch: tuple[int, ...]
    _place: Place
    _frozen: bool
    _lists: Lists | None  # of a frozen array: those of the transpose
    _plans: Plans  # what products launched, shared with the transpose

    def __init__(
        self,
        arg: Any,
        shape: tuple[int, ...] | None = None,
        blocksize: int | tuple[int, int] | None = None,
    ) -> None:
        torch = libraries().torch
        if isinstance(arg, tuple) and len(arg) == 3:
            operand, batch = construct.from_triple(arg, shape)
        elif isinstance(arg, torch.Tensor) and arg.layout == torch.sparse_bsr:
            operand, batch = construct.from_torch(arg)
        elif isinstance(arg, torch.Tensor):
            if blocksize is None:
                raise ValueError("a dense tensor needs blocksize=")
            operand, batch = construct.from_dense(arg, as_blocksize(blocksize), None)
        else:
            on_host = isinstance(arg, (_bsr.BSR, np.ndarray))
            raise TypeError(
                "expected (data, indices, indptr), a tensor of layout torch.sparse_bsr or a dense one, got "
                + type(arg).__name__
                + ("; .to('cuda') of a prunus.BSR moves it to the GPU" if on_host else "")
            )
        self._fill(operand, batch, place_of(operand.data))
        if shape is not None and tuple(shape) != self.shape:
            raise ValueError(f"shape is {tuple(shape)}, but the array has {self.shape}")

    def _fill(self, operand: Operand, batch: tuple[int, ...], where: Place, frozen: bool = False) -> None:
        self._operand, self._batch, self._place, self._frozen = operand, batch, where, frozen
        self._lists, self._plans = None, {}

    @classmethod
    def _wrap(cls, operand: Operand, batch: tuple[int, ...] = (), where: Place | None = None) -> Self:
        """Return an array of consistent parts, checking nothing."""
        self = object.__new__(cls)
        self._fill(operand, batch, place_of(operand.data) if where is None else where)
        return self

    @classmethod
    def from_host(cls, array: _bsr.BSR, where: Place) -> Self:
        """Return a copy of a :class:`prunus.BSR` on a GPU; see ``W.to("cuda")``."""
        batch, own = array._batch, array._own
        data, indices, indptr = array._values(), array._indices, array._indptr
        if batch and not own:
            data = data.reshape(math.prod(batch), *data.shape[-3:])
        if own:
            indptr = indptr.reshape(math.prod(batch), indptr.shape[-1])
        check_operand(array.dtype, "W")
        parts = [upload(np.ascontiguousarray(part), where) for part in (data, indices, indptr)]
        if where.interpreted:  # whose memory is the host's: what is written here must not be written there
            parts = [part.clone() for part in parts]
        operand = Operand(parts[0], parts[1], parts[2], array._stored, array._t)
        made = cls._wrap(operand, batch, where)
        return made.pack() if array.frozen else made

    @classmethod
    def from_dense(
        cls, w: torch.Tensor, blocksize: int | tuple[int, int], density: float | None = None
    ) -> Self:
        """Cut a dense tensor into blocks and store those that matter.

        Parameters
        ----------
        w : Tensor, or an object with ``__dlpack__``
            Shape (m, n), on a GPU.
        blocksize : int or tuple of int
            Rows and columns of a block.
        density : float, optional
            Keeps ``ceil(density * blocks)`` blocks of the largest Frobenius norm, ties by lowest index,
            without a round trip. None keeps every block that has a non-zero, whose number is read back.

        Raises
        ------
        ValueError
            If ``density`` is outside [0, 1], or ``w`` has not two dimensions.
        TypeError
            If ``w`` is no tensor, or products do not take its dtype.
        PrunusError
            If ``w`` does not live on a GPU: ``prunus.BSR.from_dense(w, ...).to("cuda")`` cuts it on the host.
        """
        return cls._wrap(*construct.from_dense(w, as_blocksize(blocksize), density))

    # What it holds -----------------------------------------------------------------------------------

    @property
    def data(self) -> torch.Tensor:
        """The stored blocks, (n, br, bc), or (*batch, n, br, bc) where members share a pattern."""
        data = self._operand.data
        return data.reshape(*self._batch, *data.shape[-3:]) if data.ndim > 3 else data

    @property
    def indices(self) -> torch.Tensor:
        """Block column of each stored block, (n,)."""
        return self._operand.indices

    @property
    def indptr(self) -> torch.Tensor:
        """Where each row of stored blocks begins, (rows + 1,) or (*batch, rows + 1)."""
        indptr = self._operand.indptr
        return indptr.reshape(*self._batch, indptr.shape[-1]) if self._operand.own else indptr

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with batch dimensions."""
        return (*self._batch, *self._operand.size)

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self._batch) + 2

    @property
    def dtype(self) -> Any:
        """Torch's dtype of the values."""
        return self._operand.data.dtype

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self._operand.data.device

    @property
    def blocksize(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        br, bc = self._operand.stored
        return (bc, br) if self._operand.transposed else (br, bc)

    @property
    def frozen(self) -> bool:
        """Whether it came from :meth:`pack`: then it must not be written to."""
        return self._frozen

    @property
    def nnzb(self) -> int:
        """How many blocks there are, of all members; waits for the GPU."""
        members = 1 if self._operand.own else math.prod(self._batch)
        ends = self._operand.indptr[..., -1]
        return members * int(ends.max()) if ends.numel() else 0

    @property
    def nnz(self) -> int:
        """Stored values, explicit zeros and padding included, as SciPy counts; waits for the GPU."""
        return self.nnzb * math.prod(self.blocksize)

    @property
    def density(self) -> float:
        """Share of the blocks that is stored; waits for the GPU."""
        positions = math.prod(self._batch) * math.prod(self.grid)
        return self.nnzb / positions if positions else 0.0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        (m, k), (br, bc) = self._operand.size, self.blocksize
        return blocks_along(m, br), blocks_along(k, bc)

    @property
    def mask(self) -> BlockMask:
        """The pattern, on the host; waits for the GPU."""
        return self.to("cpu").mask

    @property
    def T(self) -> Self:  # noqa: N802
        """The transpose of the last two axes, of the same memory."""
        other = object.__new__(type(self))
        operand = self._operand.T
        if self._lists is not None:
            operand = operand._replace(lists=self._lists)
        other._fill(operand, self._batch, self._place, self._frozen)
        other._lists, other._plans = self._operand.lists, self._plans
        return other

    def check_format(self) -> None:
        """Raise ValueError unless indices and indptr are a pattern of this shape; waits for the GPU."""
        self.to("cpu").check_format()

    def __repr__(self) -> str:
        br, bc = self.blocksize
        return (
            f"<prunus.cuda.BSR {self.shape} {str(self.dtype).removeprefix('torch.')} on {self._place}: "
            f"{self.nnzb} blocks of {br} x {bc}>"
        )

    # Conversions -------------------------------------------------------------------------------------

    def to(self, device: Any) -> Any:
        """Return the array on a device: "cpu" gives a :class:`prunus.BSR`; itself where it is.

        Raises
        ------
        PrunusError
            If there is no such device.
        """
        name = str(device)
        if name == "cpu":
            return self._host()
        where = named(name)
        if where == self._place:
            return self
        o = self._operand
        parts = [part.to(where.device) for part in (o.data, o.indices, o.indptr)]
        moved = o._replace(data=parts[0], indices=parts[1], indptr=parts[2], lists=None)
        made = self._wrap(moved, self._batch, where)
        return made.pack() if self._frozen else made

    def _host(self) -> _bsr.BSR:
        o = self._operand
        indptr = o.indptr.cpu().numpy().copy()
        count = int(indptr[..., -1].max()) if indptr.size else 0
        part = o.data[..., :count, :, :]
        data = np.empty(tuple(part.shape), numpy_of(part.dtype))
        download(part, data)
        if data.ndim > 3:
            data = data.reshape(*self._batch, *data.shape[-3:])
        if o.own:
            indptr = indptr.reshape(*self._batch, indptr.shape[-1])
        indices = o.indices[:count].cpu().numpy().copy()
        made = _bsr.BSR((data, indices, indptr), shape=(*self._batch, *o.shape))
        return made.T if o.transposed else made

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        # Without it, NumPy would wrap the object as it is, in an array of no dimensions.
        raise TypeError(
            "a BSR on the GPU is not turned into an array behind your back; call W.toarray() for a dense "
            'tensor there, or W.to("cpu").toarray() for an ndarray'
        )

    def toarray(self) -> torch.Tensor:
        """Return a dense tensor of the same shape and dtype on the same GPU, zeros where no block is."""
        o = self._operand
        members = math.prod(self._batch)
        m, k = o.shape
        (br, bc), (down, across) = o.stored, construct.grid_of(o)
        out = zeros((members, down * br, across * bc), o.data.dtype, self._place)
        if out.numel() and len(o.indices):
            tiles = out.view(members, down, br, across, bc).permute(0, 1, 3, 2, 4)
            elementwise.scatter(o, tiles, members)
        dense = out[:, :m, :k].reshape(*self._batch, m, k)
        return dense.transpose(-1, -2) if o.transposed else dense

    to_dense = toarray

    def to_torch(self) -> torch.Tensor:
        """Return a torch tensor of layout ``torch.sparse_bsr`` that shares the blocks.

        Waits for the GPU: torch wants to know how many blocks there are, and takes them without duplicates,
        in an array that its blocks divide.

        Raises
        ------
        ValueError
            If blocks do not divide the shape, members have patterns of their own, or the array is a lazy
            transpose: ``W.T.to_torch()`` is its other half.
        """
        return construct.to_torch(self._operand, self._batch, self.nnzb)

    def copy(self) -> Self:
        """Return a writable copy that shares no memory."""
        o = self._operand
        parts = (o.data.clone(), o.indices.clone(), o.indptr.clone())
        return self._wrap(Operand(*parts, o.shape, o.transposed), self._batch, self._place)

    def astype(self, dtype: Any) -> Self:
        """Return the array with values of another dtype, torch's or one that NumPy knows by name."""
        o = self._operand
        data = o.data.to(as_torch(dtype))
        return self._wrap(o._replace(data=data, lists=None), self._batch, self._place)

    def transpose(self) -> Self:
        """Return :attr:`T`."""
        return self.T

    def pack(self) -> Self:
        """Return a frozen copy that knows the lists of blocks by rows and by columns beforehand.

        Products with ``W.T`` on the left, or ``W`` on the right, sort the blocks by columns in each call
        otherwise. Blocks are laid out as kernels want them anyway.
        """
        made = self.copy()
        o = made._operand
        made._operand, made._lists = o._replace(lists=lists(o)), lists(o.T)
        made._frozen = True
        return made

    # Arithmetic --------------------------------------------------------------------------------------

    def __matmul__(self, other: Any) -> Any:
        made = again(self, other, flip=False)
        if made is not None:
            return made
        return multiply(self, other, flip=False) if elementwise.is_operand(other) else NotImplemented

    def __rmatmul__(self, other: Any) -> Any:
        made = again(self, other, flip=True)
        if made is not None:
            return made
        return multiply(self, other, flip=True) if elementwise.is_operand(other) else NotImplemented

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take part in ``tensor @ W``, ``torch.matmul`` and ``torch.nn.functional.linear``."""
        from prunus.cuda.layers.matmul import torch_function

        made = torch_function(function, args, kwargs or {})
        if made is NotImplemented and all(issubclass(kind, BSR) for kind in types):
            # Nobody else is left to ask, and torch's own message names neither what serves nor a way out.
            name = libraries().torch.overrides.resolve_name(function) or getattr(
                function, "__name__", function
            )
            raise TypeError(
                f"{name} does not take a BSR: torch.matmul, torch.mm and torch.nn.functional.linear do; "
                "W.toarray() is a dense tensor, W.to_torch() a sparse one of torch's"
            )
        return made

    def __mul__(self, other: Any) -> Self:
        return self._with(elementwise.scaled(self._operand, other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Self:
        return self._with(elementwise.scaled(self._operand, other, divide=True))

    def __neg__(self) -> Self:
        return self._with(-self._operand.data)

    def __add__(self, other: Any) -> Self:
        return self._paired(other, "+")

    def __sub__(self, other: Any) -> Self:
        return self._paired(other, "-")

    def multiply(self, other: Any) -> Self:
        """Return the elementwise product with another array of the same shape and blocks, or a number."""
        return self._paired(other, "*") if isinstance(other, BSR) else self * other

    def _with(self, data: torch.Tensor) -> Self:
        o = self._operand
        return self._wrap(Operand(data, o.indices, o.indptr, o.shape, o.transposed), self._batch, self._place)

    def _paired(self, other: Any, how: str) -> Self:
        if not isinstance(other, BSR):
            raise TypeError(
                f"{how} of a BSR takes another BSR on the GPU, got {type(other).__name__}; a dense result is "
                "W.toarray()'s"
            )
        if other.shape != self.shape or other.blocksize != self.blocksize:
            raise ValueError(
                f"{how} takes two BSRs of one shape and block size, got {self.shape} in blocks of "
                f"{self.blocksize} and {other.shape} in blocks of {other.blocksize}"
            )
        if self._batch:
            raise ValueError(f"{how} takes two dimensions, got shape {self.shape}")
        if other._place != self._place:
            raise PrunusError(f"{how} of two BSRs on different devices, {self._place} and {other._place}")
        return self._wrap(elementwise.paired(self._operand, other._operand, how), (), self._place)

    def sum(self, axis: int | None = None) -> torch.Tensor:
        """Return sums over an axis (0 or 1 of the last two), or over all; halves are summed in float32."""
        return elementwise.sums(self._operand, self._batch, axis)
