"""Block-sparse times dense.

The inner dimension of a row of blocks is the list of its blocks' columns, which a kernel walks in steps:
each position of a step knows its block and its column. So blocks need be no power of two and no multiple of a
step, and what blocks hang over the edge with is left out by the same mask that ends the list.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast, finish


@triton.jit
def blocks_of_step(
    indices, order, begin, at, length, BC: tl.constexpr, TK: tl.constexpr, ORDERED: tl.constexpr
):
    """Return position and inner index of the block that a step takes, or of that of each of its places."""
    if BC % TK == 0:
        e = begin + at // BC
        there = at < length
    else:
        flat = at + tl.arange(0, TK)
        e = begin + flat // BC
        there = flat < length
    if ORDERED:
        e = tl.load(order + e, there, 0)
    return e, tl.load(indices + e, there, 0)


@triton.jit
def place_of_program(pid, tiles, column_tiles, group):
    """Return member, tile of rows and tile of columns of a program.

    Programs that run at the same time share what is in the second-level cache: those of ``group`` tiles of
    columns and neighbouring rows follow each other, column by column.
    """
    member = pid // (tiles * column_tiles)
    rest = pid % (tiles * column_tiles)
    first = rest // (tiles * group) * group
    width = tl.minimum(group, column_tiles - first)
    rest = rest % (tiles * group)
    return member.to(tl.int64), rest // width, first + rest % width


@triton.jit(do_not_specialize=["block_rows", "column_tiles", "group"])
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
    group,
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
    FAR: tl.constexpr,
    RESTRICTED: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Write a tile of ``activation(w @ x + bias[:, None])``.

    ``indices`` are the inner block indices of blocks in the order of the output's rows of blocks; with
    ``ORDERED`` they and the blocks are found through ``order``, and ``indices`` are of stored blocks.
    Stored blocks are SR x SC, and the operand their transpose if ``TRANSPOSED``. With ``FAR``, rows, columns
    or places in a list are counted beyond 32 bits. ``RESTRICTED``, each tile of columns has lists of its own:
    ``indptr`` are pairs of where they begin and end, (tiles, rows of blocks, 2).
    """
    BR: tl.constexpr = SC if TRANSPOSED else SR
    BC: tl.constexpr = SR if TRANSPOSED else SC
    PARTS: tl.constexpr = (BR + TM - 1) // TM
    member, tile, across = place_of_program(tl.program_id(0), block_rows * PARTS, column_tiles, group)
    if FAR:
        tile, across = tile.to(tl.int64), across.to(tl.int64)
    col = across * TN + tl.arange(0, TN)
    block_row = tile // PARTS
    within = (tile % PARTS) * TM + tl.arange(0, TM)
    data += member * data_batch
    x += member * x_batch
    list_of = indptr + member * indptr_batch + block_row
    if RESTRICTED:
        list_of = indptr + (across.to(tl.int64) * ((M + BR - 1) // BR) + block_row) * 2
    begin = tl.load(list_of)
    end = tl.load(list_of + 1)
    if FAR:
        begin, end = begin.to(tl.int64), end.to(tl.int64)
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
    # Which blocks a step takes is loaded a step ahead: the loads of their values then wait for no other load,
    # and the compiler can have as many steps of them under way as there are stages.
    e, block = blocks_of_step(indices, order, begin, 0, length, BC, TK, ORDERED)
    for at in range(0, length, TK):
        this_e, this_block = e, block
        if FAR:
            this_block = this_block.to(tl.int64)
        e, block = blocks_of_step(indices, order, begin, at + TK, length, BC, TK, ORDERED)
        if BC % TK == 0:
            # A step lies within one block.
            off = at % BC + tl.arange(0, TK)
            inner = this_block * BC + off
            there = inner < K
            first = data + this_e.to(tl.int64) * (SR * SC)
        else:
            flat = at + tl.arange(0, TK)
            off = flat % BC
            inner = this_block * BC + off
            there = (flat < length) & (inner < K)
            first = data + this_e.to(tl.int64)[None, :] * (SR * SC)
        if TRANSPOSED:
            w = tl.load(first + off[None, :] * SC + within[:, None], valid[:, None] & there[None, :], 0)
        else:
            w = tl.load(first + within[:, None] * SC + off[None, :], valid[:, None] & there[None, :], 0)
        v = tl.load(right + inner.to(tl.int64)[:, None] * x_row, there[:, None] & (col < N)[None, :], 0)
        acc = tl.dot(cast(w, COMPUTE), cast(v, COMPUTE), acc, input_precision=PRECISION, out_dtype=SUMS)
    value = finish(acc, bias, row, M, ACTIVATION, BIAS, WIDE)
    tl.store(place, cast(value, out.dtype.element_ty), keep)


@triton.jit(do_not_specialize=["row_tiles", "column_tiles", "group"])
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
    group,
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
    FAR: tl.constexpr,
    RESTRICTED: tl.constexpr,
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
    member, tile, across = place_of_program(tl.program_id(0), row_tiles, column_tiles, group)
    if FAR:
        tile, across = tile.to(tl.int64), across.to(tl.int64)
    row = tile * TM + tl.arange(0, TM)
    col = across * TN + tl.arange(0, TN)
    valid = row < M
    block_row = row // BR
    within = row % BR
    data += member * data_batch
    x += member * x_batch
    list_of = indptr + member * indptr_batch + block_row
    if RESTRICTED:
        list_of = indptr + (across.to(tl.int64) * ((M + BR - 1) // BR) + block_row) * 2
    begin = tl.load(list_of, valid, 0)
    end = tl.load(list_of + 1, valid, 0)
    if FAR:
        begin, end = begin.to(tl.int64), end.to(tl.int64)
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
        block = tl.load(indices + e, there, 0)
        if FAR:
            block = block.to(tl.int64)
        inner = block * BC + off
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
