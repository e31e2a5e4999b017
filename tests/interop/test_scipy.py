"""SciPy sparse arrays, both ways."""

import numpy as np
import pytest

import prunus as pr

sparse = pytest.importorskip("scipy.sparse")


def scipy_bsr(dtype=np.float32):
    rng = np.random.default_rng(0)
    dense = np.kron(rng.random((3, 4)) < 0.5, np.ones((2, 3))) * rng.integers(1, 5, (6, 12))
    return sparse.bsr_array(dense.astype(dtype), blocksize=(2, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.int32, np.bool_, np.complex64])
def test_both_ways_share_the_blocks(dtype):
    S = scipy_bsr(dtype)
    W = pr.BSR(S)
    assert np.shares_memory(W.data, S.data)
    assert np.shares_memory(W.indices, S.indices)
    assert W.dtype == dtype
    np.testing.assert_array_equal(W.toarray(), S.toarray())
    back = W.to_scipy()
    assert isinstance(back, sparse.bsr_array)
    assert np.shares_memory(back.data, S.data)
    np.testing.assert_array_equal(back.toarray(), S.toarray())
    assert pr.BSR(S, copy=False).data is not None
    assert not np.shares_memory(pr.BSR(S, copy=True).data, S.data)
    assert not np.shares_memory(W.to_scipy(copy=True).data, W.data)


def test_writes_through_a_shared_view_are_seen():
    W = pr.BSR(scipy_bsr())
    x = np.ones(12, np.float32)
    before = W @ x
    W.to_scipy().data[...] *= 2
    np.testing.assert_array_equal(W @ x, 2 * before)


def test_attributes_agree():
    S, W = scipy_bsr(), pr.BSR(scipy_bsr())
    for name in (
        "shape",
        "dtype",
        "blocksize",
        "nnz",
        "size",
        "ndim",
        "has_sorted_indices",
        "has_canonical_format",
    ):
        assert getattr(S, name) == getattr(W, name), name
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(S, name), getattr(W, name))
    for axis in (0, 1, None):
        np.testing.assert_array_equal(S.sum(axis=axis), W.sum(axis=axis))
        np.testing.assert_allclose(S.mean(axis=axis), W.mean(axis=axis), rtol=1e-6)
    assert S.max() == W.max()
    np.testing.assert_array_equal((S != 0).toarray(), (W != 0).toarray())
    np.testing.assert_array_equal((S + S.multiply(2)).toarray(), (W + W.multiply(2)).toarray())


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dia", "dok"])
def test_other_formats_are_sorted_into_blocks(form):
    S = scipy_bsr().asformat(form)
    W = pr.BSR(S, blocksize=(2, 3))
    assert W.blocksize == (2, 3)
    np.testing.assert_array_equal(W.toarray(), S.toarray())
    # The same estimate as for a dense array.
    assert pr.BSR(S).blocksize == pr.BSR(S.toarray()).blocksize
    with pytest.raises(ValueError, match="copy=False"):
        pr.BSR(S, copy=False)


