"""Products with arrays on disk that have no rows, no columns or nothing to sum: NumPy's."""

import itertools

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from prunus.paged import pagers

SIZES = list(itertools.product((0, 3), repeat=3))


@pytest.fixture(name="pager", scope="module")
def small_pager():
    return pagers.new_pager(1 << 20)


def same(got, want):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(np.asarray(got), want)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "i4", "c8", BF16], ids=str)
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_matrices(pager, dtype, m, k, n):
    x, y = np.ones((m, k), dtype), np.ones((k, n), dtype)
    want = (x @ y).astype({"i1": "i4", BF16: BF16}.get(dtype, dtype))  # the package's dtypes for these two
    for order in "CF":
        a, b = (pr.paged.from_array(one, order=order, pager=pager) for one in (x, y))
        for left, right in ((a, b), (a, y), (x, b), (a + 0, b), (a, b * 1)):
            same(left @ right, want)
            same((right.T @ left.T).T, want)
        for out in (np.full((m, n), 7, want.dtype), pr.paged.full((m, n), 7, want.dtype, pager=pager)):
            pr.matmul(a, y, out=out)
            same(out[...], want)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", BF16], ids=str)
@pytest.mark.parametrize(("m", "k"), list(itertools.product((0, 3), repeat=2)))
def test_vectors(pager, dtype, m, k):
    x, v, w = np.ones((m, k), dtype), np.ones(k, dtype), np.ones(m, dtype)
    a, b, c = (pr.paged.from_array(one, pager=pager) for one in (x, v, w))
    for right in (v, b):
        same(a @ right, (x @ v).astype(dtype))
        same(np.dot(a, right), (x @ v).astype(dtype))
    for left in (w, c):
        same(left @ a, (w @ x).astype(dtype))
    same(x @ b, (x @ v).astype(dtype))
    same(np.asarray(b @ b), np.asarray(v @ v, dtype))
    same(np.asarray(np.vdot(b, v)), np.asarray(v @ v, dtype))


@pytest.mark.parametrize(("batch", "m", "k", "n"), list(itertools.product((0, 2), repeat=4)))
def test_batches_and_contractions(pager, batch, m, k, n):
    x, y, z = (np.ones(shape, np.float32) for shape in ((batch, m, k), (k, n), (batch, k, n)))
    a, b, c = (pr.paged.from_array(one, pager=pager) for one in (x, y, z))
    for right in (y, b):
        same(a @ right, x @ y)
        same(np.tensordot(a, right, 1), np.tensordot(x, y, 1))
        same(np.einsum("bij,jk->bik", a, right), np.einsum("bij,jk->bik", x, y))
    for right in (z, c):
        same(a @ right, x @ z)
    same(x @ c, x @ z)
