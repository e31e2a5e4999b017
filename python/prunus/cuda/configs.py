"""Which tiles a kernel computes in: tables by architecture, chosen by shapes and dtypes alone."""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from prunus.cuda import tuning
from prunus.cuda.chips import CHIPS
from prunus.cuda.costs import Cut, Product, fits, held, seconds
from prunus.cuda.runtime import Place

__all__ = [
    "Tile",
    "check_loads",
    "dsd",
    "dsd_small",
    "dsd_tiles",
    "epoch",
    "forget",
    "group",
    "has_registers",
    "kind_of",
    "loads_of",
    "power",
    "problem",
    "sdd",
    "sdd_small",
    "ssd",
    "ssd_at",
    "ssd_small",
    "step",
    "within",
]


class Tile(NamedTuple):
    """How a kernel is cut and compiled.

    Attributes
    ----------
    m, n, k : int
        Rows, columns and steps of a tile.
    warps, stages : int
        Warps of a program, and steps that are loaded ahead.
    loads : str
        "pointers"; "descriptors": by the tensor memory accelerator, where operands allow it; "warps": so, by
        warps of their own.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    loads: str = "pointers"

    @property
    def cut(self) -> Cut:
        """What the model of costs knows of it."""
        return Cut(self.m, self.n, self.k, self.warps, self.stages)

    @property
    def options(self) -> dict[str, int]:
        """What a launch is told."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def power(value: int, least: int = 16, most: int = 128) -> int:
    """Return the power of two that is at least ``value``, within bounds.

    Examples
    --------
    >>> power(1), power(48), power(500)
    (16, 64, 128)
    """
    return min(max(1 << max(value - 1, 0).bit_length(), least), most)


def loads_of(arch: str) -> tuple[str, ...]:
    """Return how an architecture can load tiles; the first is what is chosen unless another was measured."""
    known = {"sm_80": ("pointers",), "sm_90": ("pointers", "descriptors")}
    return known.get(arch, ("pointers", "descriptors", "warps"))


def check_loads(where: Place, tile: Tile) -> None:
    """Raise ValueError if an architecture cannot load as a tile says."""
    if tile.loads not in loads_of(where.arch):
        raise ValueError(f"a tile that loads by {tile.loads!r} is not for {where.arch}")


# Tiles of ``dsd`` that ship, by what operands are and rows of a tile: columns, step, warps, stages.
# ``python -m prunus cuda compile --all`` compiles each, in either order of operands: none spills, all fit.
# Where a thread holds 128 sums, there is no room for what "gelu" and "silu" keep beside them, nor for sums
# that go on.
_DSD: Final[dict[str, dict[int, tuple[tuple[int, int, int, int], ...]]]] = {
    "half": {
        16: ((16, 64, 4, 4), (32, 64, 4, 4), (64, 64, 4, 4), (128, 64, 4, 4), (256, 64, 4, 3)),
        32: ((16, 64, 4, 4), (32, 64, 4, 4), (64, 64, 4, 4), (128, 64, 4, 4), (256, 64, 4, 4)),
        64: ((16, 128, 4, 4), (32, 64, 4, 4), (64, 64, 4, 4), (128, 64, 4, 4), (256, 64, 8, 3)),
        128: ((16, 64, 4, 4), (32, 64, 4, 4), (64, 64, 4, 4), (128, 64, 8, 4), (256, 64, 8, 3)),
    },
    "int8": {
        16: ((16, 64, 4, 4), (64, 64, 4, 4), (128, 64, 4, 4)),
        32: ((16, 64, 4, 4), (64, 64, 4, 4), (128, 64, 4, 4)),
        64: ((16, 64, 4, 4), (64, 64, 8, 4), (128, 64, 8, 4)),
        128: ((16, 64, 4, 4), (64, 64, 4, 4), (128, 64, 8, 4)),
    },
    "tf32": {
        16: ((16, 32, 4, 4), (64, 32, 4, 4), (128, 32, 4, 4)),
        32: ((16, 32, 4, 4), (64, 32, 4, 4), (128, 32, 4, 4)),
        64: ((16, 32, 4, 3), (64, 32, 8, 4), (128, 32, 4, 4), (256, 32, 8, 3)),
        128: ((16, 32, 4, 4), (64, 32, 4, 4), (128, 32, 8, 4)),
    },
    "float32": {
        16: ((16, 16, 4, 4), (64, 16, 4, 4)),
        32: ((16, 16, 4, 4), (64, 32, 4, 3)),
        64: ((16, 16, 4, 4), (64, 32, 4, 3), (128, 16, 4, 3)),
        128: ((16, 16, 4, 4), (64, 16, 4, 3), (128, 16, 8, 3)),
    },
    "float64": {
        16: ((16, 16, 4, 3), (64, 16, 4, 3)),
        32: ((16, 16, 4, 3), (64, 16, 4, 3)),
        64: ((16, 16, 4, 3), (64, 16, 4, 3)),
    },
}
_ADD: Final = "add"
_MOST_SUMS: Final = {"gelu": 64, "silu": 64, _ADD: 64}


