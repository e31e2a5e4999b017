"""Constructors, validation, attributes and conversions of BSR."""

import copy as copying
import pickle
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import prunus as pr

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.float32, np.float64, np.float16, BF16, np.int8, np.int32, np.bool_]


def triple(dtype=np.float32, index=np.int32):
    data = np.arange(1, 13, dtype=np.float32).reshape(3, 2, 2).astype(dtype)
    return data, np.array([0, 2, 1], index), np.array([0, 2, 3], index)


def dense_of_triple():
    out = np.zeros((4, 6), np.float32)
    out[:2, :2] = [[1, 2], [3, 4]]
    out[:2, 4:] = [[5, 6], [7, 8]]
    out[2:, 2:4] = [[9, 10], [11, 12]]
    return out


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_triple(dtype, index):
    data, indices, indptr = triple(dtype, index)
    W = pr.BSR((data, indices, indptr), shape=(4, 6))
    assert W.data is data
    assert W.indices is indices
    assert W.indptr is indptr
    assert (W.shape, W.ndim, W.dtype, W.blocksize) == ((4, 6), 2, np.dtype(dtype), (2, 2))
    assert (W.nnz, W.size, W.nnzb, W.density, W.device) == (12, 12, 3, 0.5, "cpu")
    assert W.nbytes == data.nbytes + indices.nbytes + indptr.nbytes
    assert W.crow_indices() is indptr
    assert W.col_indices() is indices
    assert W.values() is data
    np.testing.assert_array_equal(W.toarray(), dense_of_triple().astype(dtype))
    assert W.toarray().dtype == dtype


def test_shape_is_inferred():
    assert pr.BSR(triple()).shape == (4, 6)


def test_ragged_shape_hides_the_padding():
    data, indices, indptr = triple()
    data[1, :, 1] = np.nan
    data[2, 1, :] = np.inf
    W = pr.BSR((data, indices, indptr), shape=(3, 5))
    expected = dense_of_triple()[:3, :5]
    np.testing.assert_array_equal(W.toarray(), expected)
    np.testing.assert_array_equal(W.T.toarray(), expected.T)
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(W @ x, expected @ x)
    np.testing.assert_array_equal((W * 2).toarray(), expected * 2)
    np.testing.assert_array_equal(W.sum(axis=0), expected.sum(axis=0))
    np.testing.assert_array_equal(W.max(axis=1), expected.max(axis=1))
    assert W.count_nonzero() == np.count_nonzero(expected)
    np.testing.assert_array_equal((W != 0).toarray(), expected != 0)
    np.testing.assert_array_equal(W[1:, 1:].toarray(), expected[1:, 1:])
    np.testing.assert_array_equal((W @ W.T).toarray(), expected @ expected.T)
    np.testing.assert_array_equal(W.reblock(3).toarray(), expected)
    np.testing.assert_array_equal(W.astype(np.int8).toarray(), expected.astype(np.int8))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": np.ones((2, 2, 2), np.float32)}, "2 blocks"),
        ({"data": np.ones((3, 4), np.float32)}, "shape"),
        ({"data": np.ones((3, 0, 2), np.float32)}, "at least one value"),
        ({"indices": np.array([0, 3, 1])}, "below 3"),
        ({"indices": np.array([0, -1, 1])}, "negative"),
        ({"indices": np.array([[0, 2, 1]])}, "shape"),
        ({"indptr": np.array([0, 3, 2])}, "ends at 2|decrease"),
        ({"indptr": np.array([1, 2, 3])}, "start at 0"),
        ({"indptr": np.array([0, 2, 4])}, "ends at 4"),
        ({"indptr": np.array([0, 2])}, "indptr"),
        ({"indptr": np.array([], np.int64)}, "empty"),
        ({"indptr": np.array([0, 2, 3, 3])}, "indptr"),
        ({"indptr": np.array(3)}, "scalar"),
        ({"indptr": np.array([0, np.iinfo(np.int64).min, 3])}, "decrease"),
        ({"indices": np.array([0, 2, 2**64 - 1], np.uint64)}, "int64"),
        ({"shape": (4,)}, "two dimensions"),
        ({"shape": (2, 4, 6)}, "batch"),
        ({"shape": (8, 6)}, "8 rows"),
        ({"shape": (-4, 6)}, "from 0"),
        ({"shape": (4, 2**63)}, "from 0"),
        ({"blocksize": (2, 3)}, "blocksize"),
        ({"blocksize": 0}, "at least 1"),
        ({"blocksize": (1, 2, 3)}, "one or two"),
    ],
)
def test_bad_triples(change, match):
    data, indices, indptr = triple()
    parts = {"data": data, "indices": indices, "indptr": indptr, "shape": (4, 6), "blocksize": None} | change
    with pytest.raises(ValueError, match=match):
        pr.BSR(
            (parts["data"], parts["indices"], parts["indptr"]),
            shape=parts["shape"],
            blocksize=parts["blocksize"],
        )


