"""The engine for NumPy's arrays: operands are uploaded, kernels run, results come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prunus._dtypes import F32, I32, OPERANDS, Array, DType
from prunus._errors import PrunusError
from prunus.cuda import products
from prunus.cuda.blocks import Operand
from prunus.cuda.dtypes import torch_of
from prunus.cuda.runtime import Place, current, empty
from prunus.cuda.transfer import download, upload
from prunus.engines.base import Blocks

if TYPE_CHECKING:
    import torch

__all__ = ["CudaEngine", "make"]


class CudaEngine:
    """Runs operations on a GPU; ``with pr.device("cuda")``.

    NumPy's arrays are uploaded for each call, and results are downloaded: weights that stay belong on the GPU,
    see ``BSR.to("cuda")``. Under Triton's interpreter (``TRITON_INTERPRET=1``) the same kernels run on the CPU,
    slowly, for tests.

    Parameters
    ----------
    name : str
        The device's name, "cuda" or "cuda:1".
    where : Place
        Where kernels run.
    """

    dtypes = OPERANDS | {I32}
    computes = True

    def __init__(self, name: str, where: Place) -> None:
        self.name, self.where = name, where

    def rounding(self, dtype: DType) -> float:
        """See :class:`prunus.engines.base.Engine`: float32 is taken as torch's setting says."""
        if dtype == F32 and not self.where.interpreted and products.precision() == "tf32":
            return 2.0**-10
        return 0.0

    def __repr__(self) -> str:
        return f"<CudaEngine {self.name!r}: {self.where.name}>"

    # Between the host's memory and the GPU's.

    def _up(self, array: Array) -> torch.Tensor:
        return upload(array, self.where)

    def _maybe(self, array: Array | None) -> torch.Tensor | None:
        return None if array is None else upload(array, self.where)

    def _room(self, out: Array) -> torch.Tensor:
        return empty(out.shape, torch_of(out.dtype), self.where)

    def _operand(self, w: Blocks) -> Operand:
        data, indptr = w.values, w.indptr
        if data.ndim > 3:
            data = data.reshape(-1, *data.shape[-3:])
        if indptr.ndim > 1:
            indptr = indptr.reshape(-1, indptr.shape[-1])
        if not data.flags.c_contiguous:
            data = np.ascontiguousarray(data)
        return Operand(self._up(data), self._up(w.indices), self._up(indptr), w.shape, w.transposed)

    # Products of blocks.

    def hold(self, x: Array, w: DType, out: DType, blocksize: tuple[int, int]) -> Any:
        """See :class:`prunus.engines.base.Engine`: nothing is kept on the GPU from call to call."""
        return None

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
        """See :class:`prunus.engines.base.Engine`."""
        if out.size == 0:
            return
        there = self._up(np.ascontiguousarray(out)) if add else self._room(out)
        if add:
            there = there.clone()
        products.dsd(self.where, self._operand(w), self._up(x), there, self._maybe(bias), activation, add)
        download(there, out)


def make(name: str) -> CudaEngine:
    """Return the engine of "cuda" or "cuda:1".

    Raises
    ------
    PrunusError
        If there is no such device, or torch or Triton is missing.
    """
    index = name.partition(":")[2]
    if index and not index.isdecimal():
        raise PrunusError(f"no device {name!r}: expected 'cuda', or 'cuda:' and a number")
    return CudaEngine(name, current(int(index) if index else None))
