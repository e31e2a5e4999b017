"""Arrays on disk as objects: files, views, growing, pickling, and what they refuse."""

import gc
import os
import pickle
import weakref

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from prunus.paged import evaluate, pagers, store
from support import plain_pager

X = np.arange(60, dtype=np.float32).reshape(12, 5)


@pytest.fixture(name="pager")
def small_pager():
    return pagers.new_pager(1 << 20)


@pytest.fixture(name="a")
def array(tmp_path, pager):
    return pr.paged.from_array(X, tmp_path / "a.npy", pager=pager)


def test_attributes(a, tmp_path):
    assert (a.shape, a.ndim, a.size, a.nbytes, a.itemsize, len(a)) == ((12, 5), 2, 60, 240, 4, 12)
    assert a.dtype == np.float32
    assert a.path == str(tmp_path / "a.npy")
    assert a.T.shape == (5, 12)
    assert "(12, 5) float32" in repr(a)
    assert np.shape(a) == (12, 5)
    assert np.size(a, 1) == 5


@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.complex64, bool, ">i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_reads_what_was_written(tmp_path, pager, dtype, order):
    path = tmp_path / "b.npy"
    b = pr.paged.from_array(X.astype(dtype), path, order=order, pager=pager)
    b.flush()
    got = np.load(path)
    np.testing.assert_array_equal(got, X.astype(dtype))
    assert got.dtype == dtype
    assert np.load(path, mmap_mode="r").offset == 4096
    np.save(path, np.asarray(X.astype(dtype), order=order))
    np.testing.assert_array_equal(pr.paged.open(path, pager=pager).load(), X.astype(dtype))


def test_bfloat16(tmp_path, pager):
    b = pr.paged.from_array(X.astype(BF16), tmp_path / "b.npy", pager=pager)
    again = pr.paged.open(tmp_path / "b.npy", pager=pager)
    assert again.dtype == BF16
    np.testing.assert_array_equal(again[3], X[3].astype(BF16))
    assert (b + 1.5).dtype == BF16
    assert (b + np.float32(1)).dtype == np.float32
    assert (b + X.astype(np.float16)).dtype == np.float32
    assert b.mean().dtype == BF16
    assert b.sum() == X.sum().astype(BF16)
    assert (b @ np.ones(5, BF16)).dtype == BF16


def test_zeros_take_no_room(tmp_path, pager):
    z = pr.paged.zeros((1000, 1000), path=tmp_path / "z.npy", pager=pager)
    assert not z[500].any()
    assert os.stat(tmp_path / "z.npy").st_blocks * 512 < 1 << 20
    assert pr.paged.full((3, 2), [1, 2], pager=pager).load().tolist() == [[1, 2]] * 3