@pytest.mark.parametrize(
    "change",
    [
        {"data": np.ones((3, 2, 2), object)},
        {"data": np.full((3, 2, 2), "a")},
        {"data": np.ones((3, 2, 2), "M8[s]")},
        {"data": np.ma.ones((3, 2, 2))},
        {"indices": np.array([0.0, 2.0, 1.0])},
        {"indices": np.array([True, False, True])},
        {"indptr": np.array([0.0, 2.0, 3.0])},
        {"shape": (4.0, 6)},
        {"blocksize": 2.0},
    ],
)
def test_bad_types(change):
    data, indices, indptr = triple()
    parts = {"data": data, "indices": indices, "indptr": indptr, "shape": (4, 6), "blocksize": None} | change
    with pytest.raises(TypeError):
        pr.BSR(
            (parts["data"], parts["indices"], parts["indptr"]),
            shape=parts["shape"],
            blocksize=parts["blocksize"],
        )


def test_positions_that_overflow_are_refused():
    with pytest.raises(ValueError, match="64-bit"):
        pr.BSR((np.ones((0, 1, 1)), [], np.zeros(1001, np.int64)), shape=(1000, 2**62))


def test_very_wide_shapes_are_legal():
    W = pr.BSR((np.ones((1, 1, 1)), [2**40], [0, 1]), shape=(1, 2**41))
    assert W.indices.dtype == np.int64
    assert W.sum() == 1.0
    assert W[0, 2**40] == 1.0
    assert W[:, 2**40 - 1 : 2**40 + 2].toarray().tolist() == [[0.0, 1.0, 0.0]]


def test_copy_keyword():
    data, indices, indptr = triple()
    W = pr.BSR((data, indices, indptr), copy=True)
    assert not np.shares_memory(W.data, data)
    assert not np.shares_memory(W.indices, indices)
    assert pr.BSR((data, indices, indptr), copy=False).data is data
    strided = np.asfortranarray(data)
    np.testing.assert_array_equal(pr.BSR((strided, indices, indptr)).toarray(), dense_of_triple())
    with pytest.raises(ValueError, match="copy=False"):
        pr.BSR((strided, indices, indptr), copy=False)
    with pytest.raises(ValueError, match="copy=False"):
        pr.BSR((data, indices, indptr), dtype=np.float64, copy=False)
    with pytest.raises(ValueError, match="copy=False"):
        pr.BSR((data, indices.astype(np.int16), indptr), copy=False)
    with pytest.raises(ValueError, match="copy=False"):
        pr.BSR((data, indices.astype(np.int64), indptr), copy=False)
    with pytest.raises(ValueError, match="copy=False"):
        pr.BSR(np.eye(4), blocksize=2, copy=False)
    with pytest.raises(TypeError, match="copy"):
        pr.BSR((data, indices, indptr), copy="no")


def test_other_byte_order_is_converted():
    data, indices, indptr = triple()
    W = pr.BSR((data.astype(">f4"), indices, indptr))
    assert W.dtype == np.float32
    assert W.dtype.isnative
    np.testing.assert_array_equal(W.toarray(), dense_of_triple())


def test_empty_like_scipy():
    W = pr.BSR((5, 7))
    assert (W.shape, W.blocksize, W.dtype, W.nnz, W.density) == ((5, 7), (1, 1), np.float64, 0, 0.0)
    V = pr.BSR((2, 5, 7), blocksize=(2, 3), dtype="bfloat16")
    assert (V.shape, V.blocksize, V.dtype) == ((2, 5, 7), (2, 3), BF16)
    np.testing.assert_array_equal(V.toarray(), np.zeros((2, 5, 7), BF16))
    assert pr.BSR((0, 0)).density == 0.0
    assert (pr.BSR((0, 3)) @ np.ones((3, 2))).shape == (0, 2)
    np.testing.assert_array_equal(pr.BSR((3, 0)) @ np.ones((0, 2)), np.zeros((3, 2)))
    np.testing.assert_array_equal(W @ np.ones((7, 0)), np.ones((5, 0)))


