"""What all operations on NumPy's arrays share: memory on the GPU and the way there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunus._dtypes import Array
from prunus.cuda.blocks import Operand
from prunus.cuda.dtypes import torch_of
from prunus.cuda.runtime import Place, empty
from prunus.cuda.transfer import upload
from prunus.engines.base import Blocks

if TYPE_CHECKING:
    import torch

__all__ = ["Host"]


class Host:
    """Uploads operands and makes room for results."""

    where: Place

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
