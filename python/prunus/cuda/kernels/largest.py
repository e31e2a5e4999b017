"""The largest values of each row."""

import triton
import triton.language as tl


@triton.jit
def ordered(value, BITS: tl.constexpr):
    """Return floats as whole numbers in the same order, NaN above all and one zero."""
    if BITS == 64:
        bits = (value + 0.0).to(tl.int64, bitcast=True)
        top = 0x7FFFFFFFFFFFFFFF
    else:
        bits = (value + 0.0).to(tl.int32, bitcast=True)
        top = 0x7FFFFFFF
    # Of negative floats, larger magnitudes come first.
    key = tl.where(bits < 0, bits ^ top, bits)
    key = tl.where(value == 0, 0, key)
    return tl.where(value != value, top, key)


@triton.jit
def largest(
    values,
    wanted,
    visible,
    live,
    rows,
    n,
    count,
    values_row,
    visible_row,
    live_row,
    EACH: tl.constexpr,
    VISIBLE: tl.constexpr,
    BITS: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
):
    """Write where each row has its largest values: ``count`` of them, or with ``EACH`` what ``wanted`` says.

    The smallest key that is kept is found bit by bit, from the highest: a bit is set where enough keys are
    at least as large. Of equal ones the first are kept. The values of TM rows are read again for each bit
    where they are more than TN, out of the cache.
    """
    row = tl.program_id(0).to(tl.int64) * TM + tl.arange(0, TM)
    here = row < rows
    KIND: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    need = tl.zeros((TM,), tl.int32) + count
    if EACH:
        need = tl.load(wanted + row, here, 0).to(tl.int32)
    col = tl.arange(0, TN)
    # The lowest key of all, of two's complement.
    least = tl.zeros((TM,), KIND) + (-1 << (BITS - 1))
    first = here[:, None] & (col < n)[None, :]
    keys = ordered(tl.load(values + row[:, None] * values_row + col[None, :], first, 0), BITS)
    if VISIBLE:
        first = first & (tl.load(visible + row[:, None] * visible_row + col[None, :], first, 0) != 0)
    for step in range(0, BITS):
        # Adding the highest bit to the lowest key gives 0.
        tried = least + (tl.full((), 1, KIND) << (BITS - 1 - step))
        enough = tl.sum((first & (keys >= tried[:, None])).to(tl.int32), 1)
        for at in range(TN, n, TN):
            there = here[:, None] & (at + col < n)[None, :]
            more = ordered(tl.load(values + row[:, None] * values_row + (at + col)[None, :], there, 0), BITS)
            if VISIBLE:
                there = there & (
                    tl.load(visible + row[:, None] * visible_row + (at + col)[None, :], there, 0) != 0
                )
            enough += tl.sum((there & (more >= tried[:, None])).to(tl.int32), 1)
        least = tl.where(enough >= need, tried, least)
    above = tl.sum((first & (keys > least[:, None])).to(tl.int32), 1)
    for at in range(TN, n, TN):
        there = here[:, None] & (at + col < n)[None, :]
        more = ordered(tl.load(values + row[:, None] * values_row + (at + col)[None, :], there, 0), BITS)
        if VISIBLE:
            there = there & (
                tl.load(visible + row[:, None] * visible_row + (at + col)[None, :], there, 0) != 0
            )
        above += tl.sum((there & (more > least[:, None])).to(tl.int32), 1)
    left = need - above
    for at in range(0, n, TN):
        there = here[:, None] & (at + col < n)[None, :]
        more = ordered(tl.load(values + row[:, None] * values_row + (at + col)[None, :], there, 0), BITS)
        seen = there
        if VISIBLE:
            seen = there & (
                tl.load(visible + row[:, None] * visible_row + (at + col)[None, :], there, 0) != 0
            )
        equal = (seen & (more == least[:, None])).to(tl.int32)
        before = tl.cumsum(equal, 1) - equal
        kept = seen & ((more > least[:, None]) | ((equal > 0) & (before < left[:, None])))
        kept = kept & (need > 0)[:, None]
        tl.store(live + row[:, None] * live_row + (at + col)[None, :], kept.to(tl.uint8), there)
        left -= tl.sum(equal, 1)
