"""Products with blocks, of NumPy's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus._dtypes import Array, DType
from prunus.cuda import products
from prunus.cuda.host.base import Host
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
