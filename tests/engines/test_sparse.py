"""BSR @ BSR, and the dense product at a mask's blocks."""

import numpy as np
import pytest

import prunus as pr
from helpers import (
    BF16,
    F16,
    F32,
    F64,
    FLOATS,
    I8,
    bound,
    close,
    declared,
    dense,
    layouts,
    natural,
    sparse,
    values,
    worst,
)

SIZES = [
    # (m, k, n), blocks of a, of b
    ((70, 101, 53), (16, 8), (8, 16)),
    ((70, 101, 53), (5, 7), (7, 3)),
    ((64, 96, 128), (32, 32), (32, 32)),
    ((33, 40, 50), (1, 16), (16, 1)),
    ((40, 33, 50), (16, 1), (1, 16)),
    ((90, 90, 90), (64, 64), (64, 64)),
    ((7, 5, 3), (16, 16), (16, 16)),
]
DTYPES = [F32, F64, F16, BF16, I8]


def compare(got, expected, error):
    close(got.toarray(), expected, error)
    got.check_format()
    assert got.has_canonical_format


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparse_times_sparse(rng, sizes, dtype):
    (m, k, n), left, right = sizes
    A, B = sparse(rng, (m, k), left, dtype), sparse(rng, (k, n), right, dtype)
    a, b, kind = dense(A), dense(B), natural(dtype, dtype)
    got = A @ B
    assert type(got) is pr.BSR
    assert got.dtype == kind
    assert got.blocksize == (left[0], right[1])
    compare(got, a @ b, bound(a, b, kind))
    turned = B.T @ A.T
    compare(turned, (a @ b).T, bound(b.T, a.T, kind))
    compare(A.T.copy().T @ B, a @ b, bound(a, b, kind))
    # The pattern is that of the product of patterns, whatever the values.
    blocks = (A.mask.to_blocks().astype(int) @ B.mask.to_blocks().astype(int)) > 0
    np.testing.assert_array_equal(got.mask.to_blocks(), blocks)


@pytest.mark.parametrize("a", DTYPES, ids=str)
@pytest.mark.parametrize("b", DTYPES, ids=str)
def test_mixed_dtypes(rng, a, b):
    A, B = sparse(rng, (37, 53), (8, 16), a), sparse(rng, (53, 29), (16, 8), b)
    kind = natural(a, b)
    got = A @ B
    assert got.dtype == kind
    compare(got, dense(A) @ dense(B), bound(dense(A), dense(B), kind))
    with declared(F64):
        assert pr.matmul(A, B, dtype=np.float64).dtype == F64
    x, y = values(rng, (37, 53), a), values(rng, (53, 29), b)
    mask = pr.BlockMask.random((37, 29), (8, 8), 0.5, rng)
    scores = pr.sddmm(x, y, mask)
    assert scores.dtype == kind
    x, y = x.astype(float), y.astype(float)
    keep = mask.toarray()
    compare(scores, np.where(keep, x @ y, 0), bound(x, y, kind))


def test_sparse_special_cases(rng):
    A, B = sparse(rng, (20, 24), (4, 8)), sparse(rng, (24, 12), (8, 4))
    void = pr.BSR((24, 12), dtype=np.float32, blocksize=(8, 4))
    assert (A @ void).nnzb == 0
    assert (A @ void).shape == (20, 12)
    assert (pr.BSR((0, 24), dtype=np.float32, blocksize=(4, 8)) @ B).shape == (0, 12)
    thin = pr.BSR((20, 0), dtype=np.float32, blocksize=(4, 8)) @ pr.BSR(
        (0, 12), dtype=np.float32, blocksize=(8, 4)
    )
    np.testing.assert_array_equal(thin.toarray(), np.zeros((20, 12)))
    np.testing.assert_allclose((A.pack() @ B.pack()).toarray(), (A @ B).toarray(), rtol=1e-5, atol=1e-5)
    # Unsorted and duplicate blocks.
    data = values(rng, (3, 4, 8), F32)
    mixed = pr.BSR((data, [2, 0, 2], [0, 3, 3, 3, 3, 3]), shape=(20, 24))
    compare(mixed @ B, dense(mixed) @ dense(B), 1e-4 + 16 * worst())
    # Operands stay as they are.
    before = A.data.copy(), A.indices.copy(), B.data.copy()
    A @ B
    for now, then in zip((A.data, A.indices, B.data), before, strict=True):
        np.testing.assert_array_equal(now, then)
    with pytest.raises(ValueError, match="reblock"):
        A @ sparse(rng, (24, 12), (4, 4))
    with pytest.raises(ValueError, match="inner"):
        A @ A


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sparse_infinities(dtype):
    # Only blocks that are there on both sides meet.
    a, b = np.ones((1, 2, 2), dtype), np.full((1, 2, 2), np.inf, dtype)
    A = pr.BSR((a, [0], [0, 1, 1]), shape=(4, 4))
    B = pr.BSR((b, [1], [0, 0, 1]), shape=(4, 4))
    assert (A @ B).nnzb == 0
    got = (A @ pr.BSR((b, [1], [0, 1, 1]), shape=(4, 4))).toarray().astype(float)
    assert np.isinf(got[:2, 2:]).all()
    assert (got[2:] == 0).all()
    zero = pr.BSR((np.zeros((1, 2, 2), dtype), [0], [0, 1, 1]), shape=(4, 4))
    assert np.isnan((zero @ pr.BSR((b, [1], [0, 1, 1]), shape=(4, 4))).toarray().astype(float)[:2, 2:]).all()


