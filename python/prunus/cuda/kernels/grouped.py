"""Products of rows that are sorted by group with a matrix of each group: experts, without padding.

How many rows a group has is known to the GPU alone. So a fixed number of programs walk the tiles of all
groups: a tile's group is found by how many groups end before it. Neighbouring tiles are of a few tiles of
rows that stand one under the other, so that what they read of a matrix is read from the cache.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import activate, cast


@triton.jit
def table_of(table, w, group, w_group, TABLE: tl.constexpr):
    """Return where a group's matrix begins: by a stride, or by addresses, multiples of ``TABLE`` bytes."""
    if TABLE:
        start = tl.load(table + group).to(w.dtype, bitcast=True)
        start = tl.multiple_of(start, TABLE)
    else:
        start = w + group.to(tl.int64) * w_group
    return start


@triton.jit
def tiles_of(offsets, active, groups, ACTIVE: tl.constexpr, TM: tl.constexpr, TE: tl.constexpr):
    """Return how many tiles of rows each group has, and how many all up to it have."""
    number = tl.arange(0, TE)
    begin = tl.load(offsets + number, number < groups, 0)
    end = tl.load(offsets + number + 1, number < groups, 0)
    tiles = (end - begin + TM - 1) // TM
    if ACTIVE:
        tiles = tl.where(tl.load(active + number, number < groups, 0) != 0, tiles, 0)
    return tiles, tl.cumsum(tiles, 0)


