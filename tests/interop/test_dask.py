"""dask streams an array on disk chunk by chunk."""

import numpy as np
import pytest

import prunus as pr
from prunus.paged import pagers

da = pytest.importorskip("dask.array")


@pytest.fixture(name="pager")
def small_pager():
    return pagers.new_pager(1 << 20)


def test_from_array_streams(pager):
    x = np.random.default_rng(0).standard_normal((4000, 300)).astype(np.float32)
    a = pr.paged.from_array(x, pager=pager)
    before = pager.stats()["bytes_read"]
    d = da.from_array(a, chunks=(500, 300))
    assert pager.stats()["bytes_read"] == before, "making the dask array reads nothing"
    assert d.dtype == a.dtype
    np.testing.assert_array_equal(d[10:20, 5].compute(scheduler="threads"), x[10:20, 5])
    total = d.sum(axis=0).compute(scheduler="threads")
    np.testing.assert_allclose(total, x.sum(axis=0, dtype=np.float64), rtol=1e-4, atol=1e-3)


def test_chunks_of_the_array_are_used(pager):
    a = pr.paged.zeros((5000, 4000), np.float32, pager=pager)
    d = da.from_array(a)
    assert d.chunks[1] == (4000,), "a chunk is a run of rows"
    assert a.chunks[1] == 4000
    assert a.chunks[0] * 4000 * 4 <= 16 << 20


def test_two_arrays_have_two_names(pager):
    a, b = (pr.paged.full((8, 8), v, pager=pager) for v in (1.0, 2.0))
    one, two = da.from_array(a, chunks=4), da.from_array(b, chunks=4)
    assert one.name != two.name
    np.testing.assert_array_equal((one + two).compute(scheduler="threads"), np.full((8, 8), 3.0))
