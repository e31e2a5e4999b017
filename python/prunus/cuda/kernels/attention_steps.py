"""A step of attention: scores of some keys, their weights, and what these add for a tile of queries.

Weights are at most 1 where they are float32. Float16 has no numbers between 0 and 2^-24, so what becomes
float16 is 2^15 times the weight, and the sum that results are divided by is as much larger: weights count
down to 2^-39 of the largest. What is smaller adds nothing; but where it should meet an infinity or NaN, 0
times that is NaN: ``restore`` then adds these anew, by weights of float32's range.
"""

import triton
import triton.language as tl


@triton.jit
def _dots(
    held,
    q_at,
    rows,
    k_at,
    there,
    sign,
    d,
    q_col,
    k_col,
    MASKED: tl.constexpr,
    WHOLE: tl.constexpr,
    EVEN: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Return the products (TM, TN) of a tile of queries and a step of keys."""
    depth = tl.arange(0, TK)
    if WHOLE:
        keys = _load(
            k_at[None, :] + depth.to(tl.int64)[:, None] * k_col,
            (depth < d)[:, None],
            there[None, :],
            EVEN,
            MASKED,
        )
        s = tl.dot(held, keys.to(COMPUTE), input_precision=PRECISION, out_dtype=SUMS)
    else:
        s = tl.zeros((TM, TN), SUMS)
        for first in range(0, d, TK):
            at = first + depth
            away = at.to(tl.int64)
            queries = tl.load(q_at[:, None] + away[None, :] * q_col, rows[:, None] & (at < d)[None, :], 0)
            keys = tl.load(k_at[None, :] + away[:, None] * k_col, there[None, :] & (at < d)[:, None], 0)
            queries = queries.to(COMPUTE) * sign.to(COMPUTE)
            s = tl.dot(queries, keys.to(COMPUTE), s, input_precision=PRECISION, out_dtype=SUMS)
    return s


@triton.jit
def _load(place, inside, there, EVEN: tl.constexpr, MASKED: tl.constexpr):
    """Return what is at ``place``: all of it, or 0 past the edges that have to be looked at."""
    if EVEN and not MASKED:
        value = tl.load(place)
    elif EVEN:
        value = tl.load(place, there, 0)
    elif MASKED:
        value = tl.load(place, inside & there, 0)
    else:
        value = tl.load(place, inside, 0)
    return value


@triton.jit
def spoil(
    acc,
    peak,
    q_at,
    rows,
    last,
    begin,
    end,
    table,
    k,
    v,
    feature,
    factor,
    sign,
    m,
    d,
    features,
    q_col,
    k_row,
    k_col,
    v_row,
    v_col,
    BS: tl.constexpr,
    LIVE: tl.constexpr,
    SHIFT: tl.constexpr,
    SUMS: tl.constexpr,
    TM: tl.constexpr,
):
    """Return ``acc`` with what NaN and infinities from ``begin`` on add for those queries that see them."""
    calm = tl.where(peak == float("-inf"), 0.0, peak) - SHIFT
    for at in range(begin, end):
        key = at
        if LIVE:
            key = tl.load(table + at // BS) * BS + at % BS
        away = tl.minimum(key, m - 1).to(tl.int64)
        value = tl.load(v + away * v_row + feature.to(tl.int64) * v_col, feature < features, 0).to(SUMS)
        bad = value - value != 0
        if tl.max(bad.to(tl.int32), 0) > 0:
            s = tl.zeros((TM,), SUMS)
            for depth in range(0, d):
                # A value at a time: this is rare, and must not cost the others their registers.
                column = tl.full((), depth, tl.int64)
                query = tl.load(q_at + column * q_col, rows, 0).to(SUMS)
                s += query * tl.load(k + away * k_row + column * k_col).to(SUMS)
            weight = tl.exp2(s * sign * factor - calm)
            seen = rows & (key < m) & (key <= last)
            acc = tl.where(seen[:, None] & bad[None, :], acc + weight[:, None] * value[None, :], acc)
    return acc


@triton.jit
def step(
    acc,
    total,
    peak,
    spoiled,
    held,
    q_at,
    rows,
    last,
    key,
    there,
    k,
    v,
    feature,
    factor,
    sign,
    d,
    features,
    q_col,
    k_row,
    k_col,
    v_row,
    v_col,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_F: tl.constexpr,
    COMPUTE: tl.constexpr,
    VALUES: tl.constexpr,
    SHIFT: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Return weighted values, sums of weights and largest scores after a step, and whether NaN were left out.

    Without ``MASKED``, all queries of the tile see all keys of the step. Where they do not, by causality, NaN
    and infinities among the values are left out, and ``spoiled`` becomes 1. Weights are 2^``SHIFT`` as large.
    """
    away = key.to(tl.int64)
    s = _dots(
        held, q_at, rows, k + away * k_row, there, sign, d, q_col, k_col,
        MASKED, WHOLE, EVEN_D, COMPUTE, SUMS, PRECISION, TM, TN, TK,
    )  # fmt: skip
    seen = there[None, :] & rows[:, None]
    if MASKED:
        if CAUSAL:
            seen = seen & (key[None, :] <= last[:, None])
        s = tl.where(seen, s, float("-inf"))
    new = tl.maximum(peak, tl.max(s, 1) * factor)
    # Where nothing was seen yet, or minus infinities alone: their weights are 0, and not NaN.
    calm = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(s * factor - (calm - SHIFT)[:, None])
    fade = tl.exp2(peak - calm)
    total = total * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None]
    values = _load(
        v + away[:, None] * v_row + feature.to(tl.int64)[None, :] * v_col,
        (feature < features)[None, :],
        there[:, None],
        EVEN_F,
        MASKED,
    ).to(VALUES)
    if MASKED and CAUSAL:
        # A weight of 0 hides no NaN and no infinity from queries that do not see it: they come afterwards.
        bad = values - values != 0
        spoiled = tl.maximum(spoiled, tl.max(tl.max(bad.to(tl.int32), 1), 0))
        values = tl.where(bad, 0.0, values).to(VALUES)
    acc = tl.dot(weights.to(VALUES), values, acc, input_precision=PRECISION, out_dtype=SUMS)
    return acc, total, new, spoiled


