"""Products of rows that are sorted by group with a block-sparse matrix of each group.

Tiles of rows are found as in :mod:`prunus.cuda.kernels.grouped`; along the inner dimension a tile of units
walks the list of its row of blocks, as in :mod:`prunus.cuda.kernels.dsd`. Each group's blocks and lists stand
by themselves in memory.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import activate, cast
from prunus.cuda.kernels.dsd import blocks_of_step
from prunus.cuda.kernels.grouped import find, tiles_of


@triton.jit
def grouped_blocks(
    x,
    rows,
    offsets,
    active,
    table,
    data,
    indices,
    indptr,
    scale,
    live,
    out,
    groups,
    N,
    K,
    branches,
    branch,
    x_row,
    x_col,
    SR: tl.constexpr,
    SC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ORDERED: tl.constexpr,
    ALIGNED: tl.constexpr,
    GATHER: tl.constexpr,
    ACTIVE: tl.constexpr,
    SCALED: tl.constexpr,
    LIVE: tl.constexpr,
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
    """Write ``activation(x @ w.T) * scale`` for each group's rows.

    ``table`` (groups, 4) holds addresses: of stored blocks SR x SC, of lists' inner indices, of where lists
    begin, and of their order; ``data``, ``indices`` and ``indptr`` tell the types. Of what is ``LIVE``,

    - "units": of the result. Where branches are dead it is 0; a tile without live ones reads no matrix.
    - "inner": of ``x``, whose dead values contribute nothing, as in ``grouped_live``: not even where they
      would meet an infinity. Steps that are dead for all rows of a tile are not read.
    """
    BR: tl.constexpr = SC if TRANSPOSED else SR
    BC: tl.constexpr = SR if TRANSPOSED else SC
    PARTS: tl.constexpr = (BR + TN - 1) // TN
    across = (N + BR - 1) // BR * PARTS
    tiles, ends = tiles_of(offsets, active, groups, ACTIVE, TM, TE)
    total = tl.max(ends, 0) * across
    for t in range(tl.program_id(0), total, tl.num_programs(0)):
        group, down, column = find(t, tiles, ends, across, TE, ROWS)
        position = tl.load(offsets + group) + down * TM + tl.arange(0, TM)
        stop = tl.load(offsets + group + 1)
        valid = position < stop
        row = tl.load(rows + position, valid, 0) if GATHER else position
        line = column // PARTS
        within = (column % PARTS) * TN + tl.arange(0, TN)
        unit = line * BR + within
        mine = (within < BR) & (unit < N)
        keep = valid[:, None] & mine[None, :]
        addresses = table + group * 4
        w = tl.multiple_of(tl.load(addresses).to(data.dtype, bitcast=True), ALIGNED)
        listed = tl.load(addresses + 1).to(indices.dtype, bitcast=True)
        begins = tl.load(addresses + 2).to(indptr.dtype, bitcast=True)
        order = tl.load(addresses + 3).to(tl.pointer_type(tl.int64), bitcast=True)
        begin = tl.load(begins + line).to(tl.int64)
        length = ((tl.load(begins + line + 1).to(tl.int64) - begin) * BC).to(tl.int64)
        lives = live + position.to(tl.int64) * branches
        if LIVE == "units":
            kept = tl.load(lives[:, None] + (unit // branch)[None, :], keep, 0) != 0
            length = tl.where(tl.max(tl.max(kept.to(tl.int32), 1), 0) > 0, length, 0)
        left = x + row.to(tl.int64) * x_row
        acc = tl.zeros((TM, TN), SUMS)
        e, block = blocks_of_step(listed, order, begin, 0, length, BC, TK, ORDERED)
        for at in range(0, length, TK):
            this_e, this_block = e, block
            e, block = blocks_of_step(listed, order, begin, at + TK, length, BC, TK, ORDERED)
            if BC % TK == 0:
                # A step lies within one block.
                off = at % BC + tl.arange(0, TK)
                inner = this_block.to(tl.int64) * BC + off
                there = inner < K
                first = w + this_e.to(tl.int64) * (SR * SC)
            else:
                flat = at + tl.arange(0, TK)
                off = flat % BC
                inner = this_block.to(tl.int64) * BC + off
                there = (flat < length) & (inner < K)
                first = w + this_e.to(tl.int64)[:, None] * (SR * SC)
            if TRANSPOSED:
                places = first + off[:, None] * SC + within[None, :]
            else:
                places = first + off[:, None] + within[None, :] * SC
            from_x = left[:, None] + inner[None, :] * x_col
            if LIVE == "inner":
                seen = valid[:, None] & there[None, :]
                here = tl.load(lives[:, None] + (inner // branch)[None, :], seen, 0) != 0
                needed = tl.max(here.to(tl.int32), 0) > 0
                if tl.max(needed.to(tl.int32), 0) > 0:
                    a = cast(tl.load(from_x, here, 0), COMPUTE)
                    b = cast(tl.load(places, needed[:, None] & mine[None, :], 0), COMPUTE)
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
                        for f in range(at, tl.minimum(at + TK, length)):
                            number = begin + f // BC
                            if ORDERED:
                                number = tl.load(order + number)
                            k = tl.load(listed + number).to(tl.int64) * BC + f % BC
                            one = tl.load(lives + k // branch, position < tl.where(k < K, stop, 0), 0) != 0
                            p = cast(tl.load(left + k * x_col, one, 0), SUMS)
                            if TRANSPOSED:
                                from_w = w + number.to(tl.int64) * (SR * SC) + f % BC * SC + within
                            else:
                                from_w = w + number.to(tl.int64) * (SR * SC) + f % BC + within * SC
                            q = cast(tl.load(from_w, mine & (unit < tl.where(k < K, N, 0)), 0), SUMS)
                            strange = ((p - p) != 0)[:, None] | ((q - q) != 0)[None, :]
                            acc += tl.where(one[:, None] & strange, p[:, None] * q[None, :], 0)
            else:
                a = cast(tl.load(from_x, valid[:, None] & there[None, :], 0), COMPUTE)
                b = cast(tl.load(places, there[:, None] & mine[None, :], 0), COMPUTE)
                acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=SUMS)
        value = activate(cast(acc, WIDE), ACTIVATION)
        place = position.to(tl.int64)[:, None] * N + unit[None, :]
        if SCALED:
            value *= cast(tl.load(scale + place, keep, 0), WIDE)
        if LIVE == "units":
            value = tl.where(kept, value, 0)
        tl.store(out + place, cast(value, out.dtype.element_ty), keep)
