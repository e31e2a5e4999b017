"""Arrays in with blocks, what closed and temporary ones say of themselves, and what refuses in words."""

import os

import numpy as np
import pytest

import prunus as pr
from prunus.paged import pagers


@pytest.fixture(name="path")
def a_file(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6.0).reshape(3, 2))
    return path


@pytest.fixture(name="pager")
def small_pager():
    return pagers.new_pager(1 << 20)


def test_with_closes(path, pager):
    with pr.open(path, mode="r+", pager=pager) as a:
        a[0] = 7
    assert np.load(path)[0].tolist() == [7, 7]
    with pytest.raises(ValueError, match="closed"):
        a.load()
    with pytest.raises(ValueError, match="closed"), a:
        pass
    with pytest.raises(KeyError), pr.paged.open(path, pager=pager) as b:
        raise KeyError
    with pytest.raises(ValueError, match="closed"):
        b.sum()
    a.close()  # once more does nothing
    with pr.open(path, pager=pager) as c:
        c.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda a: a[0],
        lambda a: a[[0, 2], 1],
        lambda a: a.load(),
        lambda a: a.sum(),
        lambda a: (a + 1).load(),
        lambda a: (a + 1)[0],
        lambda a: np.ones(3) @ a,
        np.median,
        lambda a: a.flush(),
        lambda a: a.prefetch(),
        lambda a: a.append(np.ones((1, 2))),
        lambda a: a.__setitem__(0, 1),
        lambda a: a.__setitem__(..., a + 1),
        list,
    ],
)
def test_errors_name_the_closed_file(path, pager, use):
    a = pr.open(path, mode="r+", pager=pager)
    a.close()
    with pytest.raises(ValueError, match=r"a\.npy: the file is closed"):
        use(a)


def test_other_errors_stay_what_they_are(path, pager):
    a = pr.open(path, mode="r+", pager=pager)
    with pytest.raises(ValueError, match="broadcast"):
        a + np.ones(7)
    with pytest.raises(ValueError, match="broadcast"):
        a[...] = np.ones(7)


def test_repr(path, pager, tmp_path, monkeypatch):
    a = pr.open(path, pager=pager)
    assert repr(a) == f"<PagedArray (3, 2) float64, {str(path)!r}, read-only>"
    a.close()
    assert repr(a) == f"<PagedArray (3, 2) float64, {str(path)!r}, read-only, closed>"
    assert repr(a.T).endswith("closed>")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    b = pr.paged.zeros((3, 3), pager=pager)
    assert b.path.startswith(str(tmp_path))
    assert not os.path.exists(b.path)
    assert repr(b).endswith("(unlinked)>")
    c = pr.paged.zeros(3, path=tmp_path / "c.npy", pager=pager)
    assert repr(c) == f"<PagedArray (3,) float64, {str(tmp_path / 'c.npy')!r}>"


def test_copies_and_shared_memory_are_refused(path, pager):
    a = pr.open(path, pager=pager)
    for value in (a, a + 1):
        with pytest.raises(TypeError, match=r"48 bytes.*\.load\(\)"):
            np.copy(value)
        assert value.__dlpack_device__() == (1, 0)
        with pytest.raises(BufferError, match=r"\.load\(\)"):
            np.from_dlpack(value)
