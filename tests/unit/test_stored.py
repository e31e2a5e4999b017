"""prune and grow: stored patterns that change."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, sparse, values


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def same(a, b):
    np.testing.assert_array_equal(a.toarray().astype(float), b.toarray().astype(float))
    assert a.mask == b.mask
    a.check_format()
    assert a.has_canonical_format


@pytest.mark.parametrize("density", [0, 0.01, 0.1, 0.3, 0.5, 1])
@pytest.mark.parametrize("shape", [(40, 52), (32, 32), (7, 3), (3, 40, 52), (2, 2, 9, 20)], ids=str)
@pytest.mark.parametrize(("by", "norm"), [("l2", "fro"), ("max", "max")])
def test_prune_is_what_from_dense_keeps(rng, shape, density, by, norm):
    w = rng.standard_normal(shape)
    W = pr.BSR.from_dense(w, blocksize=(8, 4))
    expected = pr.BSR.from_dense(w, blocksize=(8, 4), density=density, norm=norm)
    before = W.copy()
    same(pr.prune(W, density, by), expected)
    same(W, before)
    turned = pr.prune(W.T, density, by)
    np.testing.assert_array_equal(turned.toarray(), np.swapaxes(expected.toarray(), -1, -2))
    if W.ndim == 2:
        same(pr.prune(W.pack(), density, by), expected)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
def test_prune_keeps_the_dtype_and_counts_all_positions(rng, dtype):
    W = sparse(rng, (50, 61), (8, 8), dtype, density=0.5)
    got = pr.prune(W, 0.1)
    assert got.dtype == dtype
    assert got.nnzb == -(-(7 * 8) // 10)
    kept, every = got.toarray(), W.toarray()
    assert ((kept == every) | (kept == 0)).all()
    # More than there are: all stay, in memory of their own.
    whole = pr.prune(W, 1.0)
    assert whole.nnzb == W.nnzb
    assert not np.shares_memory(whole.data, W.data)
    whole.data[...] = 1


def test_prune_ties_and_special_values():
    W = pr.BSR(np.ones((4, 8)), blocksize=2)
    assert pr.prune(W, 0.5).mask.to_blocks().tolist() == [[True] * 4, [False] * 4]
    # Of equal blocks the first in the order of the transpose.
    assert pr.prune(W.T, 0.5).mask.to_blocks().tolist() == [[True, True]] * 2 + [[False, False]] * 2
    w = np.diag([1.0, np.nan, 3.0, np.inf])
    kept = pr.prune(pr.BSR(w, blocksize=1), 2 / 16).mask.to_blocks()
    assert np.flatnonzero(kept.diagonal()).tolist() == [1, 3]
    assert pr.prune(pr.BSR((8, 8), blocksize=2), 0.5).nnzb == 0
    assert pr.prune(pr.BSR((0, 8), blocksize=2), 0.5).shape == (0, 8)


def test_prune_does_not_see_the_padding(rng):
    W = sparse(rng, (9, 9), (4, 4), density=1.0, poison=True)
    W.data[...] = np.where(np.isnan(W.data), 1e30, W.data)
    expected = pr.BSR.from_dense(W.toarray(), blocksize=4, density=0.4)
    same(pr.prune(W, 0.4), expected)


def test_prune_by_scores(rng):
    W = sparse(rng, (40, 52), (8, 8), density=0.7, poison=False)
    n = W.nnzb
    scores = rng.permutation(n)
    got = pr.prune(W, 5 / 35, scores)
    data = {(r, c): d for r, c, d in _blocks(W)}
    best = np.argsort(-scores)[:5]
    places = [(r, c) for r, c, _ in _blocks(W)]
    assert sorted((r, c) for r, c, _ in _blocks(got)) == sorted(places[i] for i in best)
    for r, c, d in _blocks(got):
        np.testing.assert_array_equal(d, data[r, c])
    # A grid, and stored blocks that are out of order, say the same.
    grid = np.zeros((5, 7))
    for (r, c), score in zip(places, scores, strict=True):
        grid[r, c] = score
    same(pr.prune(W, 5 / 35, grid), got)
    np.testing.assert_array_equal(pr.prune(W.T, 5 / 35, grid.T).toarray(), got.toarray().T)
    order = np.concatenate([np.arange(W.indptr[i], W.indptr[i + 1])[::-1] for i in range(5)])
    mixed = pr.BSR((W.data[order], W.indices[order], W.indptr.copy()), shape=W.shape)
    same(pr.prune(mixed, 5 / 35, scores[order]), got)
    turned = np.argsort(W.indices, kind="stable")
    np.testing.assert_array_equal(pr.prune(W.T, 5 / 35, scores[turned]).toarray(), got.toarray().T)


def _blocks(W):
    for r in range(len(W.indptr) - 1):
        for e in range(W.indptr[r], W.indptr[r + 1]):
            yield r, int(W.indices[e]), W.data[e]


def test_prune_of_batches(rng):
    shared = sparse(rng, (3, 20, 20), (4, 4), F64, density=0.6, poison=False)
    got = pr.prune(shared, 0.2)
    assert got.indptr.ndim == 1
    assert len(got.indices) == 5
    strength = np.sqrt((shared.data**2).sum(axis=(0, 2, 3)))
    np.testing.assert_array_equal(got.data, shared.data[:, np.sort(np.argsort(-strength)[:5])])
    strongest = np.abs(shared.data).max(axis=(0, 2, 3))
    got = pr.prune(shared, 0.2, "max")
    np.testing.assert_array_equal(got.data, shared.data[:, np.sort(np.argsort(-strongest)[:5])])
    # A score for each block of each member is summed; a grid for each member gives each its own.
    scores = rng.random(shared.data.shape[:2])
    np.testing.assert_array_equal(
        pr.prune(shared, 0.2, scores).data, shared.data[:, np.sort(np.argsort(-scores.sum(axis=0))[:5])]
    )
    grid = rng.random((3, 5, 5))
    own = pr.prune(shared, 0.2, grid)
    assert own.indptr.shape == (3, 6)
    for b in range(3):
        same(own[b], pr.prune(shared[b], 0.2, grid[b]))
    two = sparse(rng, (2, 20, 20), (4, 4), F64, density=0.3, poison=False)
    tall = pr.grow(two, rng.random((2, 5, 5)) < 0.3)
    same(pr.prune(tall, 0.2)[1], pr.prune(tall[1], 0.2))


def test_grow_by_a_mask(rng):
    W = sparse(rng, (38, 52), (8, 8), density=0.3, poison=False)
    mask = pr.BlockMask.random((38, 52), 8, 0.4, rng)
    for given in (mask, mask.to_blocks()):
        got = pr.grow(W, given)
        np.testing.assert_array_equal(got.toarray(), W.toarray())
        assert got.mask == W.mask | mask
        assert got.has_canonical_format
        assert not np.shares_memory(got.data, W.data)
    assert pr.grow(W.T, mask.T).mask == (W.mask | mask).T
    same(pr.grow(W.pack(), W.mask), W)


def test_grow_by_scores(rng):
    W = sparse(rng, (40, 56), (8, 8), density=0.3, poison=False)
    stored = W.mask.to_blocks()
    scores = rng.permutation(35).reshape(5, 7).astype(float)
    for options, number in (
        ({"count": 4}, 4),
        ({"density": 0.6}, 21 - W.nnzb),
        ({"density": 0.0}, 0),
        ({"count": 100}, 35 - W.nnzb),
    ):
        got = pr.grow(W, scores=scores, **options)
        best = np.sort(scores[~stored])[::-1][:number]
        np.testing.assert_array_equal(got.mask.to_blocks(), stored | (np.isin(scores, best) & ~stored))
        np.testing.assert_array_equal(got.toarray(), W.toarray())
    allowed = rng.random((5, 7)) < 0.5
    got = pr.grow(W, allowed, scores, count=3)
    assert not (got.mask.to_blocks() & ~stored & ~allowed).any()
    never = np.full((5, 7), -np.inf)
    same(pr.grow(W, scores=never, count=3), W)
    # Of equal scores the first.
    empty = pr.BSR((4, 8), blocksize=2)
    assert pr.grow(empty, scores=np.ones((2, 4)), count=3).mask.to_blocks().sum(axis=1).tolist() == [3, 0]


def test_grow_of_batches(rng):
    shared = sparse(rng, (3, 20, 20), (4, 4), F64, density=0.3, poison=False)
    mask = rng.random((5, 5)) < 0.4
    got = pr.grow(shared, mask)
    assert got.indptr.ndim == 1
    np.testing.assert_array_equal(got.toarray(), shared.toarray())
    every = rng.random((3, 5, 5)) < 0.4
    own = pr.grow(shared, every)
    assert own.indptr.shape == (3, 6)
    for b in range(3):
        same(own[b], pr.grow(shared[b], every[b]))
    scores = rng.random((3, 5, 5))
    more = pr.grow(own, scores=scores, density=0.9)
    assert [more[b].nnzb for b in range(3)] == [23] * 3


def test_drop_and_regrow(rng):
    # A step of RigL: as many blocks as before, the values of those that stay untouched.
    w = values(rng, (64, 64), F32)
    W = pr.BSR.from_dense(w, blocksize=8, density=0.4)
    pruned = pr.prune(W, 0.3)
    gradient = rng.random((8, 8))
    gradient[W.mask.to_blocks()] = -np.inf
    again = pr.grow(pruned, scores=gradient, density=0.4)
    assert again.nnzb == W.nnzb
    np.testing.assert_array_equal(again.toarray(), pruned.toarray())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda W: pr.prune(W, 1.5), ValueError, "density"),
        (lambda W: pr.prune(W, float("nan")), ValueError, "density"),
        (lambda W: pr.prune(W, "half"), TypeError, "density"),
        (lambda W: pr.prune(W, 0.5, "l3"), ValueError, "l2"),
        (lambda W: pr.prune(W, 0.5, [np.nan] * W.nnzb), ValueError, "NaN, first at"),
        (lambda W: pr.prune(W, 0.5, [1.0, 2.0]), ValueError, "stored blocks"),
        (lambda W: pr.prune(W, 0.5, [1j] * W.nnzb), TypeError, "real"),
        (lambda W: pr.prune(W.toarray(), 0.5), TypeError, "BSR"),
        (pr.grow, ValueError, "mask, scores"),
        (lambda W: pr.grow(W, np.ones((2, 2), bool)), ValueError, r"mask must .* 4 x 4, shape \(4, 4\); got"),
        (
            lambda W: pr.grow(W, np.ones((4, 4))),
            TypeError,
            "mask must be a BlockMask or an array of booleans, got",
        ),
        (lambda W: pr.grow(W, "all"), TypeError, "mask must be a BlockMask or an array of booleans, got str"),
        (
            lambda W: pr.grow(W, pr.BlockMask.full((16, 16), 8)),
            ValueError,
            r"mask must .* in blocks of \(4, 4\), got",
        ),
        (lambda W: pr.grow(W, count=3), ValueError, "scores="),
        (lambda W: pr.grow(W, scores=np.ones((4, 4))), ValueError, "either"),
        (lambda W: pr.grow(W, scores=np.ones((4, 4)), count=1, density=0.5), ValueError, "either"),
        (lambda W: pr.grow(W, scores=np.ones((4, 4)), count=0), ValueError, "at least 1"),
        (lambda W: pr.grow(W, scores=np.ones((4, 4)), density=2), ValueError, "density"),
        (lambda W: pr.grow(W, scores=np.full((4, 4), np.nan), count=1), ValueError, "NaN"),
        (lambda W: pr.grow(3, np.ones((4, 4), bool)), TypeError, "BSR"),
    ],
)
def test_bad_input(rng, call, error, match):
    with pytest.raises(error, match=match):
        call(sparse(rng, (16, 16), (4, 4), density=0.5))


def test_a_score_for_each_of_duplicates():
    W = pr.BSR((np.ones((2, 2, 2)), [0, 0], [0, 2]), shape=(2, 4))
    with pytest.raises(ValueError, match="duplicate"):
        pr.prune(W, 0.5, [1.0, 2.0])
    assert pr.prune(W, 0.5).toarray().max() == 2
