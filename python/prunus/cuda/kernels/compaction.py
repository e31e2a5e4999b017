"""Rows of values with dead branches, as blocks of those that are live."""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast


@triton.jit
def needed(live, flags, height, block, branches, lines, across, live_row, TM: tl.constexpr, TB: tl.constexpr):
    """Write for each line of blocks which of its branches at least one of its rows needs.

    A member has ``height`` rows and ``lines`` lines of blocks, the last of which may be lower.
    """
    pid = tl.program_id(0)
    line = pid // across
    at = (pid % across) * TB + tl.arange(0, TB)
    first = (line % lines) * block
    start = (line // lines).to(tl.int64) * height + first
    end = tl.minimum(block, height - first)
    some = tl.zeros((TB,), tl.int32)
    for begin in range(0, end, TM):
        row = begin + tl.arange(0, TM)
        seen = (row < end)[:, None] & (at < branches)[None, :]
        one = tl.load(live + (start + row)[:, None] * live_row + at[None, :], seen, 0)
        some = tl.maximum(some, tl.max(one.to(tl.int32), 0))
    tl.store(flags + line.to(tl.int64) * branches + at, (some > 0).to(tl.uint8), at < branches)


@triton.jit
def gather(
    h,
    live,
    flags,
    places,
    data,
    indices,
    indptr,
    height,
    block,
    units,
    branch,
    branches,
    lines,
    across,
    h_row,
    live_row,
    TM: tl.constexpr,
    TU: tl.constexpr,
):
    """Copy what is live to where it belongs, with its column and where lines of blocks begin.

    ``places`` are how many blocks there are up to and with each position. Rows that are dead in a block, and
    what pads it, are 0.
    """
    pid = tl.program_id(0)
    line = pid // across
    member = line // lines
    first = (line % lines) * block
    end = tl.minimum(block, height - first)
    at = line.to(tl.int64) * branches
    flags += at
    places += at
    unit = (pid % across) * TU + tl.arange(0, TU)
    column = unit // branch
    within = unit % branch
    there = tl.load(flags + column, column < branches, 0) != 0
    place = tl.load(places + column, there, 1).to(tl.int64) - 1
    tl.store(indices + place, column, there & (within == 0))
    if pid % across == 0:
        begin = tl.load(places) - tl.load(flags).to(places.dtype.element_ty)
        tl.store(indptr + member.to(tl.int64) * (lines + 1) + line % lines, begin)
        if line % lines == lines - 1:
            last = tl.load(places + branches - 1)
            tl.store(indptr + member.to(tl.int64) * (lines + 1) + lines, last)
    source = member.to(tl.int64) * height + first
    target = data + place * block * branch + within
    if tl.max(there.to(tl.int32), 0) > 0:
        for begin in range(0, block, TM):
            row = begin + tl.arange(0, TM)
            seen = (row < end)[:, None] & (there & (unit < units))[None, :]
            from_row = (source + row)[:, None]
            alive = tl.load(live + from_row * live_row + column[None, :], seen, 0) != 0
            value = tl.load(h + from_row * h_row + unit[None, :], alive, 0)
            keep = (row < block)[:, None] & there[None, :]
            tl.store(
                target[None, :] + row.to(tl.int64)[:, None] * branch,
                cast(value, data.dtype.element_ty),
                keep,
            )
