"""Which tiles a kernel computes in: tables by architecture, chosen by shapes and dtypes alone."""

from __future__ import annotations

from typing import NamedTuple

from prunus.cuda.chips import CHIPS
from prunus.cuda.runtime import Place

__all__ = ["Tile", "dsd", "dsd_small", "group", "power", "sdd", "sdd_small", "ssd", "ssd_small"]


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


def check_loads(where: Place, tile: Tile) -> None:
    """Raise ValueError if an architecture cannot load as a tile says."""
    known = {"sm_80": ("pointers",), "sm_90": ("pointers", "descriptors")}
    if tile.loads not in known.get(where.arch, ("pointers", "descriptors", "warps")):
        raise ValueError(f"a tile that loads by {tile.loads!r} is not for {where.arch}")


def dsd(where: Place, block: tuple[int, int], columns: int, bits: int) -> Tile:
    """Return the tile of ``dsd`` for blocks of the operand, so many columns, and operands of so many bits."""
    rows, inner = block
    if where.interpreted:
        return Tile(power(rows), power(columns, most=256), power(inner, 32))
    wide = bits > 16
    tm = power(rows, 16, 64 if wide else 128)
    tn = power(columns, 16, 64 if wide else 128)
    tk = power(inner, 32 if bits == 8 else 16, 32 if wide else 64)
    return Tile(tm, tn, tk, 8 if tm * tn > 8192 else 4, 2 if bits == 64 else 3)


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
        return Tile(power(block[0], 16, 64), power(columns, 16, 64), 32 if bits == 32 else 16, 4, 2)
    tm = power(block[0])
    # Blocks of a row share what is read of ``a``: a tile as wide as the matrix units and registers allow.
    tn = power(columns, 16, 128 if tm < 64 or (tm > 64 and where.arch == "sm_80") else 256)
    return Tile(tm, tn, 64, 8 if tm * tn > 8192 else 4, 3)


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
    return Tile(
        tm, tn, power(inner, 32 if bits == 8 else 16, tk), 8 if tm * tn > 8192 else 4, 3 if bits < 64 else 2
    )


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
