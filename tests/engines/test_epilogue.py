"""Bias and activation in the product's store."""

import math

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, I32, bound, close, dense, eps, natural, sparse, values


def erf(value):
    return np.vectorize(math.erf, otypes=[float])(value)


# With the largest slope of each: how much an error of the sum may grow.
ACTIVATIONS = {
    None: (lambda v: v, 1),
    "relu": (lambda v: np.maximum(v, 0), 1),
    "gelu": (lambda v: v * 0.5 * (1 + erf(v / math.sqrt(2))), 1.13),
    "silu": (lambda v: v / (1 + np.exp(-v)), 1.1),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("n", [1, 3, 37])
def test_bias_and_activation(rng, activation, biased, dtype, n):
    W, x = sparse(rng, (37, 53), (16, 16), dtype), values(rng, (53, n), dtype)
    bias = values(rng, 37, dtype) if biased else None
    function, slope = ACTIVATIONS[activation]
    w = dense(W)
    sums = w @ x.astype(float) + (0 if bias is None else bias.astype(float)[:, None])
    inner = F64 if dtype == F64 else F32
    # The sum's own error; the bias is one more term; the function is good to a few units of the inner type.
    error = slope * bound(w, x.astype(float), dtype) + 8 * eps(inner) * (1 + np.abs(sums))
    error += eps(dtype) * np.abs(function(sums))
    for one in (W, W.pack()):
        got = pr.matmul(one, x, bias=bias, activation=activation)
        assert got.dtype == dtype
        close(got, function(sums), error)
        close(pr.matmul(x.T, one.T, bias=bias, activation=activation).T, function(sums), error)
        out = np.full((n, 37), 5, dtype).T
        pr.matmul(one, x, bias=bias, activation=activation, out=out)
        close(out, function(sums), error)
        vector = pr.matmul(one, x[:, 0], bias=bias, activation=activation)
        close(vector, function(sums)[:, 0], error[:, 0])


@pytest.mark.parametrize("kind", [F32, F64, F16, BF16], ids=str)
def test_bias_of_another_dtype_and_strided(rng, kind):
    W, x = sparse(rng, (37, 53), (16, 16)), values(rng, (53, 4), F32)
    wide = values(rng, 3 * 37, kind)
    for bias in (wide[::3], wide[::-3], np.broadcast_to(wide[:1], 37)):
        expected = dense(W) @ x.astype(float) + bias.astype(float)[:, None]
        got = pr.matmul(W, x, bias=bias)
        assert got.dtype == F32
        close(got, expected, bound(dense(W), x.astype(float), F32) + 4 * eps(F32) * np.abs(expected))


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("kind", [I8, I32], ids=str)
@pytest.mark.parametrize("n", [1, 20])
def test_integers(rng, activation, kind, n):
    W, x = sparse(rng, (37, 53), (16, 16), I8), values(rng, (53, n), I8)
    bias = rng.integers(-100, 100, 37).astype(kind)
    expected = dense(W) @ x.astype(float) + bias.astype(float)[:, None]
    expected = np.maximum(expected, 0) if activation else expected
    got = pr.matmul(W, x, bias=bias, activation=activation)
    assert got.dtype == natural(I8, I8)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(pr.matmul(x.T, W.T, bias=bias, activation=activation), expected.T)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_special_values(activation):
    W = pr.BSR(np.eye(16, dtype=np.float32), blocksize=(16, 16))
    x = np.zeros((16, 3), np.float32)
    x[0], x[1], x[2], x[3] = np.nan, 2.0**100, -(2.0**100), -0.0
    got = pr.matmul(pr.BSR(np.diag(np.ones(16, np.float32)), blocksize=1), x, activation=activation)
    assert np.isnan(got[0]).all()
    np.testing.assert_array_equal(got[1], np.float32(2.0**100))
    np.testing.assert_array_equal(got[2], 0)
    np.testing.assert_array_equal(got[3:], 0)
    # A whole block spreads the NaN to all of its rows, as NumPy does.
    assert np.isnan(pr.matmul(W, x, activation=activation)).all()


@pytest.mark.parametrize("activation", [None, "relu"])
def test_batches(rng, activation):
    W, x, bias = sparse(rng, (3, 20, 24), (8, 8)), values(rng, (3, 24, 5), F32), values(rng, 20, F32)
    got = pr.matmul(W, x, bias=bias, activation=activation)
    for at in range(3):
        np.testing.assert_array_equal(got[at], pr.matmul(W[at], x[at], bias=bias, activation=activation))


def test_what_is_refused(rng):
    W, x = sparse(rng, (12, 16), (4, 4)), values(rng, (16, 5), F32)
    for bad in ("tanh", "RELU", "", 3):
        with pytest.raises((ValueError, TypeError), match="activation"):
            pr.matmul(W, x, activation=bad)
    for shape in [(11,), (1,), (), (12, 1), (0,)]:
        with pytest.raises(ValueError, match="12 output features"):
            pr.matmul(W, x, bias=np.ones(shape, np.float32))
    for dtype in (np.complex64, np.int64, np.bool_):
        with pytest.raises(TypeError, match="bias"):
            pr.matmul(W, x, bias=np.ones(12, dtype))
    whole = pr.BSR((np.ones((1, 4, 4), np.int8), [0], [0, 1, 1, 1]), shape=(12, 16))
    for activation in ("gelu", "silu"):
        with pytest.raises(TypeError, match="float32"):
            pr.matmul(whole, x.astype(np.int8), activation=activation)
    with pytest.raises(TypeError, match="int32"):
        pr.matmul(whole, x.astype(np.int8), bias=np.ones(12, np.float32))
