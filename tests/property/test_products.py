"""Every operation against float64 NumPy, over dtypes, strides, block sizes and ragged shapes.

Products are held to the bounds of :mod:`helpers`. Elementwise functions, selections and copies round once at
most: they equal NumPy on the dense arrays. Sums along an axis are bounded as products with ones are.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus as pr
from helpers import (
    BF16,
    F16,
    F32,
    F64,
    I8,
    OPERANDS,
    bound,
    check,
    close,
    dense,
    eps,
    natural,
    poisoned,
    values,
)

side = st.integers(1, 9)
lengths = st.one_of(st.integers(0, 12), st.integers(13, 90))
widths = st.one_of(st.integers(0, 6), st.integers(7, 70))
blocksizes = st.one_of(
    st.tuples(side, side),
    st.tuples(st.just(1), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.just(1)),
    st.sampled_from([(8, 8), (16, 16), (32, 32), (16, 32), (8, 64), (48, 16)]),
)
operands = st.sampled_from(OPERANDS)
seeds = st.integers(0, 2**32 - 1)


def mostly(first, other):
    return st.one_of(st.just(first), other)


def pattern(draw, rng, shape, blocksize):
    """Offsets and block columns; sometimes unsorted with duplicates."""
    rows, cols = (-(-n // b) for n, b in zip(shape, blocksize, strict=True))
    grid = rng.random((rows, cols)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    row, col = np.nonzero(grid)
    if len(row) and draw(st.integers(0, 3)) == 0:
        extra = rng.integers(0, len(row), len(row) // 3 + 1)
        row, col = np.concatenate([row, row[extra]]), np.concatenate([col, col[extra]])
        order = np.lexsort((rng.random(len(row)), row))
        row, col = row[order], col[order]
    kind = draw(st.sampled_from([np.int32, np.int64]))
    return col.astype(kind), np.searchsorted(row, np.arange(rows + 1)).astype(kind)


@st.composite
def arrays(draw, m=None, k=None, blocksize=None, dtype=None, padding=True):
    """A BSR with random values whose padding must not be seen."""
    rng = np.random.default_rng(draw(seeds))
    shape = draw(lengths) if m is None else m, draw(lengths) if k is None else k
    blocksize = draw(blocksizes) if blocksize is None else blocksize
    indices, indptr = pattern(draw, rng, shape, blocksize)
    data = values(rng, (len(indices), *blocksize), draw(operands) if dtype is None else dtype)
    W = pr.BSR((data, indices, indptr), shape=shape)
    return poisoned(W) if padding else W


@st.composite
def matrices(draw, m, n, dtype=None):
    """A dense array with any strides, zero ones included."""
    rng = np.random.default_rng(draw(seeds))
    dtype = draw(operands) if dtype is None else dtype
    steps = st.sampled_from([1, 1, 1, 2, 3, -1, -2])
    a, b = draw(steps), draw(steps)
    x = values(rng, (m * abs(a), n * abs(b)), dtype)
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    x = x[::a, ::b]
    match draw(st.integers(0, 7)):
        case 0 if m:
            x = np.broadcast_to(x[:1], (m, n))
        case 1 if n:
            x = np.broadcast_to(x[:, :1], (m, n))
        case 2:
            raw = np.zeros(x.size * x.itemsize + 1, np.uint8)
            odd = raw[1:].view(dtype).reshape(m, n)
            odd[...] = x
            x = odd
    assert x.shape == (m, n)
    return x


def sizes(W):
    """Absolute values with those of duplicates added up, for bounds; the padding's NaN left out."""
    data = np.abs(np.nan_to_num(W.data.astype(np.float64)))
    return dense(pr.BSR((data, W.indices, W.indptr), shape=W.shape))


def sums_of(*dtypes):
    return F64 if F64 in dtypes else F32


