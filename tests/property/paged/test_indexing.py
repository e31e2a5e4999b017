"""Indexing and assignment on disk against NumPy on the same values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prunus as pr
from helpers import BF16
from prunus.paged import access, pagers

DTYPES = [np.dtype(d) for d in ("f4", "f8", "i2", "u1", "?", "c8", ">f4", "f2")] + [BF16]
PAGER = pagers.new_pager(1 << 16)


@pytest.fixture(autouse=True, params=["as it is", "everything streams", "nothing streams"])
def paths(request, monkeypatch):
    """The same indices through each way of reading, whatever their size."""
    if request.param == "everything streams":
        monkeypatch.setattr(access, "_STREAM", 1)
    elif request.param == "nothing streams":
        monkeypatch.setattr(access, "_BATCH", 64)
        monkeypatch.setattr(access, "_PIECE", 0)


def numbered(shape, dtype):
    n = int(np.prod(shape))
    return (np.arange(n) % 120).reshape(shape).astype(dtype)


def on_disk(x, order="C"):
    return pr.paged.from_array(x, order=order, pager=PAGER)


@st.composite
def cases(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7))
    x = numbered(shape, draw(st.sampled_from(DTYPES)))
    order = draw(st.sampled_from("CF"))
    turn = draw(st.booleans())
    return x, order, turn


@st.composite
def keys(draw, shape):
    """A key of any form: basic, boolean, integer arrays, and mixtures of them."""
    if draw(st.integers(0, 3)) == 0:
        return draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    group = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4))
    parts, axis = [], 0
    while axis < len(shape) and draw(st.integers(0, 9)):
        n, kind = (
            shape[axis],
            draw(st.sampled_from(["slice", "int", "array", "list", "mask", "new", "masks"])),
        )
        if kind in ("int", "array", "list") and n == 0:
            kind = "slice"
        if kind == "slice":
            bound = st.none() | st.integers(-n - 2, n + 2)
            step = draw(st.none() | st.sampled_from([1, 2, 3, -1, -2]))
            parts.append(slice(draw(bound), draw(bound), step))
        elif kind == "int":
            parts.append(draw(st.integers(-n, n - 1)))
        elif kind in ("array", "list"):
            one = st.integers(-n, n - 1)
            size = group if draw(st.booleans()) else tuple(1 for _ in group)
            array = draw(hnp.arrays(np.int64, size, elements=one))
            parts.append(array.tolist() if kind == "list" and array.ndim else array)
        elif kind == "new":
            parts.append(None)
            continue
        elif kind == "mask":
            parts.append(draw(hnp.arrays(bool, n)))
        elif axis + 2 <= len(shape):
            parts.append(draw(hnp.arrays(bool, shape[axis : axis + 2])))
            axis += 1
        else:
            parts.append(slice(None))
        axis += 1
    if draw(st.booleans()):
        # Where it stands for nothing it can be anywhere; else what follows would point at other axes.
        parts.insert(draw(st.integers(0, len(parts))) if axis == len(shape) else len(parts), Ellipsis)
    return tuple(parts)


def index(x, key):
    try:
        return x[key]
    except IndexError:
        return IndexError


@settings(max_examples=400)
@given(st.data())
def test_reading(data):
    x, order, turn = data.draw(cases())
    a = on_disk(x, order)
    if turn:
        x, a = x.T, a.T
    key = data.draw(keys(x.shape))
    expected = index(x, key)
    if expected is IndexError:
        with pytest.raises(IndexError):
            a[key]
        return
    got = a[key]
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    lazy = np.positive(a) if x.dtype != bool else np.logical_or(a, False)
    np.testing.assert_array_equal(np.asarray(lazy[key]), np.asarray(expected))
    assert lazy[key].shape == expected.shape


@settings(max_examples=300)
@given(st.data())
def test_writing(data):
    x, order, turn = data.draw(cases())
    x = x.copy()
    a = on_disk(x, order)
    view = a
    if turn:
        x, view = x.T, a.T
    key = data.draw(keys(x.shape))
    expected = index(x, key)
    if expected is IndexError:
        with pytest.raises(IndexError):
            view[key] = 0
        return
    kind = data.draw(st.sampled_from(["scalar", "full", "row", "other dtype", "too many", "wrong"]))
    shape = np.shape(expected)
    value = 1 - numbered(shape, np.float64)
    if x.dtype.kind in "u?":
        value = numbered(shape, np.uint8)
    if kind == "scalar":
        value = 7
    elif kind == "full":
        value = value.astype(x.dtype)
    elif kind == "row" and shape:
        value = value[(0,) * (len(shape) - 1)] if 0 not in shape else 3
    elif kind == "too many" and shape:
        value = value[None, None]
    elif kind == "wrong":
        value = np.ones((5, *shape, 9))
        with pytest.raises(ValueError, match="broadcast"):
            view[key] = value
        return
    try:
        x[key] = value
    except TypeError:
        # Through a mask of the whole shape NumPy takes values of at most one dimension, even where all others
        # have length 1.
        x[key] = np.ravel(value)
    view[key] = value
    np.testing.assert_array_equal(view.load(), x)


@settings(max_examples=100)
@given(st.data())
def test_assigning_what_is_on_disk(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9))
    x = numbered(shape, np.float32)
    a, b = on_disk(x), on_disk(np.zeros_like(x))
    y = np.zeros_like(x)
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    b[key] = np.multiply(on_disk(np.array(x[key])), 2)
    y[key] = x[key] * 2
    np.testing.assert_array_equal(b.load(), y)
    np.testing.assert_array_equal(a[a > 3], x[x > 3])
    a[a > 3] = -1
    np.testing.assert_array_equal(a.load(), np.where(x > 3, -1, x))


@given(st.data())
def test_rows_are_views(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9))
    x = numbered(shape, np.int32)
    a = on_disk(x)
    i, j = sorted(data.draw(st.tuples(*[st.integers(0, shape[0])] * 2)))
    view = a.rows(i, j)
    np.testing.assert_array_equal(view.load(), x[i:j])
    view += 1
    x[i:j] += 1
    np.testing.assert_array_equal(a.load(), x)
    np.testing.assert_array_equal(a.reshape(-1).load(), x.reshape(-1))
    np.testing.assert_array_equal(a.T.reshape(-1, order="F").load(), x.T.reshape(-1, order="F"))
