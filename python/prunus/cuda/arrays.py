"""``prunus.cuda.BSR``: a block-sparse array whose blocks and pattern live on a GPU, as torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from prunus._layout import blocks_along
from prunus.cuda.blocks import Lists, Operand
from prunus.cuda.runtime import Place, place_of

if TYPE_CHECKING:
    import torch

__all__ = ["BSR"]


class BSR:
    """A block-sparse array on a GPU; made by ``W.to("cuda")`` and by operations on tensors there.

    ``data`` may have room for more blocks than there are: how many an operation left is known to the GPU, and
    is only read back where Python asks (``nnz``, ``density``, ``to("cpu")``, ``repr``).
    """

    __slots__ = ("_batch", "_operand", "_place")

    on_cuda: ClassVar[bool] = True

    _operand: Operand
    _batch: tuple[int, ...]
    _place: Place

    @classmethod
    def _wrap(cls, operand: Operand, batch: tuple[int, ...] = (), where: Place | None = None) -> Self:
        """Return an array of consistent parts, checking nothing."""
        self = object.__new__(cls)
        self._operand, self._batch = operand, batch
        self._place = place_of(operand.data) if where is None else where
        return self

    @property
    def data(self) -> torch.Tensor:
        """The blocks, (n, br, bc), or (*batch, n, br, bc) where members share a pattern."""
        data = self._operand.data
        return data.reshape(*self._batch, *data.shape[-3:]) if data.ndim > 3 else data

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with batch dimensions."""
        return (*self._batch, *self._operand.size)

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Torch's dtype of the values."""
        return self._operand.data.dtype

    @property
    def blocksize(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        br, bc = self._operand.stored
        return (bc, br) if self._operand.transposed else (br, bc)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        (m, k), (br, bc) = self._operand.size, self.blocksize
        return blocks_along(m, br), blocks_along(k, bc)

    @property
    def lists(self) -> Lists | None:
        """What a frozen array knows beforehand."""
        return self._operand.lists

    @property
    def T(self) -> Self:  # noqa: N802
        """The transpose of the last two axes, of the same memory."""
        return self._wrap(self._operand.T, self._batch, self._place)
