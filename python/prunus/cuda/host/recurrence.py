"""Scans over NumPy's arrays."""

from __future__ import annotations

from prunus._dtypes import F64, Array
from prunus.cuda import scan
from prunus.cuda.host.base import Host
from prunus.cuda.transfer import download

__all__ = ["Recurrence"]


class Recurrence(Host):
    """See :class:`prunus.engines.base.Engine`."""

    def scan(
        self,
        u: Array,
        delta: Array,
        a: Array,
        b: Array,
        c: Array,
        d: Array | None,
        z: Array | None,
        bias: Array | None,
        softplus: bool,
        state: Array | None,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
    ) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        there = self._room(out)
        after = None
        if state is not None:
            # A copy: under the interpreter what is uploaded is the caller's memory.
            after = self._up(state).clone().contiguous()
        scan.scan(
            self.where,
            self._up(u),
            self._up(delta),
            self._up(a),
            self._up(b),
            self._up(c),
            self._maybe(d),
            self._maybe(z),
            self._maybe(bias),
            softplus,
            after,
            there,
            self._maybe(live),
            branch,
            state is not None and state.dtype == F64,
        )
        download(there, out)
        if state is not None and after is not None:
            download(after, state)

    def gates(self, z: Array, branch: int, norm: str, norms: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        there = self._room(norms)
        scan.gates(self.where, self._up(z), branch, norm, there)
        download(there, norms)
