"""NaN, infinities, padding, and writes that a caller makes to the arrays of a BSR."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, FLOATS, check, dense, sparse, values


def by_blocks(W, x):
    """W @ x with present blocks only, so that absent ones give 0 against anything."""
    out = np.zeros((W.shape[0], x.shape[1]))
    br, bc = W.blocksize
    blocks = W.mask.to_blocks()
    w = dense(W)
    with np.errstate(invalid="ignore", over="ignore"):
        for i, j in np.argwhere(blocks):
            rows, cols = slice(i * br, (i + 1) * br), slice(j * bc, (j + 1) * bc)
            out[rows] += (w[rows, cols, None] * x[None, cols].astype(float)).sum(axis=1)
    return out


def same_kind(got, expected):
    """Equal where infinite or NaN; finite elsewhere."""
    got = got.astype(float)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(got[infinite], expected[infinite])
    rest = np.isfinite(expected)
    np.testing.assert_allclose(got[rest], expected[rest], rtol=0.05, atol=0.5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("blocksize", [(4, 4), (16, 16), (5, 7), (1, 16), (32, 8)], ids=str)
@pytest.mark.parametrize("n", [1, 4, 21])
def test_infinities_and_nan_in_the_dense_operand(rng, dtype, blocksize, n):
    W = sparse(rng, (40, 70), blocksize, dtype, density=0.15)
    x = values(rng, (70, n), dtype)
    for at, value in ((3, np.nan), (24, np.inf), (45, -np.inf), (69, np.nan)):
        x[at, at % n] = value
    expected = by_blocks(W, x)
    assert np.isfinite(expected).any()
    same_kind(W @ x, expected)
    same_kind(W.pack() @ x, expected)
    same_kind((x.T @ W.T).T, expected)
    turned = W.T.copy()
    same_kind(turned.T @ x, expected)
    for column in range(n):
        same_kind(W @ x[:, column], expected[:, column])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [1, 21])
def test_infinities_and_nan_in_the_blocks(rng, dtype, n):
    W = sparse(rng, (48, 64), (16, 16), dtype, density=0.5)
    W.data[0, 3, 5], W.data[1, 0, 0], W.data[-1, -1, -1] = np.nan, np.inf, -np.inf
    x = values(rng, (64, n), dtype)
    expected = by_blocks(W, x)
    same_kind(W @ x, expected)
    same_kind(W.pack() @ x, expected)
    same_kind((x.T @ W.T).T, expected)
    y = values(rng, (48, n), dtype)
    same_kind(W.T @ y, by_blocks(W.T.copy(), y))


def test_a_present_zero_is_not_an_absent_one():
    present = pr.BSR((np.zeros((1, 1, 1), np.float32), [1], [0, 1]), shape=(1, 3))
    absent = pr.BSR((np.ones((1, 1, 1), np.float32), [0], [0, 1]), shape=(1, 3))
    for value in (np.nan, np.inf, -np.inf):
        x = np.array([1, value, 1], np.float32)
        assert np.isnan(present @ x).all()
        np.testing.assert_array_equal(absent @ x, [1])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("blocksize", [(4, 4), (16, 16), (5, 7), (1, 16), (16, 1), (64, 128)], ids=str)
def test_what_hangs_over_the_edge_is_never_seen(rng, dtype, blocksize):
    W = sparse(rng, (37, 53), blocksize, dtype, density=1.0)  # its padding is NaN
    w = dense(W)
    for n in (1, 3, 18):
        # Neither are the neighbours of a view.
        wide = np.full((55, n + 2), np.nan, dtype)
        x = wide[1:54, 1 : n + 1]
        x[...] = values(rng, (53, n), dtype)
        tall = np.full((39, n + 2), np.nan, dtype)
        y = tall[1:38, 1 : n + 1]
        y[...] = values(rng, (37, n), dtype)
        for one in (W, W.pack()):
            check(one @ x, w, x.astype(float), dtype)
            check(x.T @ one.T, x.T.astype(float), w.T, dtype)
            check(one.T @ y, w.T, y.astype(float), dtype)
            check(y.T @ one, y.T.astype(float), w, dtype)
    np.testing.assert_array_equal(W.toarray().astype(float), w)
    # The same through a physical transpose.
    turned = W.T.copy()
    check(turned @ y, w.T, y.astype(float), dtype)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("n", [1, 20])
def test_writes_to_the_blocks_are_seen_by_the_next_call(rng, dtype, n):
    W, x = sparse(rng, (48, 64), (16, 16), dtype), values(rng, (64, n), dtype)
    y = values(rng, (48, n), dtype)
    turned = W.T
    before, other = W @ x, turned @ y
    W.data[...] *= 2
    np.testing.assert_array_equal(W @ x, 2 * before)
    np.testing.assert_array_equal(turned @ y, 2 * other)
    W.data *= dtype.type(0.5)
    np.testing.assert_array_equal(W @ x, before)
    W.data[2, 3] = 0
    check(W @ x, dense(W), x.astype(float), dtype)
    W.data = np.zeros_like(W.data)
    np.testing.assert_array_equal((W @ x).astype(float), 0)


def test_writes_to_the_pattern_are_seen_by_the_next_call(rng):
    W, x = sparse(rng, (48, 64), (16, 16), density=0.3), values(rng, (64, 3), F32)
    W.indices[...] = W.indices[::-1].copy()
    check(W @ x, dense(W), x.astype(float), F32)
    W.indptr[1:] = W.indptr[-1]
    check(W @ x, dense(W), x.astype(float), F32)
    check(W.T @ x[:48], dense(W).T, x[:48].astype(float), F32)


def test_writes_through_scipy(rng):
    sparse_ = pytest.importorskip("scipy.sparse")
    W, x = sparse(rng, (48, 64), (16, 16)), values(rng, (64, 5), F32)
    S = W.to_scipy(copy=False)
    S.data[...] = 1
    check(W @ x, dense(W), x.astype(float), F32)
    back = pr.BSR(sparse_.bsr_array(S), copy=False)
    S.data[0] = -3
    check(back @ x, dense(W), x.astype(float), F32)
    check(W @ x, dense(W), x.astype(float), F32)
