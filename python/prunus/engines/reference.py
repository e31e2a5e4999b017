"""The reference engine: plain loops over blocks in NumPy, for tests and for reading.

It is slow and exact: floats accumulate in float64, int8 in int64, and one rounding gives the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from prunus import _layout as lay
from prunus._arrays import from_panels
from prunus._dtypes import F32, F64, I8, I32, OPERANDS, Array, DType
from prunus._layout import Index
from prunus.engines.base import Blocks, Found, pick

__all__ = ["ReferenceEngine"]


# NumPy has no erf of its own.
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _wide(a: DType, b: DType) -> DType:
    return np.dtype(np.int64 if a == b == I8 else np.float64)


def _finish(sums: Array, bias: Array | None, activation: str | None) -> Array:
    """Return ``activation(sums + bias)`` in float64, with one bias for each row."""
    value = sums.astype(np.float64)
    if bias is not None:
        bias = np.asarray(bias, dtype=np.float64)
        value += bias[:, None] if value.ndim > 1 else bias
    return _activate(value, activation)


def _activate(value: Array, activation: str | None) -> Array:
    """Apply an activation by name to a float array; NaN stays NaN."""
    if activation == "relu":
        return np.maximum(value, 0)
    if activation == "gelu":
        return np.asarray(0.5 * value * (1 + _erf(value * np.sqrt(0.5))))
    if activation == "silu":
        with np.errstate(over="ignore"):
            return np.asarray(value / (1 + np.exp(-value)))
    return value


def _pieces(w: Blocks, dtype: DType) -> Iterator[tuple[slice, slice, Array]]:
    """Yield the rows, the columns and the values of every block, transposed and without its padding."""
    (br, bc), (m, k) = w.data.shape[1:], w.shape
    for block, i, j in zip(w.values.astype(dtype), lay.block_rows(w.indptr), w.indices.tolist(), strict=True):
        rows, cols = slice(i * br, min((i + 1) * br, m)), slice(j * bc, min((j + 1) * bc, k))
        part = block[: rows.stop - rows.start, : cols.stop - cols.start]
        yield (cols, rows, part.T) if w.transposed else (rows, cols, part)


class ReferenceEngine:
    """Products as a reader would write them down."""

    name = "reference"
    dtypes = OPERANDS | {I32}
    computes = True
    dense: Callable[[Array, Array, Array], None] | None = None

    def rounding(self, dtype: DType) -> float:
        """See :class:`prunus.engines.base.Engine`: sums round, products do not."""
        return 0.0

    def hold(self, x: Array, w: DType, out: DType, blocksize: tuple[int, int]) -> Any:
        """See :class:`prunus.engines.base.Engine`."""
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
        wide = _wide(w.data.dtype, x.dtype)
        for at in np.ndindex(*out.shape[:-2]):
            sums = out[at].astype(wide) if add else np.zeros(out.shape[-2:], wide)
            right = x[at].astype(wide)
            with np.errstate(all="ignore"):  # infinities and NaN propagate without a word
                for rows, cols, part in _pieces(w.member(at), wide):
                    sums[rows] += part @ right[cols]
                plain = bias is None and activation is None
                out[at] = sums if plain else _finish(sums, bias, activation)

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """See :class:`prunus.engines.base.Engine`."""
        wide = _wide(a.data.dtype, b.data.dtype)
        br = a.data.shape[2 if a.transposed else 1]
        bc = b.data.shape[1 if b.transposed else 2]
        lines: dict[int, list[tuple[slice, Array]]] = {}
        for inner, cols, right in _pieces(b, wide):
            lines.setdefault(inner.start, []).append((cols, right))
        sums: dict[tuple[int, int], Array] = {}
        for rows, inner, left in _pieces(a, wide):
            for cols, right in lines.get(inner.start, []):
                at = rows.start // br, cols.start // bc
                with np.errstate(all="ignore"):
                    sums[at] = sums.get(at, 0) + left @ right
        order = sorted(sums)
        data = np.zeros((len(order), br, bc), dtype)
        for target, at in zip(data, order, strict=True):
            with np.errstate(all="ignore"):
                target[: sums[at].shape[0], : sums[at].shape[1]] = sums[at]
        rows_of, cols_of = np.array(order, np.int64).reshape(-1, 2).T
        count = lay.blocks_along(a.shape[1 if a.transposed else 0], br)
        return data, cols_of, np.searchsorted(rows_of, np.arange(count + 1)).astype(np.int64)

    def ssd_at(self, a: Blocks, b: Blocks, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        pick(self.ssd(a, b, out.dtype), indices, indptr, out)

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        wide = _wide(a.dtype, b.dtype)
        every = Blocks(out, indices, indptr, (a.shape[-2], b.shape[-1]), False)
        for at in np.ndindex(*a.shape[:-2]):
            one = every.member(at)  # shares memory with ``out``
            br, bc = one.data.shape[1:]
            for target, i, j in zip(one.values, lay.block_rows(one.indptr), one.indices, strict=True):
                left = a[at][i * br : (i + 1) * br].astype(wide)
                right = b[at][:, j * bc : (j + 1) * bc].astype(wide)
                target[...] = 0  # past the edge too
                with np.errstate(all="ignore"):
                    target[: len(left), : right.shape[1]] = left @ right

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
        units = len(w)
        every = _units(live, branch, (len(x), units))
        h = np.zeros((len(x), units))
        with np.errstate(all="ignore"):
            for t, row in enumerate(x.astype(np.float64)):
                at = np.flatnonzero(every[t])
                sums = (w[at].astype(np.float64) * row).sum(axis=1)
                value = _finish(sums, None if bias is None else bias[at], activation)
                h[t, at] = value if scale is None else value * scale[t, at]
            if found is not None:
                _find(h, found)
                if found.live is not None:
                    h[~_units(found.live, found.branch, h.shape)] = 0
            out[...] = h

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
        every = _units(live, branch, h.shape)
        w = from_panels(w, out.shape[1])
        with np.errstate(all="ignore"):
            for t, row in enumerate(h.astype(np.float64)):
                at = np.flatnonzero(every[t])
                sums = (row[at, None] * w[at].astype(np.float64)).sum(axis=0)
                sums = sums + out[t] if add else sums
                out[t] = sums if bias is None else sums + bias.astype(np.float64)

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
        h = np.empty((len(x), len(up)), F64 if F64 in (x.dtype, up.dtype) else F32)
        if gate is None:
            self.dots(x, up, h, live, branch, b_up, activation)
        else:
            first = np.empty_like(h)
            self.dots(x, gate, first, live, branch, None, activation)
            self.dots(x, up, h, live, branch, b_up, None, first)
        self.combine(h, down, out, live, branch, b_down)

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
        n, m, heads = q.shape[-2], k.shape[-2], q.shape[-3]
        rows, cols = np.arange(n), np.arange(m)
        for at in np.ndindex(*q.shape[:-2]):
            sees = np.ones((n, m), bool)
            if causal:
                sees = cols <= rows[:, None] + (m - n)
            if live is not None:
                sees = sees & live[at][rows[:, None] // blocksize, cols // blocksize]
            own = (*at[:-1], at[-1] * k.shape[-3] // heads)
            keys, values = k[own].astype(np.float64), v[own].astype(np.float64)
            result = np.zeros(out.shape[-2:])
            with np.errstate(all="ignore"):  # infinities and NaN propagate without a word
                for i, row in enumerate(q[at].astype(np.float64)):
                    seen = np.flatnonzero(sees[i])
                    if seen.size:
                        score = scale * (keys[seen] @ row)
                        weight = np.exp(score - score.max())
                        result[i] = weight @ values[seen] / weight.sum()
                out[at] = result

    def pooled_scores(self, q: Array, k: Array, out: Array, scale: float, blocksize: int) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        share = max(1, q.shape[-3] // max(k.shape[-3], 1))
        with np.errstate(all="ignore"):
            means = _means(np.repeat(k, share, axis=-3), blocksize)
            out[...] = scale * (_means(q, blocksize) @ means.swapaxes(-1, -2))

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
        length, channels = out.shape[-2:]
        rates = a.astype(np.float64)
        skip, shift = (np.zeros(channels) if x is None else x.astype(np.float64) for x in (d, bias))
        every = np.ones((math.prod(out.shape[:-2]) * length, channels), bool)
        if live is not None:
            every = _units(live, branch, every.shape)
        for member, at in enumerate(np.ndindex(*out.shape[:-2])):
            h = np.zeros(a.shape) if state is None else state[at].astype(np.float64)
            for t in range(length):
                x, step = u[at][t].astype(np.float64), delta[at][t].astype(np.float64) + shift
                with np.errstate(all="ignore"):
                    if softplus:
                        step = np.logaddexp(0, step)
                    gain = (step * x)[:, None] * b[at][t].astype(np.float64)
                    h = np.exp(step[:, None] * rates) * h + gain
                    # A channel's sum by itself: a matrix product's order depends on how many there are.
                    y = (h * c[at][t].astype(np.float64)).sum(axis=1)
                    if d is not None:
                        y = y + skip * x
                    if z is not None:
                        y = y * _activate(z[at][t].astype(np.float64), "silu")
                    out[at][t] = np.where(every[member * length + t], y, 0)
            if state is not None:
                with np.errstate(all="ignore"):
                    state[at] = h

    def gates(self, z: Array, branch: int, norm: str, norms: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        with np.errstate(all="ignore"):
            gates = _activate(z.reshape(len(norms), z.shape[-1]).astype(np.float64), "silu")
            if norms.size:
                starts = np.arange(0, z.shape[-1], branch)
                if norm == "l2":
                    exact = np.sqrt(np.add.reduceat(gates * gates, starts, axis=1))
                else:
                    exact = np.maximum.reduceat(np.abs(gates), starts, axis=1)
                norms[...] = exact
                # What contributes is not dead at threshold 0.
                norms[(norms == 0) & (exact > 0)] = np.finfo(np.float32).smallest_subnormal


def _units(live: Array | None, branch: int, shape: tuple[int, ...]) -> Array:
    """Return the liveness of every unit from that of branches."""
    if live is None:
        return np.ones(shape, bool)
    return np.repeat(live, branch, axis=1)[:, : shape[1]]


def _find(h: Array, found: Found) -> None:
    """Write the norms of the branches of ``h``, and which are live."""
    starts = np.arange(0, h.shape[1], found.branch)
    if starts.size:
        if found.norm == "l2":
            found.norms[...] = np.sqrt(np.add.reduceat(h * h, starts, axis=1))
        else:
            found.norms[...] = np.maximum.reduceat(np.abs(h), starts, axis=1)
    if found.live is not None:
        found.live[...] = ~(found.norms <= np.float64(found.tau))


def _means(x: Array, blocksize: int) -> Array:
    """Return the means of blocks of rows in float64."""
    parts = [x[..., i : i + blocksize, :] for i in range(0, x.shape[-2], blocksize)]
    return np.stack([part.astype(np.float64).mean(axis=-2) for part in parts], axis=-2)
