"""Products of what is on disk with NumPy's arrays: these are uploaded once, results downloaded once."""

from __future__ import annotations

from typing import Any

from prunus._dtypes import Array
from prunus.cuda.host.base import Host
from prunus.cuda.transfer import download

__all__ = ["Disk"]


class Disk(Host):
    """See :class:`prunus.engines.base.Streams`."""

    def multiply_from_disk(
        self, w: Any, x: Array, out: Array, bias: Array | None, activation: str | None
    ) -> None:
        """See :class:`prunus.engines.base.Streams`."""
        from prunus.cuda.paged import products  # the pager is above engines

        if out.size == 0:
            return
        there = self._room(out)
        products.multiply(self.where, w, self._up(x), there, self._maybe(bias), activation)
        download(there, out)

    def dense_from_disk(self, a: Any, x: Array, out: Array) -> None:
        """See :class:`prunus.engines.base.Streams`."""
        from prunus.cuda.paged import dense  # the pager is above engines

        if out.size == 0:
            return
        there = self._room(out)
        dense.multiply(self.where, a, self._up(x), there)
        download(there, out)