def kind_of(bits: int, precision: str = "ieee") -> str:
    """Return what operands are to the tables: "half", "int8", "tf32", "float32" or "float64"."""
    if bits == 32:
        return "float32" if precision == "ieee" else "tf32"
    return {8: "int8", 16: "half", 64: "float64"}[bits]


def dsd_tiles(where: Place, what: Product, activation: str | None = None) -> list[Tile]:
    """Return the tiles that ``dsd`` may have for a product, on an architecture and with an epilogue."""
    found = _DSD[what.kind]
    most = power(what.block[0], 16, max(found))
    tiles = []
    # Half of a block's rows are more programs, which matters where there are few.
    for tm in (most, 64) if most == 128 else (most,):
        for tn, tk, warps, stages in found[tm]:
            tile = Tile(tm, tn, step(what.block[1], tk), warps, stages)
            if fits(where, what, tile.cut) and has_registers(tile, activation):
                tiles.append(tile)
    return tiles


def step(inner: int, most: int) -> int:
    """Return how many inner values a step takes, for blocks of so many columns.

    A step within a block finds that block once; one that spans several finds the block of each of its places,
    which is worth it for blocks of fewer than 32 columns.
    """
    within = min(inner & -inner, most)
    return within if within >= min(32, most) else min(32, most)