@triton.jit
def restore(
    acc,
    peak,
    held,
    q_at,
    rows,
    begin,
    until,
    end,
    table,
    k,
    v,
    feature,
    factor,
    sign,
    m,
    d,
    features,
    q_col,
    k_row,
    k_col,
    v_row,
    v_col,
    BS: tl.constexpr,
    LIVE: tl.constexpr,
    WHOLE: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_F: tl.constexpr,
    COMPUTE: tl.constexpr,
    RANGE: tl.constexpr,
    SHIFT: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Return ``acc`` with what NaN and infinities of steps that all queries see add, in place of NaN.

    ``RANGE`` is a dtype with float32's range: which numbers are 0 is all that counts of these weights.
    """
    acc = tl.where(acc != acc, 0.0, acc)
    calm = tl.where(peak == float("-inf"), 0.0, peak) - SHIFT
    for at in range(begin, until, TN):
        key, there = positions(at, table, end, BS, LIVE, TN)
        there = there & (key < m)
        away = key.to(tl.int64)
        s = _dots(
            held, q_at, rows, k + away * k_row, there, sign, d, q_col, k_col,
            True, WHOLE, EVEN_D, COMPUTE, SUMS, PRECISION, TM, TN, TK,
        )  # fmt: skip
        s = tl.where(there[None, :], s, float("-inf"))
        weights = tl.exp2(s * factor - calm[:, None])
        values = _load(
            v + away[:, None] * v_row + feature.to(tl.int64)[None, :] * v_col,
            (feature < features)[None, :],
            there[:, None],
            EVEN_F,
            True,
        ).to(SUMS)
        values = tl.where(values - values != 0, values, 0.0)
        acc = tl.dot(weights.to(RANGE), values.to(RANGE), acc, input_precision=PRECISION, out_dtype=SUMS)
    return acc


@triton.jit
def positions(at, table, end, BS: tl.constexpr, LIVE: tl.constexpr, TN: tl.constexpr):
    """Return the keys of a step, and which of its positions are on the list at all."""
    if not LIVE:
        key = at + tl.arange(0, TN)
        there = key < end
    elif BS % TN == 0:
        # A step lies within one block.
        key = tl.load(table + at // BS) * BS + at % BS + tl.arange(0, TN)
        there = at + tl.arange(0, TN) < end
    else:
        position = at + tl.arange(0, TN)
        there = position < end
        key = tl.load(table + position // BS, there, 0) * BS + position % BS
    return key, there
