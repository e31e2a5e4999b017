"""Attention on every engine, held against NumPy in float64."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16, F16, F32, F64, declared, floats, interpreted, layouts, rounding, values
from prunus import engines
from prunus._trace import trace
from prunus.pruning.policies import Fixed, Statistics, Threshold, TopK

# Rounding of the inputs' products, of the weights and of the result, for values of everyday size.
CLOSE = {F64: 1e-12, F32: 2e-5, F16: 4e-3, BF16: 3e-2}


def dense(q, k, v, sees=None, causal=False, scale=None):
    """Softmax attention as it is written down; ``sees`` (..., n, m) says which pairs take part."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    if q.ndim > 2 and q.shape[-3] != k.shape[-3]:
        share = q.shape[-3] // k.shape[-3]
        k, v = np.repeat(k, share, axis=-3), np.repeat(v, share, axis=-3)
    n, m = q.shape[-2], k.shape[-2]
    all_seen = np.ones((n, m), bool) if not causal else np.tri(n, m, m - n, dtype=bool)
    all_seen = np.broadcast_to(all_seen if sees is None else all_seen & sees, (*q.shape[:-2], n, m))
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    with np.errstate(all="ignore"):
        for at in np.ndindex(*q.shape[:-1]):
            seen = all_seen[at]
            if seen.any():
                s = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * (k[at[:-1]][seen] @ q[at])
                p = np.exp(s - s.max())
                out[at] = p @ v[at[:-1]][seen] / p.sum()
    return out


def operands(rng, heads, groups, n, m, d, features, dtype=F32, batch=()):
    return (
        values(rng, (*batch, heads, n, d), dtype),
        values(rng, (*batch, groups, m, d), dtype),
        values(rng, (*batch, groups, m, features), dtype),
    )


