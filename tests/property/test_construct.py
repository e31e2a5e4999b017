"""Constructors under arbitrary input: a ValueError, a TypeError or a valid array, never anything else."""

import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prunus as pr

# Sums of arbitrary values overflow as NumPy's do.
pytestmark = pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")

sizes = st.integers(0, 4)
# Mostly small numbers that may fit, sometimes anything.
numbers = st.one_of(st.integers(-1, 5), st.integers(-(2**63), 2**63 - 1))
index_dtypes = st.sampled_from(
    [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64, np.float64, np.bool_]
)
value_dtypes = st.sampled_from(
    [np.float32, np.float64, np.float16, np.int8, np.int64, np.bool_, np.complex64, np.dtype("U2"), object]
)


@st.composite
def index_arrays(draw):
    if draw(st.booleans()):
        return draw(st.lists(numbers, max_size=5))
    shape = draw(st.one_of(st.tuples(sizes), st.lists(sizes, max_size=3).map(tuple)))
    return draw(hnp.arrays(draw(index_dtypes), shape))


@st.composite
def value_arrays(draw):
    shape = draw(st.one_of(st.tuples(sizes, sizes, sizes), st.lists(sizes, max_size=4).map(tuple)))
    dtype = draw(value_dtypes)
    if dtype is object or np.dtype(dtype).kind == "U":
        return np.full(shape, "a", dtype)
    return draw(hnp.arrays(dtype, shape))


shapes = st.one_of(st.none(), st.tuples(numbers, numbers), st.lists(numbers, max_size=4).map(tuple), numbers)
blocksizes = st.one_of(
    st.none(), st.integers(-1, 4), st.tuples(st.integers(-1, 4), st.integers(-1, 4)), st.text()
)
copies = st.sampled_from([None, True, False])


def check(W):
    """Everything a valid array must answer."""
    W.check_format()
    assert W.shape[-2:] == W.T.shape[:-3:-1]
    assert W.density >= 0 or W.nnzb == 0
    assert W.nnz == W.data.size
    repr(W)
    assert pickle.loads(pickle.dumps(W)).shape == W.shape
    if math.prod(W.shape) < 10_000 and max(W.shape) < 10_000:
        dense = W.toarray()
        assert dense.shape == W.shape
        np.testing.assert_array_equal(W.T.toarray(), dense.swapaxes(-1, -2))
        np.testing.assert_array_equal(W[..., ::2, :].toarray(), dense[..., ::2, :])
        twin = W.copy()
        twin.sum_duplicates()
        np.testing.assert_array_equal(twin.toarray(), dense)
        assert twin.has_canonical_format


@settings(max_examples=500, deadline=None)
@given(value_arrays(), index_arrays(), index_arrays(), shapes, blocksizes, copies)
def test_arbitrary_triples(data, indices, indptr, shape, blocksize, copy):
    try:
        W = pr.BSR((data, indices, indptr), shape=shape, blocksize=blocksize, copy=copy)
    except (ValueError, TypeError):
        return
    check(W)


@st.composite
def near_misses(draw):
    """Triples that are valid but for one entry, or valid."""
    br, bc = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows, cols = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    batch = draw(st.sampled_from([(), (1,), (2,), (2, 1)]))
    own = bool(batch) and draw(st.booleans())
    members = math.prod(batch) if own else 1
    counts = np.array(
        draw(st.lists(st.integers(0, 3), min_size=members * rows, max_size=members * rows)), int
    )
    table = np.concatenate([[0], np.cumsum(counts)])
    total = int(table[-1])
    indices = np.array(draw(st.lists(st.integers(0, cols - 1), min_size=total, max_size=total)), np.int64)
    starts = np.arange(members)[:, None] * rows + np.arange(rows + 1)
    indptr = table[starts].reshape(*batch, rows + 1) if own else table
    lead = () if own else batch
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int8, np.dtype(ml_dtypes.bfloat16)]))
    data = np.arange(math.prod(lead) * total * br * bc).reshape(*lead, total, br, bc) % 7
    m = max(rows * br - draw(st.integers(0, br - 1)), 0)
    n = max(cols * bc - draw(st.integers(0, bc - 1)), 0)
    parts = [data.astype(dtype), indices, indptr.copy()]
    broken = draw(st.booleans())
    if broken:
        which = draw(st.integers(1, 2))
        if parts[which].size:
            at = draw(st.integers(0, parts[which].size - 1))
            parts[which].reshape(-1)[at] = draw(numbers)
    return tuple(parts), (*batch, m, n), broken


def by_hand(parts, shape):
    """The dense array, one block after the other."""
    data, indices, indptr = parts
    batch, (m, n) = shape[:-2], shape[-2:]
    br, bc = data.shape[-2:]
    out = np.zeros((*batch, m + br, n + bc))
    for at in np.ndindex(*batch):
        offsets = indptr[at] if indptr.ndim > 1 else indptr
        blocks = data if indptr.ndim > 1 else data[at]
        for row in range(offsets.shape[-1] - 1):
            for k in range(offsets[row], offsets[row + 1]):
                i, j = row * br, indices[k] * bc
                out[(*at, slice(i, i + br), slice(j, j + bc))] += blocks[k].astype(float)
    return out[..., :m, :n]


@settings(max_examples=400, deadline=None)
@given(near_misses())
def test_near_misses(case):
    parts, shape, broken = case
    try:
        W = pr.BSR(parts, shape=shape)
    except ValueError:
        assert broken
        return
    check(W)
    np.testing.assert_array_equal(W.toarray().astype(float), by_hand(parts, shape))
    rows = W.sum(axis=-1, dtype=np.float64)
    np.testing.assert_array_equal(rows, by_hand(parts, shape).sum(axis=-1))
    x = np.ones(shape[-1], W.dtype)
    np.testing.assert_array_equal((W @ x).astype(float), rows)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int8, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6),
    ),
    blocksizes,
    st.one_of(st.none(), st.floats()),
)
def test_dense_arrays(w, blocksize, density):
    try:
        W = pr.BSR.from_dense(w, blocksize=blocksize, density=density)
    except (ValueError, TypeError):
        return
    check(W)
    if density is None:
        np.testing.assert_array_equal(W.toarray(), w)
    else:
        kept = W.toarray()
        np.testing.assert_array_equal(kept[kept != 0], w[kept != 0])


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(index_arrays(), hnp.arrays(np.bool_, hnp.array_shapes(min_side=0))),
    index_arrays(),
    shapes,
    blocksizes,
)
def test_masks(first, second, shape, blocksize):
    for blocks in (first, (first, second)):
        try:
            mask = pr.BlockMask(blocks, blocksize, shape)
        except (ValueError, TypeError):
            continue
        repr(mask)
        if math.prod(mask.shape) < 10_000 and max(mask.shape) < 10_000:
            assert mask.toarray().shape == mask.shape
            np.testing.assert_array_equal(mask.T.toarray(), mask.toarray().swapaxes(-1, -2))
            assert (~mask & mask).nnzb == 0
            assert (~mask | mask).nnzb == math.prod(mask.grid)
