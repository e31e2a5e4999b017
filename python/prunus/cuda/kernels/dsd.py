"""Block-sparse times dense.

The inner dimension of a row of blocks is the list of its blocks' columns, which a kernel walks in steps:
each position of a step knows its block and its column. So blocks need be no power of two and no multiple of a
step, and what blocks hang over the edge with is left out by the same mask that ends the list.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast, finish


@triton.jit
def dsd(
    data,
    indices,
    indptr,
    order,
    x,
    out,
    bias,
    M,
    N,
    K,
    block_rows,
    column_tiles,
    data_batch,
    indptr_batch,
    x_batch,
    x_row,
    x_col,
    out_batch,
    out_row,
    out_col,
    SR: tl.constexpr,
    SC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ORDERED: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADD: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Write a tile of ``activation(w @ x + bias[:, None])``; programs of a column tile follow each other.

    ``indices`` are the inner block indices of blocks in the order of the output's rows of blocks; with
    ``ORDERED`` they and the blocks are found through ``order``, and ``indices`` are of stored blocks.
    Stored blocks are SR x SC, and the operand their transpose if ``TRANSPOSED``.
    """
    BR: tl.constexpr = SC if TRANSPOSED else SR
    BC: tl.constexpr = SR if TRANSPOSED else SC
    PARTS: tl.constexpr = (BR + TM - 1) // TM
    pid = tl.program_id(0)
    tiles = block_rows * PARTS
    member = (pid // (tiles * column_tiles)).to(tl.int64)
    rest = pid % (tiles * column_tiles)
    tile = rest % tiles
    col = (rest // tiles) * TN + tl.arange(0, TN)
    block_row = tile // PARTS
    within = (tile % PARTS) * TM + tl.arange(0, TM)
    data += member * data_batch
    x += member * x_batch
    begin = tl.load(indptr + member * indptr_batch + block_row)
    end = tl.load(indptr + member * indptr_batch + block_row + 1)
    row = block_row * BR + within
    valid = (within < BR) & (row < M)
    place = (
        out + member * out_batch + row.to(tl.int64)[:, None] * out_row + col.to(tl.int64)[None, :] * out_col
    )
    keep = valid[:, None] & (col < N)[None, :]
    acc = tl.zeros((TM, TN), SUMS)
    if ADD:
        acc += cast(tl.load(place, keep, 0), SUMS)
    length = (end - begin) * BC
    right = x + col.to(tl.int64)[None, :] * x_col
    for at in range(0, length, TK):
        if BC % TK == 0:
            # A step lies within one block.
            e = begin + at // BC
            if ORDERED:
                e = tl.load(order + e)
            off = at % BC + tl.arange(0, TK)
            inner = tl.load(indices + e) * BC + off
            there = inner < K
            first = data + e.to(tl.int64) * (SR * SC)
        else:
            flat = at + tl.arange(0, TK)
            there = flat < length
            e = begin + flat // BC
            if ORDERED:
                e = tl.load(order + e, there, 0)
            off = flat % BC
            inner = tl.load(indices + e, there, 0) * BC + off
            there = there & (inner < K)
            first = data + e.to(tl.int64)[None, :] * (SR * SC)
        if TRANSPOSED:
            w = tl.load(first + off[None, :] * SC + within[:, None], valid[:, None] & there[None, :], 0)
        else:
            w = tl.load(first + within[:, None] * SC + off[None, :], valid[:, None] & there[None, :], 0)
        v = tl.load(right + inner.to(tl.int64)[:, None] * x_row, there[:, None] & (col < N)[None, :], 0)
        acc = tl.dot(cast(w, COMPUTE), cast(v, COMPUTE), acc, input_precision=PRECISION, out_dtype=SUMS)
    value = finish(acc, bias, row, M, ACTIVATION, BIAS, WIDE)
    tl.store(place, cast(value, out.dtype.element_ty), keep)


@triton.jit
def dsd_small(
    data,
    indices,
    indptr,
    order,
    x,
    out,
    bias,
    M,
    N,
    K,
    row_tiles,
    column_tiles,
    data_batch,
    indptr_batch,
    x_batch,
    x_row,
    x_col,
    out_batch,
    out_row,
    out_col,
    SR: tl.constexpr,
    SC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ORDERED: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADD: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """As ``dsd``, for blocks that matrix units cannot fill: each row of a tile walks its own list.

    Rows of a tile may be of several rows of blocks. A step takes ``TK`` positions of each row's inner list;
    there are as many as the longest list of the tile needs.
    """
    BR: tl.constexpr = SC if TRANSPOSED else SR
    BC: tl.constexpr = SR if TRANSPOSED else SC
    pid = tl.program_id(0)
    member = (pid // (row_tiles * column_tiles)).to(tl.int64)
    rest = pid % (row_tiles * column_tiles)
    row = (rest % row_tiles) * TM + tl.arange(0, TM)
    col = (rest // row_tiles) * TN + tl.arange(0, TN)
    valid = row < M
    block_row = row // BR
    within = row % BR
    data += member * data_batch
    x += member * x_batch
    begin = tl.load(indptr + member * indptr_batch + block_row, valid, 0)
    end = tl.load(indptr + member * indptr_batch + block_row + 1, valid, 0)
    place = (
        out + member * out_batch + row.to(tl.int64)[:, None] * out_row + col.to(tl.int64)[None, :] * out_col
    )
    keep = valid[:, None] & (col < N)[None, :]
    acc = tl.zeros((TM, TN), SUMS)
    if ADD:
        acc += cast(tl.load(place, keep, 0), SUMS)
    length = (end - begin) * BC
    most = tl.max(length, 0)
    for at in range(0, most, TK):
        flat = at + tl.arange(0, TK)
        there = flat[None, :] < length[:, None]
        e = begin[:, None] + (flat // BC)[None, :]
        if ORDERED:
            e = tl.load(order + e, there, 0)
        off = (flat % BC)[None, :]
        inner = tl.load(indices + e, there, 0) * BC + off
        there = there & (inner < K)
        first = data + e.to(tl.int64) * (SR * SC)
        if TRANSPOSED:
            w = tl.load(first + off * SC + within[:, None], there, 0)
        else:
            w = tl.load(first + within[:, None] * SC + off, there, 0)
        v = tl.load(
            x + inner.to(tl.int64)[:, :, None] * x_row + col.to(tl.int64)[None, None, :] * x_col,
            there[:, :, None] & (col < N)[None, None, :],
            0,
        )
        acc += tl.sum(cast(w, SUMS)[:, :, None] * cast(v, SUMS), 1)
    value = finish(acc, bias, row, M, ACTIVATION, BIAS, WIDE)
    tl.store(place, cast(value, out.dtype.element_ty), keep)