def test_sparse_batches(rng):
    for left, right in [((3,), ()), ((), (3,)), ((3,), (3,)), ((2, 1), (3,))]:
        A, B = sparse(rng, (*left, 20, 24), (4, 8)), sparse(rng, (*right, 24, 12), (8, 4))
        got = A @ B
        close(got.toarray(), dense(A) @ dense(B), bound(dense(A), dense(B), F32))


def chosen(engine, A, B, mask, kind, indices=None):
    """Return the blocks of ``A @ B`` at a mask's, or in other columns; they are written over 77."""
    indices = mask.indices if indices is None else indices
    out = np.full((len(indices), *mask.blocksize), 77, kind)
    engine.ssd_at(A._blocks(), B._blocks(), indices, mask.indptr, out)
    return out


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chosen_blocks(rng, engine, sizes, dtype):
    (m, k, n), left, right = sizes
    A, B = sparse(rng, (m, k), left, dtype), sparse(rng, (k, n), right, dtype)
    a, b, kind = dense(A), dense(B), natural(dtype, dtype)
    mask = pr.BlockMask.random((m, n), (left[0], right[1]), 0.5, rng)
    exact, error = np.where(mask.toarray(), a @ b, 0), bound(a, b, kind)
    got = chosen(engine, A, B, mask, kind)
    compare(pr.BSR((got, mask.indices, mask.indptr), shape=(m, n)), exact, error)
    # Past the edge there are zeros.
    (rows, cols), (br, bc) = mask.to_blocks().shape, mask.blocksize
    whole = np.zeros((rows * br, cols * bc), kind)
    whole[:m, :n] = pr.BSR((got, mask.indices, mask.indptr), shape=(m, n)).toarray()
    at = np.repeat(np.arange(rows), np.diff(mask.indptr)), mask.indices
    np.testing.assert_array_equal(whole.reshape(rows, br, cols, bc).swapaxes(1, 2)[at], got)
    # The same of transposed operands, in the same memory or not.
    same = chosen(engine, A.T.copy().T, B.T.copy().T, mask, kind)
    compare(pr.BSR((same, mask.indices, mask.indptr), shape=(m, n)), exact, error)
    turned = chosen(engine, B.T, A.T, mask.T, kind)
    compare(
        pr.BSR((turned, mask.T.indices, mask.T.indptr), shape=(n, m)),
        exact.T,
        error.T if kind != np.int32 else 0,
    )
    # In any order in a row, and of one place all that name it.
    order = np.concatenate(
        [np.arange(*ends)[::-1] for ends in np.stack([mask.indptr[:-1], mask.indptr[1:]], 1)]
    )
    np.testing.assert_array_equal(chosen(engine, A, B, mask, kind, mask.indices[order]), got[order])
    first = np.repeat(mask.indptr[:-1], np.diff(mask.indptr))
    np.testing.assert_array_equal(chosen(engine, A, B, mask, kind, mask.indices[first]), got[first])


def test_chosen_blocks_in_which_nothing_meets(rng, engine):
    A, B = sparse(rng, (20, 24), (4, 8)), sparse(rng, (24, 12), (8, 4))
    mask = pr.BlockMask.full((20, 12), 4)
    void = pr.BSR((24, 12), dtype=np.float32, blocksize=(8, 4))
    assert (chosen(engine, A, void, mask, F32) == 0).all()
    assert chosen(engine, A, B, pr.BlockMask.empty((20, 12), 4), F32).shape == (0, 4, 4)
    # Unsorted and repeated blocks of operands.
    data = values(rng, (3, 4, 8), F32)
    mixed = pr.BSR((data, [2, 0, 2], [0, 3, 3, 3, 3, 3]), shape=(20, 24))
    got = chosen(engine, mixed, B, mask, F32)
    compare(
        pr.BSR((got, mask.indices, mask.indptr), shape=(20, 12)),
        dense(mixed) @ dense(B),
        1e-4 + 16 * worst(),
    )
    # What is not chosen is not seen, and absent blocks meet nothing.
    data = np.ones((2, 4, 8), np.float32)
    data[1] = np.inf
    some = pr.BSR((data, [0, 1], [0, 1, 1, 1, 1, 2]), shape=(20, 24))
    ones = pr.BSR((np.ones((1, 8, 4), np.float32), [0], [0, 1, 1, 1]), shape=(24, 12))
    got = chosen(engine, some, ones, mask, F32)
    assert (got[0] == 8).all()
    assert (got[1:] == 0).all()