def test_temporary_files_have_no_name(pager, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    t = pr.paged.zeros(10, pager=pager)
    assert list(tmp_path.iterdir()) == []
    t[3] = 1
    assert t.sum() == 1
    with pytest.raises(TypeError, match="not there"):
        pickle.dumps(t)


def test_conversions_are_refused(a):
    for convert in (np.asarray, np.array, lambda v: np.asarray(v + 1)):
        with pytest.raises(TypeError, match=r"\.load\(\)"):
            convert(a)
    with pytest.raises(BufferError, match=r"\.load\(\)"):
        np.from_dlpack(a) if hasattr(a, "__dlpack_device__") else a.__dlpack__()
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(a)
    with pytest.raises(TypeError, match=r"np.sort is not supported.*load"):
        np.sort(a)
    with pytest.raises(TypeError, match=r"np.add.outer"):
        np.add.outer(a, a)
    with pytest.raises(TypeError, match=r"a.save"):
        np.save("never.npy", a)
    with pytest.raises(TypeError, match="immutable"):
        np.add(a, 1, out=(a + 1))
    with pytest.raises(ValueError, match="load"):
        pr.paged.zeros((1001, 1000)).tolist()


def test_scalars_and_iteration(a):
    assert a[3, 2] == X[3, 2]
    assert a.item(7) == X.item(7)
    assert float(a[:1, :1].sum()) == 0.0
    for row, expected in zip(a, X, strict=True):
        np.testing.assert_array_equal(row, expected)
    assert 17.0 in a
    assert -17.0 not in a
    assert a.rows(2, 3).tolist() == X[2:3].tolist()
    assert bool(a.rows(0, 1).reshape(5).rows(1, 2))


def test_reshape_is_a_view_or_refused(a):
    flat = a.reshape(-1)
    flat[7] = -1
    assert a[1, 2] == -1
    np.testing.assert_array_equal(a.reshape(3, 4, 5).load(), a.load().reshape(3, 4, 5))
    with pytest.raises(ValueError, match="copy"):
        a.T.reshape(-1)
    with pytest.raises(ValueError, match="cannot reshape"):
        a.reshape(7, 7)


def test_read_only(tmp_path, pager):
    np.save(tmp_path / "r.npy", X)
    r = pr.paged.open(tmp_path / "r.npy", pager=pager)
    with pytest.raises(ValueError, match="cannot be written"):
        r[0] = 1
    with pytest.raises(ValueError, match="cannot be written"):
        r += 1
    w = pr.paged.open(tmp_path / "r.npy", "r+", pager=pager)
    w[0] = 9
    w.flush()
    assert (np.load(tmp_path / "r.npy")[0] == 9).all()


def test_append(a, tmp_path, pager):
    a.append(X[:3])
    a.append(np.multiply(a, 2))
    expected = np.concatenate([X, X[:3]])
    expected = np.concatenate([expected, expected * 2])
    np.testing.assert_array_equal(a.load(), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
    with pytest.raises(ValueError, match="do not fit"):
        a.append(np.zeros((2, 4)))
    for view in (a.T, a.rows(0, 2)):
        with pytest.raises(pr.PrunusError, match="cannot grow"):
            view.append(X)
    np.save(tmp_path / "n.npy", X)
    n = pr.paged.open(tmp_path / "n.npy", "r+", pager=pager)
    n.append(X)
    np.testing.assert_array_equal(np.load(tmp_path / "n.npy"), np.concatenate([X, X]))


def test_an_append_that_fails_leaves_the_file(a, tmp_path):
    bad = pr.paged.from_array(X)
    expression = bad + 1
    bad[0] = 3  # stale: assign raises
    with pytest.raises(pr.PrunusError, match="written after"):
        a.append(expression)
    assert os.path.getsize(a.path) == 4096 + X.nbytes
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), X)


def test_pickle(a, tmp_path):
    again = pickle.loads(pickle.dumps(a.T))
    np.testing.assert_array_equal(again.load(), X.T)
    a[0] = 5
    a.flush()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(a)).load(), a.load())
    blob = pickle.dumps(a)
    os.rename(a.path, tmp_path / "old.npy")
    np.save(a.path, X)
    with pytest.raises(OSError, match="replaced"):
        pickle.loads(blob)


def test_save_is_atomic(a, tmp_path):
    path = tmp_path / "s.npy"
    (a * 2).save(path)
    np.testing.assert_array_equal(np.load(path), X * 2)
    (pr.paged.open(path) + 1).save(path)  # onto its own source
    np.testing.assert_array_equal(np.load(path), X * 2 + 1)
    stale = a + 1
    a[0] = 7
    with pytest.raises(pr.PrunusError, match="written after"):
        stale.save(path)
    np.testing.assert_array_equal(np.load(path), X * 2 + 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "s.npy"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x01\x00\x02\x00{}", b"PK\x03\x04" * 8,
     b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr':'<f4','fortran_order':False,'shape':(9,9)}".ljust(63) + b"\n",
     b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr':'<f4','fortran_order':False,'shape':(-9,)}".ljust(63) + b"\n"],
)  # fmt: skip
def test_malformed_files(tmp_path, content):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(pr.PrunusError):
        pr.paged.open(tmp_path / "bad.npy")


def test_objects_are_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(TypeError, match="object"):
        pr.paged.open(tmp_path / "o.npy")


def test_expressions_know_that_a_source_was_written(a):
    lazy = a + 1
    other = pr.paged.open(a.path, "r+")
    other[0] = 1
    for use in (
        lazy.load,
        lazy.sum,
        lambda: lazy[0],
        lambda: np.add(lazy, 1).load(),
        (lazy * a).max,
    ):
        with pytest.raises(pr.PrunusError, match="written after"):
            use()
    np.testing.assert_array_equal((a + 1).load(), a.load() + 1)


def test_operands_in_memory_are_taken_as_they_were(a):
    y = np.ones(5, np.float32)
    lazy = a + y
    y[:] = 100
    np.testing.assert_array_equal(lazy.load(), X + 1)
    out = X.copy()
    np.add(a, out[::-1], out=out)
    np.testing.assert_array_equal(out, X + X[::-1])


def test_shared_parts_are_computed_once(a, monkeypatch):
    calls = []

    def counted(v):
        calls.append(1)
        return v + 1

    from prunus.paged.expr import apply

    shared = apply(counted, [a])
    calls.clear()
    with pr.num_threads(1):
        (shared * shared + shared).load()
    assert len(calls) == 1


