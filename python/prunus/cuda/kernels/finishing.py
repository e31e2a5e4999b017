"""What follows sums that several kernels made together: bias, activation, and the result's dtype."""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast, finish


@triton.jit(do_not_specialize=["row_tiles", "column_tiles"])
def finishing(
    sums,
    out,
    bias,
    M,
    N,
    row_tiles,
    column_tiles,
    sums_batch,
    sums_row,
    sums_col,
    out_batch,
    out_row,
    out_col,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
):
    """Write a tile of ``activation(sums + bias[:, None])``, as ``dsd`` ends."""
    pid = tl.program_id(0)
    member = (pid // (row_tiles * column_tiles)).to(tl.int64)
    # In 64 bits, as what is not multiplied costs little else: either side may be longer than 32 bits count.
    rest = (pid % (row_tiles * column_tiles)).to(tl.int64)
    row = rest // column_tiles * TM + tl.arange(0, TM)
    col = rest % column_tiles * TN + tl.arange(0, TN)
    keep = (row < M)[:, None] & (col < N)[None, :]
    down, across = row[:, None], col[None, :]
    value = tl.load(sums + member * sums_batch + down * sums_row + across * sums_col, keep, 0)
    value = finish(value, bias, row, M, ACTIVATION, BIAS, WIDE)
    place = out + member * out_batch + down * out_row + across * out_col
    tl.store(place, cast(value, out.dtype.element_ty), keep)
