"""Products cut over a mesh of chips.

Rows of the result go to rows of chips, its columns to columns of chips. Each operand lies once in the mesh:
what a row of chips needs of the left operand is dealt to its chips in ranges of pages, what a column of
chips needs of the right one to the chips of the column. Before the product they send each other their parts
(`programs::gather`), then each multiplies as a chip alone does; it shares nothing with others then, so
chips run one after the other, and the longest time counts. The result stays where it is computed, and goes
to the host from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus import _core
from prunus._dtypes import Array
from prunus._threads import get_num_threads
from prunus.tensix.buffers import HOST, tile_bytes
from prunus.tensix.mapping import layers, multicast, products, tiles
from prunus.tensix.mapping.job import Outcome, Run, in_turn
from prunus.tensix.mapping.products import Epilogue, Steps
from prunus.tensix.mapping.tiles import BlockTiles, Tiles
from prunus.tensix.mesh import ChipAt, Mesh, every, shares

__all__ = ["Reports", "dense", "multiply", "pairs", "static"]


@dataclass(frozen=True)
class Reports:
    """What chips used: while operands went to those that need them, and each for its part of the product."""

    gather: dict[str, Any]
    each: list[dict[str, Any]]


@dataclass(frozen=True)
class _Part:
    """An operand as a chip is to have it, and what it has of it at first."""

    tiles: Tiles
    own: Array
    #: Padding, which lies on every chip.
    common: Array


_NONE: Array = np.zeros(0, np.int64)


@in_turn
def _gather(run: Run, chips: Sequence[ChipAt], lines: Sequence[tuple[bool, list[_Part]]]) -> Any:
    """Make operands whole on all chips; return their tiles there, and what that took."""
    made: dict[int, Array] = {}

    def pages(whole: Tiles) -> Array:
        if id(whole) not in made:
            data = np.frombuffer(whole.make(), np.uint8)
            made[id(whole)] = data.reshape(whole.count, tile_bytes(whole.format))
        return made[id(whole)]

    given = []
    try:
        for along_rows, parts in lines:
            each = tile_bytes(parts[0].tiles.format)
            buffers = []
            for at, part in zip(chips, parts, strict=True):
                run.chip.stand_on(at)
                buffer = run.chip.buffer(each, max(1, part.tiles.count), None)
                if run.values and part.tiles.count:
                    here = np.concatenate([part.own, part.common]).astype(np.int64)
                    run.chip.write_pages(buffer, here.tolist(), pages(part.tiles)[here].tobytes())
                buffers.append((buffer, part.own.tolist()))
            given.append((along_rows, each, buffers))
    finally:
        run.chip.stand_on((0, 0))
    report = _core.tensix_gather(run.chip, given, run.timeline, get_num_threads())
    found = []
    for (_, parts), (_, _, buffers) in zip(lines, given, strict=True):
        whole = []
        for part, (buffer, _) in zip(parts, buffers, strict=True):
            data = run.chip.read_buffer(buffer) if run.values and part.tiles.count else b""
            whole.append(Tiles(part.tiles.format, part.tiles.count, _constant(data)))
        found.append(whole)
    return found, report


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _on(run: Run, at: ChipAt, work: Callable[[], Outcome]) -> Outcome:
    """Do something on one chip."""
    run.chip.stand_on(at)
    try:
        return work()
    finally:
        run.chip.stand_on((0, 0))


def _some(whole: Tiles | None, pages: Array) -> Tiles | None:
    """Return some pages of tiles, in this order."""
    if whole is None:
        return None
    size = tile_bytes(whole.format)

    def make() -> bytes:
        data = np.frombuffer(whole.make(), np.uint8).reshape(whole.count, size)
        return data[pages].tobytes()

    return Tiles(whole.format, len(pages), make)


def _must(whole: Tiles | None) -> Tiles:
    assert whole is not None
    return whole


def multiply(
    run: Run,
    mesh: Mesh,
    left: Tiles,
    right: Tiles,
    across: int,
    rows: Sequence[Steps],
    format: str,
    e: Epilogue,
) -> tuple[Array | None, Reports]:
    """Multiply tiles by lists, as :func:`products.multiply` does on one chip.

    Returns
    -------
    ndarray or None
        The result with its padding; None without values.
    Reports
        What it took.
    """
    down, over = shares(len(rows), mesh[0]), shares(across, mesh[1])
    none: Array = np.zeros(0, np.int64)
    need_left = [np.unique(np.concatenate([none, *(row.left for row in rows[part])])) for part in down]
    need_right = np.unique(np.concatenate([none, *(row.right for row in rows)]))
    lefts = [_must(_some(left, need)) for need in need_left]
    rights = []
    for part in over:
        wanted_columns = np.arange(part.start, part.stop)
        rights.append(_must(_some(right, (need_right[:, None] * across + wanted_columns).reshape(-1))))
    chips = every(mesh)
    left_parts, right_parts = [], []
    for r, c in chips:
        own = shares(lefts[r].count, mesh[1])[c]
        left_parts.append(_Part(lefts[r], np.arange(own.start, own.stop), _NONE))
        wide = over[c].stop - over[c].start
        own = shares(len(need_right), mesh[0])[r]
        right_parts.append(_Part(rights[c], np.arange(own.start * wide, own.stop * wide), _NONE))
    (left_whole, right_whole), gathered = _gather(run, chips, [(True, left_parts), (False, right_parts)])
    result = np.zeros((len(rows) * tiles.TILE, across * tiles.TILE), HOST[format]) if run.values else None
    reports = []
    for number, (r, c) in enumerate(chips):
        mine_rows, columns = rows[down[r]], over[c]
        wide = columns.stop - columns.start
        if not mine_rows or not wide:
            continue
        steps = []
        for row in mine_rows:
            wanted = None
            if row.columns is not None:
                wanted = row.columns[(row.columns >= columns.start) & (row.columns < columns.stop)]
                wanted = wanted - columns.start
            at = np.searchsorted(need_left[r], row.left), np.searchsorted(need_right, row.right)
            steps.append(Steps(*at, wanted, row.bias))
        own_pages = np.arange(down[r].start, down[r].stop)[:, None] * across
        own_pages = (own_pages + np.arange(columns.start, columns.stop)).reshape(-1)
        mine = Epilogue(
            add=_some(e.add, own_pages),
            row=_some(e.row, np.arange(columns.start, columns.stop)),
            column=e.column,
            activation=e.activation,
            factor=e.factor,
            scale=_some(e.scale, own_pages),
            mask=_some(e.mask, own_pages),
        )

        def work(
            number: int = number, wide: int = wide, steps: list[Steps] = steps, mine: Epilogue = mine
        ) -> Outcome:
            a, b = left_whole[number], right_whole[number]
            return products.multiply(run, a, b, wide, steps, format, mine)

        outcome = _on(run, (r, c), work)
        reports.append(outcome.report)
        if result is not None:
            _place(result, outcome.outputs[0], down[r].start, columns.start)
    return result, Reports(gathered, reports)


def pairs(
    run: Run,
    mesh: Mesh,
    pages: tuple[Tiles, Tiles],
    places: Sequence[tuple[int, int]],
    sums: Sequence[tuple[Array, Array]],
    format: str,
) -> tuple[Array | None, Reports]:
    """Sum products of pages, as :func:`products.pairs` does, for tiles at ``places`` of the result."""
    left, right = pages
    at = np.array(places)
    extent = at.max(axis=0) + 1
    cuts = [np.array([part.stop for part in shares(int(extent[i]), mesh[i])]) for i in (0, 1)]
    owner = [np.searchsorted(cuts[i], at[:, i], side="right") for i in (0, 1)]

    def needed(which: int, line: int) -> Array:
        lists = [sums[number][which] for number in np.flatnonzero(owner[which] == line).tolist()]
        return np.unique(np.concatenate([_NONE, *lists]))

    needs = [[needed(which, line) for line in range(mesh[which])] for which in (0, 1)]
    lefts = [_must(_some(left, need)) for need in needs[0]]
    rights = [_must(_some(right, need)) for need in needs[1]]
    chips = every(mesh)
    parts: tuple[list[_Part], list[_Part]] = ([], [])
    for r, c in chips:
        for part, whole, among, which in (
            (parts[0], lefts[r], mesh[1], c),
            (parts[1], rights[c], mesh[0], r),
        ):
            own = shares(whole.count, among)[which]
            part.append(_Part(whole, np.arange(own.start, own.stop), _NONE))
    (left_whole, right_whole), gathered = _gather(run, chips, [(True, parts[0]), (False, parts[1])])
    result = np.zeros((len(sums) * tiles.TILE, tiles.TILE), HOST[format]) if run.values else None
    reports = []
    for number, (r, c) in enumerate(chips):
        mine = np.flatnonzero((owner[0] == r) & (owner[1] == c)).tolist()
        if not mine:
            continue
        own_sums = [
            (np.searchsorted(needs[0][r], sums[i][0]), np.searchsorted(needs[1][c], sums[i][1])) for i in mine
        ]

        def work(number: int = number, own_sums: list[tuple[Array, Array]] = own_sums) -> Outcome:
            return products.pairs(run, left_whole[number], right_whole[number], own_sums, format)

        outcome = _on(run, (r, c), work)
        reports.append(outcome.report)
        if result is not None:
            found = outcome.outputs[0].reshape(-1, tiles.TILE, tiles.TILE)
            result.reshape(-1, tiles.TILE, tiles.TILE)[mine] = found
    return result, Reports(gathered, reports)


def _place(result: Array, part: Array, row: int, column: int) -> None:
    """Write what a chip computed to its place, given in tiles; what lies past the result is padding."""
    target = result[row * tiles.TILE :, column * tiles.TILE :][: part.shape[0], : part.shape[1]]
    target[...] = part[: target.shape[0], : target.shape[1]]


def _equal(length: int, parts: int) -> list[slice]:
    """Return ranges of equal numbers of tiles, that end with the length."""
    each = -(-tiles.ceil_tiles(length) // parts) * tiles.TILE
    return [slice(min(length, part * each), min(length, (part + 1) * each)) for part in range(parts)]


def _rights(
    b: Array, mesh: Mesh, format: str, sizes: tuple[int, int], layout: tuple[int, int]
) -> list[_Part]:
    """Return the right operand's parts: columns by columns of chips, blocks of K by rows of chips.

    ``sizes`` are tiles along K and across a chip's part, ``layout`` the same with padding.
    """
    (inner, across), (down, wide) = sizes, layout
    pages = np.arange(down * wide).reshape(down, wide)
    real = pages[:inner, :across]
    padding = np.setdiff1d(pages, real)
    parts = [tiles.dense(b[:, columns], format, wide, down) for columns in _equal(b.shape[1], mesh[1])]
    return [_Part(parts[c], real[shares(inner, mesh[0])[r]].reshape(-1), padding) for r, c in every(mesh)]


def _products(
    run: Run,
    mesh: Mesh,
    sizes: tuple[int, int, int],
    layout: tuple[int, int, int],
    formats: layers.Formats,
    parts: tuple[list[_Part], list[_Part]],
    live: Sequence[tuple[list[int], list[int]]] | None,
) -> tuple[Array | None, Reports]:
    """Make operands whole, and multiply on each chip by multicast."""
    chips = every(mesh)
    (left, right), gathered = _gather(run, chips, [(True, parts[0]), (False, parts[1])])
    rows, _, columns = layout
    whole = (sizes[0] * mesh[0] * tiles.TILE, sizes[2] * mesh[1] * tiles.TILE)
    result = np.zeros(whole, HOST[formats[2]]) if run.values else None
    reports = []
    for number, (r, c) in enumerate(chips):

        def work(number: int = number, r: int = r) -> Outcome:
            operands = left[number], right[number]
            if live is None:
                return multicast.multiply(run, sizes, operands, formats[0], (rows, columns))
            return layers.sparse(run, sizes, layout, live[r], None, operands, formats, Epilogue())

        outcome = _on(run, (r, c), work)
        reports.append(outcome.report)
        if result is not None:
            part = outcome.outputs[0][: sizes[0] * tiles.TILE, : sizes[2] * tiles.TILE]
            _place(result, part, r * sizes[0], c * sizes[2])
    return result, Reports(gathered, reports)


def _sizes(mesh: Mesh, m: int, k: int, n: int) -> tuple[int, int, int]:
    """Return the tiles of a chip's part: all have as many, edges are padded."""
    down, inner, across = (tiles.ceil_tiles(length) for length in (m, k, n))
    return -(-down // mesh[0]), inner, -(-across // mesh[1])


def dense(run: Run, mesh: Mesh, a: Array, b: Array, format: str) -> tuple[Array | None, Reports]:
    """Multiply (m, k) and (k, n), all of one format, by multicast on each chip."""
    sizes = _sizes(mesh, a.shape[0], a.shape[1], b.shape[1])
    layout = _core.tensix_covered(run.chip, sizes, format, run.wide)
    rows, inner, columns = layout
    pages = np.arange(rows * inner).reshape(rows, inner)
    real = pages[: sizes[0], : sizes[1]]
    padding = np.setdiff1d(pages, real)
    lefts = [tiles.dense(a[part], format, inner, rows) for part in _equal(a.shape[0], mesh[0])]
    left = [
        _Part(lefts[r], real[:, shares(sizes[1], mesh[1])[c]].reshape(-1), padding) for r, c in every(mesh)
    ]
    right = _rights(b, mesh, format, sizes[1:], (inner, columns))
    return _products(run, mesh, sizes, layout, (format,) * 3, (left, right), None)


def static(
    run: Run, mesh: Mesh, w: BlockTiles, shape: tuple[int, int], x: Array, formats: layers.Formats
) -> tuple[Array | None, Reports]:
    """Multiply a left operand of (m, k) that has some tiles only, each once, by (k, n), by multicast."""
    sizes = _sizes(mesh, *shape, x.shape[1])
    layout = layers.covered(run, sizes, False, formats, Epilogue())
    lefts, live = [], []
    blocks = [shares(sizes[1], mesh[1])[c] for c in range(mesh[1])]
    for r in range(mesh[0]):
        here = (w.rows >= r * sizes[0]) & (w.rows < (r + 1) * sizes[0])
        row, column = w.rows[here] - r * sizes[0], w.columns[here]
        starts = np.searchsorted(row, np.arange(sizes[0] + 1)).tolist()
        live.append((column.tolist(), starts))
        operand = tiles.stacked(w.values[here], formats[0])
        own = [np.flatnonzero((column >= part.start) & (column < part.stop)) for part in blocks]
        lefts.append((operand, own))
    left = [_Part(lefts[r][0], lefts[r][1][c], _NONE) for r, c in every(mesh)]
    right = _rights(x, mesh, formats[1], sizes[1:], layout[1:])
    return _products(run, mesh, sizes, layout, formats, (left, right), live)
