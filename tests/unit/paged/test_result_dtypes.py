"""Results of NumPy's functions on disk have the dtypes that NumPy's have, and warn where those warn."""

import numpy as np
import pytest

import prunus as pr
from prunus.paged import pagers

PAGER = pagers.new_pager(1 << 20)


@pytest.fixture(name="rng")
def generator():
    return np.random.default_rng(5)


def on_disk(x):
    return pr.paged.from_array(x, pager=PAGER)


def same(got, expected, tolerance=1e-6):
    assert got.dtype == expected.dtype
    assert type(got) is type(expected)
    np.testing.assert_allclose(got, expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1"])
@pytest.mark.parametrize("q", [5, [5, 50, 95], np.float64(50), np.float32(5), np.array([5], "f4"), (25, 75)])
@pytest.mark.parametrize("axis", [None, 0, (0, 1)])
def test_percentiles(rng, dtype, q, axis):
    x = (rng.random((7, 5)) * 100).astype(dtype)
    a = on_disk(x)
    same(np.percentile(a, q, axis=axis), np.percentile(x, q, axis=axis), 1e-3)
    share = np.true_divide(q, 100)
    share = share if isinstance(q, (np.ndarray, np.generic)) else share.tolist()
    same(np.quantile(a, share, axis=axis), np.quantile(x, share, axis=axis), 1e-3)
    same(a.quantile(share, axis=axis), np.quantile(x, share, axis=axis), 1e-3)
    same(np.median(a, axis=axis), np.median(x, axis=axis), 1e-3)


def test_percentiles_out_of_range():
    with pytest.raises(ValueError, match="range"):
        np.percentile(on_disk(np.ones(3)), 101)
    with pytest.raises(ValueError, match="range"):
        np.quantile(on_disk(np.ones(3)), 2)


@pytest.mark.parametrize("dtype", ["?", "i1", "f4"])
@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 2.0, True, np.int8(2)])
def test_powers(dtype, exponent):
    x = np.array([0, 1, 1]).astype(dtype)
    same((on_disk(x) ** exponent).load(), x**exponent)
    same(((on_disk(x) == 1) ** exponent).load(), (x == 1) ** exponent)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "i4", "?"])
@pytest.mark.parametrize("ord", [None, 0, 1, 2, 3, -1, np.inf, -np.inf])
@pytest.mark.parametrize("keepdims", [False, True])
def test_norms(rng, dtype, ord, keepdims):
    x = 1 + rng.random((4, 3)) * 9 + 1j * rng.random((4, 3)) * (np.dtype(dtype).kind == "c")
    x = (x if np.dtype(dtype).kind == "c" else x.real).astype(dtype)
    a = on_disk(x)
    for axis in (0, -1):
        got = np.linalg.norm(a, ord, axis=axis, keepdims=keepdims)
        same(got, np.linalg.norm(x, ord, axis=axis, keepdims=keepdims), 4e-3 if dtype == "f2" else 1e-5)
    if ord is None:
        same(np.linalg.norm(a), np.linalg.norm(x), 4e-3 if dtype == "f2" else 1e-5)
        same(np.linalg.norm(a, "fro"), np.linalg.norm(x, "fro"), 4e-3 if dtype == "f2" else 1e-5)
        return
    for axis in (None, 0, (0, 1)):
        got = np.linalg.vector_norm(a, axis=axis, ord=ord, keepdims=keepdims)
        expected = np.linalg.vector_norm(x, axis=axis, ord=ord, keepdims=keepdims)
        same(got, expected, 4e-3 if dtype == "f2" else 1e-5)


def test_norms_that_are_none():
    a = on_disk(np.ones((3, 2)))
    with pytest.raises(ValueError, match="norm order"):
        np.linalg.norm(a, "fro", axis=0)
    with pytest.raises(TypeError, match="not supported"):
        np.linalg.norm(a, 2)


@pytest.mark.parametrize("bins", [10, 2, [0, 1, 2]])
@pytest.mark.parametrize("limits", [None, (0, 1)])
def test_histograms_of_booleans(rng, bins, limits):
    x = rng.random(50) < 0.3
    with pytest.warns(RuntimeWarning) as expected:
        counts, edges = np.histogram(x, bins, limits)
    for value in (on_disk(x), on_disk(x.astype("f4")) > 0):
        with pytest.warns(RuntimeWarning) as told:
            got, at = np.histogram(value, bins, limits)
        assert [str(w.message) for w in told] == [str(w.message) for w in expected]
        assert told[0].filename == __file__
        same(got, counts)
        np.testing.assert_array_equal(at, edges)
