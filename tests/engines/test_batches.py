"""Leading dimensions: shared patterns, own patterns, and NumPy's broadcasting."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F32, I8, check, dense, natural, sparse, values

BATCHES = [(), (1,), (3,), (2, 3), (2, 1), (0,)]


def own(rng, shape, blocksize, dtype=F32):
    """A BSR whose members have patterns of their own, of different numbers of blocks."""
    *batch, m, k = shape
    grid = (-(-m // blocksize[0]), -(-k // blocksize[1]))
    blocks = rng.random((*batch, *grid)) < 0.5
    if blocks.size:
        blocks[..., 0, :] = False
    mask = pr.BlockMask(blocks, blocksize, shape=tuple(shape))
    return pr.BSR.from_mask(mask, values(rng, shape, dtype))


@pytest.mark.parametrize("kind", [sparse, own], ids=["shared", "own"])
@pytest.mark.parametrize("left", BATCHES, ids=str)
@pytest.mark.parametrize("right", BATCHES, ids=str)
def test_broadcasting_is_numpys(rng, kind, left, right):
    W, x = kind(rng, (*left, 20, 24), (8, 16)), values(rng, (*right, 24, 5), F32)
    y = values(rng, (*right, 5, 20), F32)
    w = dense(W)
    try:
        shape = np.matmul(w, x).shape
    except ValueError:
        for call in (
            lambda: W @ x,
            lambda: y @ W,
            lambda: pr.matmul(W, x, out=np.empty((20, 5), np.float32)),
        ):
            with pytest.raises(ValueError, match="broadcast"):
                call()
        return
    check(W @ x, w, x.astype(float), F32)
    check(W.T @ y.swapaxes(-1, -2), w.swapaxes(-1, -2), y.swapaxes(-1, -2).astype(float), F32)
    check(y @ W, y.astype(float), w, F32)
    check(np.matmul(W, x), w, x.astype(float), F32)
    out = np.full(shape[::-1], 7, np.float32).T
    assert pr.matmul(W, x, out=out) is out
    check(out, w, x.astype(float), F32)


@pytest.mark.parametrize("kind", [sparse, own], ids=["shared", "own"])
def test_vectors_with_a_batch(rng, kind):
    W = kind(rng, (2, 3, 20, 24), (8, 8))
    v, u = values(rng, 24, F32), values(rng, 20, F32)
    check(W @ v, dense(W), v.astype(float), F32)
    check(u @ W, u.astype(float), dense(W), F32)
    single = kind(rng, (20, 24), (8, 8))
    x = values(rng, (4, 2, 24), F32)
    check(x @ single.T, x.astype(float), dense(single).T, F32)


@pytest.mark.parametrize("dtype", [BF16, I8], ids=str)
def test_other_dtypes(rng, dtype):
    kind = natural(dtype, dtype)
    for W in (sparse(rng, (3, 20, 24), (8, 8), dtype), own(rng, (3, 20, 24), (8, 8), dtype)):
        x = values(rng, (3, 24, 5), dtype)
        check(W @ x, dense(W), x.astype(float), kind)


def test_layouts_of_a_batch(rng):
    W = sparse(rng, (20, 24), (8, 8))
    x = values(rng, (4, 24, 6), F32)
    for view in (
        np.asfortranarray(x),
        np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2),
        np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
        np.broadcast_to(x[:1], x.shape),
        x[::-1, ::-1, ::-1],
        np.repeat(x, 2, axis=2)[..., ::2],
    ):
        check(W @ view, dense(W), view.astype(float), F32)
        turned = view.swapaxes(-1, -2)
        check(turned @ W.T, turned.astype(float), dense(W).T, F32)


def test_members_are_independent(rng):
    W = sparse(rng, (3, 20, 24), (8, 8))
    x = values(rng, (3, 24, 5), F32)
    got = W @ x
    for at in range(3):
        np.testing.assert_array_equal(got[at], W[at] @ x[at])
    spoiled = x.copy()
    spoiled[1] = np.nan
    np.testing.assert_array_equal((W @ spoiled)[[0, 2]], got[[0, 2]])
