"""Which branches TopK chooses, against sorting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunus as pr
from prunus import _core
from prunus.pruning.policies import largest

SOME = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan, -np.nan, 1e-45, 3e38])


@pytest.fixture(name="rng")
def generator():
    return np.random.default_rng(7)


def by_sorting(row, wanted, visible):
    order = sorted(
        np.flatnonzero(visible), key=lambda j: (not np.isnan(row[j]), -np.nan_to_num(row[j], nan=0), j)
    )
    live = np.zeros(len(row), bool)
    live[order[:wanted]] = True
    return live


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_the_largest_of_each_row(dtype, data):
    rows, n = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 9))
    values = np.array(data.draw(st.lists(SOME, min_size=rows * n, max_size=rows * n)), dtype).reshape(rows, n)
    visible = np.array(
        data.draw(st.lists(st.booleans(), min_size=rows * n, max_size=rows * n)), bool
    ).reshape(rows, n)
    if data.draw(st.booleans()):
        visible[...] = True
    wanted = np.array([data.draw(st.integers(0, int(row.sum()))) for row in visible], np.int64)
    got = largest(values, wanted, None if visible.all() else visible)
    assert got.shape == (rows, n)
    for i in range(rows):
        np.testing.assert_array_equal(got[i], by_sorting(values[i], wanted[i], visible[i]))


def by_partition(values, wanted, visible):
    """The same in NumPy, without a loop over rows."""
    rows, n = values.shape
    if not n or not rows:
        return np.zeros((rows, n), bool)
    nan = np.isnan(values)
    keys = np.where(nan, np.inf, values)
    if visible is not None:
        nan &= visible
        keys[~visible] = -np.inf
    at = n - np.clip(wanted, 1, n)
    cut = np.take_along_axis(np.sort(keys, axis=1), at[:, None], axis=1)
    above = nan | (keys > cut)
    ties = (keys == cut) & ~above
    if visible is not None:
        ties &= visible
    live = above | (ties & (np.cumsum(ties, axis=1) <= (wanted - above.sum(axis=1))[:, None]))
    return live & (np.cumsum(live, axis=1) <= wanted[:, None])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_long_rows(dtype, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, n = data.draw(st.integers(1, 5)), data.draw(st.integers(900, 6000))
    values = rng.standard_normal((rows, n)).astype(dtype)
    floor = data.draw(st.sampled_from([-9.0, 0.0, 1.5, 9.0]))
    values = np.maximum(values, dtype(floor))
    odd = rng.random((rows, n)) < data.draw(st.sampled_from([0.0, 0.001, 0.3]))
    values[odd] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], odd.sum())
    visible = rng.random((rows, n)) < 0.7 if data.draw(st.booleans()) else None
    seen = np.full(rows, n) if visible is None else visible.sum(axis=1)
    share = data.draw(st.sampled_from([0.0, 0.001, 0.1, 0.4, 0.999, 1.0]))
    wanted = np.ceil(share * seen).astype(np.int64)
    np.testing.assert_array_equal(largest(values, wanted, visible), by_partition(values, wanted, visible))


@pytest.mark.parametrize("threads", [1, 3])
def test_many_rows_whatever_the_threads(rng, threads):
    values = rng.standard_normal((70, 1500)).astype(np.float32)
    wanted = np.arange(70) * 20
    with pr.num_threads(threads):
        np.testing.assert_array_equal(largest(values, wanted, None), by_partition(values, wanted, None))


def test_any_strides_and_floats(rng):
    wanted = np.array([3, 0, 7])
    for values in (
        rng.standard_normal((2000, 3)).T,
        rng.standard_normal((3, 4000))[:, ::-2],
        rng.standard_normal((3, 50)).astype(np.float16),
        rng.standard_normal((3, 50)).astype(">f4"),
        np.frombuffer(b"\0" + rng.standard_normal(60).tobytes(), np.uint8)[1:].view("f8").reshape(3, 20),
        np.broadcast_to(rng.standard_normal((3, 1)), (3, 30)),
    ):
        visible = np.broadcast_to(rng.random(values.shape[1]) < 0.8, values.shape)
        for seen in (None, visible):
            np.testing.assert_array_equal(largest(values, wanted, seen), by_partition(values, wanted, seen))


def test_bad_arrays_are_errors():
    values, wanted, out = np.zeros((2, 3), np.float32), np.ones(2, np.int64), np.zeros((2, 3), np.int8)
    with pytest.raises(ValueError, match="wanted: expected 2 x 1, got 3 x 1"):
        _core.largest(values, np.ones(3, np.int64), None, out, 1)
    with pytest.raises(ValueError, match=r"expected shape \[2, 3\], got \[2, 4\]"):
        _core.largest(values, wanted, np.zeros((2, 4), np.uint8), out, 1)
    with pytest.raises(ValueError, match=r"expected shape \[2, 3\], got \[3, 2\]"):
        _core.largest(values, wanted, None, out.T, 1)
    with pytest.raises(ValueError, match="read-only"):
        _core.largest(values, wanted, None, np.broadcast_to(np.int8(0), (2, 3)), 1)
    with pytest.raises(TypeError, match="largest values"):
        _core.largest(values.astype(np.int32), wanted, None, out, 1)
    with pytest.raises(ValueError, match="C order"):
        _core.largest(values, wanted, None, np.zeros((3, 2), np.int8).T, 1)
