"""Which blocks of keys each block of queries of attention walks: lists of what is live and can be seen."""

import triton
import triton.language as tl


@triton.jit
def lists(
    live,
    table,
    counts,
    clear,
    heads,
    blocks,
    columns,
    total,
    n,
    m,
    live_batch,
    live_head,
    live_row,
    live_col,
    BS: tl.constexpr,
    CAUSAL: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
):
    """Write the lists of live blocks of ``TM`` rows of a grid (batch, heads, blocks, columns).

    Row r has ``counts[r]`` blocks in ascending order from ``table[r * columns]`` on. All queries of the row
    see all keys of the first ``clear[r]`` of them. With ``CAUSAL``, blocks that no query sees are left out.
    """
    row = tl.program_id(0) * TM + tl.arange(0, TM)
    valid = row < total
    block = row % blocks
    head = row // blocks % heads
    member = row // blocks // heads
    first = live + member.to(tl.int64) * live_batch + head.to(tl.int64) * live_head
    first += block.to(tl.int64) * live_row
    place = table + row.to(tl.int64) * columns
    # The last key that the last query sees, and the last key that all of them see.
    most = tl.full((TM,), m - 1, tl.int32)
    least = tl.full((TM,), m - 1, tl.int32)
    if CAUSAL:
        most = tl.minimum(most, tl.minimum((block + 1) * BS, n) - 1 + (m - n))
        least = tl.minimum(least, block * BS + (m - n))
    found = tl.zeros((TM,), tl.int32)
    whole = tl.zeros((TM,), tl.int32)
    for at in range(0, columns, TN):
        col = at + tl.arange(0, TN)
        there = valid[:, None] & (col < columns)[None, :]
        bits = tl.load(first[:, None] + col.to(tl.int64)[None, :] * live_col, there, 0) != 0
        bits = bits & (col[None, :] * BS <= most[:, None])
        ones = bits.to(tl.int32)
        position = found[:, None] + tl.cumsum(ones, 1) - ones
        tl.store(place[:, None] + position, tl.broadcast_to(col[None, :], (TM, TN)), bits)
        found += tl.sum(ones, 1)
        seen = bits & (col[None, :] * BS + (BS - 1) <= least[:, None])
        whole += tl.sum(seen.to(tl.int32), 1)
    tl.store(counts + row, found, valid)
    tl.store(clear + row, whole, valid)
