"""Layers whose dead branches are left out: products with chosen units, and norms of branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prunus import _core
from prunus._dtypes import F32, Array
from prunus.engines.base import Found
from prunus.tensix.mapping import job as jobs
from prunus.tensix.mapping import layers, multicast, tiles
from prunus.tensix.mapping.job import CHUNK, Job, Outcome, Run, in_turn, reach_of
from prunus.tensix.mapping.products import Epilogue, Steps, multiply

__all__ = ["Layer", "gates", "units_of"]


def _units(live: Array | None, branch: int, shape: tuple[int, int]) -> Array | None:
    """Return the liveness of every unit from that of branches; None where all are live."""
    if live is None or live.all():
        return None
    each: Array = np.repeat(live, branch, axis=1)[:, : shape[1]]
    return each


def units_of(live: Array | None, branch: int, shape: tuple[int, ...]) -> float:
    """Return how many units of ``shape`` (rows, units) are live; the last branch may be a short one."""
    rows, units = shape
    if live is None:
        return float(rows * units)
    each = np.minimum(branch, units - branch * np.arange(live.shape[1]))
    return float((live @ each).sum())


def _kept(live: Array) -> Array:
    """Return the lines whose tiles hold something live."""
    wide = live.copy()
    for first in range(0, len(live), tiles.TILE):
        wide[first : first + tiles.TILE] = live[first : first + tiles.TILE].any()
    return np.flatnonzero(wide)


def _by_tiles(each: Array) -> Array:
    """Return which tiles hold something live."""
    rows, cols = (tiles.ceil_tiles(length) for length in each.shape)
    padded = np.zeros((rows * tiles.TILE, cols * tiles.TILE), bool)
    padded[: each.shape[0], : each.shape[1]] = each
    some: Array = padded.reshape(rows, tiles.TILE, cols, tiles.TILE).max(axis=(1, 3), initial=False)
    return some


def _write(found: Found, outcome: Outcome, rows: int, columns: int) -> None:
    """Write norms, and which are live, from the pages that the chip wrote."""
    if outcome.norms is None:
        return
    _write_norms(found.norms, outcome.norms, found.branch, rows, columns)
    _decide(found)


def _decide(found: Found) -> None:
    if found.live is not None:
        found.live[...] = ~(found.norms <= np.float64(found.tau))


def _write_norms(norms: Array, pages: Array, branch: int, rows: int, columns: int) -> None:
    wide = _core.tensix_norms(branch, columns)[0]
    across = -(-tiles.ceil_tiles(columns) // wide)
    each = -(-min(wide * tiles.TILE, columns) // branch)
    count = norms.shape[1]
    down = tiles.ceil_tiles(rows)
    words = pages[:, : each * tiles.TILE].reshape(down, across, tiles.TILE, each)
    whole = words.transpose(0, 2, 1, 3).reshape(down * tiles.TILE, across * each)
    norms[...] = whole[:rows, :count]


# Share of live tiles up to which leaving dead ones out pays against a product of all of them: on n150 and
# p150 both take the same at 0.9 to 1.
_SPARSE = 0.8
# Values of copies with infinities and NaN that are made at a time.
_TOGETHER = 1 << 24


@dataclass(frozen=True)
class Layer:
    """Products of rows with chosen units, on a chip."""

    run: Run
    formats: tuple[str, str, str]

    def dots(
        self,
        x: Array,
        w: Array,
        out: Array,
        live: Array | None,
        branch: int,
        bias: Array | None,
        activation: str | None,
        scale: Array | None,
        found: Found | None,
    ) -> Iterator[Outcome]:
        """Write what :meth:`prunus.engines.base.Engine.dots` says; yield what ran."""
        if not out.size:
            if found is not None and found.norms.size and self.run.values:
                found.norms[...] = 0
                _decide(found)
            return
        each = _units(live, branch, out.shape)
        if each is None or found is not None:
            yield from self._dots(x, w, out, each, bias, activation, scale, found)
            return
        # Rows and columns of tiles of which nothing is wanted have no part in the product.
        kept, some = (_kept(each.max(axis=axis, initial=False)) for axis in (1, 0))
        part: Array = np.zeros((len(kept), len(some)), out.dtype)
        if part.size:
            at = np.ix_(kept, some)
            yield from self._dots(
                x[kept],
                w[some],
                part,
                each[at],
                None if bias is None else bias[some],
                activation,
                None if scale is None else scale[at],
                found,
            )
        if self.run.values:
            out[...] = 0
            out[np.ix_(kept, some)] = part

    def _dots(
        self,
        x: Array,
        w: Array,
        out: Array,
        each: Array | None,
        bias: Array | None,
        activation: str | None,
        scale: Array | None,
        found: Found | None,
    ) -> Iterator[Outcome]:
        (rows, depth), units = x.shape, len(w)
        down, inner, across = (tiles.ceil_tiles(length) for length in (rows, depth, units))
        wanted, wide = np.ones((down, across), bool), None
        e = Epilogue(activation=activation, extent=(rows, units))
        if each is not None:
            wanted = _by_tiles(each)
            # Units that nobody needs are not read, tile by tile; within a tile of others they hold zeros.
            if self.run.values:
                w = np.where(each.max(axis=0, initial=False)[:, None], w, w.dtype.type(0))
            e.mask = tiles.dense(each.astype(F32), "bfloat16")
        if bias is not None:
            e.row = tiles.rows_of(bias.astype(F32), "float32")
        if scale is not None:
            e.scale = tiles.dense(scale.astype(F32), "float32")
        if found is not None and found.norms.size:
            tau = None if found.live is None else found.tau
            known = None if self.run.values or found.live is None else np.ascontiguousarray(found.live)
            wanted_norms = jobs.Found(found.branch, found.norm == "l2", tau, known)
            if reach_of(found.branch, units):
                e.found = wanted_norms
            else:
                wide = wanted_norms
        left, right = tiles.dense(x, self.formats[0]), tiles.dense(w.T, self.formats[1])
        by = layers.way(self.run, (down, inner, across), self.formats, e, float(wanted.sum()))
        if by is not None:
            outcome = layers.multiply(self.run, left, right, self.formats, e, by)
        else:
            steps = np.arange(inner)
            lists = [Steps(i * inner + steps, steps, np.flatnonzero(wanted[i])) for i in range(down)]
            outcome = multiply(self.run, left, right, across, lists, self.formats[2], e)
        if outcome.outputs:
            out[...] = outcome.outputs[0][:rows, :units]
        if e.found is not None and found is not None:
            _write(found, outcome, rows, units)
        yield outcome
        if wide is not None and found is not None:
            outcome, norms = jobs.wide_norms(self.run, out, self.formats[2], wide)
            if outcome.outputs:
                out[...] = outcome.outputs[0][:rows, :units]
                found.norms[...] = norms
                _decide(found)
            yield outcome

    def combine(
        self,
        h: Array,
        w: Array,
        out: Array,
        live: Array | None,
        branch: int,
        bias: Array | None,
        add: bool,
    ) -> Iterator[Outcome]:
        """Write what :meth:`prunus.engines.base.Engine.combine` says; yield what ran."""
        if not out.size:
            return
        each = _units(live, branch, h.shape)
        start = out.copy() if add else None
        clean = w
        if each is not None and self.run.values:
            h = np.where(each, h, h.dtype.type(0))
            w = np.where(each.max(axis=0, initial=False)[:, None], w, w.dtype.type(0))
            clean = w
            if not tiles.finite(w):
                # An infinity of a unit that is live for one row would meet the zeros of others.
                clean = tiles.cleaned(w)
        yield self._combine(h, clean, out, each, bias, start)
        if each is None or clean is w:
            return
        wrong = np.flatnonzero(~np.isfinite(w).all(axis=1))
        needs = np.flatnonzero(each[:, wrong].max(axis=1, initial=False))
        # Rows for which the same of these units are live can share tiles.
        patterns, group = np.unique(each[np.ix_(needs, wrong)], axis=0, return_inverse=True)
        group = group.reshape(-1)
        each_copy = len(np.unique(wrong // tiles.TILE)) * tiles.TILE * w.shape[1]
        together = max(1, _TOGETHER // each_copy)
        for first in range(0, len(patterns), together):
            parts = [
                (needs[group == number], wrong[patterns[number]])
                for number in range(first, min(first + together, len(patterns)))
            ]
            yield self._apart(h, w, clean, out, each, parts, bias, start)

    def _apart(
        self,
        h: Array,
        w: Array,
        clean: Array,
        out: Array,
        each: Array,
        parts: list[tuple[Array, Array]],
        bias: Array | None,
        start: Array | None,
    ) -> Outcome:
        """Sum rows again for which units with infinities or NaN are live.

        ``parts`` are rows, and those of the units that are live for all of them. For a part, tiles of ``w``
        with such units hold them and no others that are not finite. Of the results, what is not finite
        counts.
        """
        (units, columns), tile = w.shape, tiles.TILE
        inner, across = tiles.ceil_tiles(units), tiles.ceil_tiles(columns)
        right = [np.pad(clean, ((0, inner * tile - units), (0, 0)))]
        left, begin, count = [], [], inner
        lists: list[Steps] = []
        for rows, own in parts:
            page = np.arange(inner)
            for place in np.unique(own // tile):
                here = own[own // tile == place]
                changed = right[0][place * tile : (place + 1) * tile].copy()
                changed[here - place * tile] = w[here]
                right.append(changed)
                page[place], count = count, count + 1
            for first in range(0, len(rows), tile):
                some = rows[first : first + tile]
                steps = np.flatnonzero(_by_tiles(each[some]))
                lists.append(Steps(len(lists) * inner + steps, page[steps]))
                padding = ((0, tile - len(some)), (0, 0))
                left.append(np.pad(h[some], padding))
                begin.append(None if start is None else np.pad(start[some], padding))
        e = self._sums(
            bias, None if start is None else np.concatenate([one for one in begin if one is not None])
        )
        formats = self.formats
        operands = (
            tiles.dense(np.concatenate(left), formats[0]),
            tiles.dense(np.concatenate(right), formats[1]),
        )
        outcome = multiply(self.run, *operands, across, lists, formats[2], e)
        if outcome.outputs:
            at = 0
            for rows, _ in parts:
                alone = outcome.outputs[0][at : at + len(rows), :columns]
                out[rows] = np.where(np.isfinite(alone), out[rows], alone)
                at += tiles.ceil_tiles(len(rows)) * tile
        return outcome

    def _sums(self, bias: Array | None, start: Array | None) -> Epilogue:
        """Return what sums begin with, and what is added to them."""
        e = Epilogue()
        if bias is not None:
            e.row = tiles.rows_of(bias.astype(F32), "float32")
        if start is not None:
            e.add = tiles.dense(start, "float32" if start.dtype == F32 else start.dtype.name)
        return e

    def _combine(
        self, h: Array, w: Array, out: Array, each: Array | None, bias: Array | None, start: Array | None
    ) -> Outcome:
        (rows, units), columns = h.shape, w.shape[1]
        down, inner, across = (tiles.ceil_tiles(length) for length in (rows, units, columns))
        wanted = np.ones((down, inner), bool) if each is None else _by_tiles(each)
        e = self._sums(bias, start)
        share = float(wanted.mean()) if wanted.size else 1.0
        left, right = tiles.dense(h, self.formats[0]), tiles.dense(w, self.formats[1])
        by = layers.way(self.run, (down, inner, across), self.formats, e, down * across * share)
        if share <= _SPARSE and multicast.pays(rows, units, columns, self.formats[:2]):
            outcome = layers.pruned(self.run, h, w, wanted, self.formats, e)
        elif by is not None:
            outcome = layers.multiply(self.run, left, right, self.formats, e, by)
        else:
            lists = []
            for i in range(down):
                steps = np.flatnonzero(wanted[i])
                lists.append(Steps(i * inner + steps, steps))
            outcome = multiply(self.run, left, right, across, lists, self.formats[2], e)
        if outcome.outputs:
            out[...] = outcome.outputs[0][:rows, :columns]
        return outcome


_IN, _OUT, _NORMS = 0, 16, 17


def gates(run: Run, z: Array, branch: int, norm: str, norms: Array) -> Iterator[Outcome]:
    """Write norms of ``silu(z)`` and yield what ran; see :meth:`prunus.engines.base.Engine.gates`."""
    columns = z.shape[-1]
    rows = norms.shape[0]
    if not norms.size:
        return
    found = jobs.Found(branch, norm == "l2", None)
    outcome = _gates(run, z.reshape(rows, columns), found)
    if outcome.norms is not None:
        _write_norms(norms, outcome.norms, branch, rows, columns)
    yield outcome
    if not reach_of(branch, columns):
        values = outcome.outputs[0][:rows, :columns] if outcome.outputs else np.zeros((rows, columns), F32)
        outcome, words = jobs.wide_norms(run, values, "float32", found)
        if outcome.outputs:
            norms[...] = words
        yield outcome


@in_turn
def _gates(run: Run, values: Array, found: jobs.Found) -> Outcome:
    """Compute ``silu`` of values, and norms of those branches that a core holds."""
    rows, columns = values.shape
    down, across = tiles.ceil_tiles(rows), tiles.ceil_tiles(columns)
    reach = reach_of(found.branch, columns)
    wide = reach or min(across, CHUNK)
    job = Job(run)
    k = job.k
    source = job.input(_IN, tiles.dense(values, values.dtype.name))
    out = job.output(_OUT, "float32", (down, across), max(2 * CHUNK, wide + 1))
    job.last = [
        k.cb_wait_front(_IN, 1),
        k.tile_regs_acquire(),
        k.copy_tile(_IN, 0, 0),
        k.silu_tile(0),
        k.tile_regs_commit(),
        k.cb_pop_front(_IN, 1),
        k.cb_reserve_back(_OUT, 1),
        k.tile_regs_wait(),
        k.pack_tile(0, _OUT, 0),
        k.tile_regs_release(),
        k.cb_push_back(_OUT, 1),
    ]
    for i in range(down):
        for first in range(0, across, wide):
            pages = i * across + np.arange(first, min(first + wide, across))
            count = len(pages)
            job.piece(([source] * count, pages), ([out] * count, pages), 0, count)
    return job.run((found, rows, columns, _NORMS) if reach else None)
