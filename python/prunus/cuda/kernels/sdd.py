"""Dense times dense at the blocks of a pattern.

The columns of a row's blocks, one block after the other, are a list of positions that tiles are cut from. So
a tile holds several blocks, which share the rows of ``a`` that they are computed from, and blocks need be no
power of two. A tile that several rows of blocks have a part of is computed row by row.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast, count_up_to


@triton.jit
def sdd(
    a,
    b,
    indices,
    indptr,
    out,
    M,
    N,
    K,
    edges,
    rows,
    tiles,
    a_batch,
    a_row,
    a_col,
    b_batch,
    b_row,
    b_col,
    out_batch,
    OWN: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    FAR: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Write a tile of the blocks of ``a @ b``, with zeros past the edge; ``edges`` offsets are in ``indptr``.

    With ``FAR`` the inner dimension, with a step beyond its end, is counted beyond 32 bits; blocks, rows and
    columns always are.

    Programs of the parts of a block follow each other, then those of a row of blocks, then those of a member:
    neighbours share columns of ``b``, and rows of ``a``.
    """
    PARTS: tl.constexpr = (BR + TM - 1) // TM
    if FAR:
        K = tl.cast(K, tl.int64)
    pid = tl.program_id(0)
    each = tiles * PARTS
    member = (pid // each).to(tl.int64)
    tile = (pid % each) // PARTS
    within = (pid % PARTS) * TM + tl.arange(0, TM)
    begin = tile.to(tl.int64) * TN
    position = begin + tl.arange(0, TN)
    e = position // BC
    off = (position % BC).to(tl.int32)
    total = tl.load(indptr + edges - 1).to(tl.int64) * BC
    stop = tl.minimum(begin + TN, total)
    col = tl.load(indices + e, position < stop, 0).to(tl.int64) * BC + off
    out += member * out_batch
    while begin < stop:
        found = count_up_to(indptr, edges, begin // BC, 128) - 1
        if OWN:
            member = found // (rows + 1)
        block_row = found % (rows + 1)
        end = tl.minimum(tl.load(indptr + found + 1).to(tl.int64) * BC, stop)
        mine = (position >= begin) & (position < end)
        row = block_row * BR + within
        valid = (within < BR) & (row < M)
        keep = mine & (col < N)
        left = a + member * a_batch + row.to(tl.int64)[:, None] * a_row
        right = b + member * b_batch + col[None, :] * b_col
        acc = tl.zeros((TM, TN), SUMS)
        for at in range(0, K, TK):
            inner = at + tl.arange(0, TK)
            there = inner < K
            x = tl.load(left + inner.to(tl.int64)[None, :] * a_col, valid[:, None] & there[None, :], 0)
            y = tl.load(right + inner.to(tl.int64)[:, None] * b_row, there[:, None] & keep[None, :], 0)
            acc = tl.dot(cast(x, COMPUTE), cast(y, COMPUTE), acc, input_precision=PRECISION, out_dtype=SUMS)
        # A 0 that stands for what is past the edge may have met an infinity.
        acc = tl.where(valid[:, None] & keep[None, :], acc, 0)
        place = out + e[None, :] * (BR * BC) + within[:, None] * BC + off[None, :]
        tl.store(place, cast(acc, out.dtype.element_ty), (within < BR)[:, None] & mine[None, :])
        begin = end


@triton.jit
def sdd_small(
    a,
    b,
    indices,
    row_of,
    out,
    M,
    N,
    K,
    room,
    rows,
    limit,
    tiles,
    a_batch,
    a_row,
    a_col,
    b_batch,
    b_row,
    b_col,
    out_batch,
    OWN: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    FAR: tl.constexpr,
    SUMS: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """As ``sdd``, for blocks that matrix units cannot fill: each value of the blocks is a sum of its own.

    ``row_of`` has the row of blocks of each of the blocks that there is ``room`` for, counted through all
    members; it is ``limit`` for those that are not there.
    """
    if FAR:
        K = tl.cast(K, tl.int64)
    pid = tl.program_id(0)
    member = (pid // tiles).to(tl.int64)
    position = (pid % tiles).to(tl.int64) * TN + tl.arange(0, TN)
    e = position // (BR * BC)
    rest = (position % (BR * BC)).to(tl.int32)
    exists = e < room
    found = tl.load(row_of + e, exists, limit).to(tl.int64)
    exists = exists & (found < limit)
    if OWN:
        at_a = (found // rows) * a_batch
        at_b = (found // rows) * b_batch
        found = found % rows
    else:
        at_a = member * a_batch
        at_b = member * b_batch
    row = found * BR + rest // BC
    col = tl.load(indices + e, exists, 0).to(tl.int64) * BC + rest % BC
    keep = exists & (row < M) & (col < N)
    left = a + at_a + row * a_row
    right = b + at_b + col * b_col
    acc = tl.zeros((TN,), SUMS)
    for at in range(0, K, TK):
        inner = (at + tl.arange(0, TK)).to(tl.int64)
        there = keep[:, None] & (inner < K)[None, :]
        x = tl.load(left[:, None] + inner[None, :] * a_col, there, 0)
        y = tl.load(right[:, None] + inner[None, :] * b_row, there, 0)
        acc += tl.sum(cast(x, SUMS) * cast(y, SUMS), 1)
    tl.store(out + member * out_batch + position, cast(acc, out.dtype.element_ty), exists)
