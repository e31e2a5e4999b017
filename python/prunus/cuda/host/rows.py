"""Products of rows with tables of units, of NumPy's arrays."""

from __future__ import annotations

import numpy as np

from prunus._dtypes import Array
from prunus.cuda import branches, rows
from prunus.cuda.dtypes import torch_of
from prunus.cuda.feed_forward import feed_forward
from prunus.cuda.host.base import Host
from prunus.cuda.runtime import empty
from prunus.cuda.transfer import download
from prunus.cuda.versions import libraries
from prunus.engines.base import Found

__all__ = ["Rows"]


class Rows(Host):
    """See :class:`prunus.engines.base.Engine`."""

    def dots(
        self,
        x: Array,
        w: Array,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
        bias: Array | None = None,
        activation: str | None = None,
        scale: Array | None = None,
        found: Found | None = None,
    ) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        there, known = self._room(out), None
        if found is not None:
            norms = empty(found.norms.shape, torch_of(found.norms.dtype), self.where)
            alive = None
            if found.live is not None:
                alive = empty(found.live.shape, libraries().torch.bool, self.where)
            known = branches.Found(found.branch, found.norm, norms, alive, found.tau)
        rows.dots(
            self.where,
            self._up(x),
            self._up(w),
            there,
            self._maybe(live),
            branch,
            self._maybe(bias),
            activation,
            self._maybe(scale),
            known,
        )
        download(there, out)
        if found is not None and known is not None:
            download(known.norms, found.norms)
            if found.live is not None and known.live is not None:
                download(known.live, found.live)

    def combine(
        self,
        h: Array,
        w: Array,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
        bias: Array | None = None,
        add: bool = False,
    ) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        there = self._up(np.ascontiguousarray(out)).clone() if add else self._room(out)
        rows.combine(
            self.where,
            self._up(h),
            self._up(w),
            there,
            self._maybe(live),
            branch,
            self._maybe(bias),
            add,
        )
        download(there, out)

    def feed_forward(
        self,
        x: Array,
        up: Array,
        gate: Array | None,
        down: Array,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
        b_up: Array | None = None,
        b_down: Array | None = None,
        activation: str | None = None,
    ) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        there = self._room(out)
        feed_forward(
            self.where,
            self._up(x),
            self._up(up),
            self._maybe(gate),
            self._up(down),
            there,
            self._maybe(live),
            branch,
            self._maybe(b_up),
            self._maybe(b_down),
            activation,
        )
        download(there, out)
