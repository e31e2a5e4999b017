"""W[...] against NumPy's indexing of the dense array."""

import numpy as np
import pytest

import prunus as pr


def make(shape=(11, 13), blocksize=(3, 4), seed=0):
    rng = np.random.default_rng(seed)
    a = rng.integers(1, 9, shape) * (rng.random(shape) < 0.2) * 1.0
    return a, pr.BSR(a, blocksize=blocksize)


PARTS = [
    slice(None), slice(3, 9), slice(2, 10), slice(3, 8), slice(0, 0), slice(5, 2), slice(None, None, 2),
    slice(None, None, -1), slice(-4, None), slice(9, 100),
    [0, 5, 5, 2], [-1, 3], [], np.array([True, False] * 5 + [True]),
]  # fmt: skip


@pytest.mark.parametrize("rows", range(len(PARTS)))
@pytest.mark.parametrize("transposed", [False, True])
def test_parts(rows, transposed):
    a, A = make((11, 11))
    if transposed:
        a, A = a.T, A.T
    key = PARTS[rows]
    for got, expected in [(A[key], a[key if not isinstance(key, list) else np.array(key, int)])]:
        assert type(got) is pr.BSR
        assert got.blocksize == A.blocksize
        np.testing.assert_array_equal(got.toarray(), expected)
    for cols in PARTS:
        lists = [isinstance(k, (list, np.ndarray)) for k in (key, cols)]
        if all(lists):
            continue
        index = tuple(np.array(k, int) if isinstance(k, list) else k for k in (key, cols))
        got = A[key, cols]
        np.testing.assert_array_equal(got.toarray(), a[index])
        got.check_format()
        np.testing.assert_array_equal((got @ np.eye(got.shape[1])), a[index])


def test_lines_and_values_are_dense():
    a, A = make()
    for W, w in ((A, a), (A.T, a.T)):
        np.testing.assert_array_equal(W[2], w[2])
        np.testing.assert_array_equal(W[-1], w[-1])
        np.testing.assert_array_equal(W[:, 5], w[:, 5])
        np.testing.assert_array_equal(W[2, 3:7], w[2, 3:7])
        np.testing.assert_array_equal(W[::2, -2], w[::2, -2])
        np.testing.assert_array_equal(W[4, [1, 0]], w[4, [1, 0]])
        assert type(W[2]) is np.ndarray
        assert all(W[i, j] == w[i, j] for i, j in np.ndindex(*w.shape))
        assert isinstance(W[0, 0], np.float64)
        np.testing.assert_array_equal(W[[0, 3, 9], [1, 2, 10]], w[[0, 3, 9], [1, 2, 10]])
        np.testing.assert_array_equal(
            W[np.ix_([0, 3, 9], [1, 1, 2, 10])].toarray(), w[np.ix_([0, 3, 9], [1, 1, 2, 10])]
        )


def test_whole_block_rows_share_memory():
    _, A = make()
    part = A[3:8]
    assert np.shares_memory(part.data, A.data)
    assert np.shares_memory(A.T[:, 3:9].T.data, A.data)
    assert np.shares_memory(A[...].data, A.data)
    assert np.shares_memory(A[:].data, A.data)
    part.data[...] = 0
    assert not A.toarray()[3:9].any()
    assert not np.shares_memory(A[1:4].data, A.data)


@pytest.mark.parametrize("shared", [False, True])
def test_batches(shared):
    a, A = make((2, 3, 6, 8), (2, 3))
    if shared:
        mask = pr.BlockMask.random((6, 8), (2, 3), 0.4, 0)
        A = pr.BSR.from_mask(mask, a + 1)
        a = A.toarray()
    for key in [
        0, (1, 2), (slice(None), 1), (slice(0, 1),), ([1, 0],), (Ellipsis, slice(1, 5), slice(None)),
        (1, Ellipsis, slice(2, None)),
        (slice(None), [2, 0, 2]), (0, slice(None), slice(2, 4), slice(None, None, 2)),
        (slice(0, 0),), (-1, -1),
    ]:  # fmt: skip
        got = A[key]
        assert type(got) is pr.BSR
        np.testing.assert_array_equal(got.toarray(), a[key])
    np.testing.assert_array_equal(A[..., 3, :], a[..., 3, :])
    np.testing.assert_array_equal(A[..., 4], a[..., 4])
    np.testing.assert_array_equal(A[1, :, 3, 2], a[1, :, 3, 2])
    np.testing.assert_array_equal(A[..., [0, 5], [1, 7]], a[..., [0, 5], [1, 7]])
    assert A[1, 2, 3, 4] == a[1, 2, 3, 4]
    np.testing.assert_array_equal(A.T[0, ..., 1:5].toarray(), a.swapaxes(-1, -2)[0, ..., 1:5])
    assert np.shares_memory(A[1].data, A.data)


@pytest.mark.parametrize(
    "key",
    [11, -12, (0, 13), (0, 0, 0), None, (slice(None), None), 1.5, "a", True, [11], [0.5], [[0], [1]],
     np.ones(3, bool), np.ones((11, 13), bool), (Ellipsis, Ellipsis), (slice(None), 13)],
)  # fmt: skip
def test_bad_indices(key):
    _, A = make()
    with pytest.raises(IndexError):
        A[key]


def test_errors_count_axes_from_the_front():
    two = pr.BSR(np.ones((4, 6)), blocksize=2)
    for array, first in ((two, 0), (two.T.T, 0), (pr.BSR((3, 4, 6), blocksize=2), 1)):
        with pytest.raises(IndexError, match=rf"index 9 is out of bounds for axis {first} with size 4"):
            array[..., 9, :]
        with pytest.raises(IndexError, match=rf"from 0 to 9 are out of bounds for axis {first + 1} with"):
            array[..., [0, 9]]


def test_parts_are_not_deleted():
    _, A = make()
    with pytest.raises(TypeError, match=r"W\[rows\]"):
        del A[0]