def within(where: Place, tile: Tile, bits: int, *, columns: int = 0, own: int = 0) -> Tile:
    """Return a tile that the shared memory of a place holds: with fewer steps ahead, then shorter ones.

    Tables are for the GPU that stands for an architecture, with 163 KiB and more. Those of compute capability
    8.6, 8.9 and 12.x have 99 KiB.

    Parameters
    ----------
    where : Place
    tile : Tile
    bits : int
        Of a value of the operands.
    columns : int
        Rows and columns of all operands that a step loads, where they are not those of the tile.
    own : int
        Bytes that are held all the while.
    """
    inner = (columns or tile.m + tile.n) * bits // 8
    least = 32 if bits == 8 else 16
    while held(where, tile.cut, inner, native=bits < 64, own=own, sums=max(bits // 8, 4)) > where.shared:
        if tile.stages > 2:
            tile = tile._replace(stages=tile.stages - 1)
        elif tile.k > least:
            tile = tile._replace(k=tile.k // 2)
        else:
            break
    return tile


def has_registers(tile: Tile, activation: str | None = None) -> bool:
    """Say whether threads have room for their sums, and for what an epilogue keeps beside them."""
    return tile.m * tile.n <= 32 * tile.warps * _MOST_SUMS.get(activation or "", 128)


def dsd(
    where: Place,
    block: tuple[int, int],
    columns: int,
    bits: int,
    *,
    precision: str = "ieee",
    rows: int = 1024,
    blocks: int = 16,
    activation: str | None = None,
    add: bool = False,
) -> Tile:
    """Return the tile of ``dsd``: what was measured here, or the fastest of those that ship, by the model.

    Parameters
    ----------
    where : Place
    block : tuple of int
        Rows and columns of a block of the operand.
    columns : int
        Of the result.
    bits : int
        Of a value of the operands.
    precision : str
        How float32 is taken, "ieee" or "tf32".
    rows, blocks : int
        Rows of blocks, and blocks of a row on average: of what there is room for, which the host knows.
    activation : str, optional
        Of the epilogue.
    add : bool
        Whether sums go on from those of a product before.
    """
    if where.interpreted:
        return Tile(power(block[0]), power(columns, most=256), power(block[1], 32))
    kept = activation if activation in _MOST_SUMS or not add else _ADD
    return _dsd(where, problem(block, columns, bits, precision, rows, blocks), kept)


def problem(
    block: tuple[int, int], columns: int, bits: int, precision: str, rows: int, blocks: int
) -> Product:
    """Return what a tile of ``dsd`` is chosen for; in powers of two, so that patterns share what compiles."""
    most = 1 << 24
    return Product(block, columns, kind_of(bits, precision), power(rows, 1, most), power(blocks, 1, most))


@cache
def _dsd(where: Place, what: Product, activation: str | None) -> Tile:
    found = tuning.tuned(where, "dsd", what.key)
    if found is not None:
        tile = Tile(*found)
        possible = tile.loads in loads_of(where.arch) and has_registers(tile, activation)
        if possible and fits(where, what, tile.cut):
            return tile
    return min(dsd_tiles(where, what, activation), key=lambda tile: seconds(where, what, tile.cut))


_EPOCHS: Final = [0]


def epoch() -> int:
    """Return a number that is another one whenever what was measured has changed."""
    return _EPOCHS[0]


def forget() -> None:
    """Have tiles chosen anew: what was measured has changed."""
    _EPOCHS[0] += 1
    _dsd.cache_clear()


def dsd_small(where: Place, block: tuple[int, int], columns: int, bits: int) -> Tile:
    """Return the tile of ``dsd_small``."""
    if where.interpreted:
        return Tile(128, power(columns, 1, 128), 16)
    return Tile(16, power(columns, 1, 32), power(block[1], 1, 8), 4, 2)


def sdd(where: Place, block: tuple[int, int], columns: int, inner: int, bits: int) -> Tile:
    """Return the tile of ``sdd`` for blocks of a pattern whose rows hold ``columns`` columns on average."""
    if where.interpreted:
        return Tile(power(block[0]), 256, power(inner, 32, 256))
    if bits > 16:
        warps = 8 if where.arch == "sm_80" else 4  # whose registers hold both operands of mma.sync
        tile = Tile(power(block[0], 16, 64), power(columns, 16, 64), 32 if bits == 32 else 16, warps, 2)
        return within(where, tile, bits)
    tm = power(block[0])
    # Blocks of a row share what is read of ``a``: a tile as wide as the matrix units and registers allow.
    tn = power(columns, 16, 128 if tm < 64 or (where.arch == "sm_80" and (tm > 64 or bits == 8)) else 256)
    warps = 8 if tm * tn > 8192 or (bits == 8 and tm > 32) else 4
    return within(where, Tile(tm, tn, 64, warps, 3), bits)


def sdd_small(where: Place, inner: int) -> Tile:
    """Return the tile of ``sdd_small``: values of blocks along ``n``."""
    if where.interpreted:
        return Tile(1, 4096, power(inner, 16, 128))
    return Tile(1, 128, 16, 4, 2)


def ssd(where: Place, block: tuple[int, int], inner: int, bits: int) -> Tile:
    """Return the tile of ``ssd`` for blocks of the result, and of so many inner values."""
    if where.interpreted:
        return Tile(power(block[0]), power(block[1]), power(inner, 64))
    most = 64 if bits > 16 else 128
    tm, tn = power(block[0], 16, most), power(block[1], 16, most)
    tk = {8: 64, 16: 64, 32: 32}.get(bits, 16)
    tk = power(inner, 32 if bits == 8 else 16, tk)
    return within(where, Tile(tm, tn, tk, 8 if tm * tn > 8192 else 4, 3 if bits < 64 else 2), bits)


def ssd_at(where: Place, block: tuple[int, int], inner: int, bits: int) -> Tile:
    """Return the tile of ``ssd_at``: that of ``ssd``, with the warps that the registers of lists need."""
    tile = ssd(where, block, inner, bits)
    return tile._replace(warps=8) if bits == 32 and tile.m * tile.n >= 4096 else tile


def ssd_small(where: Place, inner: int) -> Tile:
    """Return the tile of ``ssd_small``: values of the result along ``n``."""
    if where.interpreted:
        return Tile(1, 4096, 16)
    return Tile(1, 128, power(inner, 4, 16), 4, 2)


def group(where: Place, inner: int, columns: int, tile: int, size: int) -> int:
    """Return how many tiles of columns of the dense operand are worked on together.

    As many as a third of the second-level cache has room for: they stay there while all rows pass.
    """
    tiles = -(-columns // tile)
    if where.interpreted:
        return tiles
    room = CHIPS[where.arch].cache // 3
    return max(min(room // max(inner * tile * size, 1), tiles, 8), 1)
