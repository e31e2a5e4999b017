"""Products of arrays on disk and expressions over them: NumPy's values, each source read once, one result."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from prunus.paged import one_on_disk, pagers, two_on_disk

MIB = 1 << 20
BUDGETS = (MIB, 8 * MIB, 256 * MIB)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def near(got, x, y, tol=4e-6):
    """Hold a product against that in double precision, by the size of what is summed."""
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    want = x @ y
    assert got.shape == want.shape
    assert (abs(got - want) <= tol * (abs(x) @ abs(y))).all()


def read(pager, function):
    before = pager.stats()["bytes_read"]
    found = function()
    return found, pager.stats()["bytes_read"] - before


# Expressions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 256, 2500])
@pytest.mark.parametrize("order", ["C", "F"])
def test_expressions_as_operands(rng, rows, order):
    x = normal(rng, rows, 128)
    a = pr.paged.from_array(x, order=order, budget=4 * MIB)
    y, z, v, w = normal(rng, 128, 9), normal(rng, rows, 9), normal(rng, 128), normal(rng, rows)
    e, f = a + 1, x + 1
    near(e @ y, f, y)
    near(e.T @ z, f.T, z)
    near(z.T @ e, z.T, f)
    near(e @ v, f, v)
    near(w @ e, w, f)
    near(e.T @ w, f.T, w)
    near(e.T @ a, f.T, x)
    near(a.T @ e, x.T, f)
    near(e.T @ e, f.T, f)
    near(e.astype("f8").T @ e, f.T, f)
    near(np.dot(y.T, e.T), y.T, f.T)
    near(np.tensordot(e, y, 1), f, y)
    near(np.tensordot(e, a, ([0], [0])), f.T, x)
    near(np.einsum("ij,ik->jk", e, e), f.T, f)
    c, d = a - a.mean(0), x - x.mean(0)
    near((a - a.mean(0)).T @ c, d.T, d, 1e-5)
    out = pr.paged.empty((rows, 9), "f4", budget=4 * MIB)
    assert np.matmul(e, y, out=out) is out
    near(out.load(), f, y)
    across = pr.paged.empty((128, 9), "f4", budget=4 * MIB)
    np.matmul(e.T, z, out=across)
    near(across.load(), f.T, z)


def test_a_small_expression_and_what_it_is_multiplied_with(rng):
    x = normal(rng, 256, 128)
    a = pr.paged.from_array(x, budget=4 * MIB)
    f = x + 1
    near((a + 1) @ x.T, f, x.T)
    near(x.T @ (a + 1), x.T, f)
    near((a + 1).T @ x, f.T, x)
    near((a + 1) @ x[0], f, x[0])
    near((a + 1) @ (a + 1).T, f, f.T)
    assert ((a + 1).astype("f2") @ x.T.astype("f2")).dtype == np.float16
    assert ((a > 0) @ (a > 0).T).dtype == bool
    whole = a.astype("i1") @ x.T.astype("i1")
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(whole, x.astype("i1").astype("i4") @ x.T.astype("i1").astype("i4"))
    bf = (a + 1).astype(BF16) @ x.T.astype(BF16)
    assert bf.dtype == BF16
    out = np.empty((256, 256), np.float32)
    assert np.matmul(a + 1, x.T, out=out) is out
    near(out, f, x.T)


@pytest.mark.parametrize("width", [65, 3000])
@pytest.mark.parametrize("budget", BUDGETS)
def test_expressions_are_read_once(rng, width, budget):
    rows = 12 * MIB // 4 // width
    pager = pagers.new_pager(budget)
    x = normal(rng, rows, width)
    a = pr.paged.from_array(x, pager=pager)
    e, f = a + 1, x + 1
    for left, right, one, two in (
        (e.T, normal(rng, rows, 2), f.T, None),
        (e, normal(rng, width, 2), f, None),
        (e.T, e * 2, f.T, f * 2),
        (e.T, a, f.T, x),
    ):
        if two is not None and width > 100:
            continue  # many products, and nothing else
        found, count = read(pager, lambda left=left, right=right: left @ right)
        near(found, one, right if two is None else two)
        assert count <= 1.1 * a.nbytes


def test_an_expression_that_was_overtaken_is_refused(rng):
    a = pr.paged.from_array(normal(rng, 3000, 200), budget=4 * MIB)
    e = a + 1
    a[0, 0] = 3
    with pytest.raises(pr.PrunusError, match="written after"):
        e.T @ np.ones((3000, 2), np.float32)


# Two on disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("shape", [(40_000, 64), (700, 1500)])
def test_gram_matrices_read_once(rng, budget, shape):
    pager = pagers.new_pager(budget)
    x = normal(rng, *shape)
    a = pr.paged.from_array(x, pager=pager)
    products = (
        lambda: a.T @ a,
        lambda: np.tensordot(a, a, ([0], [0])),
        lambda: np.einsum("ij,ik->jk", a, a),
    )
    want = x.astype("f8").T @ x
    for product in products:
        found, count = read(pager, product)
        assert abs(found - want).max() <= 1e-6 * abs(want).max()
        np.testing.assert_array_equal(found, found.T)
        assert count <= 1.1 * a.nbytes


@pytest.mark.parametrize("budget", BUDGETS)
def test_sums_over_the_slow_axis_of_both_read_each_once(rng, budget):
    pager = pagers.new_pager(budget)
    x, y = normal(rng, 30_000, 70), normal(rng, 30_000, 50)
    a, b = (pr.paged.from_array(v, pager=pager) for v in (x, y))
    found, count = read(pager, lambda: a.T @ b)
    near(found, x.T, y)
    assert count <= 1.1 * (a.nbytes + b.nbytes)
    found, count = read(pager, lambda: (a - 1).T @ (b * 2))
    near(found, (x - 1).T, y * 2)
    assert count <= 1.1 * (a.nbytes + b.nbytes)
    v = pr.paged.from_array(y[:, 0], pager=pager)
    found, count = read(pager, lambda: v @ a)
    near(found, y[:, 0], x)
    assert count <= 1.1 * (a.nbytes + v.nbytes)


@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "i4", "f2"])
def test_all_orders_in_parts(rng, monkeypatch, orders, dtype):
    """What is held and multiplied at a time is small, and results on disk have several strips."""
    monkeypatch.setattr(two_on_disk, "_HELD", 15_000)
    monkeypatch.setattr(two_on_disk, "_PANEL", 4000)
    monkeypatch.setattr(two_on_disk, "_ASIDE", 12_000)
    monkeypatch.setattr(two_on_disk, "_TILE", 16)
    monkeypatch.setattr(two_on_disk, "_VALUES", 1)
    x, y = ((normal(rng, *shape) * 4).astype(dtype) for shape in ((110, 150), (150, 70)))
    want = x.astype("c16" if dtype == "c8" else "f8") @ y
    tol = {"f8": 1e-12, "f2": 2e-3, "i4": 0}.get(dtype, 1e-6) * abs(want).max()
    found = []
    for budget in (1 << 16, MIB, 64 * MIB):
        pager = pagers.new_pager(budget)
        a, b = (
            pr.paged.from_array(v, order=order, pager=pager) for v, order in zip((x, y), orders, strict=True)
        )
        out = pr.paged.empty(want.shape, dtype, pager=pager)
        np.matmul(a, b, out=out)
        got = a @ b
        assert abs(got - want).max() <= tol
        assert abs(out.load() - want).max() <= tol
        assert abs((a * 1) @ (b * 1) - want).max() <= tol
        found.append(got.tobytes())
    assert len(set(found)) == 1


def test_gram_matrix_on_disk_in_strips(rng, monkeypatch):
    monkeypatch.setattr(two_on_disk, "_ASIDE", 1 << 16)
    monkeypatch.setattr(two_on_disk, "_TILE", 16)
    monkeypatch.setattr(two_on_disk, "_VALUES", 1)
    x = normal(rng, 500, 200)
    pager = pagers.new_pager(MIB)
    a, out = pr.paged.from_array(x, pager=pager), pr.paged.empty((200, 200), "f4", pager=pager)
    np.matmul(a.T, a, out=out)
    near(out.load(), x.T, x)
    near(a.T @ a, x.T, x)


def test_traces_say_who_multiplied(rng):
    x = normal(rng, 300, 200)
    pager = pagers.new_pager(MIB)
    a = pr.paged.from_array(x, pager=pager)
    for make, name in ((lambda: a @ x.T, "f32"), (lambda: a.T @ x[:, :5], "f32"), (lambda: a.T @ a, "numpy")):
        with pr.trace() as traced:
            make()
        assert name in traced.table()
        assert ("numpy" in traced.table()) == (name == "numpy")


def test_results_depend_neither_on_budget_nor_on_threads(rng):
    x, y, z = normal(rng, 3000, 301), normal(rng, 3000, 5), normal(rng, 301, 150)
    found = []
    for budget in (1 << 17, MIB, 64 * MIB):
        a = pr.paged.from_array(x, pager=pagers.new_pager(budget))
        for threads in (1, 3):
            with pr.num_threads(threads):
                parts = [
                    a.T @ a,
                    (a + 1).T @ (a + 1),
                    a.T @ y,
                    (a + 1).T @ y,
                    (a + 1) @ z,
                    z.T @ a.T,
                    a.T @ x,
                ]
                found.append(b"".join(p.tobytes() for p in parts))
    assert len(set(found)) == 1


@pytest.mark.parametrize("columns", [1, 8, 200])
def test_long_sums_in_single_precision(rng, columns):
    """They are as exact as NumPy's, which a chain of as many additions is not."""
    x, y = normal(rng, 100_000, 16) + 1, normal(rng, 100_000, columns) + 1
    assert len(x) > 8 * one_on_disk._CHAIN
    a = pr.paged.from_array(x, budget=MIB)
    want = x.astype("f8").T @ y
    limit = abs(x.T @ y - want).max() * 1.1
    for found in (a.T @ y, (a * 1).T @ y, a.T @ pr.paged.from_array(y, budget=MIB)):
        assert abs(found - want).max() <= limit


# In place ----------------------------------------------------------------------------------------------


def test_products_in_place(rng, tmp_path):
    x, y = normal(rng, 300, 40), normal(rng, 40, 40)
    a = b = pr.paged.from_array(x, tmp_path / "a.npy")
    a @= y
    assert a is b
    near(a.load(), x, y)
    with pytest.raises(ValueError, match=r"np\.matmul"):
        a @= y[:, :3]
    with pytest.raises(ValueError, match=r"np\.matmul"):
        a @= y[0]
    with pytest.raises(TypeError, match="cast"):
        a @= y.astype("c8")
    a.flush()
    frozen = pr.open(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="cannot be written"):
        frozen @= y
    square = pr.paged.from_array(y)
    square @= square
    near(square.load(), y, y)