@settings(max_examples=250)
@given(st.data())
def test_dsd_and_dds(data):
    W = data.draw(arrays())
    packed, transposed, right, vector = (data.draw(st.booleans()) for _ in range(4))
    if packed:
        W.sum_duplicates()  # as packing does, in W's own dtype
    one = W.pack() if packed else W
    one = one.T if transposed else one
    # Everything is one left product: x @ W is (W.T @ x.T).T.
    w, size = (array.T if transposed != right else array for array in (dense(W), sizes(W)))
    x = data.draw(matrices(w.shape[1], 1 if vector else data.draw(widths)))
    if vector:
        got = (x[:, 0] @ one if right else one @ x[:, 0])[:, None]
    else:
        got = (x.T @ one).T if right else one @ x
    kind, exact = natural(W.dtype, x.dtype), x.astype(float)
    assert got.dtype == kind
    assert got.shape == (w.shape[0], x.shape[1])
    duplicates = len(W.indices) * max(W.data.shape[1:])
    close(got, w @ exact, bound(size, np.abs(exact), kind, sums_of(W.dtype, x.dtype), duplicates))


@settings(max_examples=120)
@given(st.data())
def test_epilogue_and_result_dtype(data):
    W = data.draw(arrays(dtype=data.draw(st.sampled_from([F32, F64, F16, BF16]))))
    W.sum_duplicates()
    (m, k), n = W.shape, data.draw(widths)
    x = data.draw(matrices(k, n, data.draw(st.sampled_from([F32, F64, F16, BF16]))))
    rng = np.random.default_rng(data.draw(seeds))
    bias = values(rng, m, data.draw(st.sampled_from([F32, F64, F16, BF16])))
    dtype = data.draw(st.sampled_from([F32, F64, F16, BF16]))
    sums = sums_of(W.dtype, x.dtype, dtype)
    activation = data.draw(st.sampled_from([None, "relu"]))
    exact = dense(W) @ x.astype(float) + bias.astype(float)[:, None]
    # The bias is one more term.
    wide = np.concatenate([dense(W), bias.astype(float)[:, None]], axis=1)
    tall = np.concatenate([x.astype(float), np.ones((1, n))])
    error = (
        bound(wide, tall, dtype, sums)
        + eps(F32 if sums == F32 else F64) * np.abs(bias.astype(float))[:, None]
    )
    got = pr.matmul(W, x, dtype=dtype, bias=bias, activation=activation)
    assert got.dtype == dtype
    close(got, np.maximum(exact, 0) if activation else exact, error)


@settings(max_examples=100)
@given(st.data())
def test_out(data):
    W = data.draw(arrays())
    W.sum_duplicates()
    m, k = W.shape
    n = data.draw(widths)
    x = data.draw(matrices(k, n))
    kind = natural(W.dtype, x.dtype)
    steps = st.sampled_from([1, 2, -1, -2])
    a, b = data.draw(steps), data.draw(steps)
    base = np.full((m * abs(a), n * abs(b)), 55, kind, order=data.draw(st.sampled_from("CF")))
    out = base[::a, ::b]
    assert pr.matmul(W, x, out=out) is out
    check(out, dense(W), x.astype(float), kind, sums_of(W.dtype, x.dtype))
    out[...] = 55
    assert (base == 55).all()


@settings(max_examples=120)
@given(st.data())
def test_sddmm(data):
    m, k, n = data.draw(widths), data.draw(widths), data.draw(widths)
    a, b = data.draw(matrices(m, k)), data.draw(matrices(k, n))
    rng = np.random.default_rng(data.draw(seeds))
    mask = pr.BlockMask.random((m, n), data.draw(blocksizes), data.draw(st.sampled_from([0, 0.3, 1])), rng)
    kind = natural(a.dtype, b.dtype)
    got = pr.sddmm(a, b, mask)
    assert got.dtype == kind
    a64, b64 = a.astype(float), b.astype(float)
    close(
        got.toarray(),
        np.where(mask.toarray(), a64 @ b64, 0),
        bound(a64, b64, kind, sums_of(a.dtype, b.dtype)),
    )


