"""Branches of a result: their norms, which of them are live, and lists of what a tile of rows needs."""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast


@triton.jit
def divide(a, b):
    """Return the quotient as IEEE has it: a GPU's own division is 0 for divisors above 2^126."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    return a / b


@triton.jit
def reduce_norm(value, NORM: tl.constexpr):
    """Return the norms over the last of three axes; NaN where there is one, and 0 only of zeros."""
    size = tl.abs(value)
    most = tl.max(size, 2)
    norm = most
    if NORM == "l2":
        # Shares of the largest value: squares of what is very large or small are out of range.
        unit = tl.where((most > 0) & (most < float("inf")), most, 1.0)
        share = divide(value, tl.broadcast_to(unit[:, :, None], value.shape))
        norm = tl.where(most < float("inf"), unit * tl.sqrt(tl.sum(share * share, 2)), most)
    # Maxima leave out NaN.
    broken = tl.max((value != value).to(tl.int32), 2) > 0
    return tl.where(broken, float("nan"), norm)


@triton.jit
def is_live(norm, tau):
    """Return which norms are not at most ``tau``, compared in double precision."""
    return (norm.to(tl.float64) > tau) | (norm != norm)


@triton.jit
def settle(
    h,
    out,
    norms,
    live,
    tau: tl.float64,
    rows,
    units,
    branch,
    branches,
    across,
    h_row,
    out_row,
    norms_row,
    live_row,
    NORM: tl.constexpr,
    LIVE: tl.constexpr,
    STORE: tl.constexpr,
    TM: tl.constexpr,
    TB: tl.constexpr,
    TU: tl.constexpr,
):
    """Write the norms of branches of any width, and with ``LIVE`` which are live; then ``h`` where it is.

    A program has TM rows of TB branches, which it reads in steps of TU units.
    """
    pid = tl.program_id(0)
    row = (pid // across).to(tl.int64) * TM + tl.arange(0, TM)
    at = (pid % across) * TB + tl.arange(0, TB)
    there = (row < rows)[:, None] & (at < branches)[None, :]
    first = at.to(tl.int64) * branch
    wide = norms.dtype.element_ty
    most = tl.zeros((TM, TB), wide)
    broken = tl.zeros((TM, TB), tl.int32)
    for begin in range(0, branch, TU):
        within = begin + tl.arange(0, TU)
        unit = first[:, None] + within[None, :]
        seen = (row < rows)[:, None, None] & ((within < branch)[None, :] & (unit < units))[None, :, :]
        value = cast(tl.load(h + row[:, None, None] * h_row + unit[None, :, :], seen, 0), wide)
        most = tl.maximum(most, tl.max(tl.abs(value), 2))
        broken = tl.maximum(broken, tl.max((value != value).to(tl.int32), 2))
    norm = most
    if NORM == "l2":
        total = tl.zeros((TM, TB), wide)
        scale = tl.where((most > 0) & (most < float("inf")), most, 1.0)
        for begin in range(0, branch, TU):
            within = begin + tl.arange(0, TU)
            unit = first[:, None] + within[None, :]
            seen = (row < rows)[:, None, None] & ((within < branch)[None, :] & (unit < units))[None, :, :]
            value = cast(tl.load(h + row[:, None, None] * h_row + unit[None, :, :], seen, 0), wide)
            share = divide(value, tl.broadcast_to(scale[:, :, None], value.shape))
            total += tl.sum(share * share, 2)
        norm = tl.where(most < float("inf"), scale * tl.sqrt(total), most)
    norm = tl.where(broken > 0, float("nan"), norm)
    tl.store(norms + row[:, None] * norms_row + at[None, :], norm, there)
    if LIVE:
        alive = is_live(norm, tau)
        tl.store(live + row[:, None] * live_row + at[None, :], alive.to(tl.uint8), there)
    if STORE:
        for begin in range(0, branch, TU):
            within = begin + tl.arange(0, TU)
            unit = first[:, None] + within[None, :]
            seen = (row < rows)[:, None, None] & ((within < branch)[None, :] & (unit < units))[None, :, :]
            value = tl.load(h + row[:, None, None] * h_row + unit[None, :, :], seen, 0)
            if LIVE:
                value = tl.where(alive[:, :, None], value, 0)
            tl.store(
                out + row[:, None, None] * out_row + unit[None, :, :], cast(value, out.dtype.element_ty), seen
            )


@triton.jit
def union(live, flags, rows, units, branch, across, live_row, TM: tl.constexpr, TU: tl.constexpr):
    """Write for each tile of TM rows which units at least one of them needs."""
    pid = tl.program_id(0)
    tile = (pid // across).to(tl.int64)
    unit = (pid % across) * TU + tl.arange(0, TU)
    row = tile * TM + tl.arange(0, TM)
    seen = (row < rows)[:, None] & (unit < units)[None, :]
    alive = tl.load(live + row[:, None] * live_row + (unit // branch)[None, :], seen, 0)
    tl.store(flags + tile * units + unit, tl.max(alive.to(tl.int32), 0).to(tl.uint8), unit < units)


@triton.jit
def restrict(
    live,
    indptr,
    ends,
    rows,
    units,
    branch,
    lines,
    height,
    looks,
    across,
    live_row,
    WIDE: tl.constexpr,
    TM: tl.constexpr,
    TB: tl.constexpr,
):
    """Write for each tile of WIDE rows where the list of each line of units begins and ends for it.

    A line is ``height`` neighbouring units, which meet at most ``looks`` branches. Its list is empty where
    all of them are dead for all rows of the tile.
    """
    pid = tl.program_id(0)
    tile = (pid // across).to(tl.int64)
    line = (pid % across).to(tl.int64) * TB + tl.arange(0, TB)
    first = line * height // branch
    last = (tl.minimum((line + 1) * height, units) - 1) // branch
    needed = tl.zeros((TB,), tl.int32)
    for begin in range(0, WIDE, TM):
        row = tile * WIDE + begin + tl.arange(0, TM)
        for j in range(0, looks):
            at = first + j
            seen = (row < rows)[:, None] & ((at <= last) & (line < lines))[None, :]
            alive = tl.load(live + row[:, None] * live_row + at[None, :], seen, 0)
            needed = tl.maximum(needed, tl.max(alive.to(tl.int32), 0))
    start = tl.load(indptr + line, line < lines, 0)
    end = tl.load(indptr + line + 1, line < lines, 0)
    place = ends + (tile * lines + line) * 2
    tl.store(place, start, line < lines)
    tl.store(place + 1, tl.where(needed > 0, end, start), line < lines)


@triton.jit
def compact(
    flags,
    listed,
    counts,
    units,
    segment,
    segments,
    flags_row,
    GRAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """List the units of a segment in ascending order, leaving out groups of GRAIN neighbours that are dead.

    A dead unit among live neighbours is listed as -1, so that what follows keeps its place in a step of
    sums. ``counts`` are of entries.
    """
    pid = tl.program_id(0)
    tile = (pid // segments).to(tl.int64)
    begin = (pid % segments) * segment
    end = tl.minimum(begin + segment, units)
    listed += pid.to(tl.int64) * segment
    flags += tile * flags_row
    filled = 0
    for at in range(begin, end, BLOCK * GRAIN):
        group = tl.arange(0, BLOCK)
        unit = at + group[:, None] * GRAIN + tl.arange(0, GRAIN)[None, :]
        alive = tl.load(flags + unit, unit < end, 0) != 0
        kept = tl.max(alive.to(tl.int32), 1)
        place = filled + tl.cumsum(kept, 0) - kept
        where = place[:, None] * GRAIN + tl.arange(0, GRAIN)[None, :]
        # A segment is a multiple of GRAIN, so that whole groups have room.
        tl.store(listed + where, tl.where(alive, unit, -1), kept[:, None] > 0)
        filled += tl.sum(kept, 0)
    tl.store(counts + pid, filled * GRAIN)
