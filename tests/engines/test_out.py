"""out=: any strides, overlap with what is read, and what is refused."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, check, dense, layouts, natural, sparse, values


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize("n", [1, 3, 20, 67])
def test_every_layout(rng, dtype, n):
    W, x = sparse(rng, (45, 61), (16, 16), dtype), values(rng, (61, n), dtype)
    kind = natural(dtype, dtype)
    for w in (W, W.pack()):
        for name, out in layouts(np.full((45, n), 3, kind)).items():
            around = None if out.base is None else np.array(out.base)
            assert pr.matmul(w, x, out=out) is out, name
            check(out, dense(W), x.astype(float), kind)
            out[...] = 3
            assert pr.matmul(x.T, w.T, out=out.T) is not None
            check(out, dense(W), x.astype(float), kind)
            if around is not None:  # what lies between the rows and columns is left alone
                out[...] = 3
                np.testing.assert_array_equal(out.base, around)


def test_numpys_own_calls(rng):
    W, x = sparse(rng, (45, 61), (16, 16)), values(rng, (61, 7), F32)
    out = np.empty((45, 7), np.float32)
    assert np.matmul(W, x, out=out) is out
    check(out, dense(W), x.astype(float), F32)
    out[...] = 0
    assert np.dot(W, x, out=out) is out
    check(out, dense(W), x.astype(float), F32)
    v = np.empty(45, np.float32)
    assert np.matmul(W, x[:, 0], out=v) is v
    check(v, dense(W), x[:, 0].astype(float), F32)
    spread = np.zeros(90, np.float32)[::2]
    assert np.matmul(W, x[:, 0], out=spread) is spread
    check(spread, dense(W), x[:, 0].astype(float), F32)


def test_out_of_vectors_and_batches(rng):
    W, x = sparse(rng, (45, 61), (16, 16)), values(rng, (3, 5, 61), F32)
    out = np.empty((3, 5, 45), np.float32)
    assert pr.matmul(x, W.T, out=out) is out
    np.testing.assert_array_equal(out, x @ W.T)
    turned = np.empty((5, 3, 45), np.float32).transpose(1, 0, 2)
    pr.matmul(x, W.T, out=turned)
    np.testing.assert_array_equal(turned, out)
    tall = np.empty((3, 45, 5), np.float32)
    pr.matmul(W, x.swapaxes(1, 2), out=tall)
    np.testing.assert_array_equal(tall, out.swapaxes(1, 2))


@pytest.mark.parametrize("n", [1, 2, 40])
def test_overlap_with_the_dense_operand(rng, n):
    W = sparse(rng, (48, 48), (16, 16))
    x = values(rng, (48, n), F32)
    expected = W @ x
    same = x.copy()
    assert pr.matmul(W, same, out=same) is same
    np.testing.assert_array_equal(same, expected)
    for shift in (1, 7, 47):
        buffer = np.zeros((48 + shift, n), np.float32)
        buffer[:48] = x
        pr.matmul(W, buffer[:48], out=buffer[shift:])
        np.testing.assert_array_equal(buffer[shift:], expected)
        buffer[shift:] = x
        pr.matmul(W, buffer[shift:], out=buffer[:48])
        np.testing.assert_array_equal(buffer[:48], expected)
    buffer = np.zeros((96, n), np.float32)
    buffer[::2] = x
    pr.matmul(W, buffer[::2], out=buffer[1::2])  # interlaced, without a common element
    np.testing.assert_array_equal(buffer[1::2], expected)
    np.testing.assert_array_equal(buffer[::2], x)
    pr.matmul(W, buffer[::2], out=buffer[::-2])
    np.testing.assert_array_equal(buffer[::-2], expected)


def test_overlap_with_the_blocks_and_the_bias(rng):
    W = sparse(rng, (48, 48), (16, 16), density=1.0)
    x, bias = values(rng, (48, 48), F32), values(rng, 48, F32)
    expected = pr.matmul(W, x, bias=bias)
    inside = W.data.reshape(48, 48)
    pr.matmul(W, x, bias=bias, out=inside)
    np.testing.assert_array_equal(inside, expected)
    W = sparse(rng, (48, 48), (16, 16))
    both = np.zeros((49, 48), np.float32)
    both[48] = bias
    expected = pr.matmul(W, x, bias=bias)
    pr.matmul(W, x, bias=both[48], out=both[1:])
    np.testing.assert_array_equal(both[1:], expected)


def test_overlap_in_a_batch(rng):
    W = sparse(rng, (16, 16), (8, 8))
    x = values(rng, (4, 3, 16), F32)
    expected = x @ W.T
    same = x.copy()
    pr.matmul(same, W.T, out=same)
    np.testing.assert_array_equal(same, expected)
    same = x.copy()
    pr.matmul(same, W.T, out=same[::-1])
    np.testing.assert_array_equal(same[::-1], expected)


def test_in_place_operator(rng):
    W, x = sparse(rng, (16, 16), (8, 8)), values(rng, (5, 16), F32)
    expected = x @ W
    x @= W
    np.testing.assert_array_equal(x, expected)


def test_what_is_refused(rng):
    W, x = sparse(rng, (12, 16), (4, 4)), values(rng, (16, 5), F32)
    for shape in [(12, 4), (11, 5), (5, 12), (12,), (1, 12, 5), (12, 5, 1), ()]:
        with pytest.raises(ValueError, match="out has shape"):
            pr.matmul(W, x, out=np.empty(shape, np.float32))
    for dtype in (np.float64, np.float16, np.int32, BF16, np.dtype(np.float32).newbyteorder()):
        with pytest.raises(TypeError, match="out has dtype"):
            pr.matmul(W, x, out=np.empty((12, 5), dtype))
    with pytest.raises(TypeError, match="out has dtype"):
        pr.matmul(W, x, out=np.empty((12, 5), np.float32), dtype=np.float64)
    for other in ([[0.0] * 5] * 12, 3, "out", W):
        with pytest.raises(TypeError, match="ndarray"):
            pr.matmul(W, x, out=other)
    frozen = np.zeros((12, 5), np.float32)
    frozen.flags.writeable = False
    for call in (lambda: pr.matmul(W, x, out=frozen), lambda: np.matmul(W, x, out=frozen)):
        with pytest.raises(ValueError, match="read-only"):
            call()
    np.testing.assert_array_equal(frozen, 0)
    looped = np.lib.stride_tricks.as_strided(np.zeros(5, np.float32), (12, 5), (0, 4))
    with pytest.raises(ValueError, match="overlaps itself"):
        pr.matmul(W, x, out=looped)
    with pytest.raises(TypeError, match="out="):
        pr.matmul(W, W.T, out=np.zeros((12, 12), np.float32))


def test_a_failed_call_leaves_out_alone(rng):
    W = sparse(rng, (12, 16), (4, 4))
    out = np.full((12, 5), 9, np.float32)
    with pytest.raises(ValueError, match="inner"):
        pr.matmul(W, np.ones((15, 5), np.float32), out=out)
    with pytest.raises(TypeError):
        pr.matmul(W, np.ones((16, 5), complex), out=out)
    with pytest.raises(ValueError, match="bias"):
        pr.matmul(W, np.ones((16, 5), np.float32), out=out, bias=np.ones(3, np.float32))
    np.testing.assert_array_equal(out, 9)
