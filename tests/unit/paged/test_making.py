"""How arrays on disk are made: shapes as NumPy takes them, dtypes on the way, and keywords."""

import re

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from prunus.paged import pagers

PAGER = pagers.new_pager(1 << 20)
MAKERS = [pr.paged.zeros, pr.paged.empty, lambda shape, **how: pr.paged.full(shape, 0, **how)]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "shape", [3, np.int64(3), (), (2, np.int8(3)), [2, 3], np.array([2, 3]), (0, 4), range(3)]
)
def test_shapes(make, shape):
    assert make(shape, pager=PAGER).shape == np.zeros(shape).shape


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [3.0, True, None, (2.0, 3), "ab", -1, (2, -3)])
def test_what_is_no_shape(make, shape):
    if shape is None:
        with pytest.raises(TypeError, match="sequence of integers"):
            make(shape, pager=PAGER)
        return
    with pytest.raises((TypeError, ValueError)) as expected:
        np.zeros(shape)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        make(shape, pager=PAGER)


@pytest.mark.parametrize("dtype", ["f8", "i2", BF16, "bfloat16", ">f4", np.complex64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_copies_in_another_dtype(tmp_path, dtype, order):
    x = np.arange(12, dtype="f4").reshape(3, 4) * 1.5
    to = BF16 if dtype == "bfloat16" else np.dtype(dtype)
    a = pr.paged.from_array(x, pager=PAGER)
    for value in (x, a, a * 1, a.T.T, x.tolist()):
        got = pr.paged.from_array(value, tmp_path / "x.npy", dtype=dtype, order=order, pager=PAGER)
        assert got.dtype == to
        np.testing.assert_array_equal(got.load(), x.astype(to))
        assert got.load().flags.f_contiguous == (order == "F")


def test_copies_of_lists_that_do_not_fit(tmp_path):
    path = tmp_path / "x.npy"
    for value, dtype, error in (
        ([300], "u1", OverflowError),
        ([1j], "f4", TypeError),
        (np.nan, "i4", ValueError),
    ):
        with pytest.raises(error):
            pr.paged.from_array(value, path, dtype=dtype, pager=PAGER)
    assert not path.exists()


@pytest.mark.parametrize("make", [*MAKERS, pr.paged.from_array])
def test_keywords_that_there_are_not(make):
    with pytest.raises(TypeError, match="folder"):
        make((2, 3), folder="/")