def close(got, expected, dtype):
    assert type(got) is np.ndarray
    assert got.dtype == dtype
    assert got.shape == expected.shape
    # Weights are float32, whatever the operands are.
    error = CLOSE[dtype] + 2 * rounding(F32)
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=error, atol=error)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape(data):
    draw = data.draw
    dtype = draw(st.sampled_from(floats()))
    groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n, m = draw(st.integers(1, 90)), draw(st.integers(1, 150))
    d, features = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    batch = draw(st.sampled_from([(), (2,), (2, 1)]))
    causal, size = draw(st.booleans()), draw(st.sampled_from([1, 7, 16, 33, 64, 200]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    q, k, v = operands(rng, groups * share, groups, n, m, d, features, dtype, batch)
    mask = sees = None
    if draw(st.booleans()):
        lead = draw(st.sampled_from([(), (groups * share,), (*batch, groups * share)]))
        shape = (*lead, n, m)
        mask = pr.BlockMask.random(shape, size, draw(st.sampled_from([0.0, 0.3, 0.8, 1.0])), rng)
        sees = mask.toarray()
    got = pr.attention(q, k, v, mask=mask, causal=causal, blocksize=size)
    close(got, dense(q, k, v, sees, causal), dtype)


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_decode_with_a_cache(rng, dtype, n):
    q, k, v = operands(rng, 8, 2, n, 333, 64, 64, dtype)
    close(pr.attention(q, k, v, causal=True), dense(q, k, v, causal=True), dtype)
    # A cache that is longer than what is in it, and laid out by position.
    cache = np.ascontiguousarray(np.zeros((500, 2, 64), dtype))
    cache[:333] = k.transpose(1, 0, 2)
    close(pr.attention(q, cache[:333].transpose(1, 0, 2), v, causal=True), dense(q, k, v, causal=True), dtype)


def test_one_query_of_many_heads_with_the_same_keys(rng):
    q, k, v = operands(rng, 140, 2, 1, 70, 12, 9, batch=(2,))
    every = pr.attention(q, k, v, causal=True)
    close(every, dense(q, k, v, causal=True), F32)
    np.testing.assert_array_equal(pr.attention(q[1, 139], k[1, 1], v[1, 1]), every[1, 139])
    mask = pr.BlockMask.random((140, 1, 70), 16, 0.5, rng)
    close(pr.attention(q, k, v, mask=mask, blocksize=16), dense(q, k, v, mask.toarray()), F32)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_any_strides(rng, dtype):
    q, k, v = (values(rng, (70, 24), dtype) for _ in range(3))
    expected = dense(q, k, v, causal=True)
    for x, y, z in zip(layouts(q).values(), layouts(k).values(), layouts(v).values(), strict=True):
        close(pr.attention(x, y, z, causal=True), expected, dtype)
        close(pr.attention(q, y, z, causal=True), expected, dtype)
    same = np.broadcast_to(k[:1], k.shape)
    close(pr.attention(q, same, v), dense(q, same, v), dtype)


def test_dimensions(rng):
    q, k, v = operands(rng, 4, 4, 20, 30, 8, 5, batch=(2,))
    every = pr.attention(q, k, v)
    assert every.shape == (2, 4, 20, 5)
    for b in range(2):
        np.testing.assert_array_equal(pr.attention(q[b], k[b], v[b]), every[b])
        np.testing.assert_array_equal(pr.attention(q[b, 1], k[b, 1], v[b, 1]), every[b, 1])


def test_scale(rng):
    q, k, v = operands(rng, 2, 2, 20, 30, 8, 5)
    for scale in (0.0, 0.01, 1, 3.0, -0.5):
        close(pr.attention(q, k, v, scale=scale), dense(q, k, v, scale=scale), F32)
    # Scores in the thousands: a softmax without its maximum would overflow. Their own rounding shows.
    got = pr.attention(q, k, v, scale=300.0)
    if rounding(F32):
        # Where products lose bits of their operands, thousands lose whole numbers: which keys win is open.
        assert (got <= v.max(axis=1, keepdims=True) * (1 + rounding(F32)) + 1e-6).all()
        assert (got >= v.min(axis=1, keepdims=True) * (1 + rounding(F32)) - 1e-6).all()
    else:
        np.testing.assert_allclose(got, dense(q, k, v, scale=300.0), atol=2e-3)


def test_mixed_types(rng):
    q, k, v = operands(rng, 2, 2, 9, 11, 16, 16)
    half = [x.astype(BF16) for x in (k, v)]
    got = pr.attention(q, *half)
    close(got, dense(q, *half), F32)
    wide = [q.astype(F16), k.astype(F64), v]
    with declared(F64):
        close(pr.attention(*wide), dense(*wide), F64)
    for a in floats():
        for b in floats():
            expected = a if a == b else F64 if F64 in (a, b) else F32
            for kinds in ([a, b, b], [b, a, b], [b, b, a])[: 1 if interpreted() else 3]:
                mixed = [x.astype(kind) for x, kind in zip((q, k, v), kinds, strict=True)]
                close(pr.attention(*mixed), dense(*mixed), expected)
                assert pr.attention(*mixed, prune=TopK(1), blocksize=4).dtype == expected


def test_nothing_visible_gives_zeros(rng):
    q, k, v = operands(rng, 2, 2, 40, 25, 8, 8)
    got = pr.attention(q, k, v, causal=True)  # the first 15 queries come before all keys
    assert not got[:, :15].any()
    close(got, dense(q, k, v, causal=True), F32)
    none = pr.BlockMask.empty((40, 25), 16)
    assert not pr.attention(q, k, v, mask=none, blocksize=16).any()
    assert not pr.attention(q, k, v, mask=none, blocksize=16, prune=TopK(3)).any()
    assert not pr.attention(q, k[:, :0], v[:, :0]).any()
    assert pr.attention(q[:, :0], k, v).shape == (2, 0, 8)
    assert pr.attention(q, k, v[..., :0], prune=TopK(1)).shape == (2, 40, 0)
    assert pr.attention(q[:0], k[:0], v[:0], prune=TopK(1)).shape == (0, 40, 8)
    for policy in (TopK(1), TopK(1, rows=2), Fixed(np.ones(4, bool)), lambda s: np.ones_like(s.norms, bool)):
        for heads, batch in [(0, ()), (0, (2,)), (2, (0,))]:
            nobody = operands(rng, heads, heads, 40, 25, 8, 8, batch=batch)
            mask = pr.BlockMask.full((*batch, heads, 40, 25), 16)
            for blocks in (None, mask):
                assert pr.attention(*nobody, mask=blocks, prune=policy, blocksize=16).shape == (
                    *batch,
                    heads,
                    40,
                    8,
                )
    no_features = pr.attention(q[..., :0], k[..., :0], v)
    np.testing.assert_allclose(
        no_features, np.broadcast_to(v.mean(axis=1)[:, None], no_features.shape), atol=1e-6 + rounding(F32)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_nan_and_infinity_reach_only_who_sees_them(rng, bad, dtype):
    q, k, v = operands(rng, 1, 1, 150, 150, 16, 16, dtype)
    v[0, 100, 3] = bad
    got = pr.attention(q, k, v, causal=True)
    close(got, dense(q, k, v, causal=True), dtype)
    assert np.isfinite(got[0, :100].astype(F32)).all()
    assert not np.isfinite(got[0, 100:, 3].astype(F32)).any()
    k[0, 60] = bad
    got, expected = pr.attention(q, k, v, causal=True), dense(q, k, v, causal=True)
    np.testing.assert_array_equal(np.isnan(got.astype(F32)), np.isnan(expected))
    assert np.isfinite(got[0, :60].astype(F32)).all()
    # Blocks that take no part do not contribute, whatever they hold.
    mask = ~pr.BlockMask(np.arange(150 // 10)[None] >= [[6]] * 15, 10)
    assert np.isfinite(pr.attention(q, k, v, mask=mask, blocksize=10).astype(F32)).all()


def test_all_scores_of_minus_infinity_are_nan_as_in_numpy():
    q, k, v = np.ones((2, 1), F32), np.full((3, 1), -np.inf, F32), np.ones((3, 2), F32)
    assert np.isnan(pr.attention(q, k, v)).all()


# Pruning -------------------------------------------------------------------------------------------------


def pooled(q, k, size):
    """Scores of blocks in float64: rows are blocks of queries, heads outermost.

    Of an engine whose products lose bits they are its own, held against those: liveness is decided by them.
    """
    exact = pooled_exactly(q, k, size)
    if not rounding(q.dtype):
        return exact
    own = np.zeros(exact.shape, F32)
    engines.active().pooled_scores(q, k, own, 1 / math.sqrt(q.shape[-1]), size)
    np.testing.assert_allclose(own, exact, atol=4 * rounding(q.dtype))
    return own.astype(F64)


def pooled_exactly(q, k, size):
    q, k = (x.astype(np.float64) for x in (q, k))
    k = np.repeat(k, q.shape[0] // k.shape[0], axis=0)
    means = [
        np.stack([x[:, i : i + size].mean(axis=1) for i in range(0, x.shape[1], size)], axis=1)
        for x in (q, k)
    ]
    return means[0] @ means[1].swapaxes(-1, -2) / math.sqrt(q.shape[-1])


def elements(live, size, n, m):
    return live[..., np.arange(n)[:, None] // size, np.arange(m) // size]


@pytest.mark.parametrize(("n", "m", "size"), [(128, 128, 16), (100, 130, 16), (1, 200, 32), (70, 70, 7)])
@pytest.mark.parametrize("causal", [False, True])
def test_top_k_keeps_the_highest_pooled_scores(rng, n, m, size, causal):
    q, k, v = operands(rng, 4, 2, n, m, 16, 8)
    rows, cols = -(-n // size), -(-m // size)
    scores = pooled(q, k, size)
    seen = np.ones((rows, cols), bool)
    diagonal = np.zeros((rows, cols), bool)
    for i in range(rows):
        last = min((i + 1) * size, n) - 1 + m - n
        if causal:
            seen[i] = np.arange(cols) * size <= last
        diagonal[i, (i * size + m - n) // size : last // size + 1] = True
    live = np.zeros(scores.shape, bool)
    for h, i in np.ndindex(4, rows):
        at = np.flatnonzero(seen[i])
        keep = math.ceil(round(0.25 * len(at), 9))
        row = np.where(diagonal[i], np.inf, scores[h, i])[at]
        live[h, i, at[np.argsort(-row, kind="stable")[:keep]]] = True
    live |= diagonal
    got = pr.attention(q, k, v, causal=causal, prune=TopK(fraction=0.25), blocksize=size)
    close(got, dense(q, k, v, elements(live, size, n, m), causal), F32)


def test_threshold_is_on_shares_of_the_softmax(rng):
    q, k, v = operands(rng, 2, 2, 64, 64, 4, 4)
    scores = pooled(q * 4, k, 8)
    shares = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    live = (shares > 0.11) | np.eye(8, dtype=bool)
    assert 0.1 < live.mean() < 0.9
    got = pr.attention(q * 4, k, v, prune=Threshold(0.11), blocksize=8)
    close(got, dense(q * 4, k, v, elements(live, 8, 64, 64)), F32)
    np.testing.assert_array_equal(
        pr.attention(q, k, v, prune=Threshold(0.0), blocksize=8),
        pr.attention(q, k, v, blocksize=8, mask=pr.BlockMask.full((64, 64), 8)),
    )


@pytest.mark.parametrize("causal", [False, True])
def test_everything_kept_equals_dense(rng, causal):
    # Every block and step takes its time where kernels are interpreted.
    few = interpreted()
    q, k, v = operands(rng, *((2, 1, 20, 30) if few else (4, 2, 90, 130)), 32, 16)
    expected = dense(q, k, v, causal=causal)
    for size in (1, 16, 1000) if few else (1, 16, 64, 1000):
        for policy in (TopK(fraction=1.0), Threshold(0.0), lambda s: np.ones_like(s.norms, bool)):
            close(pr.attention(q, k, v, causal=causal, prune=policy, blocksize=size), expected, F32)


def test_fixed_and_the_diagonal(rng):
    q, k, v = operands(rng, 3, 3, 64, 64, 8, 8)
    blocks = rng.random((4, 4)) < 0.4
    live = blocks | np.eye(4, dtype=bool)
    expected = dense(q, k, v, elements(live, 16, 64, 64))
    mask = pr.BlockMask(blocks, 16)
    for fixed in (Fixed(mask), mask, Fixed(np.tile(blocks, (3, 1))), np.tile(blocks, (3, 1))):
        close(pr.attention(q, k, v, prune=fixed, blocksize=16), expected, F32)
    close(
        pr.attention(q, k, v, prune=Fixed(np.zeros(4, bool)), blocksize=16),
        dense(q, k, v, elements(np.eye(4, dtype=bool), 16, 64, 64)),
        F32,
    )
    # What the mask hides stays hidden.
    hidden = pr.BlockMask.full((64, 64), 16) - pr.BlockMask.block_diagonal((64, 64), 16)
    got = pr.attention(q, k, v, mask=hidden, prune=Fixed(mask), blocksize=16)
    close(got, dense(q, k, v, elements(blocks & ~np.eye(4, dtype=bool), 16, 64, 64)), F32)


def test_what_an_array_means_does_not_depend_on_what_is_in_it(rng):
    # Rows that repeat: as many as queries, but they are blocks of queries of both heads.
    rows = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    q, k, v = operands(rng, 2, 2, 4, 4, 8, 8)
    got = pr.attention(q, k, v, prune=Fixed(rows), blocksize=2)
    np.testing.assert_array_equal(got, pr.attention(q, k, v, prune=lambda s: rows, blocksize=2))
    live = rows.reshape(2, 2, 2) | np.eye(2, dtype=bool)
    close(got, dense(q, k, v, elements(live, 2, 4, 4)), F32)
    mask = pr.BlockMask(rows[::2], 2)
    close(
        pr.attention(q, k, v, prune=mask, blocksize=2),
        dense(q, k, v, elements(live[0] & live[1], 2, 4, 4)),
        F32,
    )


def test_functions_see_scores_and_what_is_visible(rng):
    q, k, v = operands(rng, 2, 2, 40, 48, 8, 8)
    seen = []

    def first_two(statistics):
        assert isinstance(statistics, Statistics)
        seen.append(statistics)
        live = np.zeros_like(statistics.norms, bool)
        live[:, :2] = True
        return live

    got = pr.attention(q, k, v, causal=True, prune=first_two, blocksize=16)
    (statistics,) = seen
    assert statistics.norm == "score"
    expected = pooled(q, k, 16).reshape(2, 3, 3)
    for i, (first, end) in enumerate([(16, 24), (32, 40), (32, 48)]):
        # The last block of keys that a block of queries sees, as far as it sees it.
        means = q[:, 16 * i : 16 * (i + 1)].mean(axis=1), k[:, first:end].mean(axis=1)
        expected[:, i, first // 16] = (means[0] * means[1]).sum(axis=1) / np.sqrt(8)
    error = 1e-5 + 2 * rounding(F32)
    np.testing.assert_allclose(statistics.norms, expected.reshape(6, 3), rtol=error, atol=error)
    np.testing.assert_array_equal(statistics.visible[:3], [[1, 1, 0], [1, 1, 1], [1, 1, 1]])
    live = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)  # the diagonal, here two blocks a row, is kept
    close(got, dense(q, k, v, elements(live, 16, 40, 48), causal=True), F32)


def test_rows_that_decide_together(rng):
    q, k, v = operands(rng, 2, 2, 48, 48, 8, 8)
    scores = pooled(q, k, 16)
    live = np.zeros((2, 3, 3), bool)
    for h in range(2):
        for group in ([0, 1], [2]):
            best = np.where(np.eye(3, dtype=bool), np.inf, scores[h])[group].max(axis=0)
            live[np.ix_([h], group, np.argsort(-best, kind="stable")[:1])] = True
    live |= np.eye(3, dtype=bool)
    got = pr.attention(q, k, v, prune=TopK(1, rows=2), blocksize=16)
    close(got, dense(q, k, v, elements(live, 16, 48, 48)), F32)


def test_long_rows_are_decided_in_pieces(rng, monkeypatch):
    from prunus.pruning import attention as module

    n, m = (16, 24) if interpreted() else (60, 80)
    q, k, v = operands(rng, 6, 3, n, m, 8, 8, batch=(2,))
    mask = pr.BlockMask.random((6, n, m), 4, 0.7, rng)
    call = lambda: pr.attention(q, k, v, mask, TopK(3), True, blocksize=4)  # noqa: E731
    whole = call()
    for together in (1, 50, 700):
        monkeypatch.setattr(module, "_TOGETHER", together)
        np.testing.assert_array_equal(call(), whole)


def test_dead_blocks_are_not_read(rng):
    q, k, v = operands(rng, 1, 1, 64, 64, 8, 8)
    clean = pr.attention(q, k, v, prune=Fixed(np.eye(4, dtype=bool)), blocksize=16, causal=True)
    # Every query block sees its own keys alone: the others may hold anything at all.
    for block in range(4):
        own = slice(block * 16, (block + 1) * 16)
        dirty_k, dirty_v = (np.full_like(x, np.nan) for x in (k, v))
        dirty_k[:, own], dirty_v[:, own] = k[:, own], v[:, own]
        mask = pr.BlockMask.block_diagonal((64, 64), 16)
        got = pr.attention(q, dirty_k, dirty_v, mask=mask, blocksize=16, causal=True)
        np.testing.assert_array_equal(got[:, own], clean[:, own])


# One result, however it is computed ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_threads_do_not_show(rng, dtype):
    # Kernels that are interpreted have no threads; that a call is repeated is all there is to see.
    few = interpreted()
    q, k, v = operands(rng, 6, 2, *((40, 66) if few else (200, 330)), 40, 40, dtype)
    results = []
    for count in (1, 2) if few else (1, 2, 3, 7):
        with pr.num_threads(count):
            results.append(
                pr.attention(q, k, v, causal=True).tobytes()
                + pr.attention(q, k, v, causal=True, prune=TopK(fraction=0.3), blocksize=16).tobytes()
            )
    assert len(set(results)) == 1


def test_a_query_is_the_same_alone_and_among_others(rng, engine):
    q, k, v = operands(rng, 2, 2, 160, 160, 32, 24)
    every = pr.attention(q, k, v, causal=True)
    for i in (0, 1, 63, 64, 100, 159):
        alone = pr.attention(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1], causal=True)[:, 0]
        if engine.name == "cpu":
            np.testing.assert_array_equal(alone, every[:, i])
        else:
            np.testing.assert_allclose(alone, every[:, i], atol=1e-6)
    np.testing.assert_array_equal(pr.attention(q[1:], k[1:], v[1:], causal=True), every[1:])


def test_what_the_trace_counts(rng):
    q, k, v = operands(rng, 4, 2, 64, 64, 8, 6)
    with trace() as t:
        pr.attention(q, k, v, causal=True, blocksize=16)
    pairs = 4 * (64 * 65 // 2)
    assert (t.flops, t.flops_skipped) == (2 * (8 + 6) * pairs, 0)
    assert (t.bytes_loaded, t.bytes_skipped) == (k.nbytes + v.nbytes, 0)
    assert t.live_fraction == t.union_fraction == 1.0
    assert [record.name for record in t.records] == ["attention"]
    assert t.records[0].path
    with trace() as t:
        pr.attention(q, k, v, prune=pr.BlockMask(np.eye(4, dtype=bool), 16), blocksize=16)
    assert (t.flops, t.flops_skipped) == (28 * 4 * 64 * 16, 28 * 4 * 64 * 48)
    assert (t.live_fraction, t.union_fraction) == (0.25, 1.0)
    only_first = pr.BlockMask(np.array([[True, True, False, False]] * 4), 16)
    with trace() as t:
        pr.attention(q, k, v, mask=only_first, prune=lambda s: np.arange(4) < np.ones((16, 1)), blocksize=16)
    # Of the blocks 0 and 1 that are visible, the first is live, and the second where it is the diagonal.
    assert (t.records[0].live, t.records[0].total) == (4 * 5, 4 * 8)
    assert (t.records[0].union_live, t.records[0].union_total) == (4, 4)
    with trace() as t:
        pr.attention(q[:, :1], k, v, prune=TopK(1), blocksize=16)
    assert (t.bytes_loaded, t.bytes_skipped) == (2 * 16 * 14 * 4, 2 * 48 * 14 * 4)


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_trace_counts_every_pair(data):
    draw = data.draw
    groups, share = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    n, m, size = (
        draw(st.integers(1, 30)),
        draw(st.integers(0, 30)),
        draw(st.sampled_from([1, 2, 3, 7, 16, 40])),
    )
    causal, batch = draw(st.booleans()), draw(st.sampled_from([(), (2,)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    q, k, v = operands(rng, groups * share, groups, n, m, 3, 2, batch=batch)
    rows, cols = -(-n // size), -(-m // size)
    lead = (*batch, groups * share)
    pairs = np.broadcast_to(
        np.tri(n, m, m - n, dtype=bool) if causal else np.ones((n, m), bool), (*lead, n, m)
    )
    mask = prune = None
    if draw(st.booleans()):
        mask = pr.BlockMask.random((n, m), size, draw(st.sampled_from([0.0, 0.5, 1.0])), rng)
        pairs = pairs & mask.toarray()
    used = pairs
    if draw(st.booleans()):
        prune = rng.random((math.prod(lead) * rows, cols)) < draw(st.sampled_from([0.0, 0.3, 0.7]))
        at = np.arange(n) // size
        kept = np.zeros((rows, cols), bool)
        for i in range(n):
            if i + m - n >= 0:
                kept[i // size, (i + m - n) // size] = True
        live = prune.reshape(*lead, rows, cols) | kept
        used = pairs & live[..., at[:, None], np.arange(m) // size]

    def blocks(seen):
        starts = np.arange(0, n, size), np.arange(0, m, size)
        return np.logical_or.reduceat(np.logical_or.reduceat(seen, starts[0], axis=-2), starts[1], axis=-1)

    def read(seen):
        return seen.reshape(*batch, groups, share * seen.shape[-2], seen.shape[-1]).any(axis=-2)

    with trace() as t:
        pr.attention(q, k, v, mask, prune, causal, blocksize=size)
    (record,) = t.records
    assert (t.flops, t.flops_skipped) == (10 * used.sum(), 10 * (pairs.sum() - used.sum()))
    assert (record.live, record.total) == (blocks(used).sum(), blocks(pairs).sum())
    assert (record.union_live, record.union_total) == (read(blocks(used)).sum(), read(blocks(pairs)).sum())
    keys = [
        (read(blocks(seen)) * np.diff(np.append(np.arange(0, m, size), m))).sum() for seen in (used, pairs)
    ]
    assert (t.bytes_loaded, t.bytes_skipped) == (20 * keys[0], 20 * (keys[1] - keys[0]))


def test_a_call_that_did_nothing_names_no_path(rng):
    q, k, v = operands(rng, 2, 2, 40, 25, 8, 8)
    pr.attention(q, k, v)
    for nothing in [(q[:0], k[:0], v[:0]), (q[:, :0], k, v), (q, k, v[..., :0])]:
        with trace() as t:
            pr.attention(*nothing, prune=TopK(1))
        assert [(record.path, record.flops) for record in t.records] == [("", 0)]


def test_counting_does_not_look_at_every_block():
    from prunus.pruning import attention as module

    # Far more blocks than can be looked at one by one.
    q = np.broadcast_to(np.ones((1, 1), F32), (1 << 20, 1))
    call = module._check(q, q, q, None, True, 1)
    n = 1 << 20
    assert module._tally_all(call) == (n * (n + 1) // 2, n * (n + 1) // 2, n, n)


@pytest.mark.parametrize(("n", "m"), [(200, 256), (64, 100), (33, 40)])
def test_what_is_in_the_future_reaches_no_decision(rng, n, m):
    q, k, v = (3 * rng.standard_normal((4, length, 16)).astype(np.float32) for length in (n, m, m))
    # A query of the first block sees keys up to here.
    seen = 32 + m - n
    later = k.copy()
    later[:, seen:] = np.nan
    for policy in (pr.Threshold(0.05), pr.TopK(2), lambda s: s.norms > 0):
        a, b = (
            pr.attention(q, keys, v, causal=True, prune=policy, blocksize=32)[:, :32] for keys in (k, later)
        )
        np.testing.assert_array_equal(a, b)
