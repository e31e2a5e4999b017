"""What NumPy's functions and operators do with a BSR."""

import copy

import ml_dtypes
import numpy as np
import pytest

import prunus as pr

rng = np.random.default_rng(0)
DENSE = (rng.integers(-3, 4, (6, 8)) * (rng.random((6, 8)) < 0.4)).astype(np.float32)
X = rng.integers(-3, 4, (8, 5)).astype(np.float32)


@pytest.fixture(name="W")
def weights():
    return pr.BSR(DENSE, blocksize=(2, 3))


def test_matmul_from_either_side(W):
    for got in (W @ X, np.matmul(W, X), np.dot(W, X), W.dot(X), W.__matmul__(X)):
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, DENSE @ X)
    for got in (X.T @ W.T, np.matmul(X.T, W.T), np.dot(X.T, W.T), W.T.__rmatmul__(X.T)):
        np.testing.assert_array_equal(got, X.T @ DENSE.T)
    np.testing.assert_array_equal(W @ X[:, 0], DENSE @ X[:, 0])
    np.testing.assert_array_equal(X[:, 0] @ W.T, DENSE @ X[:, 0])
    np.testing.assert_array_equal(W @ X.tolist(), DENSE @ X)
    np.testing.assert_array_equal((W.T @ W).toarray(), DENSE.T @ DENSE)
    np.testing.assert_array_equal(np.matmul(W.T, W).toarray(), DENSE.T @ DENSE)
    out = np.empty((6, 5), np.float32)
    assert np.matmul(W, X, out=out) is out
    np.testing.assert_array_equal(out, DENSE @ X)
    assert np.dot(X.T, W.T, out=out.T) is not None
    assert np.matmul(W, X, dtype=np.float64).dtype == np.float64
    with pytest.raises(TypeError):
        np.matmul(W, X, axes=[(0, 1), (0, 1), (0, 1)])


def test_in_place_matmul_of_an_array(W):
    x = np.ones((2, 6), np.float32)
    square = pr.BSR(np.eye(6, dtype=np.float32) * 2, blocksize=4)
    x @= square
    np.testing.assert_array_equal(x, np.full((2, 6), 2))


def test_arithmetic_ufuncs(W):
    for got, expected in [
        (np.add(W, W), DENSE + DENSE), (np.subtract(W, W), DENSE * 0), (np.multiply(W, 2), DENSE * 2),
        (np.multiply(2, W), DENSE * 2), (np.float32(2) * W, DENSE * 2), (np.divide(W, 2), DENSE / 2),
        (np.true_divide(W, np.float32(4)), DENSE / 4), (np.negative(W), -DENSE), (np.absolute(W), abs(DENSE)),
        (np.multiply(DENSE, W), DENSE * DENSE), (DENSE * W, DENSE * DENSE), (np.square(W), DENSE**2),
        (np.array(2, np.float32) * W, DENSE * 2), (np.not_equal(W, 0), DENSE != 0),
        (np.multiply(W, 2, dtype=np.float64), DENSE * 2.0),
    ]:  # fmt: skip
        assert type(got) is pr.BSR
        np.testing.assert_array_equal(got.toarray(), expected)
    bf16 = ml_dtypes.bfloat16(2)
    assert (bf16 * W.astype("bfloat16")).dtype == np.dtype(ml_dtypes.bfloat16)


