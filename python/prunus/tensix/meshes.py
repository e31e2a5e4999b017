"""The engine on several chips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunus._dtypes import Array
from prunus._trace import spend
from prunus.engines.base import Found
from prunus.tensix.chip import Chip
from prunus.tensix.engine import TensixEngine
from prunus.tensix.mapping import layers, multicast, operands
from prunus.tensix.mapping import mesh as cut
from prunus.tensix.mapping.job import Outcome
from prunus.tensix.mapping.products import Epilogue, Steps
from prunus.tensix.mapping.tiles import TILE, BlockTiles, Tiles
from prunus.tensix.mesh import shares
from prunus.tensix.report import Operation

__all__ = ["MeshEngine"]


class MeshEngine(TensixEngine):
    """Runs operations on a mesh of simulated chips; ``with pr.device("tensix:n300", mesh=(2, 4)) as engine``.

    Products (dense, block-sparse on either side or on both, sampled) are cut over rows and columns of
    chips. Operands lie spread over the mesh; what a chip lacks comes over Ethernet before it multiplies:
    reports have that as "all_gather". Layers are cut by rows, with weights on every chip; attention by
    heads and members of a batch; scans by channels. Chips share nothing then: an operation takes as long as
    the slowest one.
    """

    def __init__(self, name: str, chip: Chip) -> None:
        super().__init__(name, chip)
        # Operations of the chip that is being worked for; None where an operation is of all of them.
        self._lane: list[Operation] | None = None

    def __repr__(self) -> str:
        rows, columns = self.chip.mesh
        return f"<TensixEngine {self.name!r}, {rows} x {columns} chips>"

    def _enter(self, found: Mapping[str, Any], name: str, flops: float) -> None:
        if self._lane is None:
            super()._enter(found, name, flops)
        else:
            self._lane.append(Operation(self.chip.spec, found, name=name, flops=flops))

    def _done(self, name: str, outcome: Outcome, flops: float) -> None:
        reports = outcome.report
        if not isinstance(reports, cut.Reports):
            super()._done(name, outcome, flops)
            return
        if reports.gather["cycles"]:
            self._enter(reports.gather, "all_gather", 0.0)
        # Useful operations count once.
        shared = [flops] + [0.0] * (len(reports.each) - 1)
        spec = self.chip.spec
        each = [
            Operation(spec, one, name=name, flops=own) for one, own in zip(reports.each, shared, strict=True)
        ]
        self._together([[one] for one in each])

    def _together(self, lanes: Sequence[Sequence[Operation]]) -> None:
        """Enter what chips did at the same time: operations of one name and turn are one."""
        groups: dict[tuple[str, int], list[Operation]] = {}
        for lane in lanes:
            seen: dict[str, int] = {}
            for one in lane:
                turn = seen[one.name] = seen.get(one.name, 0) + 1
                groups.setdefault((one.name, turn), []).append(one)
        for group in groups.values():
            done = Operation.beside(group)
            self.chip._keep(done)
            spend(done.cycles)

    def _each(self, calls: Sequence[Callable[[], None]]) -> None:
        """Make calls, one for each chip that has something to do."""
        with self.chip._turn:
            core, lanes = self.chip._idle(), []
            for at, call in zip(self.chip.chips, calls, strict=False):
                self._lane = []
                core.stand_on(at)
                try:
                    call()
                finally:
                    lane, self._lane = self._lane, None
                    core.stand_on((0, 0))
                lanes.append(lane)
            self._together(lanes)

    def _shares(self, length: int, unit: int = 1) -> list[slice]:
        """Return ranges of a length, for as many chips as have some."""
        rows, columns = self.chip.mesh
        return [part for part in shares(length, rows * columns, unit) if part.stop > part.start]

    # Products.

    def _multiply(
        self,
        left: Tiles,
        right: Tiles,
        across: int,
        rows: Sequence[Steps],
        format: str,
        e: Epilogue,
    ) -> Outcome:
        with self.chip._turn:
            found = cut.multiply(self._run, self.chip.mesh, left, right, across, rows, format, e)
        return _outcome(*found)

    def _static(
        self, w: BlockTiles, shape: tuple[int, int], x: Array, formats: layers.Formats, e: Epilogue
    ) -> Outcome | None:
        if e != Epilogue():
            return None
        with self.chip._turn:
            return _outcome(*cut.static(self._run, self.chip.mesh, w, shape, x, formats))

    def _dense(self, a: Array, b: Array, formats: layers.Formats) -> Outcome | None:
        if len(set(formats)) > 1 or not multicast.pays(a.shape[0], a.shape[1], b.shape[1], formats):
            return None
        with self.chip._turn:
            return _outcome(*cut.dense(self._run, self.chip.mesh, a, b, formats[0]))

    def _pairs(
        self,
        pages: tuple[Tiles, Tiles],
        places: Sequence[tuple[int, int]],
        sums: Sequence[tuple[Array, Array]],
        format: str,
    ) -> Outcome:
        with self.chip._turn:
            return _outcome(*cut.pairs(self._run, self.chip.mesh, pages, places, sums, format))

    # Layers: by rows.

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
        self._take(x.dtype, w.dtype, out.dtype, *operands.given(bias, scale))
        run = super().dots

        def part(s: slice) -> Callable[[], None]:
            mine = found
            if found is not None:
                mine = found._replace(norms=found.norms[s], live=_rows(found.live, s))
            own, factors = _rows(live, s), _rows(scale, s)
            return lambda: run(x[s], w, out[s], own, branch, bias, activation, factors, mine)

        self._each([part(s) for s in self._shares(len(x), TILE)])

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
        self._take(h.dtype, w.dtype, out.dtype, *operands.given(bias))
        run = super().combine

        def part(s: slice) -> Callable[[], None]:
            own = _rows(live, s)
            return lambda: run(h[s], w, out[s], own, branch, bias, add)

        self._each([part(s) for s in self._shares(len(h), TILE)])

    # Attention: by heads that share keys, and members of a batch.

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
        self._take(q.dtype, k.dtype, v.dtype, out.dtype)
        run = super().attention
        each = self._heads(q, k)
        queries, keys, values = _units(q, each), _keys(k, q, each), _keys(v, q, each)
        seen = None if live is None else _units(live, each)
        result = np.zeros((*queries.shape[:-1], v.shape[-1]), out.dtype)

        def part(s: slice) -> Callable[[], None]:
            own = _rows(seen, s)
            return lambda: run(queries[s], keys[s], values[s], result[s], own, scale, causal, blocksize)

        self._each([part(s) for s in self._shares(len(queries))])
        out[...] = result.reshape(out.shape)

    def pooled_scores(self, q: Array, k: Array, out: Array, scale: float, blocksize: int) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        self._take(q.dtype, k.dtype, out.dtype)
        run = super().pooled_scores
        each = self._heads(q, k)
        queries, keys = _units(q, each), _keys(k, q, each)
        result = np.zeros((*queries.shape[:-2], *out.shape[-2:]), out.dtype)

        def part(s: slice) -> Callable[[], None]:
            return lambda: run(queries[s], keys[s], result[s], scale, blocksize)

        self._each([part(s) for s in self._shares(len(queries))])
        out[...] = result.reshape(out.shape)

    def _heads(self, q: Array, k: Array) -> int:
        """Return how many heads stay together: those that share keys, if there are enough such groups."""
        rows, columns = self.chip.mesh
        units = int(np.prod(k.shape[:-2], dtype=int))
        return q.shape[-3] // k.shape[-3] if units >= rows * columns else 1

    # Scans: by channels.

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
        self._take(out.dtype, *operands.given(u, delta, a, b, c, d, z, bias, state))
        run = super().scan

        def part(s: slice) -> Callable[[], None]:
            mine = live
            if live is not None:
                mine = np.ascontiguousarray(live[:, s.start // branch : -(-s.stop // branch)])
            gate, first = None if z is None else z[..., s], None if state is None else state[..., s, :]
            return lambda: run(
                u[..., s],
                delta[..., s],
                a[s],
                b,
                c,
                _rows(d, s),
                gate,
                _rows(bias, s),
                softplus,
                first,
                out[..., s],
                mine,
                branch,
            )

        self._each([part(s) for s in self._shares(u.shape[-1], branch)])

    def gates(self, z: Array, branch: int, norm: str, norms: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        self._take(z.dtype)
        run = super().gates

        def part(s: slice) -> Callable[[], None]:
            mine = norms[:, s.start // branch : -(-s.stop // branch)]
            return lambda: run(z[..., s], branch, norm, mine)

        self._each([part(s) for s in self._shares(z.shape[-1], branch)])


def _outcome(result: Array | None, reports: cut.Reports) -> Outcome:
    return Outcome([] if result is None else [result], None, reports)


def _rows(array: Array | None, s: slice) -> Array | None:
    return None if array is None else array[s]


def _units(array: Array, each: int) -> Array:
    """Return (*batch, heads, ...) as (units, each, ...)."""
    units = int(np.prod(array.shape[:-2], dtype=int)) // each
    return array.reshape(units, each, *array.shape[-2:])


def _keys(array: Array, q: Array, each: int) -> Array:
    """Return keys or values of (*batch, groups, ...) as (units, 1, ...): those of each unit of heads."""
    heads, groups = q.shape[-3], array.shape[-3]
    wanted = np.arange(0, heads, each) * groups // heads
    units = int(np.prod(array.shape[:-3], dtype=int)) * len(wanted)
    return array[..., wanted, :, :].reshape(units, 1, *array.shape[-2:])
