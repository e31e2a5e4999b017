"""Python numbers that do not fit: refused as NumPy refuses them, and nothing of them is written."""

import warnings

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from prunus.paged import pagers

PAGER = pagers.new_pager(1 << 20)
CASES = [
    ("u1", 300), ("u1", -1), ("u1", 7), ("u1", [1, 300, 2]), ("u1", (0, 255, 1)), ("u1", True), ("u1", 2.7),
    ("i4", 2**40), ("i4", np.nan), ("i4", [1, np.inf, 2]), ("i4", "12"), ("i4", np.float64("nan")),
    ("i4", np.int64(2**40)), ("i8", 2**70), ("u8", 2**63), ("u8", -1), ("f4", 1j), ("f4", [1j, 2, 3]),
    ("f4", "x"), ("f4", np.complex64(1 + 2j)), ("f4", np.arange(3) * 1j), ("f4", 2**70), ("f2", 1e9),
    ("?", 2.5), ("c8", 1j), ("i4", None), ("f8", None),
    ("i2", np.array([1.5, 70000, 2])), ("f4", [1, [2], 3]),
]  # fmt: skip


def outcome(do, x):
    """Return the error's type, the values where there was none, and which warnings there were."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            do(x)
            error = None
        except (ValueError, TypeError, OverflowError) as raised:
            error = type(raised)
    found = x.load() if isinstance(x, pr.paged.PagedArray) else x
    if error is not None and isinstance(x, pr.paged.PagedArray):
        assert found.tolist() == np.arange(3).astype(found.dtype).tolist()  # nothing was written
    return error, error or repr(found.tolist()), sorted({w.category.__name__ for w in told})


def pair(dtype):
    return np.arange(3).astype(dtype), pr.paged.from_array(np.arange(3).astype(dtype), pager=PAGER)


@pytest.mark.parametrize(("dtype", "value"), CASES)
@pytest.mark.parametrize("key", [1, slice(None), [0, 2], ...], ids=str)
def test_assignment(dtype, value, key):
    if key == 1 and np.ndim(np.array(value, object)):
        pytest.skip("NumPy refuses sequences for one place in its own words")
    if key == [0, 2] and isinstance(value, np.generic):
        pytest.skip("there NumPy casts its own scalars without a look at them, and only there")
    x, a = pair(dtype)

    def do(z):
        z[key] = value

    assert outcome(do, a) == outcome(do, x)


@pytest.mark.parametrize(("dtype", "value"), [("u1", 300), ("f4", 1j), ("i4", np.nan), ("u1", 7)])
def test_assignment_by_a_mask_on_disk(dtype, value):
    x, a = pair(dtype)

    def do(z):
        z[z > 0] = value

    assert outcome(do, a) == outcome(do, x)


@pytest.mark.parametrize(("dtype", "value"), CASES)
def test_copyto(dtype, value):
    x, a = pair(dtype)
    assert outcome(lambda z: np.copyto(z, value), a) == outcome(lambda z: np.copyto(z, value), x)
    x, a = pair(dtype)

    def some(z):
        np.copyto(z, value, where=[True, False, True])

    assert outcome(some, a) == outcome(some, x)


@pytest.mark.parametrize(
    ("dtype", "value", "error"),
    [
        ("u1", [300], OverflowError),
        ("u1", [-1], OverflowError),
        ("u1", np.array([1]), TypeError),
        ("u1", [1.5], TypeError),
        ("i4", [2**40], OverflowError),
        ("i4", [np.nan], TypeError),
        ("i4", np.array([1.5]), TypeError),
        ("f4", [1j], TypeError),
        ("f4", np.array([1j]), TypeError),
        ("?", [2], TypeError),
    ],
)
def test_append_refuses_and_leaves_the_array(dtype, value, error):
    x, a = pair(dtype)
    with pytest.raises(error):
        a.append(value)
    if isinstance(value, np.ndarray):
        with pytest.raises(error):
            a.append(pr.paged.from_array(value, pager=PAGER))
        with pytest.raises(TypeError):
            np.concatenate([x, value], dtype=x.dtype)
    assert a.load().tolist() == x.tolist()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("u1", [255, 0]),
        ("u1", np.uint8([3])),
        ("i4", np.array([2])),
        ("f4", [1]),
        ("f4", np.array([0.5])),
        ("f4", [0.5, 2]),
        (BF16, [0.5, 2]),
        ("c8", [1j]),
        ("i4", []),
    ],
)
def test_append_takes_what_is_cast(dtype, value):
    x, a = pair(dtype)
    a.append(value)
    assert a.load().tolist() == [*x.tolist(), *np.asarray(value).astype(dtype).tolist()]


def test_full(tmp_path):
    path = tmp_path / "f.npy"
    for value, dtype, error in [
        (300, "u1", OverflowError),
        ([1, -1], "u1", OverflowError),
        (np.nan, "i4", ValueError),
        (1j, "f4", TypeError),
    ]:
        with pytest.raises(error):
            pr.paged.full((3, 2), value, dtype, path, pager=PAGER)
        assert not path.exists()
    assert pr.paged.full((3, 2), [1, 2.5], "u1", pager=PAGER).load().tolist() == [[1, 2]] * 3
    source = pr.paged.from_array([1.5, 2], pager=PAGER)
    assert pr.paged.full(2, source, path=path, pager=PAGER).load().tolist() == [1.5, 2]


def test_records():
    a = pr.paged.zeros(2, [("n", "u1"), ("x", "f8")], pager=PAGER)
    a[0] = (3, 0.5)
    a[1:] = [(4, 1.5)]
    assert a.load().tolist() == [(3, 0.5), (4, 1.5)]
    with pytest.raises(OverflowError):
        a[0] = (300, 0.5)


def test_a_chain_in_place_refuses_what_does_not_fit():
    x, a = pair("u1")

    def do(z):
        z += 300

    assert outcome(do, a)[0] is OverflowError
    assert outcome(do, a) == outcome(do, x)
