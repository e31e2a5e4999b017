"""Layers that leave dead branches alone, on every engine."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, eps, values, worst
from prunus._arrays import in_panels

DTYPES = [F32, F64, F16, BF16]


def act(name, v):
    return {"relu": np.maximum(v, 0), "silu": v / (1 + np.exp(-v)), None: v}[name]


def layer(rng, d, H, out, dtype):
    return values(rng, (H, d), dtype), values(rng, (out, H), dtype), values(rng, (H, d), dtype)


def near(got, want, dtype, terms, scale=None):
    scale = np.abs(want).max(initial=1) if scale is None else scale
    inner = F64 if dtype == F64 else F32
    error = 4 * eps(dtype) * np.abs(want) + 8 * terms * eps(inner) * scale
    # What products lose of operands adds up as a random walk, relative to the largest.
    error += 2 * worst() * np.sqrt(terms) * scale
    assert (np.abs(got.astype(float) - want) <= error).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_dots_and_combine_touch_live_rows_only(rng, engine, dtype, rows):
    units, k, branch = 45, 37, 4
    x, w = values(rng, (rows, k), dtype), values(rng, (units, k), dtype)
    live = rng.random((rows, 12)) < 0.4
    live[:, 5] = False
    each = np.repeat(live, branch, axis=1)[:, :units]
    want = np.where(each, x.astype(float) @ w.astype(float).T, 0)
    w[5 * branch : 6 * branch] = np.nan  # nobody needs it, so nobody sees it
    out = np.full((rows, units), np.nan, dtype)
    engine.dots(x, w, out, live, branch)
    near(out, want, dtype, k)
    h = values(rng, (rows, units), dtype)
    h[~each] = np.inf  # dead units contribute 0 whatever they hold
    want = np.where(each, h.astype(float), 0) @ np.where(np.isnan(w.astype(float)), 0, w.astype(float))
    out = np.full((rows, k), np.nan, dtype)
    engine.combine(h, w, out, live, branch)
    near(out, want, dtype, units)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("rows", [1, 20])
def test_feed_forward_is_its_products(rng, engine, dtype, gated, rows):
    units, k, n, branch = 45, 37, 50, 4
    x, up, gate = (values(rng, shape, dtype) for shape in ((rows, k), (units, k), (units, k)))
    down, b_up, b_down = (values(rng, shape, dtype) for shape in ((units, n), (units,), (n,)))
    some = rng.random((rows, 12)) < 0.4
    for live in (None, some):
        h = np.empty((rows, units), F64 if dtype == F64 else F32)
        first = np.empty_like(h)
        if gated:
            engine.dots(x, gate, first, live, branch, None, "silu")
        engine.dots(x, up, h, live, branch, b_up, None if gated else "silu", first if gated else None)
        want = np.empty((rows, n), dtype)
        engine.combine(h, down, want, live, branch, b_down)
        layer = (x, up, gate if gated else None)
        rest = (live, branch, b_up, b_down, "silu")
        # Panels of 32 columns: the second one is padded.
        for table in (down, in_panels(down, 32)):
            out = np.full((rows, n), np.nan, dtype)
            engine.feed_forward(*layer, table, out, *rest)
            np.testing.assert_array_equal(out, want)
            engine.combine(h, table, out, live, branch, b_down)
            np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("branch", [1, 7, 32])
def test_linear_keeps_what_is_live(rng, dtype, branch):
    x, (w, _, _) = values(rng, (19, 23), dtype), layer(rng, 23, 70, 5, dtype)
    b = values(rng, 70, dtype)
    dense = pr.linear(x, w, b, activation="relu")
    assert dense.dtype == dtype
    near(dense, act("relu", x.astype(float) @ w.astype(float).T + b.astype(float)), dtype, 24)
    exact = pr.linear(x, w, b, activation="relu", prune=pr.Threshold(0.0), branch=branch)
    assert exact.blocksize == (16, branch)
    np.testing.assert_array_equal(exact.toarray(), dense)
    tau = float(np.median(np.abs(dense.astype(float))))
    pruned = pr.linear(x, w, b, activation="relu", prune=pr.Threshold(tau), branch=branch)
    starts = np.arange(0, 70, branch)
    live = np.maximum.reduceat(np.abs(dense.astype(np.float32)), starts, axis=1) > np.float32(tau)
    # Values that round to the threshold itself may fall on either side of it.
    most = np.maximum.reduceat(dense.astype(float), starts, axis=1)
    clear = np.abs(most - tau) > 4 * eps(dtype) * (1 + tau)
    each, sure = (np.repeat(m, branch, axis=1)[:, :70] for m in (live, clear))
    np.testing.assert_array_equal(pruned.toarray()[sure], np.where(each, dense, 0)[sure])


def test_linear_takes_stored_weights_batches_and_vectors(rng):
    x, (w, _, _) = values(rng, (2, 3, 9, 16), F32), layer(rng, 16, 32, 5, F32)
    W = pr.BSR.from_dense(w, blocksize=(8, 8), density=0.5)
    want = np.maximum(x.astype(float) @ W.toarray().astype(float).T, 0)
    for prune in (None, pr.Threshold(0.0), pr.TopK(fraction=1.0), pr.Fixed(np.ones(8, bool))):
        h = pr.linear(x, W, activation="relu", prune=prune, branch=4)
        got = h if prune is None else h.toarray()
        assert got.shape == (2, 3, 9, 32)
        near(got, want, F32, 16)
    assert pr.linear(x[0, 0, 0], w, prune=pr.Threshold(0.0)).shape == (1, 32)
    assert pr.linear(x[0, 0, 0], w).shape == (32,)
    assert pr.linear(x[:0], w, prune=pr.Threshold(0.0)).shape == (0, 3, 9, 32)


def test_live_branches_feed_every_operation(rng):
    x, (w, down, _) = values(rng, (40, 24), F32), layer(rng, 24, 96, 10, F32)
    h = pr.linear(x, w, activation="relu", prune=pr.TopK(fraction=0.25), branch=8)
    dense = h.toarray()
    assert h.density < 1
    near(h @ down.T, dense.astype(float) @ down.astype(float).T, F32, 96)
    near((h + h).toarray(), 2.0 * dense, F32, 1)
    near(h.sum(axis=0), dense.astype(float).sum(axis=0), F32, 96)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decide", ["up", "gate", "predictor", None])
@pytest.mark.parametrize("gated", [False, True])
def test_ffn_without_pruning_is_dense(rng, dtype, decide, gated):
    gated = gated or decide == "gate"
    d, H, out = 20, 50, 12
    up, down, gate = layer(rng, d, H, out, dtype)
    x, b_up, b_down = values(rng, (2, 5, d), dtype), values(rng, H, dtype), values(rng, out, dtype)
    wide = [a.astype(float) for a in (x, up, down, gate, b_up, b_down)]
    h = wide[0] @ wide[1].T + wide[4]
    h = act("silu", wide[0] @ wide[3].T) * h if gated else act("silu", h)
    want = h @ wide[2].T + wide[5]
    scale = np.abs(h).max() * np.abs(wide[2]).max() * 4
    if decide is None:
        policy = pr.TopK(fraction=1.0)
        w_gate = gate if gated else None
        got = pr.ffn(x, up, down, w_gate, b_up, b_down, activation="silu", prune=policy)
        near(got, want, dtype, d + H, scale)
        return
    F = pr.FFN.pack(up, down, gate if gated else None, decide, b_up=b_up, b_down=b_down)
    assert (F.hidden, F.features, F.out_features, F.dtype, F.gated) == (H, d, out, dtype, gated)
    policies = [None, pr.Fixed(np.ones(H, bool))]
    policies += [] if decide == "predictor" else [pr.TopK(fraction=1.0)]
    for policy in policies:
        got = F(x, "silu", prune=policy)
        assert got.dtype == dtype
        near(got, want, dtype, d + H, scale)


@pytest.mark.parametrize("decide", ["up", "gate"])
def test_a_threshold_on_the_deciding_matrix(rng, decide):
    d, H, out, branch = 16, 40, 9, 4
    up, down, gate = layer(rng, d, H, out, F32)
    x = values(rng, (6, d), F32)
    wide = [a.astype(float) for a in (x, up, down, gate)]
    u, g = wide[0] @ wide[1].T, act("silu", wide[0] @ wide[3].T)
    first = u if decide == "up" else g
    norms = np.sqrt(np.add.reduceat(first**2, np.arange(0, H, branch), axis=1))
    tau = float(np.median(norms))
    each = np.repeat(norms > tau, branch, axis=1)
    F = pr.FFN.pack(up, down, gate, decide)
    got = F(x, "silu", prune=pr.Threshold(tau, norm="l2"), branch=branch)
    near(got, np.where(each, g * u, 0) @ wide[2].T, F32, d + H, 100)


def test_all_dead_is_the_bias(rng):
    up, down, gate = layer(rng, 8, 12, 5, F32)
    b_down = values(rng, 5, F32)
    x = values(rng, (3, 8), F32)
    for w_gate in (None, gate):
        F = pr.FFN.pack(up, down, w_gate, b_down=b_down)
        got = F(x, prune=pr.Fixed(np.zeros(12, bool)))
        np.testing.assert_array_equal(got, np.broadcast_to(b_down, (3, 5)))
    assert not pr.ffn(x, up, down, prune=pr.Threshold(1e30)).any()


@pytest.mark.parametrize("rows", [1, 4, 37, 130])
def test_a_row_is_the_same_alone_and_in_any_batch(rng, rows):
    d, H, out = 33, 150, 29
    up, down, gate = layer(rng, d, H, out, F32)
    x = values(rng, (rows, d), F32)
    F = pr.FFN.pack(up, down, gate, "gate")
    for policy, branch in ((pr.Threshold(0.3), 1), (pr.TopK(fraction=0.2), 8), (None, 1)):
        every = F(x, "silu", prune=policy, branch=branch)
        for t in {0, rows // 2, rows - 1}:
            np.testing.assert_array_equal(F(x[t], "silu", prune=policy, branch=branch), every[t])
    with pr.num_threads(1):
        one = F(x, "silu", prune=pr.Threshold(0.3))
    with pr.num_threads(3):
        np.testing.assert_array_equal(F(x, "silu", prune=pr.Threshold(0.3)), one)


def test_counters_are_those_of_an_independent_count(rng):
    d, H, out, branch, rows = 16, 37, 9, 4, 300
    up, down, gate = layer(rng, d, H, out, F32)
    x = values(rng, (rows, d), F32)
    F = pr.FFN.pack(up, down, gate, "gate")
    mask = rng.random((rows, 10)) < 0.1

    class Chosen(pr.Policy):
        def select(self, statistics):
            return mask

    with pr.trace() as t:
        F(x, "silu", prune=Chosen(), branch=branch)
    pairs = sum(min(branch, H - b * branch) for r in range(rows) for b in range(10) if mask[r, b])
    tiles = [mask[i : i + 128].any(axis=0) for i in range(0, rows, 128)]
    touched = sum(min(branch, H - b * branch) for tile in tiles for b in range(10) if tile[b])
    assert t.flops == 2 * d * rows * H + 2 * (d + out) * pairs
    assert t.flops_skipped == 2 * (d + out) * (rows * H - pairs)
    assert t.bytes_loaded == 4 * (d * 3 * H + (d + out) * touched)
    assert t.bytes_skipped == 4 * (d + out) * (3 * H - touched)
    assert t.live_fraction == mask.mean()
    assert t.union_fraction == np.mean([tile.mean() for tile in tiles])


def test_a_class_derived_from_threshold_is_asked(rng):
    class Other(pr.Threshold):
        def select(self, statistics):
            return statistics.norms > 5

    x, w = np.ones((1, 2), np.float32), np.array([[1, 0], [10, 0]], np.float32)
    h = pr.linear(x, w, prune=Other(0.0), branch=1)
    assert h.toarray().tolist() == [[0, 10]]


def test_a_frozen_layer_keeps_its_own_biases(rng):
    up, down, _ = layer(rng, 4, 6, 3, F32)
    b_up, b_down, x = values(rng, 6, F32), values(rng, 3, F32), values(rng, (2, 4), F32)
    F = pr.FFN.pack(up, down, b_up=b_up, b_down=b_down)
    before = F(x)
    b_up += 5
    b_down += 100
    np.testing.assert_array_equal(F(x), before)


@pytest.mark.parametrize(("H", "out", "n"), [(0, 3, 2), (4, 0, 2), (4, 3, 0), (0, 0, 0)])
def test_empty_layers(H, out, n):
    up, down = np.zeros((H, 5), np.float32), np.zeros((out, H), np.float32)
    x = np.zeros((n, 5), np.float32)
    for y in (pr.ffn(x, up, down), pr.FFN.pack(up, down)(x, prune=pr.Threshold(0.0))):
        assert y.shape == (n, out)
        assert not y.any()
    assert pr.linear(x, up, prune=pr.Threshold(0.0)).shape == (n, H)


def test_wide_branches_and_bad_arguments(rng):
    up, down, _ = layer(rng, 4, 6, 3, F32)
    x = values(rng, (2, 4), F32)
    h = pr.linear(x, up, prune=pr.Threshold(0.0), branch=2**70)
    assert h.blocksize == (2, 6)
    for branch, error in ((True, TypeError), (0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="branch"):
            pr.linear(x, up, prune=pr.Threshold(0.0), branch=branch)
    with pytest.raises(TypeError, match="kept as floats"):
        pr.FFN.pack(up, down, dtype="int8")
    with pytest.raises(TypeError, match="w is a masked array"):
        pr.linear(x, np.ma.masked_array(up))
    with pytest.raises(TypeError, match="int8"):
        pr.linear(x, up, np.zeros(6, np.int8))
    with pytest.raises(ValueError, match="foresees"):
        pr.FFN.pack(up, down, decide="predictor")(x, prune=pr.Threshold(0.0))
    with pytest.raises(ValueError, match="weights expect 4"):
        pr.linear(np.zeros((2, 5), np.float32), up)
