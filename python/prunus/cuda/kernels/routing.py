"""Routers: which experts each row takes, with which weights, and where its copies stand by expert.

Rows are counted by chunks: each writes how many of its rows chose an expert, a prefix sum over all experts'
chunks says where each chunk's rows of an expert begin, and so rows are sorted by expert, in their own order,
by whom has them. No two programs write to one place, so nothing depends on timing.
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast


@triton.jit
def choose(score, col, E, row, T, TOP: tl.constexpr, RENORMALIZE: tl.constexpr, MOST: tl.constexpr):
    """Return which experts rows of logits take, and their weights.

    Of equal logits the first experts are taken, and none whose logit is -inf. A NaN makes a row's weights
    NaN.
    """
    known = (col < E)[None, :] & (row < T)[:, None]
    missing = score != score
    rank = tl.where(missing, float("inf"), score)
    free = known & (rank > float("-inf"))
    top = tl.max(tl.where(known, rank, float("-inf")), 1)
    live = (rank != rank) & known  # none
    for _ in range(TOP):
        best = tl.max(tl.where(free, rank, float("-inf")), 1)
        first = tl.min(tl.where(free & (rank == best[:, None]), col[None, :], MOST), 1)
        taken = col[None, :] == first[:, None]
        live = live | (taken & free)
        free = free & (col[None, :] != first[:, None])
    power = tl.where(known, tl.exp(score - top[:, None]), 0)
    chosen = tl.where(live, power, 0)
    total = tl.sum(chosen, 1) if RENORMALIZE else tl.sum(power, 1)
    broken = tl.max((missing & known).to(tl.int32), 1) > 0
    weight = tl.where(broken[:, None], float("nan"), chosen / total[:, None])
    return live, weight


@triton.jit
def put(live, weight, base, row, col, T, E, rows, scales, slots, TOP: tl.constexpr, WIDE: tl.constexpr):
    """Write each row's copies, from ``base`` of each expert on, and where a row finds its own."""
    taken = live.to(tl.int32)
    at = base[None, :] + tl.cumsum(taken, 0) - taken
    number = tl.cumsum(taken, 1) - taken
    every = row[:, None] + col[None, :] * 0
    tl.store(rows + at, every.to(rows.dtype.element_ty), live)
    tl.store(scales + at, weight, live)
    tl.store(slots + row.to(tl.int64)[:, None] * TOP + number, at, live)
    j = tl.arange(0, WIDE)[None, :]
    none = (j >= tl.sum(taken, 1)[:, None]) & (j < TOP) & (row < T)[:, None]
    tl.store(slots + row.to(tl.int64)[:, None] * TOP + j, j * 0 - 1, none)