def test_passes(pager):
    x = np.random.default_rng(0).standard_normal((3000, 100)).astype(np.float32)
    a = pr.paged.from_array(x, pager=pager)

    def read(function):
        before = pager.stats()["bytes_read"]
        function()
        return (pager.stats()["bytes_read"] - before) / a.nbytes

    assert read(lambda: a.std(axis=0)) <= 1.01
    assert read(lambda: a.stats("mean", "std", "max", axis=0)) <= 1.01
    assert read((a * a + a - a.T.T).load) <= 1.01
    out = pr.paged.empty(a.shape, "f4", pager=pager)
    assert read(lambda: np.copyto(out, ((a - a.mean(0)) / a.std(0)).astype("f4"))) <= 3.03
    np.testing.assert_allclose(out.load(), (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-4)
    assert read(lambda: a[:, 3]) <= 1.01
    assert read(lambda: a[[5, 7, 2000]]) <= 0.01
    assert read(lambda: a.rows(0, 300).sum()) <= 0.11
    assert read(lambda: a @ np.ones(100, "f4")) <= 1.01
    assert read(lambda: a[a > 3]) <= 1.01


def test_results_do_not_depend_on_threads_or_budget():
    x = np.random.default_rng(0).standard_normal((1 << 10, 301)).astype(np.float32)
    found = []
    for budget in (1 << 16, 1 << 20, 1 << 26):
        a = pr.paged.from_array(x, pager=pagers.new_pager(budget))
        for threads in (1, 2, 5):
            with pr.num_threads(threads):
                parts = [
                    a.sum(),
                    a.std(0),
                    a.mean(1),
                    np.cumsum(a, 0).load(),
                    np.median(a),
                    (a * 2 + a).sum(1),
                ]
                found.append(b"".join(np.asarray(p).tobytes() for p in parts))
    assert len(set(found)) == 1


def test_sums_are_stable(pager):
    x = np.full((1 << 20,), 0.1, np.float32)
    x[0] = 1e7
    a = pr.paged.from_array(x, pager=pager)
    assert abs(float(a.astype("f8").sum()) - float(x.sum(dtype="f8"))) < 1e-6
    y = 1e8 + np.random.default_rng(0).standard_normal(1 << 18)
    b = pr.paged.from_array(y, pager=pager)
    np.testing.assert_allclose(b.std(), y.std(), rtol=1e-10)
    np.testing.assert_allclose(b.var(ddof=1), y.var(ddof=1), rtol=1e-10)


def test_sketches_keep_their_word(pager):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(1 << 20)
    a = pr.paged.from_array(x, pager=pager)
    q = np.array([0.001, 0.1, 0.5, 0.9, 0.999])
    ranks = np.searchsorted(np.sort(x), a.quantile(q)) / len(x)
    assert np.abs(ranks - q).max() < 8e-4
    assert abs(a.unique_count() / len(np.unique(x)) - 1) < 0.025
    b = pr.paged.from_array(rng.integers(0, 70000, 1 << 20), pager=pager)
    assert abs(b.unique_count() / 70000 - 1) < 0.025
    assert pr.paged.from_array(rng.integers(0, 500, 1 << 18), pager=pager).unique_count() == 500


def test_errors_and_interrupts_stop_the_pass(a, monkeypatch):
    from prunus.paged.expr import apply

    monkeypatch.setattr(evaluate, "TILE", 4)
    state = {"armed": False}

    def bad(v):
        if state["armed"]:
            raise KeyboardInterrupt
        return v

    lazy = apply(bad, [a])
    state["armed"] = True
    for threads in (1, 4):
        with pr.num_threads(threads), pytest.raises(KeyboardInterrupt):
            lazy.load()
    state["armed"] = False
    np.testing.assert_array_equal(lazy.load(), X)
    with np.errstate(divide="raise"), pr.num_threads(3), pytest.raises(FloatingPointError):
        (1 / a).load()


def test_multiple_outputs(a):
    whole, rest = np.divmod(a, 7)
    np.testing.assert_array_equal(whole.load(), X // 7)
    np.testing.assert_array_equal(rest.load(), X % 7)
    out = pr.paged.empty(a.shape, "f4"), np.empty_like(X)
    assert np.modf(a / 2, out=out)[1] is out[1]
    np.testing.assert_array_equal(out[0].load(), np.modf(X / 2)[0])
    np.testing.assert_array_equal(out[1], np.modf(X / 2)[1])


@pytest.mark.parametrize(
    "call",
    [
        lambda v: np.clip(v, 3, 9),
        lambda v: v.clip(max=9),
        lambda v: np.round(v / 3, 1),
        lambda v: np.isin(v, [3, 4]),
        lambda v: np.interp(v, [0, 30], [0, 1]),
        lambda v: np.digitize(v, [5, 10]),
        lambda v: np.where(v > 3, v, 0),
        lambda v: np.isclose(v, 3.0),
        np.nan_to_num,
        np.isnan,
        np.real,
    ],
)
def test_elementwise_functions(a, call):
    got, expected = call(a), call(X)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got.load(), expected)


def test_other_functions(a):
    assert np.allclose(a, X)
    assert np.array_equal(a, X)
    assert not np.array_equal(a, X + 1)
    np.testing.assert_allclose(
        np.average(a, axis=0, weights=np.arange(12)), np.average(X, axis=0, weights=np.arange(12))
    )
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(X, axis=1), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(a), np.linalg.norm(X), rtol=1e-6)
    assert np.ptp(a) == np.ptp(X)
    np.testing.assert_array_equal(np.add.reduce(a), np.add.reduce(X))
    np.testing.assert_array_equal(np.add.accumulate(a).load(), np.add.accumulate(X))
    np.testing.assert_array_equal(np.einsum("ij->j", a), np.einsum("ij->j", X))
    np.testing.assert_array_equal(np.einsum("ij,j->ij", a, X[0]).load(), X * X[0])
    np.testing.assert_allclose(np.einsum("ij,ij->", a, X), np.einsum("ij,ij->", X, X))
    with pytest.raises(TypeError, match="diagonal"):
        np.einsum("ii->i", a.rows(0, 5))
    with pytest.raises(ValueError, match="do not fit"):
        a @ X