@settings(max_examples=120)
@given(st.data())
def test_ssd(data):
    A = data.draw(arrays())
    B = data.draw(arrays(m=A.shape[1], blocksize=(A.blocksize[1], data.draw(side))))
    A.sum_duplicates()
    B.sum_duplicates()
    a, b, kind = dense(A), dense(B), natural(A.dtype, B.dtype)
    got = A @ B
    assert got.dtype == kind
    assert got.has_canonical_format
    close(got.toarray(), a @ b, bound(a, b, kind, sums_of(A.dtype, B.dtype)))
    close((B.T @ A.T).toarray(), (a @ b).T, bound(b.T, a.T, kind, sums_of(A.dtype, B.dtype)))


@settings(max_examples=60)
@given(st.data())
def test_batches(data):
    batch = st.sampled_from([(), (1,), (2,), (3, 1), (2, 2), (3, 2)])
    left, right = data.draw(batch), data.draw(batch)
    m, k, n = (data.draw(st.integers(0, 20)) for _ in range(3))
    dtype = data.draw(operands)
    rng = np.random.default_rng(data.draw(seeds))
    mask = pr.BlockMask.random(
        (*(left if data.draw(st.booleans()) else ()), m, k), data.draw(blocksizes), 0.5, rng
    )
    W = pr.BSR.from_mask(mask, values(rng, (*left, m, k), dtype))
    x = values(rng, (*right, k, n), dtype)
    if data.draw(st.booleans()):
        x = np.asfortranarray(x)
    w = dense(W)
    try:
        np.broadcast_shapes(left, right)
    except ValueError:
        with pytest.raises(ValueError, match="broadcast"):
            W @ x
        return
    check(W @ x, w, x.astype(float), natural(dtype, dtype))
    flipped = x.swapaxes(-1, -2)
    check(flipped @ W.T, flipped.astype(float), w.swapaxes(-1, -2), natural(dtype, dtype))


FUNCTIONS = [np.add, np.subtract, np.multiply, np.maximum, np.minimum, np.not_equal, np.less, np.greater]


@settings(max_examples=150)
@given(st.data())
def test_elementwise(data):
    W = data.draw(arrays())
    V = data.draw(arrays(*W.shape))
    W.sum_duplicates()
    V.sum_duplicates()
    if data.draw(st.booleans()):
        W, V = W.T, V.T
    w, v = W.toarray(), V.toarray()
    ufunc = data.draw(st.sampled_from(FUNCTIONS))
    try:
        got = ufunc(W, V)
    except TypeError:
        assert ufunc(np.zeros(1, W.dtype), np.zeros(1, V.dtype))[0] != 0
        return
    wide = F32 if {W.dtype, V.dtype} == {F16, BF16} else None
    with np.errstate(all="ignore"):
        expected = ufunc(w.astype(wide), v.astype(wide)) if wide else ufunc(w, v)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got.toarray(), expected)
    got.check_format()
    # With a scalar and a dense array.
    number = data.draw(st.sampled_from([2, -3, 0.5]))
    if W.dtype != I8:
        np.testing.assert_array_equal((W * number).toarray(), w * W.dtype.type(number))
        np.testing.assert_array_equal((W / number).toarray(), w / W.dtype.type(number))
    x = data.draw(matrices(*W.shape, W.dtype))
    for other in (x, x[:1], x[:, :1], x[0] if len(x) else x):
        np.testing.assert_array_equal(W.multiply(other).toarray(), w * other)
    np.testing.assert_array_equal(abs(W).toarray(), abs(w))
    np.testing.assert_array_equal((-W).toarray(), -w)


