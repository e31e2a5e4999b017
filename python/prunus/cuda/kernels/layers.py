"""What feed-forward layers need between and after products of libraries."""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import activate, cast


@triton.jit
def gated(
    gate,
    up,
    out,
    bias,
    rows,
    units,
    across,
    gate_row,
    up_row,
    out_row,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    TM: tl.constexpr,
    TU: tl.constexpr,
):
    """Write ``activation(gate) * (up + bias)`` for some rows and units."""
    pid = tl.program_id(0)
    row = (pid // across).to(tl.int64) * TM + tl.arange(0, TM)
    unit = (pid % across) * TU + tl.arange(0, TU)
    seen = (row < rows)[:, None] & (unit < units)[None, :]
    value = cast(tl.load(gate + row[:, None] * gate_row + unit[None, :], seen, 0), WIDE)
    other = cast(tl.load(up + row[:, None] * up_row + unit[None, :], seen, 0), WIDE)
    if BIAS:
        other += cast(tl.load(bias + unit, unit < units, 0), WIDE)[None, :]
    value = activate(value, ACTIVATION) * other
    tl.store(out + row[:, None] * out_row + unit[None, :], cast(value, out.dtype.element_ty), seen)


@triton.jit
def repair(
    h,
    live,
    w,
    out,
    bias,
    units,
    N,
    branch,
    across,
    h_row,
    live_row,
    w_row,
    w_col,
    out_row,
    BIAS: tl.constexpr,
    SUMS: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Compute results again that are not finite, of a row's live units alone.

    A dead unit's 0 makes NaN of an infinity or NaN among the weights; a result that is finite met none.
    """
    pid = tl.program_id(0)
    row = (pid // across).to(tl.int64)
    col = (pid % across) * TN + tl.arange(0, TN)
    place = out + row * out_row + col
    was = cast(tl.load(place, col < N, 0), SUMS)
    # x - x is 0 unless x is infinite or NaN.
    wrong = (was - was) != 0
    if tl.max(wrong.to(tl.int32), 0) > 0:
        acc = tl.zeros((TN,), SUMS)
        for at in range(0, units, TK):
            unit = at + tl.arange(0, TK)
            alive = tl.load(live + row * live_row + unit // branch, unit < units, 0) != 0
            a = cast(tl.load(h + row * h_row + unit, alive, 0), SUMS)
            seen = wrong[:, None] & alive[None, :]
            b = tl.load(w + col.to(tl.int64)[:, None] * w_row + unit.to(tl.int64)[None, :] * w_col, seen, 0)
            acc += tl.sum(tl.where(seen, cast(b, SUMS) * a[None, :], 0), 1)
        if BIAS:
            acc += cast(tl.load(bias + col, col < N, 0), SUMS)
        tl.store(place, cast(acc, out.dtype.element_ty), wrong)
