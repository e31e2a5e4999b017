"""Attention: the softmax is normalised online while blocks of keys that a tile of queries sees stream past.

Which blocks those are is a list for every block of queries, made on the device (``attention_lists``): a
kernel walks the positions of its list in steps (``attention_steps``), and each position knows its key. So
blocks need be no power of two and no multiple of a step, and dead ones cost nothing. Without a grid of
blocks, positions are keys.

The normalisation is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), the
order of loops that of Dao et al., "FlashAttention" (2022), the cut along keys for few queries that of Dao et
al., "Flash-Decoding for long-context inference" (2023).
"""

import triton
import triton.language as tl

from prunus.cuda.kernels.attention_steps import positions, restore, spoil, step


@triton.jit(do_not_specialize=["scale"])
def attention(
    q,
    k,
    v,
    out,
    table,
    counts,
    clear,
    sums,
    peaks,
    scale,
    groups,
    share,
    together,
    n,
    m,
    d,
    features,
    tiles,
    feature_tiles,
    splits,
    columns,
    lists_batch,
    lists_head,
    q_batch,
    q_head,
    q_row,
    q_col,
    k_batch,
    k_head,
    k_row,
    k_col,
    v_batch,
    v_head,
    v_row,
    v_col,
    out_batch,
    out_head,
    out_row,
    out_col,
    BS: tl.constexpr,
    LIVE: tl.constexpr,
    CAUSAL: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_F: tl.constexpr,
    COMPUTE: tl.constexpr,
    VALUES: tl.constexpr,
    RANGE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
    TF: tl.constexpr,
):
    """Write a tile of ``softmax(scale * q @ k.T) @ v``.

    A member is some ``together`` heads of those that share keys; a row of it is one query of one head, the
    heads of a query next to each other. With ``LIVE`` a tile lies within a block of queries of one head, and
    walks that block's list; else it walks all keys.

    With ``SPLIT``, ``splits`` programs take turns of the keys, and write what they have to ``sums`` and
    ``peaks`` for ``merge``: of (row, split) the features, and two numbers.

    ``scale`` is a double's 64 bits: Triton takes Python's floats for float32.
    """
    pid = tl.program_id(0)
    features_at = pid % feature_tiles
    pid = pid // feature_tiles
    split = pid % splits
    pid = pid // splits
    tile = pid % tiles
    if CAUSAL:
        # The longest first.
        tile = tiles - 1 - tile
    member = pid // tiles
    parts = share // together
    part = member % parts
    group = member // parts % groups
    batch = (member // parts // groups).to(tl.int64)
    ahead = m - n
    if LIVE:
        PIECES: tl.constexpr = (BS + TM - 1) // TM
        block = tile // PIECES
        within = tile % PIECES * TM + tl.arange(0, TM)
        row = block * BS + within
        rows = (within < BS) & (row < n)
        query = row
        head = group * share + part + tl.zeros((TM,), tl.int32)
        lowest = block * BS + tile % PIECES * TM
    else:
        row = tile * TM + tl.arange(0, TM)
        rows = row < n * together
        query = row // together
        head = group * share + part * together + row % together
        lowest = tile * TM // together
    highest = tl.max(tl.where(rows, query, 0), 0)
    last = query + ahead
    feature = features_at * TF + tl.arange(0, TF)

    exact = scale.to(tl.int64).to(tl.float64, bitcast=True)
    factor = (tl.abs(exact) * 1.4426950408889634).to(SUMS)
    sign = tl.where(exact < 0, -1.0, tl.where(factor == 0, 0.0, 1.0))
    factor = tl.where(factor == 0, 1.0, factor).to(SUMS)

    q_at = q + batch * q_batch + head.to(tl.int64) * q_head + query.to(tl.int64) * q_row
    k += batch * k_batch + group.to(tl.int64) * k_head
    v += batch * v_batch + group.to(tl.int64) * v_head
    depth = tl.arange(0, TK)
    if WHOLE:
        held = tl.load(
            q_at[:, None] + depth.to(tl.int64)[None, :] * q_col, rows[:, None] & (depth < d)[None, :], 0
        )
        held = held.to(COMPUTE) * sign.to(COMPUTE)
    else:
        held = depth  # nothing is held: it is read again for each step

    # Positions: those before ``whole`` are seen by all queries, none from ``end`` on by any.
    if LIVE:
        listed = batch * lists_batch + (group * share + part).to(tl.int64) * lists_head + block
        end = tl.load(counts + listed) * BS
        whole = tl.load(clear + listed) * BS
        table += listed * columns
    else:
        end = m
        whole = m
        if CAUSAL:
            end = tl.maximum(tl.minimum(highest + ahead + 1, m), 0)
            whole = tl.maximum(tl.minimum(lowest + ahead + 1, m), 0)
    whole = whole // TN * TN
    begin = 0
    until = end
    if SPLIT:
        steps = (end + TN - 1) // TN
        begin = (steps * split // splits) * TN
        until = tl.minimum((steps * (split + 1) // splits) * TN, end)

    SHIFT: tl.constexpr = 15 if tl.float16 == VALUES else 0
    acc = tl.zeros((TM, TF), SUMS)
    total = tl.zeros((TM,), SUMS)
    peak = tl.full((TM,), float("-inf"), SUMS)
    spoiled = 0
    for at in range(begin, tl.minimum(until, whole), TN):
        key, there = positions(at, table, end, BS, LIVE, TN)
        acc, total, peak, spoiled = step(
            acc, total, peak, spoiled, held, q_at, rows, last, key, there, k, v, feature, factor, sign, d,
            features, q_col, k_row, k_col, v_row, v_col,
            False, CAUSAL, WHOLE, EVEN_D, EVEN_F, COMPUTE, VALUES, SHIFT, SUMS, PRECISION, TM, TN, TK,
        )  # fmt: skip
    for at in range(tl.maximum(begin, whole), until, TN):
        key, there = positions(at, table, end, BS, LIVE, TN)
        there = there & (key < m)
        acc, total, peak, spoiled = step(
            acc, total, peak, spoiled, held, q_at, rows, last, key, there, k, v, feature, factor, sign, d,
            features, q_col, k_row, k_col, v_row, v_col,
            True, CAUSAL, WHOLE, EVEN_D, EVEN_F, COMPUTE, VALUES, SHIFT, SUMS, PRECISION, TM, TN, TK,
        )  # fmt: skip
    if SHIFT and tl.max(tl.max((acc != acc).to(tl.int32), 1), 0) > 0:
        sure = tl.minimum(until, whole) if CAUSAL else until
        # Few keys at a time: this is rare, and must not cost the others their registers.
        FEW: tl.constexpr = 16 if BS % 16 == 0 else TN
        acc = restore(
            acc, peak, held, q_at, rows, begin, sure, end, table, k, v, feature, factor, sign, m, d, features,
            q_col, k_row, k_col, v_row, v_col,
            BS, LIVE, WHOLE, EVEN_D, EVEN_F, COMPUTE, RANGE, SHIFT, SUMS, PRECISION, TM, FEW, TK,
        )  # fmt: skip
    if CAUSAL and spoiled > 0:
        acc = spoil(
            acc, peak, q_at, rows, last, tl.maximum(begin, whole), until, table, k, v, feature, factor, sign,
            m, d, features, q_col, k_row, k_col, v_row, v_col, BS, LIVE, SHIFT, SUMS, TM,
        )  # fmt: skip

    keep = rows[:, None] & (feature < features)[None, :]
    if SPLIT:
        at = (member.to(tl.int64) * n * together + row) * splits + split
        tl.store(sums + at[:, None] * features + feature[None, :], acc, keep)
        if features_at == 0:
            tl.store(peaks + 2 * at, peak, rows)
            tl.store(peaks + 2 * at + 1, total, rows)
    else:
        sees = rows & (end > 0)
        if CAUSAL:
            start = tl.load(table, end > 0, 0) * BS if LIVE else 0
            sees = sees & (start <= last)
        # A query that sees nothing gets 0, one that sees nothing but minus infinities NaN.
        value = tl.where(sees[:, None], acc / total[:, None], 0.0)
        place = out + batch * out_batch + head.to(tl.int64) * out_head + query.to(tl.int64) * out_row
        place = place[:, None] + feature.to(tl.int64)[None, :] * out_col
        tl.store(place, value.to(out.dtype.element_ty), keep)


@triton.jit
def merge(
    sums,
    peaks,
    out,
    table,
    counts,
    groups,
    share,
    together,
    n,
    m,
    features,
    total_rows,
    feature_tiles,
    splits,
    columns,
    lists_batch,
    lists_head,
    out_batch,
    out_head,
    out_row,
    out_col,
    BS: tl.constexpr,
    LIVE: tl.constexpr,
    CAUSAL: tl.constexpr,
    SUMS: tl.constexpr,
    TM: tl.constexpr,
    TF: tl.constexpr,
):
    """Write the results of ``TM`` rows from what ``splits`` programs found for each, in their order."""
    pid = tl.program_id(0)
    feature = pid % feature_tiles * TF + tl.arange(0, TF)
    at = pid // feature_tiles * TM + tl.arange(0, TM)
    rows = at < total_rows
    row = at % (n * together)
    member = at // (n * together)
    parts = share // together
    query = row // together
    head = member // parts % groups * share + member % parts * together + row % together
    batch = (member // parts // groups).to(tl.int64)
    keep = rows[:, None] & (feature < features)[None, :]
    acc = tl.zeros((TM, TF), SUMS)
    total = tl.zeros((TM,), SUMS)
    peak = tl.full((TM,), float("-inf"), SUMS)
    for split in range(0, splits):
        from_here = at.to(tl.int64) * splits + split
        their_peak = tl.load(peaks + 2 * from_here, rows, float("-inf"))
        their_total = tl.load(peaks + 2 * from_here + 1, rows, 0)
        part = tl.load(sums + from_here[:, None] * features + feature[None, :], keep, 0)
        new = tl.maximum(peak, their_peak)
        calm = tl.where(new == float("-inf"), 0.0, new)
        fade = tl.exp2(peak - calm)
        theirs = tl.exp2(their_peak - calm)
        total = total * fade + their_total * theirs
        acc = acc * fade[:, None] + part * theirs[:, None]
        peak = new
    sees = rows & (m > 0)
    if LIVE:
        listed = batch * lists_batch + head.to(tl.int64) * lists_head + query // BS
        sees = rows & (tl.load(counts + listed, rows, 0) > 0)
        if CAUSAL:
            sees = sees & (tl.load(table + listed * columns, sees, 0) * BS <= query + (m - n))
    elif CAUSAL:
        sees = sees & (query + (m - n) >= 0)
    value = tl.where(sees[:, None], acc / total[:, None], 0.0)
    place = out + batch * out_batch + head.to(tl.int64) * out_head + query.to(tl.int64) * out_row
    tl.store(place[:, None] + feature.to(tl.int64)[None, :] * out_col, value.to(out.dtype.element_ty), keep)
