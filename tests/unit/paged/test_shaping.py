"""Views of other shapes, picked entries and running sums against NumPy; and what the refusals advise."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from prunus.paged import pagers

PAGER = pagers.new_pager(1 << 20)
X = np.arange(24, dtype="f4").reshape(2, 3, 4)


def on_disk(x, order="C"):
    return pr.paged.from_array(x, order=order, pager=PAGER)


def is_view(got, expected):
    assert type(got) is pr.paged.PagedArray
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got.load(), expected)
    if got.size:
        key = (0,) * got.ndim
        got[key] = -5
        changed = expected.copy()
        changed[key] = -5
        np.testing.assert_array_equal(got.load(), changed)


VIEWS = [
    np.ravel,
    lambda z: z.ravel(),
    lambda z: np.swapaxes(z, 0, -1),
    lambda z: z.swapaxes(1, 2),
    lambda z: z.mT,
    np.matrix_transpose,
    np.linalg.matrix_transpose,
    lambda z: np.permute_dims(z, (2, 0, 1)),
    lambda z: np.moveaxis(z, 0, -1),
    lambda z: np.moveaxis(z, [0, -1], [1, 0]),
    lambda z: np.moveaxis(z, (), ()),
    lambda z: np.expand_dims(z, 0),
    lambda z: np.expand_dims(z, -1),
    lambda z: np.expand_dims(z, (1, 3)),
    lambda z: np.expand_dims(z, (-1, 0)),
    lambda z: np.expand_dims(np.swapaxes(z, 0, 1), (2, 4)),
    lambda z: np.squeeze(np.expand_dims(z, (1, 4))),
    lambda z: np.squeeze(np.expand_dims(z, (1, 4)), 4),
    lambda z: np.squeeze(np.expand_dims(z.T, (1, 4)), (1, -1)),
    lambda z: np.expand_dims(z, 1).squeeze(1),
    np.squeeze,
    np.atleast_2d,
    lambda z: np.atleast_3d(z.ravel()),
    lambda z: np.atleast_2d(z.ravel()),
    lambda z: np.atleast_3d(z.reshape(6, 4)),
    lambda z: z.squeeze(()),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("order", ["C", "F", "turned"])
def test_views(view, order):
    x, a = X.copy(), on_disk(X, "C" if order == "turned" else order)
    if order == "turned":
        x, a = np.moveaxis(x, 0, 2), np.moveaxis(a, 0, 2)
    try:
        got = view(a)
    except ValueError as error:
        assert "copy" in str(error)  # noqa: PT017 - of a reshape, whose order on disk is another
        assert order != "C"
        return
    is_view(got, view(x))


def test_scalars_and_several():
    for function in (np.atleast_1d, np.atleast_2d, np.atleast_3d):
        is_view(function(on_disk(np.array(3.0))), function(np.array(3.0)))
    first, second = np.atleast_2d(on_disk(X), 7)
    assert first.shape == X.shape
    assert second.tolist() == [[7]]
    one = on_disk(np.array([[3.0]]))
    assert np.squeeze(one).shape == ()
    assert (on_disk(X) + 1).swapaxes(0, 2).load().tolist() == (X + 1).swapaxes(0, 2).tolist()
    assert (on_disk(X) + 1).mT.load().tolist() == (X + 1).mT.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda z: np.squeeze(z, 0),
        lambda z: np.squeeze(z, 5),
        lambda z: np.expand_dims(z, 5),
        lambda z: np.expand_dims(z, (0, 0)),
        lambda z: np.swapaxes(z, 0, 5),
        lambda z: np.moveaxis(z, 0, 5),
        lambda z: np.moveaxis(z, (0, 1), 0),
        lambda z: np.matrix_transpose(z.ravel()),
        lambda z: z.ravel().mT,
        lambda z: np.take(z, 24),
        lambda z: np.take(z, [-25]),
        lambda z: np.take(z, 3, axis=1),
        lambda z: np.take(z, 0, axis=3),
        lambda z: np.take(z, 0, mode="no"),
        lambda z: np.take(z, [1], out=np.zeros(2)),
        np.cumulative_sum,
    ],
)
def test_what_numpy_refuses(wrong):
    with pytest.raises((ValueError, IndexError)) as expected:
        wrong(X)
    with pytest.raises(expected.type):
        wrong(on_disk(X))


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize(
    "indices",
    [
        1,
        np.int8(-2),
        [0, -1, 0],
        [[1], [0]],
        [],
        np.array([1, 0], "u8"),
        np.zeros((0, 2), int),
        [True, False],
    ],
    ids=str,
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_take(axis, indices, order):
    a = on_disk(X, order)
    expected = np.take(X, indices, axis)
    for got in (np.take(a, indices, axis), a.take(indices, axis=axis), (a + 0).take(indices, axis)):
        assert type(got) is type(expected)
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got, expected)
    for mode, more in (("wrap", 7), ("clip", 7), ("clip", -30)):
        far = np.asarray(indices, int) + more
        np.testing.assert_array_equal(np.take(a, far, axis, mode=mode), np.take(X, far, axis, mode=mode))
    for out in (np.empty(expected.shape), pr.paged.empty(expected.shape, pager=PAGER)):
        assert np.take(a, indices, axis, out=out) is out
        np.testing.assert_array_equal(out[...], expected)


def test_take_from_what_does_not_lie_on_disk():
    with pytest.raises(TypeError, match="integers"):
        np.take(on_disk(X), [0.5])
    with pytest.raises(IndexError, match="empty"):
        np.take(on_disk(X[:, :0]), [0], axis=1, mode="wrap")
    with pytest.raises(TypeError, match="out="):
        np.take(X, [0], out=pr.paged.empty(1, "f4", pager=PAGER))


def test_casts():
    a = on_disk(X)
    assert a.astype("f4", copy=False) is a
    assert np.astype(a, "f4", copy=False) is a
    for got in (np.astype(a, "f8"), a.astype(BF16, copy=False), np.astype(a, "f4")):
        assert type(got) is pr.paged.PagedExpr
    np.testing.assert_array_equal(np.astype(a, "i2").load(), X.astype("i2"))
    with pytest.raises(ValueError, match="cpu"):
        np.astype(a, "f8", device="cuda")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumulative(axis):
    a = on_disk(X + 1)
    got = np.cumulative_sum(a, axis=axis)
    np.testing.assert_allclose(got.load(), np.cumulative_sum(X + 1, axis=axis))
    out = np.empty(X.shape)
    assert np.cumulative_prod(a, axis=axis, dtype="f8", out=out) is out
    np.testing.assert_allclose(out, np.cumulative_prod(X + 1, axis=axis, dtype="f8"))
    np.testing.assert_allclose(np.cumulative_sum(a.ravel()).load(), np.cumulative_sum(X.ravel() + 1))
    with pytest.raises(TypeError, match="include_initial"):
        np.cumulative_sum(a, axis=axis, include_initial=True)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "c8", "?"])
@pytest.mark.parametrize("axis", [None, 0, (0, 2)])
@pytest.mark.parametrize("name", ["var", "std"])
def test_deviations_from_a_given_mean(dtype, axis, name):
    x = ((X - 7) * (1 + 0.5j if dtype == "c8" else 1)).astype(dtype)
    a = on_disk(x)
    kept = np.mean(x, axis=axis, keepdims=True)
    some = X % 5 < 4
    for options in (
        {},
        {"ddof": 1},
        {"correction": 1},
        {"keepdims": True},
        {"where": some},
        {"mean": kept + 1},
    ):
        given = {"mean": kept, **options}
        expected = getattr(np, name)(x, axis=axis, **given)
        for got in (getattr(np, name)(a, axis=axis, **given), getattr(a, name)(axis=axis, **given)):
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=2e-3 if dtype == "f2" else 2e-6)
    out = np.empty(np.shape(np.var(x, axis=axis)))
    assert getattr(np, name)(a, axis=axis, mean=kept, out=out) is out
    with pytest.warns(RuntimeWarning, match="Degrees of freedom"):
        getattr(np, name)(a, axis=axis, mean=kept, ddof=100)


ADVICE = {
    "unique_count": np.unique,
    r"a\.append": lambda a: np.concatenate([a, a]),
    r"np\.append .*a\.append": lambda a: np.append(a, 3),
    r"a\.rows\(1\) - a\.rows\(0, -1\)": lambda a: np.diff(a, axis=0),
    "without NaN": np.nanmedian,
    r"pr\.paged\.zeros": np.zeros_like,
    r"pr\.paged\.empty": np.empty_like,
    r"pr\.paged\.full\(a\.shape, 1": np.ones_like,
    r"pr\.paged\.full\(a\.shape, value": lambda a: np.full_like(a, 3),
    r"a\.rows\(begin, end\)": lambda a: np.split(a, 2),
    r"np\.sort is not supported for arrays on disk; call \.load\(\)": np.sort,
}


@pytest.mark.parametrize("words", ADVICE)
def test_refusals_say_what_to_do(words):
    with pytest.raises(TypeError, match=words) as refused:
        ADVICE[words](on_disk(X))
    assert ".load()" in str(refused.value) or "load()" in str(refused.value)


def test_the_advice_does_what_it_says():
    a = on_disk(X)
    assert a.unique_count() == len(np.unique(X))
    np.testing.assert_array_equal((a.rows(1) - a.rows(0, -1)).load(), np.diff(X, axis=0))
    x = X.copy()
    x[0, 0] = np.nan
    b = on_disk(x)
    assert np.median(b[~np.isnan(b)]) == np.nanmedian(x)
    np.testing.assert_array_equal(a[a != 0], X[X != 0])
    assert pr.paged.full(a.shape, 1, a.dtype, pager=PAGER).load().tolist() == np.ones_like(X).tolist()
