"""DESIGN "Types": which dtype a product has, and how exact it is."""

import itertools

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, FLOATS, I8, I32, OPERANDS, check, dense, natural, sparse, values

PAIRS = list(itertools.product(OPERANDS, OPERANDS))


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=str)
@pytest.mark.parametrize("n", [1, 4, 33])
def test_mixed_operands(rng, a, b, n):
    W, x = sparse(rng, (37, 53), (16, 16), a), values(rng, (53, n), b)
    y, kind = values(rng, (n, 37), b), natural(a, b)
    for w in (W, W.pack()):
        check(w @ x, dense(W), x.astype(float), kind)
        check(y @ w, y.astype(float), dense(W), kind)
    check(W @ x[:, 0], dense(W), x[:, 0].astype(float), kind)


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_result_dtypes_on_request(rng, a, b, dtype):
    W = sparse(rng, (37, 53), (8, 16), a)
    x, y = values(rng, (53, 18), b), values(rng, (18, 37), b)
    sums = F64 if F64 in (a, b, dtype) else F32
    with np.errstate(over="ignore"):
        # int8 sums go past float16's largest number: scale them down.
        if dtype == F16 and I8 in (a, b):
            W.data[...] = (W.data.astype(np.float32) / 64).astype(a)
            x, y = (x.astype(np.float32) / 64).astype(b), (y.astype(np.float32) / 64).astype(b)
    check(pr.matmul(W, x, dtype=dtype), dense(W), x.astype(float), dtype, sums)
    check(pr.matmul(y, W, dtype=dtype), y.astype(float), dense(W), dtype, sums)
    check(np.matmul(W, x, dtype=dtype), dense(W), x.astype(float), dtype, sums)


def test_integers_wide_sums_are_exact():
    W = pr.BSR(np.full((3, 4096), -128, np.int8), blocksize=(3, 64))
    for n in (1, 5, 64):
        x = np.full((4096, n), -128, np.int8)
        got = W @ x
        assert got.dtype == I32
        np.testing.assert_array_equal(got, np.full((3, n), 128 * 128 * 4096))
    assert pr.matmul(W, x, dtype=np.int32).dtype == I32


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.bool_, np.complex64, np.longdouble])
def test_other_dtypes_raise_and_name_the_cure(rng, dtype):
    W = sparse(rng, (8, 8), (4, 4), poison=False)
    with pytest.raises(TypeError, match="astype"):
        W @ np.ones((8, 2), dtype)
    with pytest.raises(TypeError, match="astype"):
        np.ones((2, 8), dtype) @ W
    if dtype is not np.longdouble:
        with pytest.raises(TypeError, match="astype"):
            W.astype(dtype) @ np.ones((8, 2), np.float32)
    with pytest.raises(TypeError, match="result"):
        pr.matmul(W, np.ones((8, 2), np.float32), dtype=dtype)


def test_foreign_byte_order_raises_or_is_read_right(rng):
    W = sparse(rng, (8, 8), (4, 4), poison=False)
    x = values(rng, (8, 3), F32)
    swapped = x.astype(x.dtype.newbyteorder())
    try:
        got = W @ swapped
    except TypeError:
        return
    np.testing.assert_array_equal(got, W @ x)


@pytest.mark.parametrize(("dtype", "largest"), [(F16, 65504.0), (BF16, 3.38e38)])
def test_halves_round_once(dtype, largest):
    # Sums in the half type itself would stop at 2048 (float16) or 256 (bfloat16).
    n = 4096
    W = pr.BSR(np.ones((4, n), dtype), blocksize=(4, 32))
    for columns in (1, 20):
        np.testing.assert_array_equal((W @ np.ones((n, columns), dtype)).astype(float), n)
    # Too large a sum is infinite, and one that cancels is exact.
    x = np.zeros((n, 17), dtype)
    x[:3] = largest
    assert np.isinf((W @ x).astype(float)).all()
    x[1], x[2] = -largest, 1
    np.testing.assert_array_equal((W @ x)[:, 0].astype(float)[:1], [largest - largest + 1])
