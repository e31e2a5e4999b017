"""What all operations on NumPy's arrays share: memory on the GPU and the way there and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from prunus._dtypes import Array
from prunus.cuda.blocks import Operand, broadcast
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
        data, indptr, own, batch = w.values, w.indptr, (), ()
        if data.ndim > 3:
            data = data.reshape(math.prod(data.shape[:-3]), *data.shape[-3:])
        elif indptr.ndim > 1:
            # Members that repeat do so without strides.
            batch = indptr.shape[:-1]
            at = [slice(0, 1) if step == 0 else slice(None) for step in indptr.strides[:-1]]
            indptr = indptr[tuple(at)]
            own = indptr.shape[:-1]
            indptr = indptr.reshape(-1, indptr.shape[-1])
        parts = [self._up(np.ascontiguousarray(part)) for part in (data, w.indices, indptr)]
        operand = Operand(parts[0], parts[1], parts[2], w.shape, w.transposed)
        return broadcast(operand, own, batch)
