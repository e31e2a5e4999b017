"""Attention over NumPy's arrays."""

from __future__ import annotations

from prunus._dtypes import Array
from prunus.cuda import attention
from prunus.cuda.host.base import Host
from prunus.cuda.transfer import download

__all__ = ["Attention"]


class Attention(Host):
    """See :class:`prunus.engines.base.Engine`."""

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        out: Array,
        live: Array | None,
        scale: float,
        causal: bool,
        blocksize: int,
    ) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        there = self._room(out)
        attention.attention(
            self.where,
            self._up(q),
            self._up(k),
            self._up(v),
            there,
            self._maybe(live),
            scale,
            causal,
            blocksize,
        )
        download(there, out)

    def pooled_scores(self, q: Array, k: Array, out: Array, scale: float, blocksize: int) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        there = self._room(out)
        attention.pooled_scores(self.where, self._up(q), self._up(k), there, scale, blocksize)
        download(there, out)
