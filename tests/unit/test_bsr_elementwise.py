"""Arithmetic, comparisons and reductions of BSR, against NumPy on the dense array."""

import ml_dtypes
import numpy as np
import pytest

import prunus as pr

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.float32, np.float64, np.float16, BF16, np.int8, np.int32]
FLOATS = DTYPES[:4]


def array(shape=(7, 9), density=0.3, dtype=np.float32, seed=0, low=-4):
    rng = np.random.default_rng(seed)
    return (rng.integers(low, 5, shape) * (rng.random(shape) < density)).astype(dtype)


def pair(dtype=np.float32, blocksize=(2, 3), other=(2, 3), shape=(7, 9)):
    a, b = array(shape, dtype=dtype), array(shape, dtype=dtype, seed=1)
    return a, b, pr.BSR(a, blocksize=blocksize), pr.BSR(b, blocksize=other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", [(2, 3), (4, 3), (3, 2), 5, 16])
def test_add_and_subtract(dtype, other):
    a, b, A, B = pair(dtype, other=other)
    for got, expected in [(A + B, a + b), (A - B, a - b), (A.T + B.T, (a + b).T), (A + A, a + a)]:
        np.testing.assert_array_equal(got.toarray(), expected)
        assert got.dtype == expected.dtype
    assert (A - B).blocksize == A.blocksize
    mixed = A + pr.BSR(b.T, blocksize=other).T
    np.testing.assert_array_equal(mixed.toarray(), a + b)


@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("two", DTYPES)
def test_mixed_dtypes_follow_numpy(one, two):
    a, b = array(dtype=one), array(dtype=two, seed=1)
    got = pr.BSR(a, blocksize=2) + pr.BSR(b, blocksize=2)
    halves = {np.dtype(one), np.dtype(two)} == {np.dtype(np.float16), BF16}
    assert got.dtype == (np.float32 if halves else (a + b).dtype)
    np.testing.assert_array_equal(got.toarray().astype(float), a.astype(float) + b.astype(float))


def test_shapes_must_agree():
    A = pr.BSR(np.eye(4), blocksize=2)
    with pytest.raises(ValueError, match="differ"):
        A + pr.BSR(np.eye(5), blocksize=2)
    with pytest.raises(ValueError, match="broadcast"):
        A.multiply(np.ones(3))
    with pytest.raises(ValueError, match="broadcast"):
        A.multiply(np.ones((2, 4, 4)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scalar", [2, 0.5, True, np.float32(2), np.float64(-3), np.int8(2), np.array(2.0)])
def test_scalars(dtype, scalar):
    a = array(dtype=dtype)
    A = pr.BSR(a, blocksize=2)
    weak = type(scalar) in (int, float, bool)
    for got, ufunc in [(A * scalar, np.multiply), (A / scalar, np.divide), (scalar * A, np.multiply)]:
        expected = ufunc(a, a.dtype.type(scalar) if weak else scalar)
        np.testing.assert_array_equal(got.toarray(), expected)
        assert got.dtype == (dtype if weak else expected.dtype)
    assert type(scalar * A) is pr.BSR
    np.testing.assert_array_equal((A.T * scalar).toarray(), (A * scalar).toarray().T)


def test_absent_blocks_stay_zero_against_infinities():
    A = pr.BSR(np.diag([1.0, 2.0, 0.0, 3.0]), blocksize=1)
    got = A * np.inf
    np.testing.assert_array_equal(got.toarray(), np.diag([np.inf, np.inf, 0, np.inf]))
    x = np.full((4, 4), np.nan)
    x[0, 0] = 2
    np.testing.assert_array_equal(A.multiply(x).data.reshape(-1), [2, np.nan, np.nan])
    assert A.multiply(x).toarray()[0, 1] == 0
    assert (A / 2)[0, 0] == 0.5


def test_in_place_is_seen_by_every_view():
    a = array()
    A = pr.BSR(a, blocksize=2)
    data, transposed = A.data, A.T
    A *= 2
    assert A.data is data
    np.testing.assert_array_equal(transposed.toarray(), 2 * a.T)
    A /= np.float32(4)
    np.testing.assert_array_equal(A.toarray(), a / 2)
    before = A
    A += A
    assert A is not before
    np.testing.assert_array_equal(A.toarray(), a)
    with pytest.raises(TypeError):
        pr.BSR(array(dtype=np.int8), blocksize=2).__imul__(0.5)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("transposed", [False, True])
def test_multiply_by_dense(batch, transposed):
    a = array((*batch, 7, 9))
    A = pr.BSR(a, blocksize=(2, 4))
    if transposed:
        a, A = a.swapaxes(-1, -2), A.T
    m, n = a.shape[-2:]
    rng = np.random.default_rng(3)
    for shape in [(m, n), (n,), (1, n), (m, 1), (1, 1), (*batch, m, n), (*batch, 1, n), ()]:
        x = rng.integers(-3, 4, shape).astype(np.float32)
        for got in (A.multiply(x), A * x, np.multiply(x, A), x * A):
            np.testing.assert_array_equal(got.toarray(), a * x)
            assert got.nnzb == A.nnzb
    np.testing.assert_array_equal(A.multiply(rng.integers(-3, 4, n).tolist()).shape, a.shape)


def test_multiply_batch_that_shares_a_pattern():
    data = np.arange(1.0, 17).reshape(2, 2, 2, 2)
    A = pr.BSR((data, [1, 0], [0, 1, 2]), shape=(2, 3, 4))
    a = A.toarray()
    x = np.arange(24.0).reshape(2, 3, 4)
    for factor in (x, x[0], x[:, :1], x[0, :, :1], x[0, 0]):
        np.testing.assert_array_equal(A.multiply(factor).toarray(), a * factor)
    np.testing.assert_array_equal((A + A.T.T).toarray(), 2 * a)
    one = pr.BSR(np.ones((3, 4)), blocksize=2)
    np.testing.assert_array_equal((A + one).toarray(), a + 1)
    np.testing.assert_array_equal((one - A).toarray(), 1 - a)
    own = pr.BSR(a, blocksize=3)
    np.testing.assert_array_equal((A + own).toarray(), 2 * a)
    np.testing.assert_array_equal((own.multiply(A)).toarray(), a * a)


@pytest.mark.parametrize("other", [(2, 3), (3, 4)])
def test_multiply_by_bsr(other):
    a, b, A, B = pair(other=other)
    np.testing.assert_array_equal(A.multiply(B).toarray(), a * b)
    np.testing.assert_array_equal((A * B).toarray(), a * b)
    assert A.multiply(B).nnzb <= A.nnzb


def test_unary():
    a = array()
    A = pr.BSR(a, blocksize=2)
    for ufunc in (np.negative, np.absolute, np.tanh, np.sign, np.square, np.expm1, np.isnan, np.floor):
        got = ufunc(A)
        assert type(got) is pr.BSR
        np.testing.assert_array_equal(got.toarray(), ufunc(a))
    np.testing.assert_array_equal((A**2).toarray(), a**2)
    np.testing.assert_array_equal(np.maximum(A, 0).toarray(), np.maximum(a, 0))
    np.testing.assert_array_equal(np.minimum(A, A.multiply(-1)).toarray(), np.minimum(a, -a))
    np.testing.assert_array_equal(sum([A, A]).toarray(), 2 * a)
    np.testing.assert_array_equal((0 - A).toarray(), -a)


DENSE_RESULTS = [
    lambda A: A + 1,
    lambda A: 1 + A,
    lambda A: A - 1.0,
    lambda A: 1 - A,
    lambda A: A + np.ones(9),
    lambda A: np.ones((7, 9)) + A,
    lambda A: A - np.ones((7, 1)),
    lambda A: np.ones((7, 9)) - A,
    lambda A: 2 / A,
    lambda A: A / A,
    lambda A: A / np.ones(9),
    lambda A: A**0,
    lambda A: A == 0,
    lambda A: A.copy() == A,
    lambda A: A >= 0,
    lambda A: A.copy() >= A,
    lambda A: A != 1,
    lambda A: float("nan") != A,  # noqa: PLW0177
    lambda A: A < 1,
    lambda A: A > -1,
    lambda A: np.ones((7, 9)) == A,
    np.exp,
    np.cos,
    lambda A: np.maximum(A, 1),
    np.logical_not,
]


@pytest.mark.parametrize("number", range(len(DENSE_RESULTS)))
def test_what_would_be_dense_names_toarray(number):
    with pytest.raises(TypeError, match="toarray"):
        DENSE_RESULTS[number](pr.BSR(array(), blocksize=2))


def test_comparisons():
    a, b, A, B = pair()
    cases = [
        (A != 0, a != 0), (A > 0, a > 0), (A < 0, a < 0), (A == 2, a == 2), (A >= 1, a >= 1),
        (A != B, a != b), (A < B, a < b), (A > B, a > b), (np.float32(0) < A, a > 0), (A <= -1, a <= -1),
    ]  # fmt: skip
    for got, expected in cases:
        assert got.dtype == bool
        np.testing.assert_array_equal(got.toarray(), expected)
    assert A != None  # noqa: E711
    assert A != "text"


def test_unknown_operands():
    A = pr.BSR(np.eye(4), blocksize=2)
    for operation in (lambda: A + "x", lambda: A @ "x", lambda: A * None, lambda: {} - A):
        with pytest.raises(TypeError):
            operation()


# Reductions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, np.bool_])
@pytest.mark.parametrize("axis", [None, 0, 1, -1, -2, (0, 1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_reductions(dtype, axis, transposed):
    a = array(dtype=dtype)
    A = pr.BSR(a, blocksize=(2, 4))
    if transposed:
        a, A = a.T, A.T
    wide = a.astype(np.float32) if dtype in (np.float16, BF16) else a
    total = wide.sum(axis=axis)
    if dtype in (np.float16, BF16):
        total = total.astype(dtype)
    got = A.sum(axis=axis)
    np.testing.assert_array_equal(got, total)
    assert got.dtype == total.dtype
    assert np.shape(got) == np.shape(total)
    np.testing.assert_allclose(
        np.asarray(A.mean(axis=axis), float), wide.mean(axis=axis), rtol=1e-2 if wide is not a else 1e-6
    )
    for name in ("max", "min"):
        got = getattr(A, name)(axis=axis)
        np.testing.assert_array_equal(got, getattr(wide, name)(axis=axis).astype(dtype))
        assert got.dtype == dtype
    np.testing.assert_array_equal(A.sum(axis=axis, keepdims=True), wide.sum(axis=axis, keepdims=True))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("axis", [None, 1, 2, -1, (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_batched_reductions(axis, shared):
    if shared:
        data = np.arange(-8.0, 8).reshape(2, 2, 2, 2)
        A = pr.BSR((data, [1, 0], [0, 1, 2]), shape=(2, 3, 4))
        a = A.toarray()
    else:
        a = array((3, 7, 9), density=0.1, dtype=np.float64)
        A = pr.BSR(a, blocksize=(2, 4))
    for name in ("sum", "mean", "max", "min"):
        got, expected = getattr(A, name)(axis=axis), getattr(a, name)(axis=axis)
        np.testing.assert_allclose(got, expected)
        assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(A.T.sum(axis=axis), a.swapaxes(1, 2).sum(axis=axis))


def test_halves_accumulate_in_float32():
    a = np.ones((1, 4096), np.float16)
    a[0, 0] = 2048
    assert pr.BSR(a, blocksize=(1, 64)).sum() == 2048 + 4095 + 1  # rounds to float16 once
    b = np.ones((4, 1000), BF16)
    assert pr.BSR(b, blocksize=4).sum(axis=1, dtype=np.float32).tolist() == [1000] * 4
    assert pr.BSR(np.full((1, 300), 100, np.int8), blocksize=(1, 4)).sum() == 30000


def test_nan_and_zeros_in_extremes():
    a = np.full((4, 4), -1.0)
    a[0, 0] = np.nan
    a[:, 2:] = 0
    A = pr.BSR(a, blocksize=2)
    np.testing.assert_array_equal(A.max(axis=1), a.max(axis=1))
    np.testing.assert_array_equal(A.max(axis=0), a.max(axis=0))
    assert np.isnan(A.max())
    full = pr.BSR(np.full((3, 3), -2.0), blocksize=2)
    assert full.max() == -2  # ragged, and no zero anywhere
    assert full.min() == -2
    np.testing.assert_array_equal(full.max(axis=0), [-2, -2, -2])
    np.testing.assert_array_equal(pr.BSR((3, 4)).max(axis=0), np.zeros(4))


def test_reduction_errors_and_out():
    A = pr.BSR(array((3, 4, 6)), blocksize=2)
    with pytest.raises(TypeError, match="toarray"):
        A.sum(axis=0)
    with pytest.raises(np.exceptions.AxisError):
        A.sum(axis=3)
    with pytest.raises(ValueError, match="twice"):
        A.sum(axis=(1, -2))
    with pytest.raises(TypeError):
        A.sum(axis=1.5)
    with pytest.raises(ValueError, match="zero-size"):
        pr.BSR((0, 4)).max(axis=0)
    assert pr.BSR((0, 4)).max(axis=1).shape == (0,)
    out = np.empty((3, 4), np.float64)
    assert A.sum(axis=2, out=out) is out
    np.testing.assert_array_equal(out, A.toarray().sum(axis=2))
    assert A.sum(dtype=np.float64).dtype == np.float64
