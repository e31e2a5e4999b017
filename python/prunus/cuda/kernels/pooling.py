"""Pooled scores of attention: means of blocks of rows, and products of means."""

import triton
import triton.language as tl


@triton.jit
def _seen_end(block, n, m, BS: tl.constexpr):
    """Return past which key no query of a block of queries sees by causality."""
    return tl.minimum((block + 1) * BS, n) + (m - n)


@triton.jit
def means(
    x,
    out,
    heads,
    blocks,
    total,
    n,
    m,
    d,
    depth_tiles,
    x_batch,
    x_head,
    x_row,
    x_col,
    BS: tl.constexpr,
    SEEN: tl.constexpr,
    SUMS: tl.constexpr,
    TB: tl.constexpr,
    TR: tl.constexpr,
    TK: tl.constexpr,
):
    """Write the means (batch, heads, blocks, d) of blocks of the ``m`` rows of x; in ``SUMS``.

    With ``SEEN``, ``blocks`` are of n queries: of each the mean over the last block of keys that it sees at
    all by causality, as far as it sees it; 0 where it sees none.
    """
    pid = tl.program_id(0)
    col = pid % depth_tiles * TK + tl.arange(0, TK)
    at = pid // depth_tiles * TB + tl.arange(0, TB)
    valid = at < total
    block = at % blocks
    head = at // blocks % heads
    member = at // blocks // heads
    if SEEN:
        end = tl.maximum(_seen_end(block, n, m, BS), 0)
        begin = tl.maximum(end - 1, 0) // BS * BS
    else:
        begin = block * BS
        end = tl.minimum(begin + BS, m)
    first = x + member.to(tl.int64) * x_batch + head.to(tl.int64) * x_head
    acc = tl.zeros((TB, TK), SUMS)
    for ahead in range(0, BS, TR):
        row = begin[:, None] + ahead + tl.arange(0, TR)[None, :]
        there = valid[:, None] & (row < end[:, None]) & (ahead + tl.arange(0, TR) < BS)[None, :]
        place = (first[:, None] + row.to(tl.int64) * x_row)[:, :, None] + col.to(tl.int64)[
            None, None, :
        ] * x_col
        value = tl.load(place, there[:, :, None] & (col < d)[None, None, :], 0)
        acc += tl.sum(value.to(SUMS), 1)
    count = tl.maximum(end - begin, 1).to(SUMS)
    place = out + at.to(tl.int64)[:, None] * d + col[None, :]
    tl.store(place, acc / count[:, None], valid[:, None] & (col < d)[None, :])


@triton.jit(do_not_specialize=["scale"])
def scores(
    queries,
    keys,
    seen,
    out,
    scale,
    share,
    rows,
    columns,
    n,
    m,
    d,
    row_tiles,
    column_tiles,
    BS: tl.constexpr,
    SEEN: tl.constexpr,
    SUMS: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Write ``scale * queries @ keys.T`` of means, (heads, rows, columns); ``share`` heads share keys.

    With ``SEEN``, the last block of keys that a row sees takes its mean from ``seen``, (heads / share, rows,
    d). ``scale`` is a double's 64 bits.
    """
    pid = tl.program_id(0)
    col = pid % column_tiles * TN + tl.arange(0, TN)
    row = pid // column_tiles % row_tiles * TM + tl.arange(0, TM)
    head = (pid // column_tiles // row_tiles).to(tl.int64)
    group = head // share
    queries += (head * rows + row)[:, None] * d
    keys += (group * columns + col)[None, :] * d
    seen += (group * rows + row)[:, None] * d
    acc = tl.zeros((TM, TN), SUMS)
    own = tl.zeros((TM,), SUMS)
    for first in range(0, d, TK):
        at = first + tl.arange(0, TK)
        mine = (row < rows)[:, None] & (at < d)[None, :]
        q = tl.load(queries + at[None, :], mine, 0)
        k = tl.load(keys + at[:, None], (col < columns)[None, :] & (at < d)[:, None], 0)
        # Decisions do not depend on how matrix units are told to take float32.
        acc = tl.dot(q, k, acc, input_precision="ieee", out_dtype=SUMS)
        if SEEN:
            own += tl.sum(q * tl.load(seen + at[None, :], mine, 0), 1)
    factor = scale.to(tl.int64).to(tl.float64, bitcast=True).to(SUMS)
    if SEEN:
        end = _seen_end(row, n, m, BS)
        last = (end - 1) // BS
        cut = (end > 0) & (end < tl.minimum(last * BS + BS, m))
        acc = tl.where(cut[:, None] & (col[None, :] == last[:, None]), own[:, None], acc)
    place = out + (head * rows + row)[:, None] * columns + col[None, :]
    tl.store(place, acc * factor, (row < rows)[:, None] & (col < columns)[None, :])
