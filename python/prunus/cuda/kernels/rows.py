"""Products of rows with tables that have a row for each unit, on matrix units, tile by tile.

``dots`` computes units, ``combine`` adds up what they contribute. Both walk lists of units that a tile of
rows needs, or all units in order. What neighbouring rows need never changes a row's bits: a value of ``dots``
is a sum of its own, and ``combine`` takes units in steps that their numbers decide.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.branches import is_live, reduce_norm
from prunus.cuda.kernels.common import activate, cast


@triton.jit
def placed(pid, down, across, GROUP: tl.constexpr):
    """Return the tile of a program: some rows of tiles at a time, so that both operands stay in the cache."""
    wide = GROUP * across
    first = (pid // wide) * GROUP
    height = tl.minimum(down - first, GROUP)
    return first + (pid % wide) % height, (pid % wide) // height


@triton.jit
def dots(
    x,
    w,
    out,
    live,
    listed,
    counts,
    bias,
    scale,
    norms,
    found,
    tau: tl.float64,
    rows,
    units,
    K,
    branch,
    branches,
    down,
    across,
    x_row,
    x_col,
    w_row,
    out_row,
    live_row,
    scale_row,
    norms_row,
    found_row,
    LISTED: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
    NORM: tl.constexpr,
    FOUND: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Write a tile of ``activation(x @ w.T + bias) * scale``, with norms and liveness of whole branches.

    With ``LISTED`` a tile's columns are neighbours in the list of its rows; what is not in it is not written.
    With ``NORM`` the tile's columns are neighbours, and a branch is WIDTH of them.
    """
    tile, part = placed(tl.program_id(0), down, across, 8)
    flat = part * TN + tl.arange(0, TN)
    length = units
    if LISTED:
        length = tl.load(counts + tile)
    if part * TN < length:
        row = (tile * TM + tl.arange(0, TM)).to(tl.int64)
        here = row < rows
        # 32 bits: a tile's columns are many, and whole addresses of them would fill the registers.
        unit = flat
        there = flat < units
        if LISTED:
            unit = tl.load(listed + tile.to(tl.int64) * units + flat, flat < length, -1)
            there = unit >= 0
        acc = tl.zeros((TM, TN), SUMS)
        left = x + row[:, None] * x_row
        right = w + tl.where(there, unit, 0).to(tl.int64)[:, None] * w_row
        for at in range(0, K, TK):
            k = at + tl.arange(0, TK)
            a = tl.load(left + k.to(tl.int64)[None, :] * x_col, here[:, None] & (k < K)[None, :], 0)
            b = tl.load(right + k[None, :], there[:, None] & (k < K)[None, :], 0)
            acc = tl.dot(
                cast(a, COMPUTE), tl.trans(cast(b, COMPUTE)), acc, input_precision=PRECISION, out_dtype=SUMS
            )
        value = acc.to(WIDE)
        if BIAS:
            value += cast(tl.load(bias + unit, there, 0), WIDE)[None, :]
        value = activate(value, ACTIVATION)
        keep = here[:, None] & there[None, :]
        if SCALE:
            value *= cast(tl.load(scale + row[:, None] * scale_row + unit[None, :], keep, 0), WIDE)
        if LISTED:
            alive = tl.load(live + row[:, None] * live_row + (unit // branch)[None, :], keep, 0)
            value = tl.where(alive != 0, value, 0)
        if NORM is not None:
            value = tl.where(keep, value, 0)
            if WIDTH == 1:
                norm = tl.abs(value)
            else:
                norm = reduce_norm(tl.reshape(value, (TM, TN // WIDTH, WIDTH)), NORM)
            norm = norm.to(norms.dtype.element_ty)
            at = part * (TN // WIDTH) + tl.arange(0, TN // WIDTH)
            some = here[:, None] & (at < branches)[None, :]
            tl.store(norms + row[:, None] * norms_row + at[None, :], norm, some)
            if FOUND:
                alive = is_live(norm, tau)
                tl.store(found + row[:, None] * found_row + at[None, :], alive.to(tl.uint8), some)
                if WIDTH > 1:
                    each = tl.broadcast_to(alive[:, :, None], (TM, TN // WIDTH, WIDTH))
                    alive = tl.reshape(each, (TM, TN))
                value = tl.where(alive, value, 0)
        tl.store(out + row[:, None] * out_row + unit[None, :], cast(value, out.dtype.element_ty), keep)


@triton.jit
def finite(value):
    """Return where values are neither infinite nor NaN."""
    return tl.abs(value) < float("inf")


@triton.jit
def added(
    h,
    w,
    live,
    listed,
    row,
    here,
    column,
    inside,
    begin,
    end,
    branch,
    h_row,
    w_row,
    live_row,
    acc,
    LISTED: tl.constexpr,
    MASKED: tl.constexpr,
    ZEROED: tl.constexpr,
    EXACT: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TK: tl.constexpr,
):
    """Return ``acc + h @ w`` over the units or entries from ``begin`` to ``end``.

    A dead unit's 0 must not meet an infinity or NaN of ``w``. With ``EXACT`` products with what is not finite
    are left out of the tiles' and added one by one.
    """
    for at in range(begin, end, TK):
        unit = at + tl.arange(0, TK)
        there = unit < end
        if LISTED:
            unit = tl.load(listed + unit, there, -1)
            there = unit >= 0
            unit = tl.where(there, unit, 0)
        keep = here[:, None] & there[None, :]
        a = tl.load(h + row[:, None] * h_row + unit[None, :], keep, 0)
        if MASKED and (EXACT or not ZEROED):
            alive = tl.load(live + row[:, None] * live_row + (unit // branch)[None, :], keep, 0) != 0
            a = tl.where(alive, a, 0)
        b = tl.load(
            w + unit.to(tl.int64)[:, None] * w_row + column[None, :], there[:, None] & inside[None, :], 0
        )
        a = cast(a, COMPUTE)
        b = cast(b, COMPUTE)
        if EXACT:
            good_a = finite(cast(a, SUMS))
            good_b = finite(cast(b, SUMS))
            odd = tl.max((~good_a).to(tl.int32), 0) + tl.max((~good_b).to(tl.int32), 1)
            if tl.max(odd, 0) > 0:
                for j in range(0, TK):
                    one = tl.arange(0, TK) == j
                    if tl.sum(tl.where(one, odd, 0), 0) > 0:
                        aj = tl.sum(tl.where(one[None, :], cast(a, SUMS), 0), 1)
                        bj = tl.sum(tl.where(one[:, None], cast(b, SUMS), 0), 0)
                        seen = tl.max((alive & one[None, :]).to(tl.int32), 1) > 0
                        apart = seen[:, None] & ~(finite(aj)[:, None] & finite(bj)[None, :])
                        acc += tl.where(apart, aj[:, None] * bj[None, :], 0)
                a = tl.where(good_a, a, 0)
                b = tl.where(good_b, b, 0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=SUMS)
    return acc


@triton.jit
def combine(
    h,
    w,
    out,
    live,
    listed,
    counts,
    odd,
    bias,
    rows,
    units,
    N,
    branch,
    width,
    segment,
    down,
    across,
    h_row,
    w_panel,
    w_row,
    out_part,
    out_row,
    live_row,
    lists_row,
    counts_row,
    odd_part,
    LISTED: tl.constexpr,
    MASKED: tl.constexpr,
    ZEROED: tl.constexpr,
    EXACT: tl.constexpr,
    PANELS: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Write a tile of ``h @ w + bias`` over live units; or of what a segment of the units adds to it.

    With ``LISTED`` each tile of rows has a list of units in each segment, in room for ``segment``. With
    ``MASKED`` rows of a tile need different ones; with ``ZEROED`` dead units are 0 in ``h``. What is not
    finite may then come from a dead unit, and the tile is noted in ``odd`` in place of being written. With
    ``EXACT`` such tiles, which were FIRST columns wide, are computed again.
    """
    pid = tl.program_id(0)
    cut = pid // (down * across)
    tile, part = placed(pid % (down * across), down, across, 8)
    wanted = True
    noted = odd
    if MASKED:
        noted += (
            cut.to(tl.int64) * odd_part + tile * ((across * TN + FIRST - 1) // FIRST) + part * TN // FIRST
        )
    if EXACT:
        wanted = tl.load(noted) != 0
    if wanted:
        row = (tile * TM + tl.arange(0, TM)).to(tl.int64)
        here = row < rows
        col = part * TN + tl.arange(0, TN)
        inside = col < N
        column = col
        if PANELS:
            column = (col // width).to(tl.int64) * w_panel + col % width
        begin = cut * segment
        end = tl.minimum(begin + segment, units)
        if LISTED:
            listed += tile.to(tl.int64) * lists_row + begin
            begin = 0
            end = tl.load(counts + tile * counts_row + cut)
        place = out + cut.to(tl.int64) * out_part + row[:, None] * out_row + col[None, :]
        keep = here[:, None] & inside[None, :]
        acc = tl.zeros((TM, TN), SUMS)
        if ADD:
            acc += cast(tl.load(place, keep, 0), SUMS)
        acc = added(
            h, w, live, listed, row, here, column, inside, begin, end, branch, h_row, w_row, live_row, acc,
            LISTED, MASKED, ZEROED, EXACT, COMPUTE, SUMS, PRECISION, TK,
        )  # fmt: skip
        strange = 0
        if MASKED and not EXACT:
            strange = tl.max(tl.max((~finite(acc)).to(tl.int32), 1), 0)
            tl.store(noted, strange)
        if strange == 0:
            if BIAS:
                acc += cast(tl.load(bias + col, inside, 0), SUMS)[None, :]
            tl.store(place, cast(acc, out.dtype.element_ty), keep)


@triton.jit
def join(
    parts, out, bias, rows, N, segments, across, parts_part, parts_row, out_row,
    BIAS: tl.constexpr, ADD: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """Write the sum over segments in ascending order, ``+ bias``; or add it to what ``out`` holds."""
    pid = tl.program_id(0)
    row = (pid // across).to(tl.int64)
    col = (pid % across) * TN + tl.arange(0, TN)
    keep = col < N
    acc = tl.zeros((TN,), parts.dtype.element_ty)
    if ADD:
        acc += cast(tl.load(out + row * out_row + col, keep, 0), parts.dtype.element_ty)
    place = parts + row * parts_row + col
    for _ in range(0, segments):
        acc += tl.load(place, keep, 0)
        place += parts_part
    if BIAS:
        acc += cast(tl.load(bias + col, keep, 0), parts.dtype.element_ty)
    tl.store(out + row * out_row + col, cast(acc, out.dtype.element_ty), keep)
