"""Dense weights on disk: products with BSRs, linear layers, ffn; only the rows that are needed are read."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F32, F64, I8, natural, sparse, values
from prunus.paged import tables

MIB = 1 << 20


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def stored(tmp_path):
    opened = []

    def make(budget=MIB, **arrays):
        path = tmp_path / f"{len(opened)}.safetensors"
        pr.save(path, arrays)
        file = pr.open(path, budget=budget)
        opened.append(file)
        return file

    yield make
    for file in opened:
        file.close()


def near(got, expected, tol=1e-5):
    assert type(got) is np.ndarray
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.astype(F64), expected.astype(F64), rtol=tol, atol=tol)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, I8], ids=str)
@pytest.mark.parametrize("span", [1, 500, 16 * MIB])
def test_bsr_with_dense_on_disk(rng, stored, monkeypatch, dtype, span):
    monkeypatch.setattr(tables, "SPAN", span)
    W = sparse(rng, (37, 50), (4, 6), dtype, poison=False)
    x, z = values(rng, (50, 9), dtype), values(rng, (9, 37), dtype)
    file = stored(x=x, z=z, xt=np.ascontiguousarray(x.T), zt=np.ascontiguousarray(z.T))
    tol = 0.05 if dtype == BF16 else 1e-5
    for V, a, b in ((W, x, z), (W.T, z.T, x.T)):
        one, two = (file["x"], file["z"]) if V is W else (file["z"].T, file["x"].T)
        three, four = (file["xt"].T, file["zt"].T) if V is W else (file["zt"], file["xt"])
        for left in (one, three):
            near(V @ left, V @ a, tol)
            near(pr.matmul(V, left), V @ a, tol)
        for right in (two, four):
            near(right @ V, b @ V, tol)
            near(np.matmul(right, V), b @ V, tol)
    assert (W @ file["x"]).dtype == natural(dtype, dtype)
    # Sums go on from span to span.
    np.testing.assert_array_equal(W @ file["x"], W @ x)


def test_bias_activation_out_and_vectors(rng, stored, monkeypatch):
    W = sparse(rng, (24, 40), (4, 8), F32, poison=False)
    x, v, bias = values(rng, (40, 9), F32), values(rng, 40, F32), values(rng, 24, F32)
    file = stored(x=x, v=v)
    for span in (1, 16 * MIB):
        monkeypatch.setattr(tables, "SPAN", span)
        near(
            pr.matmul(W, file["x"], bias=bias, activation="silu"),
            pr.matmul(W, x, bias=bias, activation="silu"),
        )
    near(W @ file["v"], W @ v)
    out = np.empty((24, 9), F32)
    assert pr.matmul(W, file["x"], out) is out
    near(out, W @ x)
    with pytest.raises(ValueError, match="inner sizes"):
        W.T @ file["x"]
    with pytest.raises(ValueError, match="inner sizes"):
        file["x"] @ W.T[:, :3]
    near(W @ (file["x"] + 1), W @ (x + 1))
    near((file["x"] + 1).T @ W.T, (x + 1).T @ W.T)


def test_only_rows_that_blocks_meet_are_read(rng, stored):
    h = np.zeros((8, 64), F32)
    h[3, 8:16] = 1
    h[5, 40:48] = 2
    h = pr.BSR.from_dense(h, blocksize=(4, 8))
    w2 = values(rng, (64, 1024), F32)  # by hidden unit: rows of a page
    file = stored(w2=w2)
    pager = file["w2"].pager
    before = pager.stats()["bytes_read"]
    with pr.trace() as t:
        y = h @ file["w2"]
    assert pager.stats()["bytes_read"] - before == 16 * 4096
    assert t.bytes_io == 16 * 4096
    assert t.bytes_skipped >= 48 * 4096
    np.testing.assert_array_equal(y, h @ w2)
    before = pager.stats()["bytes_read"]
    y = h @ stored(down=np.ascontiguousarray(w2.T))["down"].T
    near(y, h @ w2)
    y = h @ file["w2"]
    assert pager.stats()["bytes_read"] - before <= 16 * 4096


@pytest.mark.parametrize("branch", [1, 8, 48])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_linear(rng, stored, monkeypatch, branch, dtype):
    w, b, x = values(rng, (96, 40), dtype), values(rng, 96, dtype), values(rng, (5, 40), dtype)
    file = stored(128 << 10, w=w)
    mask = rng.random(-(-96 // branch)) < 0.3
    every = [None, pr.Threshold(0.0), pr.Threshold(9.0, norm="l2"), pr.TopK(count=1), pr.Fixed(mask)]
    for span in (1, 16 * MIB):
        monkeypatch.setattr(tables, "SPAN", span)
        for policy in every:
            for activation in (None, "relu"):
                how = {"activation": activation, "prune": policy, "branch": branch}
                got, want = pr.linear(x, file["w"], b, **how), pr.linear(x, w, b, **how)
                assert type(got) is type(want)
                if policy is not None:
                    np.testing.assert_array_equal(got.indices, want.indices)
                    got, want = got.toarray(), want.toarray()
                np.testing.assert_array_equal(got, want)


def test_linear_reads_what_is_foreseen(rng, stored):
    w, x = values(rng, (64, 1024), F32), values(rng, (5, 1024), F32)
    file = stored(8 * MIB, w=w)
    mask = np.zeros(8, bool)
    mask[[2, 5]] = True
    with pr.trace() as t:
        pr.linear(x, file["w"], prune=pr.Fixed(mask), branch=8)
    assert t.bytes_io == 16 * 4096
    assert t.bytes_skipped == 48 * 4096
    assert t.live_fraction == 0.25


def test_linear_with_blocks_on_disk(rng, stored):
    W = sparse(rng, (64, 40), (8, 8), F32, poison=False)
    x, b = values(rng, (3, 40), F32), values(rng, 64, F32)
    file = stored(w=W)
    near(pr.linear(x, file["w"], b, activation="relu"), pr.linear(x, W, b, activation="relu"))
    got = pr.linear(x, file["w"], b, prune=pr.TopK(count=2), branch=8)
    near(got.toarray(), pr.linear(x, W, b, prune=pr.TopK(count=2), branch=8).toarray())


def test_ffn_with_weights_on_disk(rng, stored):
    up, gate, down = (values(rng, s, F32) for s in ((48, 20), (48, 20), (12, 48)))
    file = stored(up=up, gate=gate, down=down)
    x = values(rng, (4, 20), F32)
    for policy in (None, pr.Threshold(1.0), pr.Fixed(rng.random(48) < 0.3)):
        got = pr.ffn(x, file["up"], file["down"], file["gate"], prune=policy)
        np.testing.assert_array_equal(got, pr.ffn(x, up, down, gate, prune=policy))
        got = pr.ffn(x, file["up"], down, prune=policy, b_up=np.ones(48, F32), b_down=np.ones(12, F32))
        np.testing.assert_array_equal(
            got, pr.ffn(x, up, down, prune=policy, b_up=np.ones(48, F32), b_down=np.ones(12, F32))
        )
    broken = down.copy()
    broken[3, 7] = np.inf
    file = stored(down=broken)
    mask = np.ones(48, bool)
    mask[7] = False
    got = pr.ffn(x, up, file["down"], prune=pr.Fixed(mask))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, pr.ffn(x, up, broken, prune=pr.Fixed(mask)))


def test_dense_products_are_traced(rng, stored):
    w, x = values(rng, (64, 1024), F32), values(rng, (1024, 3), F32)
    file = stored(8 * MIB, w=w)
    with pr.trace() as t:
        y = pr.matmul(file["w"], x)
    np.testing.assert_allclose(y, w @ x, rtol=1e-4, atol=1e-4)
    assert t.bytes_io == w.nbytes
    assert t.flops == 2 * w.size * 3
    assert [record.name for record in t.records] == ["matmul"]


def test_what_is_refused(rng, stored):
    file = stored(w=values(rng, (8, 6), F32), i=np.ones((8, 6), np.int64))
    x = values(rng, (2, 8), F32)
    with pytest.raises(ValueError, match="stored by columns"):
        pr.linear(x, file["w"].T)
    with pytest.raises(TypeError, match="must hold floats"):
        pr.linear(x, file["i"])
    with pytest.raises(TypeError, match="expression"):
        pr.linear(x[:, :6], file["w"] * 2)
    with pytest.raises(ValueError, match="features"):
        pr.linear(x, file["w"])


@pytest.mark.parametrize("dtype", [F32, F64, BF16, I8], ids=str)
@pytest.mark.parametrize("n", [1, 9, 150])
def test_dense_products_do_not_depend_on_the_budget(rng, tmp_path, dtype, n):
    a = values(rng, (301, 130), dtype)
    # A header of numpy.save ends inside a sector; a matrix of columns is the transpose of one of rows.
    path = tmp_path / "rows.npy"
    np.save(path, a)
    x, z = values(rng, (130, n), dtype), values(rng, (n, 301), dtype)
    found = []
    for budget in (64 << 10, 160 << 10, 64 * MIB):
        b = pr.paged.open(path, budget=budget)
        found.append((b @ x, z @ b, b.T @ z.T, x.T @ b.T))
    assert all(got.dtype == natural(dtype, dtype) for got in found[0])
    exact = 4 if n <= 128 and dtype != I8 else 1
    for other in found[1:]:
        for got, want in zip(found[0][:exact], other[:exact], strict=True):
            np.testing.assert_array_equal(got, want)
    wide = a.astype(F64)
    for got, want in zip(
        found[-1],
        (wide @ x.astype(F64), z.astype(F64) @ wide, wide.T @ z.T.astype(F64), x.T.astype(F64) @ wide.T),
        strict=True,
    ):
        tol = 0.06 if dtype == BF16 else 1e-4
        np.testing.assert_allclose(got.astype(F64), want, rtol=tol, atol=tol * 20)


def test_files_of_numpy_are_read_with_any_budget(rng, tmp_path):
    """Their data begin inside a sector, so that a panel takes one more than its bytes."""
    a = rng.standard_normal((1300, 1024)).astype(F32)
    np.save(tmp_path / "a.npy", a)
    x = rng.standard_normal((1024, 3)).astype(F32)
    for budget in (MIB, 32 * MIB, 256 * MIB):
        b = pr.paged.open(tmp_path / "a.npy", budget=budget)
        np.testing.assert_allclose(b.sum(dtype=F64), a.sum(dtype=F64), atol=1e-6)
        near(b @ x, a @ x, 1e-3)
        near(x.T @ b.T, x.T @ a.T, 1e-3)


@pytest.mark.parametrize("rows", [1, 4, 6, 300])
def test_linear_of_inputs_on_disk(rng, stored, monkeypatch, rows):
    W, bias = sparse(rng, (24, 40), (4, 8), F32, poison=False), values(rng, 24, F32)
    x = values(rng, (rows, 40), F32)
    file = stored(x=x, v=x[0], w=W, d=W.toarray(), deep=x[None])
    want = pr.linear(x, W, bias, activation="silu")
    for read in (16 * MIB, 1000):
        monkeypatch.setattr("prunus.pruning.linear._READ", read)
        for w in (W, W.toarray(), file["w"], file["d"]):
            near(pr.linear(file["x"], w, bias, activation="silu"), want)
            near(pr.linear(file["x"] * 1, w, bias, activation="silu"), want)
            near(pr.linear(file["v"], w, bias, activation="silu"), want[0])
            near(pr.linear(file["deep"], w, bias, activation="silu"), want[None])
    with pytest.raises(ValueError, match="40 features"):
        pr.linear(file["x"].T, W)
    with pytest.raises(TypeError, match="load"):
        pr.linear(file["x"], W, prune=pr.Threshold(0.1))


def test_what_numpy_calls_say_of_blocks_on_disk(rng, stored):
    W = sparse(rng, (24, 40), (4, 8), F32, poison=False)
    x = values(rng, (40, 9), F32)
    file = stored(x=x, w=W)
    P, X = file["w"], file["x"]
    np.testing.assert_array_equal(P.toarray(), W.toarray())
    np.testing.assert_array_equal(P.T.toarray(), W.toarray().T)
    near(np.dot(P, x), W @ x)
    near(np.dot(X.T, P.T), (W @ x).T)
    assert (np.ndim(P), np.shape(P)) == (2, (24, 40))
    for call in (
        lambda: np.einsum("ij,jk->ik", P, x),
        lambda: np.einsum("ij,jk->ik", X.T, P.T),
        lambda: np.tensordot(P, X, 1),
        lambda: np.tensordot(X.T, P.T, 1),
        lambda: np.sum(P),
    ):
        with pytest.raises(TypeError, match=r"W @ x.*toarray"):
            call()
