"""BlockMask: makers, set operations, conversions."""

import copy
import pickle

import numpy as np
import pytest

import prunus as pr

GRID = np.array([[True, False, True], [False, False, True]])


def test_attributes():
    mask = pr.BlockMask(GRID, blocksize=(2, 3), shape=(3, 8))
    assert (mask.shape, mask.ndim, mask.blocksize, mask.grid, mask.nnzb) == ((3, 8), 2, (2, 3), (2, 3), 3)
    assert mask.density == 0.5
    assert mask.indices.tolist() == [0, 2, 2]
    assert mask.indptr.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(mask.to_blocks(), GRID)
    np.testing.assert_array_equal(mask.toarray(), np.kron(GRID, np.ones((2, 3), bool))[:3, :8])
    np.testing.assert_array_equal(mask.T.toarray(), mask.toarray().T)
    assert mask == mask.T.T
    assert repr(mask) == "<prunus.BlockMask (3, 8): 3 blocks of 2 x 3, density 0.5>"
    assert pr.BlockMask(GRID, 2).shape == (4, 6)
    with pytest.raises(ValueError, match="read-only"):
        mask.indices[0] = 1


def test_from_a_pattern():
    mask = pr.BlockMask(([2, 0, 2, 2], [0, 3, 4]), blocksize=(2, 3), shape=(3, 8))
    assert mask == pr.BlockMask(GRID, blocksize=(2, 3), shape=(3, 8))
    batch = pr.BlockMask(([0, 2, 2, 1], [[0, 2, 3], [3, 3, 4]]), blocksize=1, shape=(2, 2, 3))
    np.testing.assert_array_equal(batch.to_blocks()[0], GRID)
    assert batch.to_blocks()[1].sum() == 1
    with pytest.raises(ValueError, match="shape="):
        pr.BlockMask(([0], [0, 1]), blocksize=1)
    with pytest.raises(ValueError, match="below 2"):
        pr.BlockMask(([2], [0, 1]), blocksize=1, shape=(1, 2))
    with pytest.raises(ValueError, match="expected indices"):
        pr.BlockMask(([0], [0, 1, 1]), blocksize=1, shape=(1, 2))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.ones((2, 2)), 2), TypeError),
        ((np.ones(2, bool), 2), ValueError),
        ((GRID, 0), ValueError),
        ((GRID, 2.5), TypeError),
        ((GRID, 2, (5, 6)), ValueError),
        ((GRID, 2, (2, 4, 6)), ValueError),
        ((GRID, 2, (-1, 6)), ValueError),
    ],
)
def test_bad_masks(arguments, error):
    with pytest.raises(error):
        pr.BlockMask(*arguments)


def test_set_operations():
    rng = np.random.default_rng(0)
    one, two = rng.random((4, 3, 5)) < 0.5, rng.random((4, 3, 5)) < 0.5
    for a, b in ((one[0], two[0]), (one, two), (one, two[1]), (one[:1], two)):
        A, B = (pr.BlockMask(g, (2, 3), (*g.shape[:-2], 5, 14)) for g in (a, b))
        for operation in ("__and__", "__or__", "__xor__"):
            np.testing.assert_array_equal(getattr(A, operation)(B).to_blocks(), getattr(a, operation)(b))
        np.testing.assert_array_equal((A - B).to_blocks(), a & ~b)
        np.testing.assert_array_equal((~A).to_blocks(), ~a)
        assert (A == B) is (a.shape == b.shape and bool((a == b).all()))
    A = pr.BlockMask(one[0], 2)
    assert pr.BlockMask(one[0], 3) != A
    assert A != "mask"
    with pytest.raises(ValueError, match="match"):
        A & pr.BlockMask(one[0], 3)
    with pytest.raises(TypeError):
        A & one[0]
    with pytest.raises(TypeError):
        one[0] & A
    with pytest.raises(ValueError, match="ambiguous"):
        bool(A)
    with pytest.raises(TypeError, match="toarray"):
        np.asarray(A)
    with pytest.raises(TypeError):
        len(A)
    with pytest.raises(TypeError):
        iter(A)


def causal(n, m):
    return np.arange(m) <= np.arange(n)[:, None] + (m - n)