@pytest.mark.parametrize("sizes", [s[0] for s in SIZES], ids=str)
@pytest.mark.parametrize("blocksize", [(16, 16), (32, 8), (5, 7), (1, 16), (16, 1), (64, 64)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sampled_products(rng, sizes, blocksize, dtype):
    m, k, n = sizes
    a, b = values(rng, (m, k), dtype), values(rng, (k, n), dtype)
    mask, kind = pr.BlockMask.random((m, n), blocksize, 0.4, rng), natural(dtype, dtype)
    exact = np.where(mask.toarray(), a.astype(float) @ b.astype(float), 0)
    error = bound(a.astype(float), b.astype(float), kind)
    got = pr.sddmm(a, b, mask)
    assert type(got) is pr.BSR
    assert got.dtype == kind
    assert got.blocksize == blocksize
    compare(got, exact, error)
    np.testing.assert_array_equal(got.indices, mask.indices)
    compare(pr.sddmm(b.T, a.T, mask.T), exact.T, error.T if kind != np.int32 else 0)


@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
def test_sampled_products_of_every_layout(rng, dtype):
    a, b = values(rng, (45, 61), dtype), values(rng, (61, 37), dtype)
    mask, kind = pr.BlockMask.random((45, 37), (16, 8), 0.5, rng), natural(dtype, dtype)
    exact = np.where(mask.toarray(), a.astype(float) @ b.astype(float), 0)
    error = bound(a.astype(float), b.astype(float), kind)
    for left, right in zip(layouts(a).values(), layouts(b).values(), strict=True):
        compare(pr.sddmm(left, right, mask), exact, error)
        compare(pr.sddmm(left, b, mask), exact, error)
    same = np.broadcast_to(b[:, :1], b.shape)
    compare(
        pr.sddmm(a, same, mask),
        np.where(mask.toarray(), a.astype(float) @ same.astype(float), 0),
        bound(a.astype(float), same.astype(float), kind),
    )


def test_sampled_special_cases(rng):
    a, b = values(rng, (20, 24), F32), values(rng, (24, 12), F32)
    assert pr.sddmm(a, b, pr.BlockMask.empty((20, 12), 4)).nnzb == 0
    for m, k, n in [(0, 4, 4), (4, 0, 4), (4, 4, 0), (0, 0, 0)]:
        mask = pr.BlockMask.full((m, n), 4)
        got = pr.sddmm(np.ones((m, k), np.float32), np.ones((k, n), np.float32), mask)
        np.testing.assert_array_equal(got.toarray(), np.zeros((m, n)))
    # Rows and columns of absent blocks are not looked at.
    a[8:] = np.nan
    mask = pr.BlockMask(np.arange(15).reshape(5, 3) < 6, (4, 4), shape=(20, 12))
    assert np.isfinite(pr.sddmm(a, b, mask).toarray()).all()
    a[0] = np.inf
    assert not np.isfinite(pr.sddmm(a, b, mask).toarray()[0]).any()


@pytest.mark.parametrize("k", [0, 3, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sampled_writes_zeros_past_the_edge(rng, engine, dtype, k):
    a, b = values(rng, (2, 5, k), dtype), values(rng, (2, k, 7), dtype)
    mask = pr.BlockMask.full((5, 7), 4)
    # The memory that an engine is given may hold anything.
    out = np.full((2, mask.nnzb, 4, 4), 77, natural(dtype, dtype))
    engine.sdd(a, b, mask.indices, mask.indptr, out)
    np.testing.assert_array_equal(out[:, 1, :, 3], 0)
    np.testing.assert_array_equal(out[:, 2:, 1:], 0)
    np.testing.assert_array_equal(out[:, 3, :, 3], 0)
    np.testing.assert_array_equal(out, pr.sddmm(a, b, mask).data)


@pytest.mark.parametrize(
    "batches",
    [((3,), (), ()), ((), (3,), ()), ((2, 1), (3,), ()), ((3,), (3,), (3,)), ((), (), (3,))],
    ids=str,
)
def test_sampled_batches(rng, batches):
    lead_a, lead_b, lead_m = batches
    a, b = values(rng, (*lead_a, 20, 24), F32), values(rng, (*lead_b, 24, 12), F32)
    mask = pr.BlockMask.random((*lead_m, 20, 12), (8, 4), 0.5, rng)
    got = pr.sddmm(a, b, mask)
    exact = np.where(mask.toarray(), a.astype(float) @ b.astype(float), 0)
    close(got.toarray(), exact, bound(a.astype(float), b.astype(float), F32))