def test_not_understood():
    with pytest.raises(ValueError, match="tuple of 2"):
        pr.BSR((np.ones((1, 1, 1)), [0]))
    with pytest.raises(TypeError):
        pr.BSR("eye")
    with pytest.raises(TypeError):
        pr.BSR(None)
    with pytest.raises(ValueError, match="two dimensions"):
        pr.BSR(np.ones(3))
    with pytest.raises(TypeError):
        pr.BSR(np.array([[object()]]))
    with pytest.raises(TypeError, match="from_mask"):
        pr.BSR(pr.BlockMask.full((4, 4), 2))
    with pytest.raises(TypeError):
        pr.BSR(np.ma.ones((2, 2)))


def test_coordinates():
    W = pr.BSR((np.array([1.0, 2.0, 3.0]), ([0, 4, 0], [1, 2, 1])), shape=(5, 3), blocksize=2)
    expected = np.zeros((5, 3))
    expected[0, 1], expected[4, 2] = 4, 2
    np.testing.assert_array_equal(W.toarray(), expected)
    assert W.nnzb == 2
    with pytest.raises(ValueError, match="row"):
        pr.BSR((np.ones(1), ([5], [0])), shape=(5, 3))
    with pytest.raises(ValueError, match="equally long"):
        pr.BSR((np.ones(2), ([1], [0])), shape=(5, 3))


# Dense ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [1, 2, (3, 4), (7, 1), 64])
def test_from_dense_is_exact(dtype, blocksize):
    rng = np.random.default_rng(0)
    w = (rng.integers(-3, 4, (13, 17)) * (rng.random((13, 17)) < 0.1)).astype(dtype)
    W = pr.BSR(w, blocksize=blocksize)
    np.testing.assert_array_equal(W.toarray(), w)
    assert W.dtype == dtype
    assert W.has_canonical_format
    # No block without a non-zero is stored.
    assert (np.asarray(W.data != 0).any(axis=(1, 2))).all()
    np.testing.assert_array_equal(pr.BSR.from_dense(w.T, blocksize=blocksize).toarray(), w.T)


def test_from_dense_keeps_nan_and_drops_negative_zero():
    w = np.zeros((4, 4), np.float32)
    w[0, 0], w[3, 3] = np.nan, -0.0
    W = pr.BSR(w, blocksize=2)
    assert W.nnzb == 1
    np.testing.assert_array_equal(W.toarray(), w)


def test_density_keeps_the_strongest():
    w = np.kron(np.array([[1.0, 5.0, 3.0], [4.0, 2.0, 3.0]]), np.ones((2, 2)))
    W = pr.BSR.from_dense(w, blocksize=2, density=0.4)  # ceil(2.4) = 3; of the two 3s the first wins
    np.testing.assert_array_equal(W.mask.to_blocks(), [[False, True, True], [True, False, False]])
    assert pr.BSR.from_dense(w, blocksize=2, density=0.5).nnzb == 3
    assert pr.BSR.from_dense(w, blocksize=2, density=0.0).nnzb == 0
    assert pr.BSR.from_dense(np.zeros((20, 15)), blocksize=1, density=0.1).nnzb == 30
    # NaN counts as the strongest.
    w[0, 0] = np.nan
    assert pr.BSR.from_dense(w, blocksize=2, density=0.1).mask.to_blocks()[0, 0]
    # One tall value or many small ones.
    v = np.array([[3.0, 0.0, 2.0, 2.0]])
    assert pr.BSR.from_dense(v, blocksize=(1, 2), density=0.5, norm="max").indices.tolist() == [0]
    assert pr.BSR.from_dense(v, blocksize=(1, 2), density=0.5, norm="l1").indices.tolist() == [1]
    for bad in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match="density"):
            pr.BSR.from_dense(w, blocksize=2, density=bad)
    with pytest.raises(TypeError, match="density"):
        pr.BSR.from_dense(w, blocksize=2, density="half")
    with pytest.raises(ValueError, match="norm"):
        pr.BSR.from_dense(w, blocksize=2, norm="l7")


