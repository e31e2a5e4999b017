"""Products with blocks, of NumPy's arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prunus._dtypes import Array, DType
from prunus._layout import Index
from prunus.cuda import products
from prunus.cuda.dtypes import torch_of
from prunus.cuda.host.base import Host
from prunus.cuda.sdd import sdd
from prunus.cuda.ssd import ssd
from prunus.cuda.ssd_at import ssd_at
from prunus.cuda.transfer import download
from prunus.engines.base import Blocks

__all__ = ["Products"]


class Products(Host):
    """See :class:`prunus.engines.base.Engine`."""

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

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        if out.size == 0:
            return
        a, b = _one_batch(a), _one_batch(b)
        there = self._room(out)
        room = there if indptr.ndim > 1 else there.reshape(math.prod(there.shape[:-3]), *there.shape[-3:])
        edges = indptr.reshape(-1, indptr.shape[-1]) if indptr.ndim > 1 else indptr
        sdd(self.where, self._up(a), self._up(b), self._up(indices), self._up(edges), room)
        download(there, out)

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """See :class:`prunus.engines.base.Engine`."""
        found = ssd(self.where, self._operand(a), self._operand(b), torch_of(dtype))
        data = np.empty(tuple(found.data.shape), dtype)
        download(found.data, data)
        return data, found.indices.cpu().numpy(), found.indptr.cpu().numpy()

    def ssd_at(self, a: Blocks, b: Blocks, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        if out.size == 0:
            return
        there = self._room(out)
        ssd_at(self.where, self._operand(a), self._operand(b), self._up(indices), self._up(indptr), there)
        download(there, out)


def _one_batch(x: Array) -> Array:
    """Return a stack of matrices with one batch dimension; a copy only where strides leave no other way."""
    return x if x.ndim <= 3 else x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
