"""BSR @ dense and dense @ BSR: shapes, blocks, layouts, transposes, vectors, packed operands."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, check, dense, interpreted, layouts, natural, sparse, values

# Blocks that a vector divides and that none does, rows and columns of values, blocks larger than the array.
BLOCKS = [(1, 1), (1, 16), (16, 1), (5, 7), (8, 4), (16, 16), (32, 32), (3, 48), (64, 64), (128, 96)]
# The few columns that have kernels of their own, one panel, several, and odd rests.
COLUMNS = [1, 2, 3, 4, 5, 16, 33, 130]


def columns():
    """Those that the engine has kernels of their own for; where kernels are interpreted that is one."""
    return (1, 5, 130) if interpreted() else COLUMNS


@pytest.mark.parametrize("blocksize", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
def test_every_block_size_and_width(rng, blocksize, dtype):
    W = sparse(rng, (70, 101), blocksize, dtype)
    w, kind = dense(W), natural(dtype, dtype)
    for n in columns():
        x, y = values(rng, (101, n), dtype), values(rng, (n, 70), dtype)
        check(W @ x, w, x.astype(float), kind)
        check(x.T @ W.T, x.T.astype(float), w.T, kind)
        check(y @ W, y.astype(float), w, kind)
        check(W.T @ y.T, w.T, y.T.astype(float), kind)
    v, u = values(rng, 101, dtype), values(rng, 70, dtype)
    check(W @ v, w, v.astype(float), kind)
    check(v @ W.T, v.astype(float), w.T, kind)
    check(u @ W, u.astype(float), w, kind)
    check(W.T @ u, w.T, u.astype(float), kind)


@pytest.mark.parametrize("blocksize", [(8, 8), (16, 32), (32, 16), (64, 64)], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
def test_shapes_that_blocks_divide(rng, blocksize, dtype):
    W = sparse(rng, (128, 192), blocksize, dtype)
    w, kind = dense(W), natural(dtype, dtype)
    for n in (1, 16, 64, 192):
        x = values(rng, (192, n), dtype)
        check(W @ x, w, x.astype(float), kind)
        check(np.ascontiguousarray(x.T) @ W.T, x.T.astype(float), w.T, kind)
        y = values(rng, (n, 128), dtype)
        check(y @ W, y.astype(float), w, kind)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize("n", [1, 3, 20, 67])
def test_every_layout_of_the_dense_operand(rng, dtype, n):
    W = sparse(rng, (45, 61), (16, 16), dtype)
    w, kind = dense(W), natural(dtype, dtype)
    x = values(rng, (61, n), dtype)
    for operand in layouts(x).values():
        check(W @ operand, w, x.astype(float), kind)
        check(operand.T @ W.T, x.T.astype(float), w.T, kind)
    for same in (np.broadcast_to(x[:, :1], (61, n)), np.broadcast_to(x[:1], (61, n))):
        check(W @ same, w, same.astype(float), kind)
        check(same.T @ W.T, same.T.astype(float), w.T, kind)
    v = values(rng, 3 * 61, dtype)[::-3]
    check(W @ v, w, v.astype(float), kind)
    check(v @ W.T, v.astype(float), w.T, kind)


@pytest.mark.parametrize("blocksize", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
def test_packed_operands(rng, blocksize, dtype):
    plain = sparse(rng, (70, 101), blocksize, dtype)
    packed = plain.pack()
    w, kind = dense(plain), natural(dtype, dtype)
    assert packed.frozen
    np.testing.assert_array_equal(packed.toarray().astype(float), w)
    for n in (1, 4, 17, 130):
        x, y = values(rng, (101, n), dtype), values(rng, (n, 70), dtype)
        check(packed @ x, w, x.astype(float), kind)
        check(x.T @ packed.T, x.T.astype(float), w.T, kind)
        check(y @ packed, y.astype(float), w, kind)
        check(packed.T @ y.T, w.T, y.T.astype(float), kind)
    v = values(rng, 101, dtype)
    check(packed @ v, w, v.astype(float), kind)
    # What was packed stays as it was.
    plain.data[...] = 0
    check(packed @ v, w, v.astype(float), kind)
    with pytest.raises(ValueError, match="read-only"):
        packed.data[...] = 0
    # A packed transpose is the same matrix.
    np.testing.assert_array_equal(packed.T.toarray().astype(float), w.T)
    check(packed.T.pack() @ y.T, w.T, y.T.astype(float), kind)


def test_integers_agree_exactly_however_they_are_laid_out(rng):
    W = sparse(rng, (70, 101), (16, 8), I8)
    x = values(rng, (101, 33), I8)
    expected = (dense(W) @ x.astype(float)).astype(np.int32)
    for w in (W, W.pack(), W.T.T, pr.BSR((W.data, W.indices.astype(np.int64), W.indptr), shape=W.shape)):
        np.testing.assert_array_equal(w @ x, expected)
        np.testing.assert_array_equal((x.T @ w.T).T, expected)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (7, 5)])
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
def test_empty_products(shape, dtype):
    W, kind = pr.BSR(shape, dtype=dtype, blocksize=(3, 2)), natural(dtype, dtype)
    m, k = shape
    for one in (W, W.pack()):
        for n in (0, 1, 4, 40):
            check(one @ np.ones((k, n), dtype), np.zeros((m, k)), np.ones((k, n)), kind)
            check(np.ones((n, m), dtype) @ one, np.ones((n, m)), np.zeros((m, k)), kind)
            check(one.T @ np.ones((m, n), dtype), np.zeros((k, m)), np.ones((m, n)), kind)
        check(one @ np.ones(k, dtype), np.zeros((m, k)), np.ones(k), kind)
        check(np.ones(m, dtype) @ one, np.ones(m), np.zeros((m, k)), kind)
        bias = np.arange(m, dtype=dtype)
        got = pr.matmul(one, np.ones((k, 2), dtype), bias=bias, activation="relu")
        np.testing.assert_array_equal(got, np.repeat(bias.astype(kind)[:, None], 2, axis=1))


def test_rows_without_blocks_are_zero_whatever_was_there(rng):
    W = pr.BSR((np.ones((1, 4, 4), np.float32), [2], [0, 0, 1, 1]), shape=(11, 12))
    for n in (1, 3, 50):
        out = np.full((11, n), np.nan, np.float32)
        x = values(rng, (12, n), F32)
        pr.matmul(W, x, out=out)
        check(out, dense(W), x.astype(float), F32)
        turned = np.full((12, n), np.nan, np.float32)
        y = values(rng, (11, n), F32)
        pr.matmul(W.T, y, out=turned)
        check(turned, dense(W).T, y.astype(float), F32)


def test_unsorted_and_duplicate_blocks(rng):
    data = values(rng, (5, 8, 16), F32)
    W = pr.BSR((data, [2, 0, 2, 1, 1], [0, 3, 5]), shape=(15, 41))
    w = dense(W)
    for n in (1, 2, 20):
        x, y = values(rng, (41, n), F32), values(rng, (15, n), F32)
        # Terms of duplicates count one by one in the bound; twice the blocks cover them.
        wide, tall = np.concatenate([w, 0 * w], 1), np.concatenate([w, 0 * w], 0)
        for one in (W, W.pack()):
            check(one @ x, wide, np.concatenate([x, x]).astype(float), F32)
            check(one.T @ y, tall.T, np.concatenate([y, y]).astype(float), F32)


def test_index_types_and_views_of_indices(rng):
    W = sparse(rng, (40, 40), (8, 8))
    x = values(rng, (40, 9), F32)
    expected = W @ x
    for kind in (np.int32, np.int64):
        spread = np.zeros(3 * len(W.indices), kind)
        spread[::3] = W.indices
        again = pr.BSR((W.data, spread[::3], W.indptr.astype(kind)), shape=W.shape)
        np.testing.assert_array_equal(again @ x, expected)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
def test_densify(rng, dtype):
    W = sparse(rng, (30, 41), (8, 8), dtype)
    x, y = values(rng, (41, 6), dtype), values(rng, (6, 30), dtype)
    kind = natural(dtype, dtype)
    check(pr.matmul(W, x, densify=True), dense(W), x.astype(float), kind)
    check(pr.matmul(y, W, densify=True), y.astype(float), dense(W), kind)
    check(pr.matmul(W.T, y.T, densify=True), dense(W).T, y.T.astype(float), kind)
    out = np.zeros((30, 6), kind)
    assert pr.matmul(W, x, densify=True, out=out) is out
    check(out, dense(W), x.astype(float), kind)


def test_long_sums(rng):
    W = sparse(rng, (40, 3000), (16, 8), density=0.9)
    for n in (1, 24):
        x = values(rng, (3000, n), F32)
        check(W @ x, dense(W), x.astype(float), F32)
        check(W.pack() @ x, dense(W), x.astype(float), F32)


def test_tall_and_wide(rng):
    W = sparse(rng, (2000, 20), (32, 4))
    for n in (1, 40):
        x, y = values(rng, (20, n), F32), values(rng, (n, 2000), F32)
        check(W @ x, dense(W), x.astype(float), F32)
        check(y @ W, y.astype(float), dense(W), F32)
    W = sparse(rng, (33, 40), (8, 8))
    x = values(rng, (40, 1500), F32)
    check(W @ x, dense(W), x.astype(float), F32)
    check(x.T @ W.T, x.T.astype(float), dense(W).T, F32)