def blocks_of(elements, br, bc):
    n, m = elements.shape
    padded = np.zeros((-(-n // br) * br, -(-m // bc) * bc), bool)
    padded[:n, :m] = elements
    return padded.reshape(-(-n // br), br, -(-m // bc), bc).any(axis=(1, 3))


@pytest.mark.parametrize("n", [0, 1, 5, 8])
@pytest.mark.parametrize("m", [0, 1, 3, 8, 13])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (16, 2)])
def test_causal_and_window(n, m, size):
    np.testing.assert_array_equal(
        pr.BlockMask.causal(n, m, blocksize=size).to_blocks(), blocks_of(causal(n, m), *size)
    )
    distance = np.arange(m) - np.arange(n)[:, None] - (m - n)
    for left, right in ((0, 0), (2, 0), (1, 3)):
        band = (distance >= -left) & (distance <= right)
        np.testing.assert_array_equal(
            pr.BlockMask.window(n, m, left=left, right=right, blocksize=size).to_blocks(),
            blocks_of(band, *size),
        )


@pytest.mark.parametrize("given", [((8, 8),), ((8, 8), (2, 2)), (8, (2, 2)), (8.0,), ([8],)])
def test_causal_and_window_take_numbers(given):
    for maker in (pr.BlockMask.causal, pr.BlockMask.window):
        with pytest.raises(TypeError, match=rf"{maker.__name__}\(\*shape, blocksize"):
            maker(*given)
    shape = 4, 6
    assert pr.BlockMask.causal(*shape, blocksize=2) == pr.BlockMask.causal(np.int64(4), 6, 2)


def test_makers():
    assert pr.BlockMask.full((5, 7), 2).density == 1.0
    assert pr.BlockMask.empty((2, 5, 7), 2).nnzb == 0
    assert pr.BlockMask.empty((0, 5), 2).density == 0.0
    drawn = pr.BlockMask.random((3, 20, 30), (2, 3), 0.15, rng=7)
    assert drawn.to_blocks().sum(axis=(1, 2)).tolist() == [15, 15, 15]
    assert drawn == pr.BlockMask.random((3, 20, 30), (2, 3), 0.15, rng=np.random.default_rng(7))
    assert drawn != pr.BlockMask.random((3, 20, 30), (2, 3), 0.15, rng=8)
    np.testing.assert_array_equal(
        pr.BlockMask.block_diagonal((2, 5, 7), 2).to_blocks()[1], np.eye(3, 4, dtype=bool)
    )
    with pytest.raises(ValueError, match="negative"):
        pr.BlockMask.window(4, left=-1)
    with pytest.raises(ValueError, match="density"):
        pr.BlockMask.random((4, 4), 2, 1.1)


def test_from_dense():
    w = np.zeros((5, 6))
    w[0, 0], w[4, 5], w[2, 3] = -3, 1, np.nan
    live = pr.BlockMask.from_dense(w, 2)
    np.testing.assert_array_equal(live.to_blocks(), [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert pr.BlockMask.from_dense(w, 2, threshold=1).nnzb == 2  # NaN is live, 1 is not above 1
    assert pr.BlockMask.from_dense(w, 2, density=0.2).nnzb == 2
    assert pr.BlockMask.from_dense(np.stack([w, 0 * w]), 2).density == pytest.approx(4 / 18)
    assert pr.BlockMask.from_dense(w, 2) == pr.BSR(w, blocksize=2).mask
    with pytest.raises(ValueError, match="NaN"):
        pr.BlockMask.from_dense(w, 2, threshold=float("nan"))
    with pytest.raises(ValueError, match="not both"):
        pr.BlockMask.from_dense(w, 2, threshold=1, density=0.5)


def test_indexing():
    grid = np.random.default_rng(1).random((2, 3, 4)) < 0.5
    mask = pr.BlockMask(grid, (2, 3), (2, 5, 11))
    np.testing.assert_array_equal(mask[1].to_blocks(), grid[1])
    np.testing.assert_array_equal(mask[::-1].to_blocks(), grid[::-1])
    part = mask[0, 2:5, 3:10]
    assert part.shape == (3, 7)
    np.testing.assert_array_equal(part.toarray(), mask.toarray()[0, 2:5, 3:10])
    np.testing.assert_array_equal(mask[..., 3:].toarray(), mask.toarray()[..., 3:])
    for bad in ((0, 1), (0, slice(1, 3)), (0, slice(None, None, 2)), (0, 0, 0, 0), 2):
        with pytest.raises(IndexError):
            mask[bad]


def test_copies_and_pickles():
    mask = pr.BlockMask(GRID, blocksize=(2, 3), shape=(3, 8))
    for twin in (copy.copy(mask), copy.deepcopy(mask), pickle.loads(pickle.dumps(mask)), mask.copy()):
        assert twin == mask
    with pytest.raises(TypeError):
        hash(mask)


def test_masks_of_arrays():
    W = pr.BSR(np.kron(GRID, np.ones((2, 3)))[:3, :8], blocksize=(2, 3))
    assert W.mask == pr.BlockMask(GRID, (2, 3), (3, 8))
    assert W.T.mask == W.mask.T
    batch = pr.BSR(np.stack([W.toarray(), 0 * W.toarray()]), blocksize=(2, 3))
    assert batch.mask[0] == W.mask
    assert batch.T.mask[0] == W.mask.T
    assert batch.mask[1].nnzb == 0