@triton.jit
def route(
    x,
    router,
    live_out,
    weights,
    counts,
    offsets,
    rows,
    scales,
    slots,
    T,
    E,
    K,
    chunks,
    x_row,
    x_col,
    r_row,
    r_col,
    PRODUCT: tl.constexpr,
    TOP: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    ONE: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    KEPT: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TE: tl.constexpr,
    TK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Choose experts for a chunk of rows by logits ``x @ router.T``, or by ``x`` itself.

    Where one chunk is all there is (``ONE``), their copies are sorted here; else ``sort`` does so.
    """
    row = tl.program_id(0) * TM + tl.arange(0, TM)
    col = tl.arange(0, TE)
    left = x + row.to(tl.int64)[:, None] * x_row
    if PRODUCT:
        acc = tl.zeros((TM, TE), SUMS)
        right = router + col.to(tl.int64)[None, :] * r_row
        for at in range(0, K, TK):
            inner = at + tl.arange(0, TK)
            a = tl.load(
                left + inner.to(tl.int64)[None, :] * x_col, (row < T)[:, None] & (inner < K)[None, :], 0
            )
            b = tl.load(
                right + inner.to(tl.int64)[:, None] * r_col, (inner < K)[:, None] & (col < E)[None, :], 0
            )
            acc = tl.dot(cast(a, COMPUTE), cast(b, COMPUTE), acc, input_precision=PRECISION, out_dtype=SUMS)
        score = cast(acc, KEPT)
    else:
        known = (row < T)[:, None] & (col < E)[None, :]
        score = cast(tl.load(left + col.to(tl.int64)[None, :] * x_col, known, 0), KEPT)
    live, weight = choose(score, col, E, row, T, TOP, RENORMALIZE, TE)
    place = row.to(tl.int64)[:, None] * E + col[None, :]
    known = (row < T)[:, None] & (col < E)[None, :]
    tl.store(live_out + place, live.to(live_out.dtype.element_ty), known)
    mine = tl.sum(live.to(tl.int32), 0)
    if ONE:
        ends = tl.cumsum(mine, 0)
        tl.store(offsets + col + 1, ends, col < E)
        tl.store(offsets + col, ends * 0, col == 0)
        put(live, weight, ends - mine, row, col, T, E, rows, scales, slots, TOP, WIDE)
    else:
        tl.store(weights + place, weight, live)
        tl.store(counts + col * chunks + tl.program_id(0), mine, col < E)


@triton.jit
def sort(
    live_in,
    weights,
    counts,
    ends,
    offsets,
    rows,
    scales,
    slots,
    T,
    E,
    chunks,
    TOP: tl.constexpr,
    TM: tl.constexpr,
    TE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sort a chunk's copies by expert; ``ends`` are the sums of ``counts`` (experts, chunks) up to each."""
    chunk = tl.program_id(0)
    row = chunk * TM + tl.arange(0, TM)
    col = tl.arange(0, TE)
    known = (row < T)[:, None] & (col < E)[None, :]
    place = row.to(tl.int64)[:, None] * E + col[None, :]
    live = tl.load(live_in + place, known, 0) != 0
    weight = tl.load(weights + place, live, 0)
    at = col * chunks + chunk
    base = tl.load(ends + at, col < E, 0) - tl.load(counts + at, col < E, 0)
    put(live, weight, base.to(tl.int32), row, col, T, E, rows, scales, slots, TOP, WIDE)
    # The first program says where experts begin.
    most = tl.where(chunk == 0, E, 0)
    last = tl.load(ends + col * chunks + chunks - 1, col < most, 0)
    tl.store(offsets + col + 1, last.to(tl.int32), col < most)
    tl.store(offsets + col, col * 0, col < tl.minimum(most, 1))


@triton.jit
def gather_sum(
    y,
    slots,
    scales,
    out,
    T,
    N,
    column_tiles,
    out_row,
    out_col,
    TOP: tl.constexpr,
    SUMS: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
):
    """Write the weighted sum of each row's copies, by ascending experts; NaN where it has none."""
    pid = tl.program_id(0)
    row = (pid // column_tiles) * TM + tl.arange(0, TM)
    col = (pid % column_tiles) * TN + tl.arange(0, TN)
    acc = tl.zeros((TM, TN), SUMS)
    mine = slots + row.to(tl.int64) * TOP
    for i in range(TOP):
        at = tl.load(mine + i, row < T, -1)
        there = at >= 0
        scale = tl.load(scales + at, there, 0).to(SUMS)
        part = tl.load(
            y + at.to(tl.int64)[:, None] * N + col[None, :], there[:, None] & (col < N)[None, :], 0
        ).to(SUMS)
        acc += tl.where(there[:, None], scale[:, None] * part, 0)
    none = tl.load(mine, row < T, 0) < 0
    acc = tl.where(none[:, None], float("nan"), acc)
    place = out + row.to(tl.int64)[:, None] * out_row + col.to(tl.int64)[None, :] * out_col
    tl.store(place, cast(acc, out.dtype.element_ty), (row < T)[:, None] & (col < N)[None, :])