def test_huge_values_have_norms():
    w = np.array([[1e300, 0.0], [0.0, 1e200]])
    W = pr.BSR.from_dense(w, blocksize=1, density=0.5)
    np.testing.assert_array_equal(W.toarray(), w)


def test_equal_blocks_tie_wherever_they_stand():
    w = np.zeros((600, 512))
    w[300:302, 4:6] = w[0:2, 2:4] = [[0.1, 0.7], [0.3, 1 / 3]]
    w[298, 500] = 1e-3 / 3
    w[1, 500] = 0.4  # strips with other largest values
    W = pr.BSR.from_dense(w, blocksize=2, density=1 / (300 * 256))
    assert W.mask.to_blocks()[0, 1]


def test_arguments_stand_in_scipys_order():
    W = pr.BSR(triple(), (4, 6), np.float64, True, (2, 2))
    assert (W.shape, W.dtype, W.blocksize) == ((4, 6), np.float64, (2, 2))


def test_estimated_blocksize():
    w = np.kron(np.eye(4), np.ones((16, 16)))
    assert pr.BSR(w).blocksize == (16, 16)
    assert pr.BSR(np.eye(5)).blocksize == (1, 1)


def test_from_mask():
    w = np.arange(30.0).reshape(5, 6)
    mask = pr.BlockMask(np.array([[True, False], [False, True]]), blocksize=(3, 4), shape=(5, 6))
    W = pr.BSR.from_mask(mask, w)
    np.testing.assert_array_equal(W.toarray(), np.where(mask.toarray(), w, 0))
    assert W.mask == mask
    both = pr.BSR.from_mask(mask, np.stack([w, -w]))
    assert both.indptr.ndim == 1
    np.testing.assert_array_equal(both.toarray()[1], -np.where(mask.toarray(), w, 0))
    grids = np.stack([mask.to_blocks(), ~mask.to_blocks()])
    own = pr.BSR.from_mask(pr.BlockMask(grids, (3, 4), shape=(2, 5, 6)), w)
    np.testing.assert_array_equal(own.toarray().sum(axis=0), w)
    with pytest.raises(ValueError, match="mask"):
        pr.BSR.from_mask(mask, w.T)


# Batches --------------------------------------------------------------------------------------------------


def test_batch_with_one_pattern():
    data, indices, indptr = triple()
    W = pr.BSR((np.stack([data, -data]), indices, indptr), shape=(2, 4, 6))
    assert (W.shape, W.ndim, W.nnzb, W.density) == ((2, 4, 6), 3, 6, 0.5)
    expected = dense_of_triple()
    np.testing.assert_array_equal(W.toarray(), np.stack([expected, -expected]))
    np.testing.assert_array_equal(W.T.toarray(), np.stack([expected.T, -expected.T]))
    np.testing.assert_array_equal(W[1].toarray(), -expected)
    assert np.shares_memory(W[1].data, W.data)
    assert W.mask.shape == (4, 6)


def test_batch_with_a_pattern_each():
    data, indices, _ = triple()
    W = pr.BSR(
        (np.concatenate([data, -data[:1]]), np.append(indices, 2), np.array([[0, 2, 3], [3, 3, 4]])),
        shape=(2, 4, 6),
    )
    second = np.zeros((4, 6), np.float32)
    second[2:, 4:] = -dense_of_triple()[:2, :2]
    expected = np.stack([dense_of_triple(), second])
    np.testing.assert_array_equal(W.toarray(), expected)
    np.testing.assert_array_equal(W.T.toarray(), expected.swapaxes(1, 2))
    again = pr.BSR((W.T.data, W.T.indices, W.T.indptr), shape=(2, 6, 4))
    np.testing.assert_array_equal(again.toarray(), W.T.toarray())
    assert W.mask.shape == (2, 4, 6)
    np.testing.assert_array_equal(W[1].toarray(), second)
    np.testing.assert_array_equal(W[::-1].toarray(), expected[::-1])
    np.testing.assert_array_equal(W[:, 1:3, ::2].toarray(), expected[:, 1:3, ::2])
    with pytest.raises(ValueError, match="start where"):
        pr.BSR((W.data, W.indices, np.array([[0, 2, 3], [2, 3, 4]])), shape=(2, 4, 6))


