"""Block-sparse times dense through tensor descriptors: loads by the tensor memory accelerator.

On sm_90 and later one thread asks for a whole tile, which arrives in the layout that matrix units read, so
that no registers hold addresses. What ``dsd`` masks cannot be masked here: this kernel is for inner
dimensions that blocks divide, and tiles that divide blocks. What hangs over other edges is not stored.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import finish
from prunus.cuda.kernels.dsd import blocks_of_step, place_of_program


@triton.jit(do_not_specialize=["block_rows", "column_tiles", "group", "data_rows", "x_rows"])
def dsd_described(
    data,
    indices,
    indptr,
    order,
    x,
    out,
    bias,
    M,
    N,
    block_rows,
    column_tiles,
    group,
    data_rows,
    indptr_batch,
    x_rows,
    out_batch,
    out_row,
    out_col,
    SR: tl.constexpr,
    SC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    X_TRANSPOSED: tl.constexpr,
    ORDERED: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADD: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
    SPECIALISED: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """As ``dsd``; ``data`` describes all blocks below each other, ``x`` all members below each other.

    ``data_rows`` and ``x_rows`` are rows of a member there, 0 where members share. With ``X_TRANSPOSED``, x
    describes the transpose. With ``SPECIALISED``, loads and products are different warps.

    That is Triton's own partition of the loop. Its version 3.9 has one for sm_100; on sm_90 it fails to
    compile loops that carry more than sums, as this one does, or leaves them as they are.
    """
    BR: tl.constexpr = SC if TRANSPOSED else SR
    BC: tl.constexpr = SR if TRANSPOSED else SC
    PARTS: tl.constexpr = BR // TM
    member, tile, across = place_of_program(tl.program_id(0), block_rows * PARTS, column_tiles, group)
    block_row = tile // PARTS
    part = (tile % PARTS) * TM
    begin = tl.load(indptr + member * indptr_batch + block_row)
    end = tl.load(indptr + member * indptr_batch + block_row + 1)
    data_row = member.to(tl.int32) * data_rows
    x_row = member.to(tl.int32) * x_rows
    acc = tl.zeros((TM, TN), SUMS)
    length = ((end - begin) * BC).to(tl.int32)
    e, block = blocks_of_step(indices, order, begin, 0, length, BC, TK, ORDERED)
    for at in tl.range(0, length, TK, warp_specialize=SPECIALISED):
        stored = data_row + e.to(tl.int32) * SR
        off = at % BC
        inner = block.to(tl.int32) * BC + off
        e, block = blocks_of_step(indices, order, begin, at + TK, length, BC, TK, ORDERED)
        w = data.load([stored + off, part]).T if TRANSPOSED else data.load([stored + part, off])
        v = x.load([x_row + across * TN, inner]).T if X_TRANSPOSED else x.load([x_row + inner, across * TN])
        acc = tl.dot(w.to(COMPUTE), v.to(COMPUTE), acc, out_dtype=SUMS)
    row = block_row * BR + part + tl.arange(0, TM)
    col = across * TN + tl.arange(0, TN)
    place = (
        out + member * out_batch + row.to(tl.int64)[:, None] * out_row + col.to(tl.int64)[None, :] * out_col
    )
    keep = (row < M)[:, None] & (col < N)[None, :]
    if ADD:
        acc += tl.load(place, keep, 0).to(SUMS)
    value = finish(acc, bias, row, M, ACTIVATION, BIAS, WIDE)
    tl.store(place, value.to(out.dtype.element_ty), keep)
