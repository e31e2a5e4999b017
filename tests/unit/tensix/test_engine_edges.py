"""What goes wrong on a chip at the ends of what numbers and memory hold."""

import threading
from contextvars import copy_context

import numpy as np
import pytest

import prunus as pr
from prunus.engines.base import Found
from prunus.pruning._rows import norms_of
from prunus.tensix.mapping.job import Job


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize("size", [300, 1e6, 1e15])
@pytest.mark.parametrize("sign", [1, -1])
def test_attention_with_large_scores_is_finite(rng, size, sign):
    q = np.abs(rng.standard_normal((2, 70, 16)) * size).astype(np.float32)
    v = rng.standard_normal((2, 70, 5)).astype(np.float32)
    with pr.device("tensix:n150"):
        y = pr.attention(q, sign * q, v, scale=1.0, causal=True)
    assert np.isfinite(y).all()
    assert np.abs(y).max() <= np.abs(v).max() * 1.01


def test_integers_with_relu_and_a_stripe_without_blocks():
    W = pr.BSR(np.kron(np.eye(3, 2), np.full((32, 32), 3)).astype(np.int8), blocksize=32)
    x = np.ones((64, 3), np.int8)
    with pr.device("tensix:n150"):
        y = pr.matmul(W, x, activation="relu")
    np.testing.assert_array_equal(y[:, 0], [96] * 64 + [0] * 32)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_l2_norms_whose_squares_no_float32_holds(rng, size):
    x, w = (rng.standard_normal((3, 4)) * size).astype(np.float32), np.eye(8, 4, dtype=np.float32)
    with pr.device("tensix:n150"):
        y = pr.linear(x, w, prune=pr.Threshold(0.0, norm="l2"), branch=4)
    assert np.count_nonzero(y.toarray()) == x.size
    with pr.device("tensix:n150"):
        none = pr.linear(x, w, prune=pr.Threshold(10 * size, norm="l2"), branch=4)
    assert np.count_nonzero(none.toarray()) == 0