def test_torchs_batched_form():
    data, indices, indptr = triple()
    values = np.stack([data, -data])
    W = pr.BSR((values, np.stack([indices, [1, 2, 0]]), np.stack([indptr, [0, 1, 3]])), shape=(2, 4, 6))
    assert np.shares_memory(W.data, values)
    np.testing.assert_array_equal(W[0].toarray(), dense_of_triple())
    np.testing.assert_array_equal(W.toarray()[1][:2, 2:4], -data[0])
    with pytest.raises(ValueError, match="from 0 to 3"):
        pr.BSR((values, np.stack([indices, indices]), np.stack([indptr, [0, 1, 2]])), shape=(2, 4, 6))
    with pytest.raises(ValueError, match="disagree"):
        pr.BSR((values[:1], np.stack([indices, indices]), np.stack([indptr, indptr])), shape=(2, 4, 6))


def test_dense_batches():
    rng = np.random.default_rng(1)
    w = rng.integers(-2, 3, (2, 3, 5, 7)) * (rng.random((2, 3, 5, 7)) < 0.2) * 1.0
    W = pr.BSR(w, blocksize=2)
    assert W.shape == w.shape
    np.testing.assert_array_equal(W.toarray(), w)
    np.testing.assert_array_equal(W.T.toarray(), w.swapaxes(-1, -2))
    half = pr.BSR.from_dense(w, blocksize=2, density=0.5)
    assert half.nnzb == 2 * 3 * 6
    nothing = pr.BSR(np.zeros((0, 4, 4)), blocksize=2)
    assert nothing.shape == (0, 4, 4)
    assert nothing.toarray().shape == (0, 4, 4)
    assert nothing.T.toarray().shape == (0, 4, 4)


# Duplicates, order and upkeep -----------------------------------------------------------------------------


def messy():
    data = np.arange(1, 17, dtype=np.float32).reshape(4, 2, 2)
    W = pr.BSR((data, [1, 0, 1, 0], [0, 3, 4]), shape=(4, 4))
    expected = np.zeros((4, 4), np.float32)
    expected[:2, 2:] = data[0] + data[2]
    expected[:2, :2] = data[1]
    expected[2:, :2] = data[3]
    return W, expected


def test_unsorted_and_duplicate_indices_give_right_results():
    W, expected = messy()
    assert not W.has_sorted_indices
    assert not W.has_canonical_format
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(W.toarray(), expected)
    np.testing.assert_array_equal(W.T.toarray(), expected.T)
    np.testing.assert_array_equal(W @ x, expected @ x)
    np.testing.assert_array_equal(W.T @ x, expected.T @ x)
    np.testing.assert_array_equal((W @ W).toarray(), expected @ expected)
    np.testing.assert_array_equal(W.max(axis=1), expected.max(axis=1))
    np.testing.assert_array_equal((W + W).toarray(), 2 * expected)
    np.testing.assert_array_equal(abs(-W).toarray(), expected)
    np.testing.assert_array_equal((W**2).toarray(), expected**2)
    np.testing.assert_array_equal(W[1:3].toarray(), expected[1:3])
    np.testing.assert_array_equal(W[0], expected[0])
    np.testing.assert_array_equal(W[:, 3], expected[:, 3])
    assert W[0, 2] == expected[0, 2]
    np.testing.assert_array_equal(W[[0, 3], [2, 1]], expected[[0, 3], [2, 1]])
    assert W.count_nonzero() == np.count_nonzero(expected)


def test_upkeep():
    W, expected = messy()
    before = W.data
    W.sort_indices()
    assert W.has_sorted_indices
    assert not W.has_canonical_format
    assert W.nnzb == 4
    np.testing.assert_array_equal(W.toarray(), expected)
    W.sum_duplicates()
    assert W.has_canonical_format
    assert W.nnzb == 3
    np.testing.assert_array_equal(W.toarray(), expected)
    W.data[0] = 0
    expected[:2, :2] = 0
    W.eliminate_zeros()
    assert W.nnzb == 2
    np.testing.assert_array_equal(W.toarray(), expected)
    W.check_format()
    assert before.shape == (4, 2, 2)
    W.indices[0] = 9
    with pytest.raises(ValueError, match="below 2"):
        W.check_format()
    W.check_format(full_check=False)


