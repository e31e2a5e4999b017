"""The engine: every operation of prunus as programs on a simulated chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from prunus import _layout as lay
from prunus._arrays import from_panels
from prunus._dtypes import BFLOAT16, F16, F32, I8, I32, Array, DType
from prunus._layout import Index
from prunus._trace import spend
from prunus.engines.base import Blocks, Found, pick
from prunus.engines.cpu import CpuEngine
from prunus.tensix.chip import Chip, Mode
from prunus.tensix.errors import UnsupportedError
from prunus.tensix.mapping import (
    attention,
    branches,
    layers,
    multicast,
    operands,
    products,
    recurrence,
    tiles,
)
from prunus.tensix.mapping.job import Outcome, Run
from prunus.tensix.mapping.products import Epilogue, Steps
from prunus.tensix.mapping.tiles import BlockTiles, Tiles
from prunus.tensix.report import Report
from prunus.tensix.spec import ChipSpec

__all__ = ["TensixEngine", "make"]


class TensixEngine:
    """Runs operations on a simulated chip; ``with pr.device("tensix:n150") as engine``.

    Operands are put into the chip's DRAM as tiles of 32 x 32 and results are taken from there, which is no
    part of the cycles. Products take operands as the matrix unit does at the highest fidelity: bfloat16 and
    int8 exactly, float16 with 9 bits behind the point and float32 as tf32 with 9 or 10 (SrcA and SrcB); sums
    are float32, or int32 of int8, which stop at the ends of their range; denormals become 0. What is dead is
    left out tile by tile. Large products go by multicast and add up blocks along the inner dimension: their
    last bits may differ from those of the same rows in a small one.

    With ``mode="timing"`` the chip only takes time: operations return None, but for block-sparse results
    whose pattern is found on the way. What decides (products of a layer's units, pooled scores, gates) is
    then computed on the host, and costs what it costs on the chip.

    Thresholds are compared on the chip. Other policies are decided by the host, from norms or scores that the
    chip found: reports have a round trip for each, "host", by the figures in the chip's ``[host]``; what the
    host itself needs is not in it.

    Parameters
    ----------
    name : str
        The device's name, such as "tensix:n150".
    chip : Chip
        Where programs run.

    Attributes
    ----------
    dtypes : frozenset of dtype
        Of operands and results. There is no float64 on any chip, and no float32 on e150, whose sums are
        bfloat16; there only products of two operands run, and what needs no more.
    """

    _rounding: Final = {F32: 2.0**-8, F16: 2.0**-9, BFLOAT16: 0.0, I8: 0.0, I32: 0.0}

    def __init__(self, name: str, chip: Chip) -> None:
        self.name, self.chip = name, chip
        formats = chip.spec.matrix.formats
        self.dtypes = frozenset(dtype for dtype, format in operands.FORMATS.items() if format in formats)

    @property
    def computes(self) -> bool:
        """Whether results have values: not where the chip only takes time."""
        return self.chip.mode == "full"

    def rounding(self, dtype: DType) -> float:
        """Return the largest relative error of a product of two values of a dtype, before it is summed."""
        self._take(dtype)
        return self._rounding[dtype]

    def report(self) -> Report:
        """Return what the chip's runs took; see :meth:`Chip.report`."""
        return self.chip.report()

    def entered(self) -> None:
        """Begin a new report: a ``with pr.device(...)`` was entered."""
        self.chip.reset_report()

    def __repr__(self) -> str:
        return f"<TensixEngine {self.name!r}>"

    # How programs are run.

    def _take(self, *dtypes: DType) -> None:
        """Refuse dtypes that the chip has no tiles of."""
        for dtype in dtypes:
            if dtype not in self.dtypes:
                raise UnsupportedError(
                    f"unsupported: {self.chip.spec.name} has no {dtype.name}: "
                    f"use {', '.join(sorted(one.name for one in self.dtypes))}"
                )

    @property
    def _run(self) -> Run:
        chip = self.chip
        wide = F32 in self.dtypes
        return Run(chip._idle(), chip.mode == "full", "HiFi4", wide, chip._timeline, chip._turn)

    def _done(self, name: str, outcome: Outcome, flops: float) -> None:
        self._enter(outcome.report, name, flops)

    def _enter(self, found: Mapping[str, Any], name: str, flops: float) -> None:
        """Have the report tell of a run."""
        spend(self.chip._record(found, name=name, flops=flops).cycles)

    # What a mesh of chips does in its own way: products that go over all of them.

    def _multiply(
        self,
        left: Tiles,
        right: Tiles,
        across: int,
        rows: Sequence[Steps],
        format: str,
        e: Epilogue,
    ) -> Outcome:
        return products.multiply(self._run, left, right, across, rows, format, e)

    def _pairs(
        self,
        pages: tuple[Tiles, Tiles],
        places: Sequence[tuple[int, int]],
        sums: Sequence[tuple[Array, Array]],
        format: str,
    ) -> Outcome:
        """Sum products of pages, for each of some tiles of the result, at their rows and columns of tiles."""
        return products.pairs(self._run, *pages, sums, format)

    def _static(
        self, w: BlockTiles, shape: tuple[int, int], x: Array, formats: layers.Formats, e: Epilogue
    ) -> Outcome | None:
        """Multiply by multicast a left operand that has some tiles only; None where that goes by lists."""
        return layers.static(self._run, w, shape, x, formats, e)

    def _dense(self, a: Array, b: Array, formats: layers.Formats) -> Outcome | None:
        """Multiply by multicast; None where that goes by lists."""
        (m, k), n = a.shape, b.shape[1]
        down, _, across = sizes = multicast.sizes_of(m, k, n)
        by = layers.way(self._run, sizes, formats, Epilogue(), down * across)
        plain = len(set(formats)) == 1
        if plain and not (by and by.line) and multicast.pays(m, k, n, formats):
            return multicast.dense(self._run, a, b, formats[0])
        if by is None:
            return None
        left, right = tiles.dense(a, formats[0]), tiles.dense(b, formats[1])
        return layers.multiply(self._run, left, right, formats, Epilogue(), by)

    def _host(self, statistics: int) -> None:
        """Count a round trip: float32 go to the host, which decides, and a bit for each comes back."""
        host, clock = self.chip.spec.host, self.chip.spec.clock_ghz * 1e9
        moved = 4 * statistics + -(-statistics // 8)
        cycles = (host.round_trip_us * 1e-6 + moved / (host.gb_per_s * 1e9)) * clock
        nothing: dict[str, Any] = {name: [] for name in ("cores", "links", "channels", "ethernet")}
        nothing["mesh"] = self.chip.mesh
        found = {"cycles": cycles, "math_cycles": 0.0, "events": 0, "hop_bytes": 0, "fidelity": "HiFi4"}
        self._enter({**found, **nothing}, "host", 0.0)

    def _begin(self, out: Array) -> None:
        """Where the chip only takes time, results are zeros."""
        if not self.computes:
            out[...] = 0

    def hold(self, x: Array, w: DType, out: DType, blocksize: tuple[int, int]) -> Any:
        """See :class:`prunus.engines.base.Engine`: nothing is kept on the chip from call to call."""
        return None

    # Products of blocks.

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
        self._take(w.data.dtype, x.dtype, out.dtype, *operands.given(bias))
        if out.size == 0:
            return
        self._begin(out)
        batch = list(np.ndindex(*out.shape[:-2]))
        clean = not self.computes or tiles.finite(x)
        members = [w.member(at) for at in batch]
        start = np.stack([out[at] for at in batch]) if add else None
        sums = self._dsd(
            members,
            np.stack([x[at] if clean else tiles.cleaned(x[at]) for at in batch]),
            out.shape[-2:],
            out.dtype,
            bias,
            activation,
            start,
        )
        for number, at in enumerate(batch):
            if not clean:
                sums[number] = self._apart(
                    members[number],
                    x[at],
                    sums[number],
                    bias,
                    activation,
                    None if start is None else start[number],
                )
            out[at] = sums[number]

    def _dsd(
        self,
        members: Sequence[Blocks],
        x: Array,
        shape: tuple[int, ...],
        dtype: DType,
        bias: Array | None,
        activation: str | None,
        start: Array | None,
        again: bool = False,
    ) -> Array:
        """Return the products of some operands and x (members, k, n), on the grid of tiles.

        Products that are formed ``again``, for what is not finite, are no useful work.
        """
        m, n = shape
        left, right, result = operands.formats(members[0].data.dtype, x.dtype, dtype)
        depth, down, across = (tiles.ceil_tiles(length) for length in (x.shape[1], m, n))
        parts = [tiles.of_blocks(one) for one in members]
        useful = 2.0 * n * sum(len(one.indices) * np.prod(one.data.shape[-2:]) for one in members)
        useful = 0.0 if again else useful
        e = Epilogue(activation=operands.known(activation, result))
        if bias is not None:
            e.column = tiles.columns_of(operands.like(bias, result), operands.wide(result))
        if start is not None:
            e.add = tiles.dense(start, operands.FORMATS[start.dtype])
        if (
            len(members) == 1
            and multicast.pays(m, x.shape[1], n, (left, right, result))
            and parts[0].distinct
        ):
            found = self._static(parts[0], (m, x.shape[1]), x[0], (left, right, result), e)
            if found is not None:
                self._done("dsd", found, useful)
                return self._crop(found.outputs, 1, m, n, dtype)
        rows, first = [], 0
        for number, part in enumerate(parts):
            ends = np.searchsorted(part.rows, np.arange(down + 1))
            for i in range(down):
                at = np.arange(ends[i], ends[i + 1])
                rows.append(Steps(first + at, number * depth + part.columns[at], bias=i))
            first += len(part.rows)
        values = np.concatenate([part.values for part in parts])
        outcome = self._multiply(tiles.stacked(values, left), tiles.dense(x, right), across, rows, result, e)
        self._done("dsd", outcome, useful)
        return self._crop(outcome.outputs, len(members), m, n, dtype)

    def _crop(self, outputs: list[Array], members: int, m: int, n: int, dtype: DType) -> Array:
        if not outputs:
            return np.zeros((members, m, n), dtype)
        found = outputs[0]
        return found.reshape(members, -1, found.shape[1])[:, :m, :n].copy()

    def _apart(
        self,
        w: Blocks,
        x: Array,
        sums: Array,
        bias: Array | None,
        activation: str | None,
        start: Array | None,
    ) -> Array:
        """Return ``sums`` with what infinities and NaN of x make of it.

        In a tile that several blocks share, an infinity would meet the zeros of absent ones. So each block
        gets tiles of its own, and of that product what is not finite counts.
        """
        br, bc = w.data.shape[-2:][::-1] if w.transposed else w.data.shape[-2:]
        one, spread = tiles.roomy(w), tiles.spread_rows(x, bc)
        shape = one.shape[::-1] if one.transposed else one.shape
        shape = shape[0], x.shape[1]
        plain = self._dsd([one], spread[None], shape, F32, None, None, None, again=True)[0]
        more = None if bias is None else tiles.spread_rows(bias[:, None], br)[:, 0]
        begin = None if start is None else tiles.spread_rows(start, br)[None]
        full = self._dsd([one], spread[None], shape, sums.dtype, more, activation, begin, again=True)[0]
        plain, full = (tiles.close_rows(each, br, len(sums)) for each in (plain, full))
        return np.where(np.isfinite(plain), sums, full)

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """See :class:`prunus.engines.base.Engine`."""
        self._take(a.data.dtype, b.data.dtype, dtype)
        clean = not self.computes or (tiles.finite(a.values) and tiles.finite(b.values))
        result = self._ssd(a, b, dtype, not clean)
        if not clean:
            apart = self._ssd(tiles.roomy(a), tiles.roomy(b), dtype, False, again=True)
            (br, bc), (m, n) = result[0].shape[1:], (operands.extent(a, 0), operands.extent(b, 1))
            data, (_, indices, indptr) = apart[0][:, :br, :bc], result
            # Past the edge there are zeros, which an infinity in the same row would make NaN.
            rows = (lay.block_rows(indptr)[:, None] * br + np.arange(br))[:, :, None] < m
            cols = (np.asarray(indices)[:, None] * bc + np.arange(bc))[:, None, :] < n
            result = (np.where(np.isfinite(data) | ~(rows & cols), result[0], data), indices, indptr)
        return result

    def _ssd(
        self, a: Blocks, b: Blocks, dtype: DType, clean: bool, again: bool = False
    ) -> tuple[Array, Index, Index]:
        left, right = tiles.of_blocks(a, clean), tiles.of_blocks(b, clean)
        formats = operands.formats(a.data.dtype, b.data.dtype, dtype)
        (m, _), (_, n) = (one.shape[::-1] if one.transposed else one.shape for one in (a, b))
        wanted: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        ends = np.searchsorted(right.rows, np.arange(right.rows.max(initial=-1) + 2))
        for page, (i, inner) in enumerate(zip(left.rows.tolist(), left.columns.tolist(), strict=True)):
            if inner + 1 < len(ends):
                for other in range(ends[inner], ends[inner + 1]):
                    lists = wanted.setdefault((i, int(right.columns[other])), ([], []))
                    lists[0].append(page)
                    lists[1].append(other)
        order = sorted(wanted)
        indices, indptr = operands.pattern(a, b)
        br = a.data.shape[2 if a.transposed else 1]
        bc = b.data.shape[1 if b.transposed else 2]
        found = np.zeros((0, tiles.TILE, tiles.TILE), dtype)
        if order:
            sums = [(np.array(wanted[at][0]), np.array(wanted[at][1])) for at in order]
            both = tiles.stacked(left.values, formats[0]), tiles.stacked(right.values, formats[1])
            outcome = self._pairs(both, order, sums, formats[2])
            self._done("ssd", outcome, 0.0 if again else operands.useful(a, b))
            if outcome.outputs:
                found = outcome.outputs[0].reshape(-1, tiles.TILE, tiles.TILE)
            else:
                found = np.zeros((len(order), tiles.TILE, tiles.TILE), dtype)
        data = tiles.blocks_from(order, found, (indices, indptr), (br, bc), (m, n), dtype)
        return data, indices, indptr

    def ssd_at(self, a: Blocks, b: Blocks, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`: the chip computes the whole product."""
        pick(self.ssd(a, b, out.dtype), indices, indptr, out)

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        self._take(a.dtype, b.dtype, out.dtype)
        formats = operands.formats(a.dtype, b.dtype, out.dtype)
        (m, k), n = a.shape[-2:], b.shape[-1]
        down, depth, across = (tiles.ceil_tiles(length) for length in (m, k, n))
        every = Blocks(out, indices, indptr, (m, n), False)
        batch = list(np.ndindex(*a.shape[:-2]))
        if not out.size:
            return
        self._begin(out)
        if not down * across:
            out[...] = 0
            return
        rows, members = [], [every.member(at) for at in batch]
        for number, one in enumerate(members):
            wanted = tiles.touched(one, (down, across))
            for i in range(down):
                inner = np.arange(depth)
                left = (number * down + i) * depth + inner
                rows.append(Steps(left, number * depth + inner, np.flatnonzero(wanted[i])))
        outcome = self._multiply(
            tiles.dense(a, formats[0]),
            tiles.dense(b, formats[1]),
            across,
            rows,
            formats[2],
            Epilogue(),
        )
        useful = 2.0 * k * sum(len(one.indices) * np.prod(one.data.shape[-2:]) for one in members)
        self._done("sdd", outcome, useful)
        result = self._crop(outcome.outputs, len(batch), m, n, out.dtype)
        for number, one in enumerate(members):
            br, bc = one.data.shape[1:]
            places = zip(one.values, lay.block_rows(one.indptr), one.indices, strict=True)
            for target, i, j in places:
                part = result[number, i * br : (i + 1) * br, j * bc : (j + 1) * bc]
                target[...] = 0  # past the edge too
                target[: part.shape[0], : part.shape[1]] = part

    def dense(self, a: Array, b: Array, out: Array) -> None:
        """Write the product of (*batch, m, k) and (*batch, k, n) to ``out``."""
        self._take(a.dtype, b.dtype, out.dtype)
        if not out.size:
            return
        self._begin(out)
        formats = operands.formats(a.dtype, b.dtype, out.dtype)
        (m, k), n = a.shape[-2:], b.shape[-1]
        down, depth, across = (tiles.ceil_tiles(length) for length in (m, k, n))
        members, steps = int(np.prod(out.shape[:-2], dtype=int)), np.arange(depth)
        if members == 1:
            found = self._dense(a.reshape(m, k), b.reshape(k, n), formats)
            if found is not None:
                self._done("matmul", found, 2.0 * out.size * k)
                out[...] = self._crop(found.outputs, 1, m, n, out.dtype).reshape(out.shape)
                return
        rows = [
            Steps((member * down + i) * depth + steps, member * depth + steps)
            for member in range(members)
            for i in range(down)
        ]
        left, right = tiles.dense(a, formats[0]), tiles.dense(b, formats[1])
        outcome = self._multiply(left, right, across, rows, formats[2], Epilogue())
        self._done("matmul", outcome, 2.0 * out.size * k)
        if outcome.outputs:
            out[...] = self._crop(outcome.outputs, members, m, n, out.dtype).reshape(out.shape)

    # Layers.

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
        if not self.computes:
            # What decides which branches live comes from the host then; see the class.
            CpuEngine().dots(x, w, out, live, branch, bias, activation, scale, found)
        layer = branches.Layer(self._run, operands.formats(x.dtype, w.dtype, out.dtype))
        useful = 2.0 * branches.units_of(live, branch, out.shape) * x.shape[1]
        activation = operands.known(activation, layer.formats[2])
        for outcome in layer.dots(x, w, out, live, branch, bias, activation, scale, found):
            self._done("dots", outcome, useful)
            # What follows finds norms.
            useful = 0.0
        if found is not None and found.live is None:
            self._host(found.norms.size)

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
        self._begin(out)
        w = from_panels(w, out.shape[1])
        layer = branches.Layer(self._run, operands.formats(h.dtype, w.dtype, out.dtype))
        useful = 2.0 * branches.units_of(live, branch, h.shape) * out.shape[1]
        for outcome in layer.combine(h, w, out, live, branch, bias, add):
            self._done("combine", outcome, useful)
            # What follows is done again, for what is not finite.
            useful = 0.0

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
        h = np.empty((len(x), len(up)), F32)
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
        self._take(q.dtype, k.dtype, v.dtype, out.dtype)
        self._begin(out)
        for outcome, flops in attention.attend(self._run, q, k, v, out, live, scale, causal, blocksize):
            self._done("attention", outcome, flops)

    def pooled_scores(self, q: Array, k: Array, out: Array, scale: float, blocksize: int) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        self._take(q.dtype, k.dtype, out.dtype)
        if not self.computes:
            CpuEngine().pooled_scores(q, k, out, scale, blocksize)
        for outcome, flops in attention.pool(self._run, q, k, out, scale, blocksize):
            self._done("pooled_scores", outcome, flops)
        self._host(out.size)

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
        self._begin(out)
        scan = recurrence.Scan(u, delta, a, b, c, d, z, bias, softplus, state, out, live, branch)
        useful = 6.0 * out.size * a.shape[-1]
        for outcome in recurrence.run(self._run, scan):
            self._done("scan", outcome, useful)
            # All of it is counted with the first states.
            useful = 0.0

    def gates(self, z: Array, branch: int, norm: str, norms: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        self._take(z.dtype)
        if not self.computes:
            CpuEngine().gates(z, branch, norm, norms)
        useful = float(z.size)
        for outcome in branches.gates(self._run, z, branch, norm, norms):
            self._done("gates", outcome, useful)
            useful = 0.0
        if norms.size:
            self._host(norms.size)


def make(name: str, mode: Mode = "full", mesh: tuple[int, int] | None = None) -> TensixEngine:
    """Return an engine for "tensix:" and the name of a chip, or the path of its description.

    With ``mesh`` it has so many rows and columns of chips; see :class:`prunus.tensix.meshes.MeshEngine`.

    Raises
    ------
    SpecError
        If there is no such chip.
    UnsupportedError
        If its board has no links for such a mesh.
    """
    from prunus.tensix.meshes import MeshEngine

    chip = name.partition(":")[2]
    spec = ChipSpec.load(chip) if chip.endswith(".toml") else ChipSpec.named(chip)
    made = Chip(spec, mode, mesh=mesh)
    return TensixEngine(name, made) if made.mesh == (1, 1) else MeshEngine(name, made)
