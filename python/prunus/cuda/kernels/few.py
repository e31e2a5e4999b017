"""Products of a few rows, each by itself: what is read of a table is what the row needs.

A program finds the live ones among some neighbouring units and walks these, a few at a time. There is no list
in memory and no step for dead units. Programs of several rows that look at the same units run side by side,
so that what they share comes from the cache.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.branches import is_live, reduce_norm
from prunus.cuda.kernels.common import activate, cast


@triton.jit
def dots_few(
    x,
    w,
    out,
    live,
    bias,
    scale,
    norms,
    found,
    tau: tl.float64,
    rows,
    units,
    K,
    branch,
    branches,
    x_row,
    x_col,
    w_row,
    out_row,
    live_row,
    scale_row,
    norms_row,
    found_row,
    LIVE: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
    NORM: tl.constexpr,
    FOUND: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMS: tl.constexpr,
    SPAN: tl.constexpr,
    STEP: tl.constexpr,
    TK: tl.constexpr,
):
    """Write SPAN units of ``activation(x @ w.T + bias) * scale`` of a row, and 0 where they are dead."""
    pid = tl.program_id(0)
    row = (pid % rows).to(tl.int64)
    unit = (pid // rows) * SPAN + tl.arange(0, SPAN)
    there = unit < units
    alive = there
    if LIVE:
        alive = tl.load(live + row * live_row + unit // branch, there, 0) != 0
    kept = alive.to(tl.int32)
    place = tl.cumsum(kept, 0) - kept
    count = tl.sum(kept, 0)
    total = tl.zeros((SPAN,), SUMS)
    for first in range(0, count, STEP):
        step = first + tl.arange(0, STEP)
        hit = (place[None, :] == step[:, None]) & alive[None, :]
        one = tl.sum(tl.where(hit, unit[None, :], 0), 1).to(tl.int64)
        acc = tl.zeros((STEP, TK), SUMS)
        for at in range(0, K, TK):
            k = at + tl.arange(0, TK)
            a = tl.load(x + row * x_row + k.to(tl.int64) * x_col, k < K, 0)
            b = tl.load(w + one[:, None] * w_row + k[None, :], (step < count)[:, None] & (k < K)[None, :], 0)
            acc += cast(b, SUMS) * cast(a, SUMS)[None, :]
        value = tl.sum(acc, 1)
        total += tl.sum(tl.where(hit, value[:, None], 0), 0)
    if BIAS:
        total += cast(tl.load(bias + unit, there, 0), SUMS)
    total = activate(total, ACTIVATION)
    if SCALE:
        total *= cast(tl.load(scale + row * scale_row + unit, alive, 0), SUMS)
    total = tl.where(alive, total, 0)
    if NORM is not None:
        norm = reduce_norm(tl.reshape(total, (1, SPAN // WIDTH, WIDTH)), NORM)
        norm = tl.reshape(norm, (SPAN // WIDTH,)).to(norms.dtype.element_ty)
        at = (pid // rows) * (SPAN // WIDTH) + tl.arange(0, SPAN // WIDTH)
        tl.store(norms + row * norms_row + at, norm, at < branches)
        if FOUND:
            good = is_live(norm, tau)
            tl.store(found + row * found_row + at, good.to(tl.uint8), at < branches)
            each = tl.broadcast_to(good[:, None], (SPAN // WIDTH, WIDTH))
            total = tl.where(tl.reshape(each, (SPAN,)), total, 0)
    tl.store(out + row * out_row + unit, cast(total, out.dtype.element_ty), there)


@triton.jit
def gated_few(
    x,
    gate,
    up,
    out,
    live,
    bias,
    rows,
    units,
    K,
    branch,
    x_row,
    x_col,
    gate_row,
    up_row,
    out_row,
    live_row,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SUMS: tl.constexpr,
    SPAN: tl.constexpr,
    STEP: tl.constexpr,
    TK: tl.constexpr,
):
    """Write SPAN units of ``activation(x @ gate.T) * (x @ up.T + bias)`` of a row, and 0 where they are dead.

    What ``dots_few`` does in two launches, in shorter steps.
    """
    pid = tl.program_id(0)
    row = (pid % rows).to(tl.int64)
    unit = (pid // rows) * SPAN + tl.arange(0, SPAN)
    there = unit < units
    alive = tl.load(live + row * live_row + unit // branch, there, 0) != 0
    kept = alive.to(tl.int32)
    place = tl.cumsum(kept, 0) - kept
    count = tl.sum(kept, 0)
    opened = tl.zeros((SPAN,), SUMS)
    total = tl.zeros((SPAN,), SUMS)
    for first in range(0, count, STEP):
        step = first + tl.arange(0, STEP)
        hit = (place[None, :] == step[:, None]) & alive[None, :]
        one = tl.sum(tl.where(hit, unit[None, :], 0), 1).to(tl.int64)
        left = tl.zeros((STEP, TK), SUMS)
        right = tl.zeros((STEP, TK), SUMS)
        for at in range(0, K, TK):
            k = at + tl.arange(0, TK)
            seen = (step < count)[:, None] & (k < K)[None, :]
            a = cast(tl.load(x + row * x_row + k.to(tl.int64) * x_col, k < K, 0), SUMS)[None, :]
            g = tl.load(gate + one[:, None] * gate_row + k[None, :], seen, 0)
            u = tl.load(up + one[:, None] * up_row + k[None, :], seen, 0)
            left += cast(g, SUMS) * a
            right += cast(u, SUMS) * a
        opened += tl.sum(tl.where(hit, tl.sum(left, 1)[:, None], 0), 0)
        total += tl.sum(tl.where(hit, tl.sum(right, 1)[:, None], 0), 0)
    if BIAS:
        total += cast(tl.load(bias + unit, there, 0), SUMS)
    total = tl.where(alive, total * activate(opened, ACTIVATION), 0)
    tl.store(out + row * out_row + unit, cast(total, out.dtype.element_ty), there)


@triton.jit
def combine_few(
    h,
    w,
    out,
    live,
    bias,
    rows,
    units,
    N,
    branch,
    width,
    segment,
    across,
    h_row,
    w_panel,
    w_row,
    out_part,
    out_row,
    live_row,
    LIVE: tl.constexpr,
    PANELS: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    SUMS: tl.constexpr,
    SPAN: tl.constexpr,
    STEP: tl.constexpr,
    TN: tl.constexpr,
):
    """Write some columns of what a segment of a row's units adds to ``h @ w``."""
    pid = tl.program_id(0)
    row = (pid % rows).to(tl.int64)
    col = (pid // rows % across) * TN + tl.arange(0, TN)
    cut = pid // rows // across
    inside = col < N
    column = col.to(tl.int64)
    if PANELS:
        column = (col // width).to(tl.int64) * w_panel + col % width
    end = tl.minimum((cut + 1) * segment, units)
    acc = tl.zeros((STEP, TN), SUMS)
    for at in range(cut * segment, end, SPAN):
        unit = at + tl.arange(0, SPAN)
        alive = unit < end
        if LIVE:
            alive = tl.load(live + row * live_row + unit // branch, alive, 0) != 0
        weight = cast(tl.load(h + row * h_row + unit, alive, 0), SUMS)
        kept = alive.to(tl.int32)
        place = tl.cumsum(kept, 0) - kept
        count = tl.sum(kept, 0)
        for first in range(0, count, STEP):
            step = first + tl.arange(0, STEP)
            hit = (place[None, :] == step[:, None]) & alive[None, :]
            one = tl.sum(tl.where(hit, unit[None, :], 0), 1).to(tl.int64)
            a = tl.sum(tl.where(hit, weight[None, :], 0), 1)
            b = tl.load(
                w + one[:, None] * w_row + column[None, :], (step < count)[:, None] & inside[None, :], 0
            )
            acc += tl.where((step < count)[:, None], a[:, None] * cast(b, SUMS), 0)
    total = tl.sum(acc, 0)
    place = out + cut.to(tl.int64) * out_part + row * out_row + col
    if ADD:
        total += cast(tl.load(place, inside, 0), SUMS)
    if BIAS:
        total += cast(tl.load(bias + col, inside, 0), SUMS)
    tl.store(place, cast(total, out.dtype.element_ty), inside)