# Transposes, copies, freezing -----------------------------------------------------------------------------


def test_lazy_transpose_shares_memory():
    W = pr.BSR(triple(), shape=(4, 6))
    T = W.T
    assert (T.shape, T.blocksize, T.nnzb, T.density) == ((6, 4), (2, 2), 3, 0.5)
    assert T.T.data is W.data
    W.data[0, 0, 1] = 100
    assert T.toarray()[1, 0] == 100
    x = np.ones((4, 2), np.float32)
    np.testing.assert_array_equal(T @ x, W.toarray().T @ x)
    assert not T.data.flags.writeable
    again = pr.BSR((T.data, T.indices, T.indptr), shape=(6, 4))
    np.testing.assert_array_equal(again.toarray(), W.toarray().T)
    assert T.has_sorted_indices
    physical = W.transpose(copy=True)
    assert not np.shares_memory(physical.data, W.data)
    assert physical.data.flags.writeable
    np.testing.assert_array_equal(physical.toarray(), W.toarray().T)
    assert W.transpose((1, 0)).toarray().tolist() == T.toarray().tolist()
    with pytest.raises(ValueError, match="axes"):
        W.transpose((0, 1))


def test_writes_are_seen_by_the_next_product():
    W = pr.BSR(triple(), shape=(4, 6))
    T, x = W.T, np.ones(6, np.float32)
    first = W @ x
    W.data *= 2
    np.testing.assert_array_equal(W @ x, 2 * first)
    W.data = W.data + 1
    assert W.toarray()[0, 0] == 3
    with pytest.raises(ValueError, match="shape"):
        W.data = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="transpose"):
        W.T.data = W.data.copy()
    W.data = T.T.data
    np.testing.assert_array_equal(x @ T, 2 * first)


def test_replaced_data_is_in_c_order_and_aligned():
    W = pr.BSR(triple(), shape=(4, 6))
    new = np.arange(W.data.size, dtype=np.float32).reshape(W.data.shape)
    odd = np.zeros(new.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(new.shape)
    odd[...] = new
    assert odd.flags.c_contiguous
    assert not odd.flags.aligned
    expected = pr.BSR((new, W.indices, W.indptr), shape=(4, 6)) @ np.ones(6, np.float32)
    for given in (odd, np.asfortranarray(new), new.astype(">f4")):
        W.data = given
        assert W.data.flags.c_contiguous
        assert W.data.flags.aligned
        assert W.dtype.isnative
        np.testing.assert_array_equal(W @ np.ones(6, np.float32), expected)


def test_copies_are_independent():
    W = pr.BSR(triple(), shape=(3, 5))
    for twin in (
        W.copy(),
        copying.copy(W),
        copying.deepcopy(W),
        pickle.loads(pickle.dumps(W)),
        +W,
        W.T.copy().T,
    ):
        assert not np.shares_memory(twin.data, W.data)
        assert not np.shares_memory(twin.indices, W.indices)
        np.testing.assert_array_equal(twin.toarray(), W.toarray())
        twin.data[...] = 0
    assert W.toarray().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_pickles(dtype):
    W = pr.BSR(triple(dtype), shape=(3, 5)).T
    back = pickle.loads(pickle.dumps(W))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.toarray(), W.toarray())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16, np.int8])
def test_pack_freezes(dtype):
    W = pr.BSR(triple(dtype), shape=(3, 5))
    P = W.pack()
    assert P.frozen
    assert not W.frozen
    assert P.pack() is P
    with pytest.raises(ValueError, match="read-only"):
        P.data[...] = 0
    with pytest.raises(ValueError, match="read-only"):
        P *= 2
    np.testing.assert_array_equal(P.toarray(), W.toarray())
    x = np.arange(10).reshape(5, 2).astype(dtype)
    np.testing.assert_array_equal(P @ x, W @ x)
    np.testing.assert_array_equal(P.T @ x[:3], W.T @ x[:3])
    np.testing.assert_array_equal(W.T.pack() @ x[:3], W.T @ x[:3])
    np.testing.assert_array_equal(x.T @ P.T, x.T @ W.T)
    W.data[...] = 0
    assert P.toarray().any()
    assert P.copy().data.flags.writeable
    assert not P.copy().frozen
    back = pickle.loads(pickle.dumps(P))
    assert back.frozen
    np.testing.assert_array_equal(back.toarray(), P.toarray())


