"""Sums of outer products over the rows of each group: gradients of experts' matrices."""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast


@triton.jit
def grouped_outer(
    a,
    b,
    offsets,
    out,
    N,
    K,
    down,
    across,
    a_row,
    a_col,
    b_row,
    b_col,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Write ``a.T @ b`` over each group's rows to ``out`` (groups, N, K), 0 where there are none.

    A program computes a tile of a group; how many rows it walks is loaded.
    """
    t = tl.program_id(0)
    group = t // (down * across)
    local = t % (down * across)
    n = local // across * TM + tl.arange(0, TM)
    k = local % across * TN + tl.arange(0, TN)
    begin, end = tl.load(offsets + group), tl.load(offsets + group + 1)
    left = a + n.to(tl.int64)[:, None] * a_col
    right = b + k.to(tl.int64)[None, :] * b_col
    acc = tl.zeros((TM, TN), SUMS)
    for at in range(begin, end, TK):
        row = at + tl.arange(0, TK)
        there = row < end
        row = row.to(tl.int64)
        one = tl.load(left + row[None, :] * a_row, (n < N)[:, None] & there[None, :], 0)
        other = tl.load(right + row[:, None] * b_row, there[:, None] & (k < K)[None, :], 0)
        acc = tl.dot(cast(one, COMPUTE), cast(other, COMPUTE), acc, input_precision=PRECISION, out_dtype=SUMS)
    place = (group.to(tl.int64) * N + n)[:, None] * K + k[None, :]
    tl.store(out + place, cast(acc, out.dtype.element_ty), (n < N)[:, None] & (k < K)[None, :])
