"""Expressions and reductions on disk against NumPy on the same values, with tiles of a few values."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prunus as pr
from helpers import BF16, eps
from prunus.paged import evaluate, pagers

PAGER = pagers.new_pager(1 << 16)
FLOATS = [np.dtype(d) for d in ("f4", "f8", "f2", ">f8")]
OTHERS = [np.dtype(d) for d in ("i4", "u1", "?", "i8", "c8")]


@pytest.fixture(autouse=True, params=[(1, 7), (3, 16)], ids=["one thread", "three threads"])
def cut(request, monkeypatch):
    threads, tile = request.param
    monkeypatch.setattr(evaluate, "TILE", tile)
    with pr.num_threads(threads):
        yield


def draw_array(data, dtypes, min_side=1, min_dims=1):
    shape = data.draw(hnp.array_shapes(min_dims=min_dims, max_dims=3, min_side=min_side, max_side=8))
    dtype = data.draw(st.sampled_from(dtypes))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    x = rng.integers(0 if dtype.kind in "u?" else -9, 9, shape)
    x = (x + rng.random(shape) * (dtype.kind in "fc")).astype(dtype)
    if dtype.kind == "f" and data.draw(st.integers(0, 3)) == 0 and x.size:
        x.reshape(-1)[rng.integers(0, x.size)] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    a = pr.paged.from_array(x, order=data.draw(st.sampled_from("CF")), pager=PAGER)
    return (x.T, a.T) if data.draw(st.booleans()) else (x, a)


def same(got, expected, tolerance=0.0):
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if tolerance:
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(got, expected)


def shared(p, q):
    both = p + q
    return both * both + both


def draw_axis(data, ndim):
    one = st.integers(-ndim, ndim - 1)
    some = st.lists(one, unique_by=lambda a: a % ndim, max_size=ndim).map(tuple)
    return data.draw(st.none() | one | some)


@settings(max_examples=250)
@given(st.data())
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Degrees of freedom:RuntimeWarning")
def test_reductions(data):
    x, a = draw_array(data, FLOATS + OTHERS)
    names = ["sum", "prod", "mean", "var", "std", "min", "max", "any", "all", "count_nonzero"]
    name = data.draw(st.sampled_from(names))
    kwargs = {"axis": draw_axis(data, x.ndim), "keepdims": data.draw(st.booleans())}
    if name in ("sum", "mean", "var", "std", "any", "all") and data.draw(st.booleans()):
        where = np.random.default_rng(1).random(x.shape) < 0.6
        where.reshape(-1)[0] = True
        if np.count_nonzero(where, axis=kwargs["axis"]).all():
            kwargs["where"] = where
    if name in ("var", "std"):
        kwargs["ddof"] = data.draw(st.integers(0, 1))
    wide = x
    if name in ("var", "std", "mean", "sum", "prod") and x.dtype.kind == "f":
        wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(wide, **kwargs)
        plain = getattr(np, name)(x, **kwargs)
        if np.ndim(plain) or isinstance(plain, np.generic):
            expected = np.asarray(expected).astype(plain.dtype)[()]
        got = getattr(np, name)(a, **kwargs)
    inexact = name in ("sum", "mean", "var", "std", "prod") and x.dtype.kind in "fcbiu"
    if name == "count_nonzero" and not isinstance(expected, (np.ndarray, np.generic)):
        assert got == expected
        return
    if name == "prod" and x.dtype.kind == "c" and not np.isfinite(expected).all():
        # Where NumPy's product overflows on its way, NaN or infinity depends on the order of factors.
        assert got.shape == expected.shape
        return
    same(got, expected, 64 * eps(np.dtype(got.dtype)) if inexact and got.dtype.kind in "fc" else 0)


@settings(max_examples=120)
@given(st.data())
def test_arg(data):
    x, a = draw_array(data, FLOATS + OTHERS[:4])
    name = data.draw(st.sampled_from(["argmin", "argmax"]))
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    keepdims = data.draw(st.booleans())
    same(
        getattr(np, name)(a, axis=axis, keepdims=keepdims), getattr(np, name)(x, axis=axis, keepdims=keepdims)
    )


@settings(max_examples=120)
@given(st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_reductions(data):
    x, a = draw_array(data, FLOATS[:2])
    x = x.astype(np.float64)
    a = a.astype(np.float64)
    name = data.draw(
        st.sampled_from(["nansum", "nanmean", "nanvar", "nanstd", "nanmin", "nanmax", "nanprod"])
    )
    axis = draw_axis(data, x.ndim)
    same(getattr(np, name)(a, axis=axis), getattr(np, name)(x, axis=axis), 1e-12)


@settings(max_examples=150)
@given(st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_expressions(data):
    x, a = draw_array(data, FLOATS + OTHERS)
    other = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=x.shape, max_dims=3))
    y = (
        np.random.default_rng(2)
        .integers(1, 5, other.input_shapes[0])
        .astype(data.draw(st.sampled_from(["f4", "i2"])))
    )
    b = pr.paged.from_array(y, pager=PAGER) if data.draw(st.booleans()) else y
    forms = {
        "add": lambda p, q: p + q,
        "chain": lambda p, q: (p * q - p) / (q + 3),
        "reverse": lambda p, q: q * p + 2,
        "compare": lambda p, q: (p == q) | (q != 2),
        "where": lambda p, q: np.where(q > 2, p, q),
        "shared": shared,
        "abs": lambda p, q: np.abs(p + q),
        "f8": lambda p, q: (p + q).astype(np.complex128),
        "turned": lambda p, q: (p + q).T,
    }
    form = forms[data.draw(st.sampled_from(sorted(forms)))]
    expected = form(x, y)
    lazy = form(a, b)
    assert type(lazy) is pr.paged.PagedExpr
    assert lazy.shape == expected.shape
    same(lazy.load(), np.asarray(expected))
    key = data.draw(hnp.basic_indices(expected.shape, allow_newaxis=True))
    np.testing.assert_array_equal(lazy[key], expected[key])
    rows = np.array([0, -1, 0])
    if expected.ndim:
        np.testing.assert_array_equal(lazy[rows], expected[rows])
    order = data.draw(st.sampled_from("CF"))
    out = pr.paged.empty(expected.shape, expected.dtype, order=order, pager=PAGER)
    out[...] = lazy
    same(out.load(), np.asarray(expected))
    memory = np.empty_like(expected)
    assert np.positive(lazy, out=memory) is memory if expected.dtype != bool else True
    if expected.dtype != bool:
        same(memory, np.asarray(expected))


@settings(max_examples=100)
@given(st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_running_sums(data):
    x, a = draw_array(data, FLOATS[:2] + OTHERS[:4])
    x, a = x[..., :6], a if x.shape[-1] <= 6 else pr.paged.from_array(x[..., :6], pager=PAGER)
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    name = data.draw(st.sampled_from(["cumsum", "cumprod"]))
    expected = getattr(np, name)(x, axis=axis)
    got = getattr(np, name)(a, axis=axis)
    assert type(got) is pr.paged.PagedArray
    same(
        got.load(),
        expected,
        1e-4 if expected.dtype == np.float32 else 1e-11 if expected.dtype.kind == "f" else 0,
    )
    out = np.empty_like(expected)
    assert getattr(np, name)(a, axis=axis, out=out) is out
    same(out, got.load())


@settings(max_examples=100)
@given(st.data())
def test_in_place(data):
    x, a = draw_array(data, FLOATS[:2] + OTHERS[:2])
    x = x.copy()
    with np.errstate(all="ignore"):
        a += 1
        x += 1
        np.multiply(a, 2, out=a, where=x > 3)
        np.multiply(x, 2, out=x, where=x > 3)
        if len(x) > 1 and a._perm == tuple(range(a.ndim)):
            a.rows(1, len(x))[...] = a.rows(0, len(x) - 1) * 2  # the bytes overlap
            x[1:] = x[:-1] * 2
    np.testing.assert_array_equal(a.load(), x)


@settings(max_examples=60)
@given(st.data())
def test_quantiles_and_counts(data):
    x, a = draw_array(data, FLOATS[1:2] + OTHERS[:2])
    axis = draw_axis(data, x.ndim)
    q = [0, 0.3, 0.5, 1]
    assume(not np.isinf(x).any())  # NumPy interpolates between infinities and gets NaN
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(np.quantile(a, q, axis=axis), np.quantile(x, q, axis=axis), rtol=1e-12)
        np.testing.assert_allclose(np.median(a, axis=axis), np.median(x, axis=axis), rtol=1e-12)
    assert a.unique_count() == len(np.unique(x))
    if np.isfinite(x).all():
        for bins in (5, [-3, 0, 2, 20]):
            counts, edges = np.histogram(a, bins)
            expected, at = np.histogram(x, bins)
            np.testing.assert_array_equal(counts, expected)
            np.testing.assert_allclose(edges, at)


@settings(max_examples=100)
@given(st.data())
def test_products(data):
    m, k, n = (data.draw(st.integers(1, 9)) for _ in range(3))
    rng = np.random.default_rng(0)
    dtype = data.draw(st.sampled_from([np.dtype("f4"), np.dtype("f8"), np.dtype("i8"), BF16, np.dtype("i1")]))
    x, y = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((m, k), (k, n)))
    a = pr.paged.from_array(x, order=data.draw(st.sampled_from("CF")), pager=PAGER)
    b = pr.paged.from_array(y, order=data.draw(st.sampled_from("CF")), pager=PAGER)
    expected = x.astype(np.int64) @ y.astype(np.int64)
    for left, right in ((a, y), (x, b), (a, b)):
        got = left @ right
        assert got.dtype == (np.int32 if dtype == np.int8 else dtype)
        np.testing.assert_array_equal(got.astype(np.float64), expected)
    np.testing.assert_array_equal((b.T @ a.T).astype(np.float64), expected.T)
    np.testing.assert_array_equal((a @ y[:, 0]).astype(np.float64), expected[:, 0])
    np.testing.assert_array_equal((x[0] @ b).astype(np.float64), expected[0])
    np.testing.assert_array_equal(np.einsum("ik,kj->ij", a, b).astype(np.float64), expected)
    np.testing.assert_array_equal(np.einsum("ik,kj->ji", a, y).astype(np.float64), expected.T)
    np.testing.assert_array_equal(np.tensordot(a, y, 1).astype(np.float64), expected)
    out = pr.paged.empty((m, n), np.result_type(dtype, np.float32), pager=PAGER)
    if np.can_cast(dtype, out.dtype, "same_kind") and dtype != np.int8:
        assert np.matmul(a, b, out=out) is out
        np.testing.assert_array_equal(out.load(), expected)
    assert math.isclose(float(np.vdot(a, x)), float((x.astype(np.int64) ** 2).sum()), rel_tol=0.02)