@pytest.mark.parametrize("size", [1, 2, 8, 32, 64, 128])
def test_blocks_of_single_values_are_found(size):
    rng = np.random.default_rng(1)
    dense = np.kron(rng.random((256 // size, 384 // size)) < 0.3, rng.random((size, size)) < 0.9)
    dense = dense[:250, :381].astype(np.float32)
    S = sparse.csr_array(dense)
    W = pr.BSR(S)
    assert W.blocksize == pr.BSR(dense).blocksize
    np.testing.assert_array_equal(W.toarray(), dense)
    C = S.tocoo()
    twice = (np.tile(C.data, 2), (np.tile(C.row, 2), np.tile(C.col, 2)))
    W2 = pr.BSR(twice, shape=S.shape)
    assert W2.blocksize == W.blocksize
    np.testing.assert_array_equal(W2.toarray(), 2 * dense)


def test_full_blocks_are_taken_whole():
    dense = np.kron(np.eye(4), np.ones((16, 16))).astype(np.float32)
    assert pr.BSR(sparse.csc_array(dense)).blocksize == (16, 16)
    assert pr.BSR(sparse.csc_array(dense), blocksize=(1, 1)).blocksize == (1, 1)
    assert pr.BSR(sparse.csr_array((3, 200))).nnz == 0
    assert pr.BSR(sparse.csr_array((0, 5))).shape == (0, 5)


def test_matrices_and_unsorted_indices():
    M = sparse.bsr_matrix(scipy_bsr())
    np.testing.assert_array_equal(pr.BSR(M).toarray(), M.toarray())
    S = sparse.bsr_array((np.arange(12.0).reshape(3, 2, 2), [1, 0, 1], [0, 3]), shape=(2, 4))
    W = pr.BSR(S)
    np.testing.assert_array_equal(W.toarray(), S.toarray())
    np.testing.assert_array_equal(W @ np.eye(4), S.toarray())
    other = pr.BSR(scipy_bsr(), blocksize=4)
    assert other.blocksize == (4, 4)
    np.testing.assert_array_equal(other.toarray(), scipy_bsr().toarray())


def test_what_needs_a_copy():
    W = pr.BSR(scipy_bsr())
    np.testing.assert_array_equal(W.T.to_scipy().toarray(), W.toarray().T)
    with pytest.raises(ValueError, match="transpose"):
        W.T.to_scipy(copy=False)
    ragged = W[:5, :10]
    np.testing.assert_array_equal(ragged.to_scipy().toarray(), ragged.toarray())
    with pytest.raises(ValueError, match="divide"):
        ragged.to_scipy(copy=False)
    with pytest.raises(TypeError, match="astype"):
        W.astype(np.float16).to_scipy()
    with pytest.raises(TypeError, match="astype"):
        W.astype("bfloat16").to_scipy()
    with pytest.raises(ValueError, match="two dimensions"):
        pr.BSR((2, 4, 4)).to_scipy()
    assert pr.BSR((0, 5), blocksize=2).to_scipy().shape == (0, 5)
    assert pr.BSR((5, 0), blocksize=2).to_scipy().shape == (5, 0)


def test_mixed_operands_name_the_conversion():
    S, W = scipy_bsr(), pr.BSR(scipy_bsr())
    for operation in (
        lambda: W @ S.T,
        lambda: W + S,
        lambda: S.T @ W,
        lambda: S + W,
        lambda: pr.matmul(W, S.T),
    ):
        with pytest.raises(TypeError, match=r"pr\.BSR|toarray"):
            operation()


@pytest.mark.parametrize("kind", [sparse.bsr_array, sparse.csr_matrix, sparse.coo_array])
def test_elementwise_products_name_the_conversion(kind):
    S, W = kind(scipy_bsr()), pr.BSR(scipy_bsr())
    for operation in (
        lambda: W * S,
        lambda: W.multiply(S),
        lambda: np.multiply(W, S),
        lambda: np.multiply(S, W),
        lambda: np.add(W, S),
        lambda: np.maximum(W, S),
    ):
        with pytest.raises(TypeError, match=r"pr\.BSR"):
            operation()
    np.testing.assert_array_equal(W.multiply(pr.BSR(S)).toarray(), S.toarray() ** 2)


def test_other_formats_by_name():
    S, W = scipy_bsr(), pr.BSR(scipy_bsr())
    for got, form in ((W.tocsr(), "csr"), (W.tocoo(), "coo"), (W.tobsr(), "bsr"), (W.T.tocsr().T, "csc")):
        assert got.format == form
        np.testing.assert_array_equal(got.toarray(), S.toarray())
    assert np.shares_memory(W.tobsr().data, W.data)
    assert not np.shares_memory(W.tobsr(copy=True).data, W.data)
    assert W.tobsr((1, 3)).blocksize == (1, 3)
    np.testing.assert_array_equal(W[:5, :10].tocsr().toarray(), S.toarray()[:5, :10])
    np.testing.assert_array_equal(sparse.csr_array(W.to_scipy()).toarray(), S.toarray())


NAMES = ["format", "asformat", "power", "maximum", "nonzero", "conj", "sqrt", "tocsc", "setdiag", "reshape"]


@pytest.mark.parametrize("name", NAMES)
def test_what_only_scipy_has_is_pointed_to(name):
    W = pr.BSR(scipy_bsr())
    assert hasattr(W.to_scipy(), name)
    assert not hasattr(W, name)
    with pytest.raises(AttributeError, match=rf"W\.to_scipy\(\)\.{name}"):
        getattr(W, name)


def test_other_unknown_attributes_are_plain_errors():
    with pytest.raises(AttributeError, match=r"'BSR' object has no attribute 'nonsense'$"):
        pr.BSR(scipy_bsr()).nonsense  # noqa: B018


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.bool_, np.complex64])
def test_diagonals_agree(dtype):
    S = scipy_bsr(dtype)
    W = pr.BSR(S)
    for k in (-7, -6, -5, -1, 0, 2, 11, 12, 20):
        got = W.diagonal(k)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, np.diagonal(S.toarray(), k))
        np.testing.assert_array_equal(W.T.diagonal(-k), got)
        assert W.trace(k) == np.trace(S.toarray(), k)
        assert W.trace(k).dtype == np.trace(S.toarray(), k).dtype
