"""How products of rows with tables of units are cut, by shapes, dtypes and architecture alone."""

from __future__ import annotations

from typing import Final, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda.configs import Tile, power, within
from prunus.cuda.runtime import Place

__all__ = ["Few", "combine", "combine_few", "dots", "dots_few", "exact", "grain", "is_few", "segments"]

# So many rows are computed each by itself, without matrix units: reading the table bounds them, and what
# several of them need comes from the cache.
_FEW: Final = 4
# Units that a program of few rows looks at, and how many of the live ones it reads at a time.
_SPAN: Final = 32
_STEP: Final = 4
# Bits of a table that a program of few rows has on their way at once.
_BITS: Final = 1 << 16
# A matrix unit's sum of 16-bit operands has so many terms; of wider ones fewer. What starts at a multiple
# has the same terms whatever stands before it.
_GRAIN: Final = 16


class Few(NamedTuple):
    """How a kernel of few rows is cut.

    Attributes
    ----------
    span : int
        Neighbouring units that a program looks at at once.
    step : int
        Live units that are read at a time.
    wide : int
        Values of a unit's row that are read at a time.
    segments : int
        Parts of the units that are summed apart.
    warps, stages : int
        Warps of a program, and steps that are loaded ahead.
    """

    span: int
    step: int
    wide: int
    segments: int = 1
    warps: int = 4
    stages: int = 3

    @property
    def options(self) -> dict[str, int]:
        """What a launch is told."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def is_few(where: Place, rows: int) -> bool:
    """Say whether rows are computed each by itself; under the interpreter never, as batches are."""
    return rows <= _FEW and not where.interpreted


def dots_few(where: Place, k: int, width: int, bits: int, units: int | None = None) -> Few:
    """Return how ``dots_few`` is cut: inputs of k values, branches of ``width``, operands of so many bits.

    Of short rows more are read at a time. Where there are few ``units``, a program looks at fewer of them,
    so that most multiprocessors have some; that changes no sum.
    """
    wide = power(k, 16, _BITS // (_STEP * bits))
    step = min(_BITS // (wide * bits), _SPAN)
    span = _SPAN if units is None else power(units // (2 * where.multiprocessors), 1, _SPAN)
    return Few(max(span, width), step, wide)


def combine_few(where: Place, rows: int, n: int, units: int, bits: int) -> Few:
    """Return how ``combine_few`` is cut: in so many segments that every multiprocessor has some."""
    wide = power(n, 16, _BITS // (2 * _STEP * bits))
    return Few(_SPAN, 2 * _STEP, wide, segments(where, blocks_along(n, wide), units, 4 * _SPAN, 4))


def segments(where: Place, programs: int, units: int, least: int, each: int = 2) -> int:
    """Return in how many parts, of at least so many units, to cut sums: ``each`` a multiprocessor."""
    wanted = each * where.multiprocessors // max(programs, 1)
    return max(1, min(wanted, units // least, 64))


def dots(where: Place, rows: int, bits: int, listed: bool) -> Tile:
    """Return the tile of ``dots``: rows, units, steps along the inputs.

    Columns that are ``listed`` each have an address of their own, and of many these fill the registers.
    """
    if where.interpreted:
        return Tile(128, 128, 128)
    tm = power(rows, 16, 128 if bits == 16 else 64)
    if bits == 16 and tm <= 32:
        tile = Tile(tm, 64, 128, 4, 4)
    elif bits == 16:
        tile = Tile(tm, 64 if listed else 128, 64, 8 if tm == 128 else 4, 3)
    else:
        tile = Tile(tm, 64, 32, 8, 3) if bits == 32 else Tile(min(tm, 32), 64, 16, 8, 2)
    return within(where, tile, bits)


def combine(where: Place, rows: int, n: int, units: int, bits: int, listed: bool) -> tuple[Tile, int]:
    """Return the tile of ``combine``, rows, columns and units in a step, and the number of segments.

    Segments depend on how many rows there are only where these fill no tile: so a row's sums are cut alike
    in all batches that are in tiles of one height.
    """
    if where.interpreted:
        return Tile(128, 128, 128), 1
    tm = power(rows, 16, 128 if bits == 16 else 64)
    if bits == 16:
        wide = Tile(tm, 128, 32, 8, 4) if listed else Tile(tm, 128, 64, 8, 3)
        tile = wide if tm == 128 else Tile(tm, 64, 64, 4, 4)
    else:
        tile = Tile(tm, 64, 32, 8, 3) if bits == 32 else Tile(min(tm, 32), 64, 16, 8, 2)
    tile = within(where, tile, bits)
    full = tm == 128 or (bits > 16 and tm == 64)
    return tile, 1 if full else segments(where, blocks_along(n, tile.n), units, 512)


def exact(where: Place, tile: Tile) -> Tile:
    """Return the tile of the same product with some values apart: as many rows, fewer columns and units."""
    k = tile.k if where.interpreted else min(tile.k, 32)
    return tile._replace(n=min(tile.n, 32), k=k, warps=8, stages=1)


def grain(where: Place, shared: bool, tile: Tile) -> int:
    """Return how many neighbouring units ``combine`` takes or leaves together.

    Where all rows need the same units, these are packed. Else a row's sum would depend on what its
    neighbours need: single units keep their places among the terms that a matrix unit, or the
    interpreter's product, adds at once.
    """
    if shared:
        return 1
    return tile.k if where.interpreted else min(_GRAIN, tile.k)
