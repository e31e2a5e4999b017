"""Dynamic pruning against float64 NumPy: exact where it says so, whatever the shape, dtype, batch or
branch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16, F16, F32, F64, eps, values

sizes = st.one_of(st.integers(1, 9), st.integers(10, 70))
rows = st.one_of(st.integers(0, 5), st.integers(6, 40))
branches = st.one_of(st.integers(1, 5), st.sampled_from([8, 16, 32, 100]))
dtypes = st.sampled_from([F32, F64, F16, BF16])
seeds = st.integers(0, 2**32 - 1)


def order(rng, x):
    """The same values, in C order, Fortran order or with gaps."""
    kind = rng.integers(0, 3)
    if kind == 0:
        return np.ascontiguousarray(x)
    if kind == 1:
        return np.asfortranarray(x)
    wide = np.zeros((x.shape[0] * 2, x.shape[1] * 3), x.dtype)
    wide[::2, ::3] = x
    return wide[::2, ::3]


def error_of(h, down, x, up, dtype):
    """How far an FFN's output may be from exact arithmetic, with room for the sums of both products."""
    inner = eps(F64 if dtype == F64 else F32)
    first = (x.shape[1] + 4) * inner * (np.abs(x) @ np.abs(up).T)
    total = (first + (h.shape[1] + 4) * inner * np.abs(h)) @ np.abs(down).T
    return 2 * total + 2 * eps(dtype) * np.abs(h @ down.T) + 1e-6


@settings(max_examples=150)
@given(seeds, rows, sizes, sizes, sizes, branches, dtypes)
def test_relu_with_a_threshold_of_zero_is_the_dense_layer(seed, n, d, H, out, branch, dtype):
    rng = np.random.default_rng(seed)
    x, up, down = (order(rng, values(rng, s, dtype)) for s in ((n, d), (H, d), (out, H)))
    wide = [a.astype(float) for a in (x, up, down)]
    h = np.maximum(wide[0] @ wide[1].T, 0)
    want, error = h @ wide[2].T, error_of(h, wide[2], wide[0], wide[1], dtype)
    F = pr.FFN.pack(up, down)
    exact = F(x, prune=pr.Threshold(0.0), branch=branch)
    assert (np.abs(exact.astype(float) - want) <= error).all()
    # Leaving out what is zero leaves the sums as they are: not only near, but the same.
    np.testing.assert_array_equal(exact, F(x))
    np.testing.assert_array_equal(F(x, prune=pr.TopK(fraction=1.0), branch=branch), F(x))
    once = pr.ffn(x, up, down, branch=branch)
    assert (np.abs(once.astype(float) - want) <= error).all()
    sparse = pr.linear(x, up, activation="relu", prune=pr.Threshold(0.0), branch=branch)
    np.testing.assert_array_equal(sparse.toarray(), pr.linear(x, up, activation="relu"))


@settings(max_examples=100)
@given(seeds, st.integers(1, 40), sizes, sizes, branches, st.floats(0.0, 3.0), st.sampled_from(["max", "l2"]))
def test_liveness_is_a_rows_own_and_the_same_on_every_path(seed, n, d, H, branch, tau, norm):
    rng = np.random.default_rng(seed)
    x, up, down = (values(rng, s, F32) for s in ((n, d), (H, d), (3, H)))
    policies = [pr.Threshold(tau, norm), pr.TopK(fraction=0.3, norm=norm), pr.TopK(2, norm=norm)]
    F = pr.FFN.pack(up, down)
    for policy in policies:
        h = pr.linear(x, up, activation="relu", prune=policy, branch=branch, blockrows=1)
        together = h.mask.to_blocks()
        alone = [
            pr.linear(row[None], up, activation="relu", prune=policy, branch=branch).mask.to_blocks()[0]
            for row in x
        ]
        np.testing.assert_array_equal(together, alone)
        with pr.trace() as t:
            every = F(x, prune=policy, branch=branch)
        assert t.records[0].live == together.sum()
        with pr.num_threads(2):
            for row, y in zip(x, every, strict=True):
                np.testing.assert_array_equal(F(row, prune=policy, branch=branch), y)