def test_pack_limits():
    with pytest.raises(ValueError, match="two dimensions"):
        pr.BSR((2, 4, 4)).pack()
    with pytest.raises(TypeError, match="astype"):
        pr.BSR(np.eye(3, dtype=np.int64), blocksize=1).pack()
    assert pr.BSR((4, 4)).pack().nnzb == 0
    W, expected = messy()
    P = W.pack()
    np.testing.assert_array_equal(P.toarray(), expected)
    np.testing.assert_array_equal(P @ np.eye(4, dtype=np.float32), expected)


def test_pack_holds_the_values_once():
    n = 1 << 20
    W = pr.BSR((np.ones((n // 1024, 32, 32), np.float32), np.arange(n // 1024), [0, n // 1024]))
    tracemalloc.start()
    P = W.pack()
    for look in (
        "dtype",
        "shape",
        "blocksize",
        "nnz",
        "nnzb",
        "size",
        "nbytes",
        "density",
        "T",
        "mask",
        "frozen",
    ):
        getattr(P, look)
    repr(P)
    P @ np.ones((W.shape[1], 1), np.float32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < W.data.nbytes / 8  # NumPy's memory; the engine's is in nbytes
    assert W.data.nbytes <= P.nbytes < 1.1 * W.nbytes
    assert P.T.nbytes == P.nbytes
    assert P.data is not P.data
    assert not P.data.flags.writeable
    assert P[:32].nbytes < 1.1 * W.nbytes
    for part in (P[:, 32:64], P[:16], P[:16, :40]):
        assert not part.frozen
        assert part.data.flags.writeable
        assert part.data.base is None


@pytest.mark.parametrize("t", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16, np.int8])
@pytest.mark.parametrize("size", [(2, 3), (8, 4), (16, 1)])
def test_packed_arrays_do_what_others_do(size, dtype, t):
    rng = np.random.default_rng(7)
    w = (rng.integers(-3, 4, (21, 17)) * (rng.random((21, 17)) < 0.2)).astype(dtype)
    W = pr.BSR(w, blocksize=size)
    P = W.pack()
    W, P, w = (W.T, P.T, w.T) if t else (W, P, w)
    for name in ("dtype", "shape", "blocksize", "nnz", "nnzb", "size", "density", "has_canonical_format"):
        assert getattr(P, name) == getattr(W, name)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(P, name), getattr(W, name))
        assert not getattr(P, name).flags.writeable
    x = rng.integers(-3, 4, (w.shape[1], 3)).astype(dtype)
    index = np.array([3, 1, 9])
    results = {
        "T": lambda a: a.T,
        "copy": lambda a: a.copy(),
        "copied": copying.deepcopy,
        "constructed": pr.BSR,
        "reblocked": lambda a: a.reblock(4),
        "converted": lambda a: a.astype(np.float64),
        "physical": lambda a: a.transpose(copy=True),
        "pickled": lambda a: pickle.loads(pickle.dumps(a)),
        "sum of two": lambda a: a + W,
        "other sum": lambda a: W - a,
        "scaled": lambda a: a * 2,
        "negative": lambda a: -a,
        "absolute": abs,
        "multiplied": lambda a: a.multiply(w),
        "compared": lambda a: a > 0,
        "sums": lambda a: a.sum(axis=0),
        "sum": lambda a: a.sum(),
        "max": lambda a: a.max(axis=1),
        "min": lambda a: a.min(axis=0),
        "mean": lambda a: a.mean(),
        "counted": lambda a: a.count_nonzero(),
        "row": lambda a: a[3],
        "column": lambda a: a[:, 5],
        "value": lambda a: a[3, 4],
        "points": lambda a: a[index, index],
        "rows": lambda a: a[:16],
        "columns": lambda a: a[:, :16],
        "taken": lambda a: a[index],
        "all": lambda a: a[:],
        "product": lambda a: a @ x,
        "sparse product": lambda a: a @ a.T,
        "batched product": lambda a: a @ np.stack([x, 2 * x]).swapaxes(0, 1).copy().swapaxes(0, 1),
        "widened": lambda a: pr.matmul(a, x, dtype=np.float64),
        "mask": lambda a: a.mask,
    }
    for what, run in results.items():
        got, expected = run(P), run(W)
        got, expected = (one.toarray() if hasattr(one, "toarray") else one for one in (got, expected))
        np.testing.assert_array_equal(got, expected, err_msg=what)
    with pr.device("reference"):
        np.testing.assert_array_equal(P @ x, W @ x)
    if dtype not in (BF16, np.float16):
        back = P.to_scipy()
        np.testing.assert_array_equal(back.toarray(), w)
        back.data[...] = 0
        with pytest.raises(ValueError, match="copy=False"):
            P.to_scipy(copy=False)
    P.sum_duplicates()
    P.sort_indices()
    P.check_format()
    np.testing.assert_array_equal(P.toarray(), w)
    with pytest.raises(ValueError, match="frozen"):
        P.data = W.data


def test_astype():
    W = pr.BSR(triple(), shape=(4, 6))
    assert W.astype("bfloat16").dtype == BF16
    assert W.astype(np.float32, copy=False) is W
    assert W.astype(np.float32) is not W
    np.testing.assert_array_equal(W.T.astype(np.float64).toarray(), W.toarray().T)
    with pytest.raises(TypeError):
        W.astype(object)
    with pytest.raises(TypeError):
        W.astype("no such dtype")


def test_devices_and_conversions_of_the_array_itself():
    W = pr.BSR(triple(), shape=(4, 6))
    assert W.to("cpu") is W
    with pytest.raises(pr.PrunusError, match="cuda"):
        W.to("cuda")
    assert pr.BSR(W).data is W.data
    assert not np.shares_memory(pr.BSR(W, copy=True).data, W.data)
    other = pr.BSR(W, blocksize=3, dtype=np.float64)
    assert (other.blocksize, other.dtype) == ((3, 3), np.float64)
    np.testing.assert_array_equal(other.toarray(), W.toarray())
    with pytest.raises(ValueError, match="copy=False"):
        pr.BSR(W, blocksize=3, copy=False)
    with pytest.raises(ValueError, match="shape"):
        pr.BSR(W, shape=(4, 5))
    out = np.full((4, 6), 7, np.float32)
    assert W.toarray(out=out) is out
    np.testing.assert_array_equal(out, W.toarray(order="F"))
    assert W.toarray(order="F").flags.f_contiguous
    with pytest.raises(ValueError, match="out"):
        W.toarray(out=np.zeros((4, 5), np.float32))


@pytest.mark.parametrize("size", [1, 3, (2, 5), (4, 4), (100, 100)])
def test_reblock(size):
    rng = np.random.default_rng(2)
    w = rng.standard_normal((9, 11)) * (rng.random((9, 11)) < 0.1)
    W = pr.BSR(w, blocksize=(2, 3))
    again = W.reblock(size)
    assert again.blocksize == (size if isinstance(size, tuple) else (size, size))
    np.testing.assert_array_equal(again.toarray(), w)
    np.testing.assert_array_equal(W.T.reblock(size).toarray(), w.T)
    batch = pr.BSR(np.stack([w, w * 0, -w]), blocksize=(2, 3)).reblock(size)
    np.testing.assert_array_equal(batch.toarray(), np.stack([w, w * 0, -w]))


def test_repr_tells_what_matters():
    W = pr.BSR(triple(), shape=(3, 5))
    assert repr(W) == "<prunus.BSR (3, 5) float32: 3 blocks of 2 x 2, density 0.5, 72 bytes>"
    assert "transposed" in repr(W.T)
    assert "packed" in repr(W.pack())
    assert "KiB" in repr(pr.BSR(np.ones((32, 32)), blocksize=16))


def test_refusals():
    W = pr.BSR(triple(), shape=(4, 6))
    with pytest.raises(TypeError, match="toarray"):
        np.asarray(W)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(W)
    with pytest.raises(TypeError, match="ambiguous"):
        len(W)
    with pytest.raises(TypeError, match="iterated"):
        iter(W)
    with pytest.raises(TypeError, match=r"W\.data"):
        W[0, 0] = 1
    with pytest.raises(TypeError):
        1 in W  # noqa: B015
    with pytest.raises(TypeError):
        hash(W)
    assert bool(pr.BSR(np.array([[3.0]]), blocksize=1))