@triton.jit
def find(t, tiles, ends, across, TE: tl.constexpr, ROWS: tl.constexpr):
    """Return the group of a tile, and the tile's row and column of tiles in it."""
    passed = (ends <= t // across).to(tl.int32)
    group = tl.sum(passed, 0)
    local = t - tl.max(passed * ends, 0) * across
    mine = tl.sum(tl.where(tl.arange(0, TE) == group, tiles, 0), 0)
    first = local // (ROWS * across) * ROWS
    height = tl.minimum(mine - first, ROWS)
    rest = local % (ROWS * across)
    return group, first + rest % height, rest // height


@triton.jit
def grouped(
    x,
    rows,
    offsets,
    active,
    first,
    first_table,
    second,
    second_table,
    scale,
    live,
    bias,
    out,
    groups,
    N,
    K,
    branches,
    branch,
    x_row,
    x_col,
    first_group,
    first_row,
    first_col,
    second_group,
    second_row,
    second_col,
    GATHER: tl.constexpr,
    ACTIVE: tl.constexpr,
    TABLE: tl.constexpr,
    GATED: tl.constexpr,
    SCALED: tl.constexpr,
    LIVE: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
    TE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write ``activation(x @ first.T)`` for each group's rows, times ``x @ second.T`` if ``GATED``.

    A group's ``BIAS`` belongs to ``first``, or to ``second`` if there is one. ``SCALED`` results are
    multiplied by ``scale``, and where branches are not ``LIVE`` the result is 0; a
    tile without live ones reads no matrix.
    """
    across = (N + TN - 1) // TN
    tiles, ends = tiles_of(offsets, active, groups, ACTIVE, TM, TE)
    total = tl.max(ends, 0) * across
    for t in range(tl.program_id(0), total, tl.num_programs(0)):
        group, down, column = find(t, tiles, ends, across, TE, ROWS)
        position = tl.load(offsets + group) + down * TM + tl.arange(0, TM)
        valid = position < tl.load(offsets + group + 1)
        row = tl.load(rows + position, valid, 0) if GATHER else position
        unit = column * TN + tl.arange(0, TN)
        keep = valid[:, None] & (unit < N)[None, :]
        inners = K
        if LIVE:
            lives = live + position.to(tl.int64)[:, None] * branches + (unit // branch)[None, :]
            keep_live = tl.load(lives, keep, 0) != 0
            inners = tl.where(tl.max(tl.max(keep_live.to(tl.int32), 1), 0) > 0, K, 0)
        left = x + row.to(tl.int64)[:, None] * x_row
        w = table_of(first_table, first, group, first_group, TABLE)
        w += unit.to(tl.int64)[None, :] * first_row
        acc = tl.zeros((TM, TN), SUMS)
        if GATED:
            v = table_of(second_table, second, group, second_group, TABLE)
            v += unit.to(tl.int64)[None, :] * second_row
            more = tl.zeros((TM, TN), SUMS)
        for at in range(0, inners, TK):
            inner = at + tl.arange(0, TK)
            there = inner < K
            a = tl.load(left + inner.to(tl.int64)[None, :] * x_col, valid[:, None] & there[None, :], 0)
            a = cast(a, COMPUTE)
            mask = there[:, None] & (unit < N)[None, :]
            b = tl.load(w + inner.to(tl.int64)[:, None] * first_col, mask, 0)
            acc = tl.dot(a, cast(b, COMPUTE), acc, input_precision=PRECISION, out_dtype=SUMS)
            if GATED:
                b = tl.load(v + inner.to(tl.int64)[:, None] * second_col, mask, 0)
                more = tl.dot(a, cast(b, COMPUTE), more, input_precision=PRECISION, out_dtype=SUMS)
        value = cast(acc, WIDE)
        if BIAS:
            add = cast(tl.load(bias + group.to(tl.int64) * N + unit, unit < N, 0), WIDE)[None, :]
            if not GATED:
                value += add
        value = activate(value, ACTIVATION)
        if GATED:
            other = cast(more, WIDE)
            if BIAS:
                other += add
            value *= other
        place = position.to(tl.int64)[:, None] * N + unit[None, :]
        if SCALED:
            value *= cast(tl.load(scale + place, keep, 0), WIDE)
        if LIVE:
            value = tl.where(keep_live, value, 0)
        tl.store(out + place, cast(value, out.dtype.element_ty), keep)


@triton.jit
def grouped_live(
    h,
    offsets,
    active,
    live,
    w,
    table,
    bias,
    out,
    groups,
    N,
    K,
    branches,
    branch,
    w_group,
    w_row,
    w_col,
    ACTIVE: tl.constexpr,
    TABLE: tl.constexpr,
    BIAS: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
    TE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write ``h @ w.T`` for each group's rows, where each row's dead units contribute nothing.

    What is dead for all rows of a tile is not read. What is dead for some of them stands as 0 in ``h``, and
    must not meet an infinity or NaN: of a step that has any, products with them are added one by one, for
    those rows for which they are live, and the dot sees 0 in their place. So a row's sum is the same, to the
    bit, whatever rows it shares the tile with.
    """
    across = (N + TN - 1) // TN
    tiles, ends = tiles_of(offsets, active, groups, ACTIVE, TM, TE)
    total = tl.max(ends, 0) * across
    for t in range(tl.program_id(0), total, tl.num_programs(0)):
        group, down, column = find(t, tiles, ends, across, TE, ROWS)
        position = tl.load(offsets + group) + down * TM + tl.arange(0, TM)
        valid = position < tl.load(offsets + group + 1)
        col = column * TN + tl.arange(0, TN)
        left = h + position.to(tl.int64) * K
        lives = live + position.to(tl.int64) * branches
        right = table_of(table, w, group, w_group, TABLE) + col.to(tl.int64) * w_row
        acc = tl.zeros((TM, TN), SUMS)
        for at in range(0, K, TK):
            unit = at + tl.arange(0, TK)
            mask = valid[:, None] & (unit < K)[None, :]
            here = tl.load(lives[:, None] + (unit // branch)[None, :], mask, 0) != 0
            needed = tl.max(here.to(tl.int32), 0) > 0
            if tl.max(needed.to(tl.int32), 0) > 0:
                a = cast(tl.load(left[:, None] + unit[None, :], here, 0), COMPUTE)
                wanted = needed[:, None] & (col < N)[None, :]
                b = cast(tl.load(right[None, :] + unit.to(tl.int64)[:, None] * w_col, wanted, 0), COMPUTE)
                # x - x is 0 unless x is infinite or NaN.
                fine = (b - b) == 0
                plain = (a - a) == 0
                acc = tl.dot(
                    tl.where(plain, a, 0),
                    tl.where(fine, b, 0),
                    acc,
                    input_precision=PRECISION,
                    out_dtype=SUMS,
                )
                odd = tl.max(tl.max((fine == 0).to(tl.int32), 1), 0)
                odd = tl.maximum(odd, tl.max(tl.max((plain == 0).to(tl.int32), 1), 0))
                if odd > 0:
                    for u in range(at, tl.minimum(at + TK, K)):
                        one = tl.load(lives + u // branch, valid, 0) != 0
                        p = cast(tl.load(left + u, one, 0), SUMS)
                        q = cast(tl.load(right + u * w_col, col < N, 0), SUMS)
                        strange = ((p - p) != 0)[:, None] | ((q - q) != 0)[None, :]
                        product = p[:, None] * q[None, :]
                        acc += tl.where(one[:, None] & strange, product, 0)
        if BIAS:
            acc += cast(tl.load(bias + group.to(tl.int64) * N + col, col < N, 0), SUMS)[None, :]
        place = out + position.to(tl.int64)[:, None] * N + col[None, :]
        tl.store(place, cast(acc, out.dtype.element_ty), valid[:, None] & (col < N)[None, :])