def test_pages_are_chosen_by_the_row():
    choose, f4 = store.choose_page, np.dtype("f4")
    assert choose((10, 4), f4, True, 1 << 30) == 4096
    assert choose((10, 1024), f4, True, 1 << 30) == 4096
    assert choose((10, 16384), f4, True, 1 << 30) == 65536
    assert choose((10, 1 << 20), f4, True, 1 << 30) == 1 << 20
    assert choose((10, 1500), f4, False, 1 << 30) == 6000
    assert choose((10, 1500), f4, True, 1 << 30) % 4096 == 0
    assert choose((10, 1 << 20), f4, True, 1 << 20) <= 1 << 16


def test_nothing_is_kept_open(tmp_path, pager):
    b = pr.paged.from_array(X, tmp_path / "b.npy", pager=pager)
    file = b._store.file
    lazy = b + 1
    lazy.sum()
    del b, lazy
    gc.collect()
    assert len(gc.get_referrers(file)) <= 1


def test_products_with_the_package(a):
    x = np.ones((5, 2), np.float32)
    np.testing.assert_array_equal(pr.matmul(a, x), X @ x)
    np.testing.assert_array_equal(pr.matmul(x.T, a.T), x.T @ X.T)
    with pytest.raises(TypeError, match="activation"):
        pr.matmul(a, x, activation="relu")
    W = pr.BSR(np.diag(np.arange(5, dtype=np.float32)), blocksize=2)
    for product in (a @ W, (W.T @ a.T).T, pr.matmul(a, W)):
        np.testing.assert_array_equal(product, X @ W.toarray())


def test_jobs_leave_room_for_the_readers(monkeypatch):
    """However many threads there are, what jobs hold stays below the budget."""
    pager = plain_pager.Pager(1 << 20)
    a = pr.paged.from_array(np.ones(1 << 20, np.float32), pager=pager)
    held, most = set(), []
    plain_next = plain_pager.Reader.__next__

    def counted(self):
        offset, panel = plain_next(self)
        held.add(id(panel))
        weakref.finalize(panel, held.discard, id(panel))
        most.append(len(held) * self.panel)
        return offset, panel

    monkeypatch.setattr(plain_pager.Reader, "__next__", counted)
    with pr.num_threads(64):
        assert (a + a.reshape(-1) * 2).sum() == 3 << 20
    assert most, "the plain pager was read"
    assert max(most) <= 1 << 19


@pytest.mark.parametrize("axis", [2, -3, (0, 5)])
def test_axes_that_are_not_there(a, axis):
    with pytest.raises(np.exceptions.AxisError):
        a.sum(axis)
    with pytest.raises(ValueError, match="duplicate"):
        a.sum((0, -2))
    with pytest.raises(TypeError):
        a.sum(1.5)