@settings(max_examples=150)
@given(st.data())
def test_reductions(data):
    W = data.draw(arrays())
    if data.draw(st.booleans()):
        W = W.T
    w = W.toarray()
    # Every stored value counts, also where the sum of int8 duplicates is too large for int8.
    stored, size = (dense(W.T).T, sizes(W.T).T) if W._t else (dense(W), sizes(W))
    axis = data.draw(st.sampled_from([None, 0, 1, -1, -2, (0, 1)]))
    keep = data.draw(st.booleans())
    exact, size = (part.sum(axis=axis, keepdims=keep) for part in (stored, size))
    got = W.sum(axis=axis, keepdims=keep)
    assert np.shape(got) == np.shape(exact)
    inner = F32 if W.dtype in (F16, BF16) else W.dtype
    error = ((W.nnz + 2) * eps(inner) + eps(W.dtype)) * size
    close(np.asarray(got), exact, error)
    if w.size:
        for name in ("max", "min"):
            np.testing.assert_array_equal(
                getattr(W, name)(axis=axis, keepdims=keep), getattr(w, name)(axis=axis, keepdims=keep)
            )
        mean = np.asarray(W.mean(axis=axis, keepdims=keep)).astype(np.float64)
        count = w.size / max(np.size(exact), 1)
        close(mean, exact / count, (error + eps(W.dtype) * size + eps(F64)) / count)
    assert W.count_nonzero() == np.count_nonzero(w)


def keys(length):
    index = st.integers(-length, length - 1) if length else st.nothing()
    edges = st.one_of(st.none(), st.integers(-length - 2, length + 2))
    ranges = st.builds(slice, edges, edges, st.sampled_from([None, 1, 2, 3, -1, -2]))
    lists = st.lists(index, max_size=6).map(lambda at: np.array(at, np.int64)) if length else ranges
    booleans = st.lists(st.booleans(), min_size=length, max_size=length).map(lambda at: np.array(at, bool))
    return st.one_of(ranges, ranges, index, lists, booleans)


@settings(max_examples=200)
@given(st.data())
def test_slicing(data):
    W = data.draw(arrays())
    if data.draw(st.booleans()):
        W = W.T
    w = W.toarray()
    rows, cols = data.draw(keys(W.shape[0])), data.draw(keys(W.shape[1]))
    if isinstance(rows, np.ndarray) and isinstance(cols, np.ndarray):
        rows, cols = np.ix_(rows, cols)
    expected = w[rows, cols]
    got = W[rows, cols]
    if isinstance(got, pr.BSR):
        got.check_format()
        got = got.toarray()
    # Duplicates may be added in another order.
    error = 8 * eps(W.dtype) * float(np.abs(w.astype(float)).max(initial=0) + 4)
    np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=0, atol=error)
    if not (isinstance(rows, np.ndarray) and rows.ndim > 1):
        part = W[rows]
        part = part.toarray() if isinstance(part, pr.BSR) else part
        np.testing.assert_allclose(part.astype(float), w[rows].astype(float), rtol=0, atol=error)


@settings(max_examples=80)
@given(st.data())
def test_parts_multiply_as_their_dense_forms(data):
    W = data.draw(arrays())
    W.sum_duplicates()
    edges = st.one_of(st.none(), st.integers(0, 90))
    part = W[
        slice(data.draw(edges), data.draw(edges)),
        slice(data.draw(edges), data.draw(edges), data.draw(st.sampled_from([None, 2, -1]))),
    ]
    x = data.draw(matrices(part.shape[1], data.draw(widths)))
    check(part @ x, dense(part), x.astype(float), natural(part.dtype, x.dtype), sums_of(part.dtype, x.dtype))


@settings(max_examples=80)
@given(st.data())
def test_conversions(data):
    W = data.draw(arrays())
    w = W.toarray()
    W.sum_duplicates()
    np.testing.assert_array_equal(W.toarray(), w)
    again = W.reblock(data.draw(blocksizes))
    np.testing.assert_array_equal(again.toarray(), w)
    np.testing.assert_array_equal(W.T.copy().toarray(), w.T)
    wide = W.astype(np.float64)
    np.testing.assert_array_equal(wide.toarray(), w.astype(np.float64))
    np.testing.assert_array_equal(pr.BSR.from_dense(w, blocksize=W.blocksize).toarray(), w)
