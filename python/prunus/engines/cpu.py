"""The CPU engine: hands arrays to the compiled kernels in ``prunus._core``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prunus import _core
from prunus._dtypes import I32, OPERANDS, Array, DType
from prunus._layout import Index
from prunus._threads import THREADS
from prunus.engines.base import Blocks, Found

__all__ = ["CpuEngine"]

_NONE = np.empty((0, 0), np.float32)


class CpuEngine:
    """Products on the host's cores, with the SIMD level chosen when the package was loaded."""

    name = "cpu"
    dtypes = OPERANDS | {I32}
    computes = True
    dense: Callable[[Array, Array, Array], None] | None = None

    def rounding(self, dtype: DType) -> float:
        """See :class:`prunus.engines.base.Engine`: sums round, products do not."""
        return 0.0

    def hold(self, x: Array, w: DType, out: DType, blocksize: tuple[int, int]) -> Any:
        """See :class:`prunus.engines.base.Engine`."""
        return _core.pack_columns(x, w, out, blocksize, THREADS.get())

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
        # The kernels take every pair of operand dtypes and round once, so nothing is converted here.
        data, indices, indptr, shape, transposed = w
        if isinstance(data, _core.Packed):
            if add:
                raise TypeError("the product of a packed operand is not added to anything")
            _core.dsd_packed(data, transposed, x, out, bias, activation, THREADS.get())
            return
        threads = THREADS.get()
        _core.dsd(data, indices, indptr, shape, transposed, x, out, bias, activation, threads, held, add)

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """See :class:`prunus.engines.base.Engine`."""
        return _core.ssd(
            a.values,
            a.indices,
            a.indptr,
            a.shape,
            a.transposed,
            b.values,
            b.indices,
            b.indptr,
            b.shape,
            b.transposed,
            dtype,
            THREADS.get(),
        )

    def ssd_at(self, a: Blocks, b: Blocks, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        left = a.values, a.indices, a.indptr, a.shape, a.transposed
        right = b.values, b.indices, b.indptr, b.shape, b.transposed
        _core.ssd_at(*left, *right, indices, indptr, out, THREADS.get())

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        _core.sdd(a, b, indices, indptr, out, THREADS.get())

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
        to = Found(1, "max", _NONE) if found is None else found
        norms = None if found is None else to.norms
        _core.dots(
            x,
            w,
            out,
            _bytes(live),
            branch,
            bias,
            activation,
            scale,
            to.branch,
            to.norm,
            norms,
            _bytes(to.live),
            to.tau,
            THREADS.get(),
        )

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
        _core.combine(h, w, out, _bytes(live), branch, bias, THREADS.get(), add)

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
        threads = THREADS.get()
        _core.feed_forward(x, up, gate, down, out, _bytes(live), branch, b_up, b_down, activation, threads)

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
        grid = None if live is None else live.view(np.int8)
        _core.attention(q, k, v, out, grid, scale, causal, blocksize, THREADS.get())

    def pooled_scores(self, q: Array, k: Array, out: Array, scale: float, blocksize: int) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        _core.pooled_scores(q, k, out, scale, blocksize, THREADS.get())

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
        _core.scan(u, delta, a, b, c, d, z, bias, softplus, state, out, live, branch, THREADS.get())

    def gates(self, z: Array, branch: int, norm: str, norms: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        _core.gates(z, branch, norm == "l2", norms, THREADS.get())


def _bytes(live: Array | None) -> Array | None:
    """Return the same memory as bytes: a boolean of NumPy's may hold more than 0 and 1."""
    return None if live is None else live.view(np.uint8)