@settings(max_examples=60)
@given(seeds, st.integers(1, 20), sizes, sizes, branches)
def test_what_is_foreseen_is_all_that_counts(seed, n, d, H, branch):
    rng = np.random.default_rng(seed)
    x, up, gate, down = (values(rng, s, F64) for s in ((n, d), (H, d), (H, d), (4, H)))
    mask = rng.random((n, -(-H // branch))) < rng.random()
    each = np.repeat(mask, branch, axis=1)[:, :H]
    # Nothing may come out of what is dead, not even of infinities.
    unused = ~each.any(axis=0)
    up[unused], gate[unused] = np.inf, np.nan
    down[:, unused] = np.nan
    with np.errstate(all="ignore"):
        h = np.where(each, np.maximum(x @ gate.T, 0) * (x @ up.T), 0)
        want = h @ np.where(unused, 0, down).T
    for decide in ("up", "gate", "predictor"):
        F = pr.FFN.pack(up, down, gate, decide)
        got = F(x, prune=pr.Fixed(mask), branch=branch)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(seeds, st.integers(1, 12), sizes, sizes, branches, st.sampled_from([-200, -30, 0, 30, 150]))
def test_what_is_not_zero_is_not_dead_however_small(seed, n, d, H, branch, exponent):
    rng = np.random.default_rng(seed)
    x, up = values(rng, (n, d), F64) * 10.0**exponent, values(rng, (H, d), F64)
    dense = np.maximum(x @ up.T, 0)
    for norm in ("max", "l2"):
        h = pr.linear(x, up, activation="relu", prune=pr.Threshold(0.0, norm), branch=branch)
        np.testing.assert_allclose(h.toarray(), dense, rtol=1e-9, atol=1e-12 * 10.0**exponent * d)
        # A threshold between the norms of a row's branches parts them, whatever their size.
        norms = (
            np.sqrt(np.add.reduceat(dense**2, np.arange(0, H, branch), axis=1))
            if norm == "l2"
            else (np.maximum.reduceat(dense, np.arange(0, H, branch), axis=1))
        )
        if exponent in (-30, 0, 30):
            tau = float(np.median(norms))
            live = pr.linear(
                x, up, activation="relu", prune=pr.Threshold(tau, norm), branch=branch, blockrows=1
            ).mask.to_blocks()
            clear = np.abs(norms - tau) > 1e-9 * tau
            np.testing.assert_array_equal(live[clear], (norms > tau)[clear])


@settings(max_examples=60)
@given(seeds, st.integers(1, 12), st.integers(1, 40), branches, st.sampled_from([F32, BF16, F16]))
def test_stored_weights_decide_for_a_row_by_itself(seed, n, H, branch, dtype):
    rng = np.random.default_rng(seed)
    w = pr.BSR.from_dense(values(rng, (H, 33), dtype), blocksize=(4, 8), density=0.6)
    x = values(rng, (n, 33), dtype)
    every = pr.linear(x, w, activation="relu", prune=pr.TopK(fraction=1.0), branch=branch, blockrows=1)
    # The hardest threshold: a norm that some row has.
    tau = float(rng.choice(np.abs(every.toarray().astype(np.float64)).ravel()))
    policy = pr.Threshold(tau)
    h = pr.linear(x, w, activation="relu", prune=policy, branch=branch, blockrows=1).toarray()
    for t in range(n):
        alone = pr.linear(x[t : t + 1], w, activation="relu", prune=policy, branch=branch).toarray()
        np.testing.assert_array_equal(alone[0], h[t])


@settings(max_examples=60)
@given(seeds, st.integers(1, 9), st.integers(1, 30), branches)
def test_dead_units_of_a_row_meet_infinities_without_harm(seed, n, H, branch):
    rng = np.random.default_rng(seed)
    x, up, down = (values(rng, s, F32) for s in ((n, 5), (H, 5), (4, H)))
    mask = rng.random((n, -(-H // branch))) < 0.5
    each = np.repeat(mask, branch, axis=1)[:, :H]
    poisoned = rng.random(H) < 0.3
    down[:, poisoned] = np.inf
    h = np.where(each, np.maximum(x.astype(float) @ up.astype(float).T, 0), 0)
    for once in (
        pr.ffn(x, up, down, prune=pr.Fixed(mask), branch=branch),
        pr.FFN.pack(up, down)(x, prune=pr.Fixed(mask), branch=branch),
    ):
        for t in range(n):
            at = np.flatnonzero(each[t])
            with np.errstate(all="ignore"):
                want = (h[t, at] * down[:, at].astype(float)).sum(axis=1)
            np.testing.assert_allclose(once[t], want, rtol=1e-3, atol=1e-3)