def test_functions(W):
    np.testing.assert_array_equal(np.sum(W), DENSE.sum())
    np.testing.assert_array_equal(np.sum(W, axis=0), DENSE.sum(axis=0))
    np.testing.assert_array_equal(np.sum(W, axis=1, keepdims=True), DENSE.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(np.sum(W, 0, np.float64), DENSE.sum(0, np.float64))
    np.testing.assert_allclose(np.mean(W, axis=1), DENSE.mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(np.max(W, axis=1), DENSE.max(axis=1))
    np.testing.assert_array_equal(np.amax(W, 0), DENSE.max(0))
    np.testing.assert_array_equal(np.min(W), DENSE.min())
    np.testing.assert_array_equal(np.amin(W, axis=0), DENSE.min(axis=0))
    np.testing.assert_array_equal(np.transpose(W).toarray(), DENSE.T)
    np.testing.assert_array_equal(np.swapaxes(W, 0, 1).toarray(), DENSE.T)
    np.testing.assert_array_equal(np.copy(W).toarray(), DENSE)
    np.testing.assert_array_equal(np.add.reduce(W, axis=0), DENSE.sum(axis=0))
    np.testing.assert_array_equal(np.maximum.reduce(W, axis=None), DENSE.max())
    assert np.shape(W) == (6, 8)
    assert np.ndim(W) == 2
    assert np.size(W) == W.nnz
    assert np.size(W, 0) == 6
    assert np.count_nonzero(W) == np.count_nonzero(DENSE)
    np.testing.assert_array_equal(np.count_nonzero(W, axis=0), np.count_nonzero(DENSE, axis=0))
    assert np.result_type(W, np.float64) == np.float64
    np.testing.assert_array_equal(np.dot(W, 2).toarray(), DENSE * 2)
    assert type(np.copy(W)) is pr.BSR


def test_diagonals(W):
    np.testing.assert_array_equal(np.diagonal(W), np.diagonal(DENSE))
    np.testing.assert_array_equal(np.diagonal(W, -2), np.diagonal(DENSE, -2))
    np.testing.assert_array_equal(W[1:, 1:].pack().diagonal(1), np.diagonal(DENSE[1:, 1:], 1))
    assert np.trace(W, 1) == np.trace(DENSE, 1)
    half = W.astype(np.float16).trace()
    assert half.dtype == np.float16
    batch = pr.BSR(np.stack([DENSE, 2 * DENSE]), blocksize=(2, 3))
    np.testing.assert_array_equal(batch.diagonal(), [np.diagonal(DENSE), 2 * np.diagonal(DENSE)])
    np.testing.assert_array_equal(batch.trace(), [np.trace(DENSE), 2 * np.trace(DENSE)])
    with pytest.raises(TypeError):
        W.diagonal(0.5)
    with pytest.raises(TypeError, match="last two axes"):
        np.diagonal(batch)
    with pytest.raises(TypeError, match="dtype"):
        np.trace(W, dtype=np.float64)
    assert pr.BSR((0, 5)).trace() == 0


REFUSED = [
    lambda W: np.diagonal(W, 0, 1, 0),
    lambda W: np.add(W, 1),
    np.exp,
    lambda W: np.multiply(W, 2, out=np.empty((6, 8))),
    lambda W: np.multiply(W, 2, where=DENSE > 0),
    lambda W: np.add.outer(W, W),
    np.multiply.reduce,
    lambda W: np.add.at(W, 0, 1),
    lambda W: np.concatenate([W, W]),
    np.linalg.norm,
    np.sort,
    lambda W: np.einsum("ij->ji", W),
    lambda W: np.sum(W, where=DENSE > 0),
    lambda W: np.max(W, initial=3),
    np.asarray,
    np.array,
    np.modf,
    lambda W: np.divmod(W, 2),
    np.median,
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_not_supported_names_what_to_call(W, number):
    with pytest.raises(TypeError, match=r"toarray|W \*= s"):
        REFUSED[number](W)


def test_refused_matmuls(W):
    with pytest.raises(TypeError, match="astype"):
        W @ X.astype(np.int64)
    with pytest.raises(TypeError, match="astype"):
        W.astype(np.int64) @ X
    with pytest.raises(TypeError, match="astype"):
        W @ X.astype(complex)
    with pytest.raises(TypeError, match="astype"):
        W @ X.astype(object)
    with pytest.raises(TypeError, match="astype"):
        W @ X.astype(bool)
    swapped = X.astype(X.dtype.newbyteorder())
    for call in (lambda: W @ swapped, lambda: swapped.T @ W.T, lambda: pr.matmul(W, X, bias=swapped[:6, 0])):
        with pytest.raises(TypeError, match=r'\.astype\(\w+\.dtype\.newbyteorder\("="\)\)'):
            call()
    np.testing.assert_array_equal(W @ swapped.astype(swapped.dtype.newbyteorder("=")), W @ X)
    with pytest.raises(TypeError, match="filled"):
        W @ np.ma.ones((8, 5))
    with pytest.raises(ValueError, match="inner"):
        W @ X.T
    with pytest.raises(ValueError, match="inner"):
        X @ W
    with pytest.raises(ValueError, match="dimension"):
        np.matmul(W, np.float32(2))
    with pytest.raises(TypeError):
        pr.matmul(W, "x")
    with pytest.raises(TypeError):
        pr.matmul(W, None)


def test_copies_of_a_frozen_array_are_frozen(W):
    for frozen in (W.pack(), W.pack().T):
        for twin in (copy.copy(frozen), copy.deepcopy(frozen), copy.deepcopy([frozen])[0]):
            assert twin.frozen
            assert twin.shape == frozen.shape
            np.testing.assert_array_equal(twin.toarray(), frozen.toarray())
        assert not frozen.copy().frozen
    assert not copy.copy(W).frozen


def test_messages_name_what_was_called(W, tmp_path):
    with pytest.raises(TypeError, match=r"np\.linalg\.norm is not"):
        np.linalg.norm(W)
    with pytest.raises(TypeError, match=r"np\.fft\.fft is not"):
        np.fft.fft(W)
    with pytest.raises(TypeError, match=r"^np\.sort is not"):
        np.sort(W)
    for save in (np.save, np.savez, np.savez_compressed, np.savetxt):
        with pytest.raises(TypeError, match=rf"np\.{save.__name__}.*toarray.*pickle.*save_npz.*to_scipy"):
            save(tmp_path / "w", W)
    assert not list(tmp_path.iterdir())


MASKED = np.ma.masked_array(np.ones((6, 8), np.float32), DENSE > 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda W: W * MASKED,
        lambda W: W.multiply(MASKED),
        lambda W: np.multiply(W, MASKED),
        lambda W: MASKED * W,
        lambda W: MASKED[:, :1] * W,
        lambda W: W * MASKED[0, :],
        lambda W: W * np.ma.masked_array(2.0, True),
        lambda W: W.__imul__(np.ma.masked_array(2.0, True)),
        lambda W: np.ma.masked * W,
    ],
)
def test_a_mask_is_not_dropped(W, call):
    with pytest.raises((TypeError, ValueError), match=r"filled\(0\)|could not be broadcast"):
        call(W)


def test_a_masked_array_does_not_multiply_the_blocks_themselves():
    W = pr.BSR(np.ones((4, 4), np.float32), blocksize=4)
    with pytest.raises(TypeError, match=r"filled\(0\)"):
        np.ma.ones((4, 4)) * W


@pytest.mark.parametrize("other", [np.full((6, 8), None), np.array(None), [[None] * 8] * 6, np.full(8, "a")])
def test_arrays_of_objects_are_refused(W, other):
    for call in (W.multiply, lambda o: np.multiply(W, o), lambda o: np.multiply(o, W), lambda o: W * o):
        with pytest.raises(TypeError, match="dtype"):
            call(other)


def test_other_objects_are_no_factors(W):
    for other in (None, "two", {1: 2}, object()):
        with pytest.raises(TypeError):
            W.multiply(other)