def test_scans_with_128_states(rng):
    u, b, c = (rng.standard_normal(s).astype(np.float32) for s in ((3, 8), (3, 128), (3, 128)))
    a = -rng.uniform(0.1, 2, (8, 128)).astype(np.float32)
    with pr.device("tensix:n150"):
        got = pr.selective_scan(u, np.abs(u), a, b, c)
    np.testing.assert_allclose(got, pr.selective_scan(u, np.abs(u), a, b, c), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("states", [150, 300])
def test_scans_of_more_states_than_a_core_holds(rng, states):
    shape, many = (2, 5, 8), (2, 5, states)
    u, z = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    b, c = (rng.standard_normal(many).astype(np.float32) for _ in range(2))
    a = -rng.uniform(0.1, 2, (8, states)).astype(np.float32)
    d = rng.standard_normal(8).astype(np.float32)
    kinds = {"D": d, "z": z, "return_state": True}
    cycles = []
    for mode in ("full", "timing"):
        with pr.device("tensix:n150", mode=mode) as chip:
            got = pr.selective_scan(u, np.abs(u), a, b, c, **kinds)
            cycles.append(chip.report().cycles)
            assert len(chip.report().operations) == {150: 2, 300: 3}[states]
        if mode == "full":
            for one, other in zip(got, pr.selective_scan(u, np.abs(u), a, b, c, **kinds), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert cycles[0] == cycles[1]


def test_top_k_of_queries_without_an_inner_dimension(rng):
    q, v = np.zeros((2, 90, 0), np.float32), rng.standard_normal((2, 90, 5)).astype(np.float32)
    with pr.device("tensix:n150"):
        got = pr.attention(q, q, v, prune=pr.TopK(count=2), blocksize=16, scale=1.0)
    expected = pr.attention(q, q, v, prune=pr.TopK(count=2), blocksize=16, scale=1.0)
    np.testing.assert_allclose(got, expected, rtol=0.01, atol=0.01)


def test_padding_beside_infinities_is_zero(rng):
    w = rng.standard_normal((13, 13)).astype(np.float32)
    w[0, 0] = np.inf
    with pr.device("tensix:n150"):
        got = pr.BSR.from_dense(w, blocksize=(8, 8)) @ pr.BSR.from_dense(w, blocksize=(8, 8))
    blocks = got.data.reshape(2, 2, 8, 8).swapaxes(1, 2).reshape(16, 16)
    assert not blocks[13:].any()
    assert not blocks[:, 13:].any()


@pytest.mark.parametrize("causal", [False, True])
def test_rows_that_see_an_infinity_share_tiles(rng, causal):
    q, k, v = (rng.standard_normal((2, 100, 16)).astype(np.float32) for _ in range(3))
    v[0, 40, 3], v[0, 70, 5], v[1, 99, 0] = np.inf, np.nan, -np.inf
    with pr.device("tensix:n150") as chip:
        got = pr.attention(q, k, v, causal=causal)
        # Of each head four rows of tiles, and again those rows that see something, some tiles of them.
        (_, again) = chip.report().operations
        assert again.flops == 0
        products = again._usage.products.sum()
    expected = pr.attention(q, k, v, causal=causal)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    there = np.isfinite(expected)
    np.testing.assert_allclose(got[there], expected[there], rtol=0.02, atol=0.02)
    # A tile for each row would be some two hundred pieces of up to four tiles of keys.
    assert products <= 2 * 4 * 8


def test_rows_whose_units_have_infinities_share_tiles(rng):
    h = rng.integers(-3, 4, (300, 96)).astype(np.float32)
    w = rng.integers(-3, 4, (96, 64)).astype(np.float32)
    w[7, 3], w[50, 9], w[51, 60] = np.inf, np.nan, -np.inf
    h[:, [7, 50, 51]] = 1
    live = rng.random((300, 12)) < 0.5
    bias = np.arange(64, dtype=np.float32)
    start = rng.integers(-3, 4, (300, 64)).astype(np.float32)
    out = start.copy()
    with pr.device("tensix:n150") as chip:
        chip.combine(h, w, out, live, 8, bias, True)
        _, again = chip.report().operations
        products = again._usage.products.sum()
    units = np.repeat(live, 8, axis=1)
    expected = start + bias
    for row in range(300):
        expected[row] += h[row, units[row]] @ w[units[row]]
    np.testing.assert_array_equal(out, expected)
    # Units 7, 50 and 51 are of two branches: three groups of rows, each of a few tiles.
    assert products <= (10 + 3) * 3 * 2


def test_threads_take_turns_and_interrupts_leave_nothing(rng, monkeypatch):
    W = pr.BSR(rng.standard_normal((128, 128)).astype(np.float32), blocksize=32)
    x = rng.standard_normal((128, 128)).astype(np.float32)
    found, errors = [], []

    def work():
        try:
            found.extend(W @ x for _ in range(5))
        except BaseException as error:
            errors.append(error)

    with pr.device("tensix:n150") as engine:
        expected = W @ x
        threads = [threading.Thread(target=copy_context().run, args=(work,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(found) == 20
        assert all(np.array_equal(one, expected) for one in found)

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Job, "piece", interrupt)
        with pytest.raises(KeyboardInterrupt):
            W @ x
        assert engine.chip._core.buffers() == 0


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("branch", [6400, 401])
def test_branches_beyond_a_core(rng, branch, norm, size):
    x = rng.standard_normal((40, 4)).astype(np.float32)
    w = (size * rng.standard_normal((13000, 4))).astype(np.float32)
    branches = -(-13000 // branch)
    values = np.empty((40, 13000), np.float32)
    with pr.device("tensix:n150") as chip:
        chip.dots(x, w, values)
    with pr.device("cpu"):
        expected = norms_of(values.astype(np.float64), branch, norm)
    tau = float(np.median(expected))
    cycles = []
    for mode in ("full", "timing"):
        norms, live = np.empty((40, branches), np.float32), np.empty((40, branches), bool)
        out = np.empty((40, 13000), np.float32)
        with pr.device("tensix:n150", mode=mode) as chip:
            chip.dots(x, w, out, None, 1, None, None, None, Found(branch, norm, norms, live, tau))
            cycles.append(chip.report().cycles)
        if mode == "full":
            np.testing.assert_allclose(norms, expected, rtol=1e-5)
            np.testing.assert_array_equal(live, norms > np.float64(tau))
            assert 0 < live.mean() < 1
            units = np.repeat(live, branch, axis=1)[:, :13000]
            np.testing.assert_array_equal(out, np.where(units, values, 0))
    # The host's norms differ in the last bits: few branches are decided otherwise.
    assert cycles[0] == pytest.approx(cycles[1], rel=0.02)


def test_gates_of_branches_beyond_a_core(rng):
    z = rng.standard_normal((3, 7000)).astype(np.float32)
    norms = np.empty((3, 2), np.float32)
    with pr.device("tensix:n150") as chip:
        chip.gates(z, 6500, "l2", norms)
        assert chip.report().operations[0].name == "gates"
    silu = z / (1 + np.exp(-z.astype(np.float64)))
    np.testing.assert_allclose(norms, norms_of(silu, 6500, "l2"), rtol=0.01)


def test_useful_operations_of_sparse_times_sparse(rng):
    W = pr.BSR(rng.standard_normal((24, 24)).astype(np.float32), blocksize=8)
    with pr.device("tensix:n150") as engine:
        W @ W
    (ran,) = engine.chip._operations
    assert ran.flops == 2 * 24**3
