"""Which tiles the kernels of mixtures of experts compute in; see :mod:`prunus.cuda.configs`."""

from __future__ import annotations

from prunus.cuda.configs import Tile, power, within
from prunus.cuda.runtime import Place

__all__ = ["gather_sum", "grouped", "grouped_blocks", "grouped_outer", "routing"]


def routing(where: Place, rows: int, experts: int, bits: int) -> Tile:
    """Return the tile of ``route``: rows of a chunk along ``m``, all experts along ``n``."""
    tn = power(experts, 16, 1 << 16)
    if where.interpreted:
        return Tile(16, tn, 128)
    # Registers hold a chunk's logits several times over.
    tm = 64 if rows >= 4096 and tn <= 64 else 16
    tile = Tile(tm, tn, 32 if bits > 16 or tn > 128 else 64, 8 if tm * tn >= 4096 else 4, 3)
    return within(where, tile, bits)


def grouped(
    where: Place, rows: int, units: int, inner: int, bits: int, gated: bool, pruned: bool
) -> tuple[Tile, int]:
    """Return the tile of ``grouped`` for so many rows of a group on average, and how many programs run.

    ``gated`` is two products at once, ``pruned`` one of rows with dead units.
    """
    if where.interpreted:
        return Tile(64, power(units), power(inner, 32)), 1
    tm = power(rows, 16, 64 if bits > 16 or pruned else 128)
    programs = 2 * where.multiprocessors
    if pruned:
        # Both operands pass through registers, where infinities are told from numbers.
        tile = Tile(tm, 64, 32, 8, 2) if bits <= 16 else Tile(min(tm, 32), 32, 32 if bits == 32 else 16, 4, 2)
    elif bits > 16:
        tile = Tile(min(tm, 32) if gated else tm, 32 if gated else 64, 32 if bits == 32 else 16, 4, 2)
    elif tm < 64:
        # Memory bounds these: weights are read in long lines, by several programs a multiprocessor.
        tile = Tile(tm, 64, 128, 4, 3)
    else:
        # Two products at once have twice the sums in registers.
        tn = 64 if gated and (tm == 64 or where.arch == "sm_80") else 128
        tile = Tile(tm, tn, 64, 8 if tm * tn * (1 + gated) > 8192 else 4, 3)
        programs = where.multiprocessors
    return within(where, tile, bits, columns=tile.m + tile.n * (1 + gated)), programs


def grouped_outer(where: Place, n: int, k: int, bits: int) -> Tile:
    """Return the tile of ``grouped_outer``, of matrices (n, k); ``k`` of the tile are rows of a group."""
    if where.interpreted:
        return Tile(power(n, 16, 1024), power(k, 16, 1024), 64)
    if bits <= 16:
        tile = Tile(power(n, 64, 128), power(k, 64, 128), 64, 8 if min(n, k) > 64 else 4, 3)
    else:
        tile = Tile(64, 64, 32, 4, 2) if bits == 32 else Tile(32, 32, 16, 4, 2)
    return within(where, tile, bits)


def grouped_blocks(
    where: Place, rows: int, block: tuple[int, int], bits: int, pruned: bool
) -> tuple[Tile, int]:
    """Return the tile of ``grouped_blocks`` for so many rows of a group on average, and how many programs.

    ``block`` are rows and columns of a block after transposition; ``pruned`` is a product of rows with dead
    units, whose operands pass through registers.
    """
    high, wide = block
    if where.interpreted:
        return Tile(64, power(high, 16, 1 << 16), 128), 1
    tn = power(high, 16, 64 if pruned or bits > 16 else 128)
    # Steps that lie within a block have one address for all.
    part = wide & -wide
    most = 32 if pruned or bits > 16 else 64
    tk = min(part, most) if part >= 16 else 32
    tm = power(rows, 16, 64 if pruned or bits > 16 else 128)
    if bits > 16:
        tk, tn = min(tk, 32 if bits == 32 else 16), min(tn, 32 if pruned or bits == 64 else 64)
        return Tile(min(tm, 32), tn, tk, 8 if bits == 64 else 4, 2), 2 * where.multiprocessors
    if pruned:
        return Tile(tm, tn, tk, 8 if tm * tn >= 4096 else 4, 2), 2 * where.multiprocessors
    if tm < 64:
        # Memory bounds these: what few rows want is loaded by several programs a multiprocessor.
        return Tile(tm, min(tn, 64), max(tk, 32), 4, 3), 2 * where.multiprocessors
    return Tile(tm, tn, tk, 8 if tm * tn > 8192 else 4, 3), where.multiprocessors


def gather_sum(where: Place, columns: int) -> Tile:
    """Return the tile of ``gather_sum``."""
    return Tile(64, power(columns, 16, 256), 1) if where.interpreted else Tile(4, 256, 1)
