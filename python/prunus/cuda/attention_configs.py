"""Which tiles attention computes in: tables by architecture, chosen by shapes and dtypes alone."""

from __future__ import annotations

from typing import Final, NamedTuple

from prunus.cuda.configs import Tile, power, within
from prunus.cuda.runtime import Place

__all__ = ["AttentionPlan", "attention", "attention_lists", "means", "merge", "pooled_scores"]


class AttentionPlan(NamedTuple):
    """How attention is cut.

    Attributes
    ----------
    tile : Tile
        ``m`` queries, ``n`` keys a step, and ``k`` of a query's values at once.
    features : int
        Columns of the values of a program.
    splits : int
        Programs that take turns of the keys of a tile.
    """

    tile: Tile
    features: int
    splits: int


# Keys a step, warps and stages, by dtype's bits, the larger of d and features, and the tile's queries: the
# largest tiles near FlexAttention's defaults for these chips that spill nothing.
_Step = tuple[int, int, int]
_WIDE: Final[dict[int, dict[int, dict[int, _Step]]]] = {
    32: {64: {64: (16, 8, 3), 32: (32, 4, 3)}, 128: {32: (16, 8, 2)}, 256: {16: (16, 8, 2)}},
    64: {64: {32: (32, 4, 2)}, 128: {16: (32, 4, 2)}, 256: {16: (16, 8, 2)}},
}
_STEPS: Final[dict[str, dict[int, dict[int, dict[int, _Step]]]]] = {
    "sm_80": {
        16: {
            64: {128: (64, 8, 3), 64: (32, 4, 3), 32: (64, 4, 3)},
            128: {128: (32, 8, 2), 64: (32, 4, 3), 32: (64, 4, 3)},
            256: {64: (32, 8, 3), 32: (32, 4, 2)},
        },
        **_WIDE,
    },
    "sm_90": {
        16: {
            64: {128: (128, 8, 3), 64: (64, 4, 3), 32: (64, 4, 3)},
            128: {128: (64, 8, 3), 64: (32, 4, 3), 32: (64, 4, 3)},
            256: {32: (32, 4, 3)},
        },
        **_WIDE,
    },
    "sm_100": {
        16: {
            64: {128: (128, 8, 3), 64: (32, 4, 3), 32: (32, 4, 3)},
            128: {128: (64, 8, 2), 64: (64, 4, 3), 32: (64, 4, 3)},
            256: {64: (32, 8, 3), 32: (32, 4, 3)},
        },
        **_WIDE,
    },
}
# Where there are lists: a tile lies within a head, and has less to keep.
_LISTED: Final[dict[str, dict[int, dict[int, _Step]]]] = {
    "sm_80": {64: {64: (64, 4, 3)}, 128: {64: (64, 4, 3), 16: (32, 4, 3)}},
    "sm_90": {128: {64: (64, 4, 3)}, 256: {64: (32, 8, 3)}},
    "sm_100": {128: {128: (64, 8, 3)}},
}

# Keys that a program of a split has at least, splits at most, and tiles of one head that fill a chip by
# themselves, with some heads.
_SPLIT_KEYS: Final = 256
_SPLITS: Final = 64
_ENOUGH: Final = 16


def attention(
    where: Place, n: int, m: int, rows: int, d: int, features: int, block: int, bits: int
) -> AttentionPlan:
    """Return how attention is cut, for n queries and m keys of a head.

    ``rows`` are queries of heads that are taken together, ``block`` the blocks' size where there are lists.
    The number of heads and of members plays no part: a query's sums do not depend on the batch.
    """
    if where.interpreted:
        tall = power(block, 16, 64) if block else 64
        tile = Tile(tall, 128, power(d, 16, 128))
        return AttentionPlan(tile, power(features, 16, 128), min(3, max(1, m // 128)) if n <= 4 else 1)
    width = max(power(d, 64, 256), power(features, 64, 256))
    steps = _STEPS[where.arch][bits][width]
    if block and bits == 16:
        steps = steps | _LISTED[where.arch].get(width, {})
    tall = power(min(rows, block) if block else rows, 16, max(steps))
    wide, warps, stages = steps[min((most for most in steps if most >= tall), default=max(steps))]
    tile = _within(where, Tile(tall, wide, power(d, 16, 256), warps, stages), power(features, 16, 256), bits)
    tiles = -(-n // block) * -(-block // tall) if block else -(-rows // tall)
    splits = 1
    if tiles < _ENOUGH:
        splits = min(max(m // _SPLIT_KEYS, 1), _SPLITS, max(2 * _SPLITS // tiles, 1))
    return AttentionPlan(tile, power(features, 16, 256), splits)


def _within(where: Place, tile: Tile, features: int, bits: int) -> Tile:
    """Return a tile that fits: queries and weights are held all the while, keys are the steps."""
    size = bits // 8
    keys = Tile(tile.m, 0, tile.n, tile.warps, tile.stages)
    own = (tile.m * tile.k + tile.m * tile.n) * size
    found = within(where, keys, bits, columns=tile.k + features, own=own)
    return tile._replace(n=found.k, stages=found.stages)


def merge(where: Place, features: int) -> Tile:
    """Return the tile of attention's ``merge``: rows and features."""
    if where.interpreted:
        return Tile(64, power(features), 1)
    return Tile(4, power(features), 1, 4, 3)


def attention_lists(where: Place, columns: int) -> Tile:
    """Return the tile of attention's ``lists``: rows of blocks, and columns at once."""
    if where.interpreted:
        return Tile(128, power(columns, 16, 1024), 1)
    wide = power(columns, 32, 1024)
    return Tile(max(1, 1024 // wide), wide, 1, 4, 1)


def means(where: Place, blocksize: int, d: int) -> Tile:
    """Return the tile of ``means``: blocks, rows of a block at once, and columns."""
    if where.interpreted:
        return Tile(64, power(blocksize, 1, 16), power(d, 16, 64))
    return Tile(1, power(blocksize, 1, 16), power(d, 16, 128), 4, 2)


def pooled_scores(where: Place, rows: int, columns: int, bits: int) -> Tile:
    """Return the tile of ``scores``: rows, columns, and values of a mean at once."""
    if where.interpreted:
        return Tile(64, 128, 64)
    side = 32 if bits == 64 else 64
    tile = Tile(power(rows, 16, side), power(columns, 16, side), 16, 4, 2)
    return within(where, tile._replace(warps=8) if tile.m * tile.n > 2048 else tile, bits)
