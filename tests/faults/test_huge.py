"""Shapes of more than 2**31 values with few blocks, and sizes that no machine can hold."""

import numpy as np
import pytest

import prunus as pr
from helpers import F32, I8, values

SIDE = 1 << 20


def corners(dtype=np.float32):
    """(2**20, 2**20) with blocks in all four corners and one in the middle."""
    rows = SIDE // 16
    indptr = np.zeros(rows + 1, np.int64)
    indptr[1:], indptr[rows // 2 + 1 :], indptr[rows:] = 2, 3, 5
    indices = np.array([0, rows - 1, rows // 2, 0, rows - 1])
    data = values(np.random.default_rng(0), (5, 16, 16), np.dtype(dtype))
    return pr.BSR((data, indices, indptr), shape=(SIDE, SIDE))


def ends(a, axis=0):
    middle = slice(SIDE // 2, SIDE // 2 + 16)
    return np.concatenate([np.take(a, range(16), axis), a.take(range(middle.start, middle.stop), axis),
                           np.take(a, range(SIDE - 16, SIDE), axis)], axis)  # fmt: skip


def small(W):
    """The same blocks in a (48, 48) array."""
    return pr.BSR((W.data, [0, 2, 1, 0, 2], [0, 2, 3, 5]), shape=(48, 48))


@pytest.mark.parametrize("dtype", [F32, I8], ids=str)
@pytest.mark.parametrize("n", [1, 2, 9])
def test_products(dtype, n):
    W, rng = corners(dtype), np.random.default_rng(1)
    x = values(rng, (SIDE, n), dtype)
    for one in (W, W.pack()):
        for w, s in ((one, small(W)), (one.T, small(W).T)):
            got = w @ x
            expected = s @ ends(x)
            np.testing.assert_allclose(ends(got), expected, rtol=1e-5, atol=1e-5)
            assert np.count_nonzero(got) == np.count_nonzero(expected)
    got = x.T @ W
    np.testing.assert_allclose(ends(got, 1), ends(x).T @ small(W), rtol=1e-5, atol=1e-5)


def test_offsets_past_two_gigabytes_of_a_view():
    # Rows 2**33 bytes apart in a virtual sense: zero strides stand for memory that is not there.
    W = corners()
    x = np.broadcast_to(np.float32(1), (SIDE, 8))
    assert np.count_nonzero(W @ x) == 48 * 8


def test_sparse_and_sampled_products():
    W = corners()
    squared = W @ W
    np.testing.assert_allclose(
        squared[:16, :16].toarray(), (small(W) @ small(W))[:16, :16].toarray(), rtol=1e-4, atol=1e-4
    )
    assert squared.shape == (SIDE, SIDE)
    a, b = values(np.random.default_rng(1), (SIDE, 3), F32), values(np.random.default_rng(2), (3, SIDE), F32)
    got = pr.sddmm(a, b, W.mask)
    expected = pr.sddmm(ends(a), ends(b, 1), small(W).mask)
    np.testing.assert_allclose(got.data, expected.data, rtol=1e-5)


def test_everything_else():
    W = corners()
    assert W.density == 5 / (SIDE // 16) ** 2
    assert (W + W).nnzb == 5
    np.testing.assert_allclose(ends(W.sum(axis=1)), small(W).sum(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(W[SIDE - 16 :, SIDE - 16 :].toarray(), W.data[4])
    np.testing.assert_array_equal(W.T.copy()[:16, SIDE - 16 :].toarray(), W.data[3].T)
    assert W[SIDE - 1, SIDE - 1] == W.data[4, 15, 15]


def test_what_does_not_fit_any_memory():
    W = pr.BSR((np.ones((1, 1, 1), np.float32), [0], [0, 1]), shape=(1, 2**31))
    with pytest.raises(ValueError, match="inner"):
        W @ np.ones(3, np.float32)
    with pytest.raises((ValueError, TypeError, OverflowError, MemoryError)):
        pr.BSR((2**62, 2**62), blocksize=1)
    with pytest.raises((ValueError, MemoryError)):
        corners().toarray()


@pytest.mark.parametrize(("columns", "width"), [(2**58, 5), (2**50, 5), (2**58, 3)])
def test_a_workspace_that_no_machine_has_is_a_memory_error(columns: int, width: int) -> None:
    """Sizes that overflow, and sizes that merely cannot be had, raise instead of writing out of bounds."""
    w = pr.BSR((4, columns), blocksize=(1, 2**30), dtype=np.float32)
    with pytest.raises(MemoryError, match="workspace"):
        _ = w @ np.broadcast_to(np.float32(1), (columns, width))
