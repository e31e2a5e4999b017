"""Products with block-sparse arrays on disk: the same as in memory, each block read once, budgets kept."""

import math

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, bound, close, dense, natural, sparse, values
from prunus.paged import blocks, sparse_products
from support import plain_pager

MIB = 1 << 20


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def stored(tmp_path):
    """Return a function that writes an array and opens it again."""
    opened = []

    def make(W, budget=MIB, **others):
        path = tmp_path / f"{len(opened)}.safetensors"
        pr.save(path, {"w": W, **others})
        file = pr.open(path, budget=budget)
        opened.append(file)
        return file

    yield make
    for file in opened:
        file.close()


def grouped(monkeypatch, size):
    """Have products put together so many bytes of blocks."""
    monkeypatch.setattr(blocks, "GROUP", size)
    monkeypatch.setattr(blocks, "SPREAD", size)


def read(file):
    return file["w"].values.pager.stats()["bytes_read"]


def once(file, before):
    """Say whether what was read since is each block once, or less where the pager had some."""
    nbytes, slack = file["w"].values.nbytes, 0 if type(file._pager) is plain_pager.Pager else 1 << 13
    return 0 <= read(file) - before <= nbytes + slack


def forms(rng, W, dtype, n, batch=()):
    """Every product of ``W`` and its transpose with a dense operand: of W, and the same in float64."""
    m, k = W.shape[-2:]
    wide = dense(W)
    x, z = values(rng, (*batch, k, n), dtype), values(rng, (*batch, n, m), dtype)
    x64, z64 = x.astype(F64), z.astype(F64)
    turned = wide.swapaxes(-1, -2)
    return {
        "W @ x": (lambda V: V @ x, wide, x64),
        "x @ W": (lambda V: z @ V, z64, wide),
        "W.T @ x": (lambda V: V.T @ z.swapaxes(-1, -2), turned, z64.swapaxes(-1, -2)),
        "x @ W.T": (lambda V: x.swapaxes(-1, -2) @ V.T, x64.swapaxes(-1, -2), turned),
    }


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize("n", [1, 4, 37])
@pytest.mark.parametrize("group", [1, 700, 5000, 8 * MIB])
def test_products_are_those_of_memory(rng, stored, monkeypatch, dtype, n, group):
    grouped(monkeypatch, group)
    W = sparse(rng, (37, 50), (4, 6), dtype, density=0.5, poison=False)
    file = stored(W)
    kind = natural(dtype, dtype)
    for name, (product, a, b) in forms(rng, W, dtype, n).items():
        before = read(file)
        got = product(file["w"])
        assert once(file, before), name
        assert got.dtype == kind
        assert got.shape == (a @ b).shape
        close(got, a @ b, 2 * bound(a, b, kind, more=20))
        # Sums go on from part to part, but for the kernel of few columns.
        if n > 4 or group == 8 * MIB or (group == 5000 and name in ("W @ x", "x @ W.T")):
            np.testing.assert_array_equal(got, product(W), err_msg=name)


@pytest.mark.parametrize("blocksize", [(1, 1), (3, 5), (8, 8), (40, 64), (64, 1)])
@pytest.mark.parametrize("budget", [128 << 10, MIB])
def test_any_block_size_and_budget(rng, stored, monkeypatch, blocksize, budget):
    grouped(monkeypatch, 3000)
    W = sparse(rng, (97, 130), blocksize, F32, density=0.3, poison=False)
    file = stored(W, budget)
    for name, (product, a, b) in forms(rng, W, F32, 9).items():
        close(product(file["w"]), a @ b, 2 * bound(a, b, F32, more=99))
        assert name


def test_the_budget_does_not_change_a_bit(rng, stored, monkeypatch):
    grouped(monkeypatch, 6000)
    W = sparse(rng, (97, 130), (8, 8), F32, density=0.6, poison=False)
    small, large = stored(W, 128 << 10), stored(W, 64 * MIB)
    for product, _, _ in forms(rng, W, F32, 40).values():
        np.testing.assert_array_equal(product(small["w"]), product(large["w"]))


def test_many_columns_are_those_of_memory_to_the_bit(rng, stored, monkeypatch):
    """Long rows, parts of them and transposes; the dense operand is made ready once, whatever its layout."""
    grouped(monkeypatch, 40 << 10)
    W = sparse(rng, (230, 300), (16, 8), F32, density=0.5, poison=False)
    for budget in (160 << 10, 64 * MIB):
        file = stored(W, budget)
        for n in (8, 300):
            for name, (product, _, _) in forms(rng, W, F32, n).items():
                before = read(file)
                got = product(file["w"])
                assert once(file, before), name
                np.testing.assert_array_equal(got, product(W), err_msg=name)


@pytest.mark.parametrize("own", [False, True])
def test_batches(rng, stored, own):
    if own:
        members = [sparse(rng, (20, 30), (4, 4), F32, d, poison=False) for d in (0.2, 0.0, 0.9)]
        W = pr.BSR(np.stack([m.toarray() for m in members]), blocksize=4)
    else:
        W = sparse(rng, (3, 20, 30), (4, 4), F32, poison=False)
    file = stored(W)
    for batch in ((), (3,), (2, 3), (2, 1)):
        for name, (product, a, b) in forms(rng, W, F32, 6, batch).items():
            before = read(file)
            got = product(file["w"])
            assert once(file, before), (batch, name)
            close(got, a @ b, bound(a, b, F32))
    one = sparse(rng, (20, 30), (4, 4), F32, poison=False)
    file = stored(one)
    for name, (product, a, b) in forms(rng, one, F32, 6, (2, 3)).items():
        before = read(file)
        close(product(file["w"]), a @ b, bound(a, b, F32))
        assert once(file, before), name


def test_vectors_bias_activation_and_out(rng, stored, monkeypatch):
    for group in (100, 8 * MIB):
        grouped(monkeypatch, group)
        for dtype in (F32, BF16):
            W = sparse(rng, (24, 40), (4, 8), dtype, poison=False)
            P = stored(W)["w"]
            v, u = values(rng, 40, dtype), values(rng, 24, dtype)
            tol = 1e-4 if dtype == F32 else 0.1
            near(P @ v, W @ v, tol)
            near(u @ P, u @ W, tol)
            bias, back = values(rng, 24, dtype), values(rng, 40, dtype)
            x = values(rng, (40, 7), dtype)
            for activation in (None, "relu", "gelu", "silu"):
                near(
                    pr.matmul(P, x, bias=bias, activation=activation),
                    pr.matmul(W, x, bias=bias, activation=activation),
                    tol,
                )
                z = values(rng, (3, 24), dtype)
                near(
                    pr.matmul(z, P, bias=back, activation=activation),
                    pr.matmul(z, W, bias=back, activation=activation),
                    tol,
                )
            out = np.full((24, 7), 7, dtype)
            assert pr.matmul(P, x, out) is out
            near(out, W @ x, tol)
            assert np.matmul(P, x, out=out) is out
            strided = np.zeros((7, 24), dtype).T
            assert pr.matmul(P, x, strided) is strided
            near(strided, W @ x, tol)


def near(got, expected, tol):
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got.astype(F64), expected.astype(F64), rtol=tol, atol=tol)


def test_out_may_overlap_the_operand(rng, stored):
    W = sparse(rng, (24, 24), (4, 4), F32, poison=False)
    P = stored(W)["w"]
    x = values(rng, (24, 5), F32)
    expected = W @ x
    pr.matmul(P, x, x)
    np.testing.assert_array_equal(x, expected)


def test_no_blocks_and_empty_rows(rng, stored, monkeypatch):
    grouped(monkeypatch, 200)
    grid = np.zeros((6, 5), bool)
    grid[2] = True
    grid[4, 1] = True
    W = pr.BSR.from_dense(np.kron(grid, np.ones((4, 4))).astype(F32), blocksize=4)
    P = stored(W)["w"]
    x, z = values(rng, (20, 6), F32), values(rng, (6, 24), F32)
    close(P @ x, dense(W) @ x, bound(dense(W), x.astype(F64), F32))
    close(z @ P, z @ dense(W), bound(z.astype(F64), dense(W), F32, more=9))
    none = stored(pr.BSR((24, 20), dtype=F32, blocksize=4))["w"]
    assert not (none @ x).any()
    np.testing.assert_array_equal(pr.matmul(none, x, bias=np.arange(24, dtype=F32))[:, 0], np.arange(24))
    np.testing.assert_array_equal(pr.matmul(z, none, bias=np.arange(20, dtype=F32))[0], np.arange(20))


def test_absent_blocks_and_padding_are_never_seen(rng, stored):
    W = sparse(rng, (37, 50), (8, 8), F32, 0.4)
    x = values(rng, (50, 6), F32)
    x[:3] = np.inf
    got, expected = stored(W)["w"] @ x, W @ x
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("columns", [1, 400, 32 * MIB])
def test_dense_operands_and_results_on_disk(rng, stored, monkeypatch, tmp_path, columns):
    monkeypatch.setattr(sparse_products, "_COLUMNS", columns)
    W = sparse(rng, (24, 40), (4, 8), F32, poison=False)
    x, z = values(rng, (40, 9), F32), values(rng, (9, 24), F32)
    v = values(rng, 40, F32)
    file = stored(W, x=x, z=z, v=v)
    P = file["w"]
    np.testing.assert_allclose(P @ file["x"], W @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(file["z"] @ P, z @ W, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(P @ file["v"], W @ v, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(P.T @ file["z"].T, W.T @ z.T, rtol=1e-5, atol=1e-5)
    pr.save(tmp_path / "y.npy", np.zeros((24, 9), F32))
    out = pr.open(tmp_path / "y.npy", budget=MIB, mode="r+")
    assert pr.matmul(P, file["x"], out) is out
    np.testing.assert_allclose(out.load(), W @ x, rtol=1e-5, atol=1e-5)
    assert pr.matmul(P, x, out) is out
    with pytest.raises(ValueError, match="the result has"):
        pr.matmul(P, file["x"][:, :3], out)
    out.close()


def test_what_is_refused(rng, stored):
    W = sparse(rng, (24, 40), (4, 8), F32, poison=False)
    file = stored(W)
    P, x = file["w"], values(rng, (40, 3), F32)
    with pytest.raises(ValueError, match="inner sizes"):
        P @ x[:5]
    with pytest.raises(ValueError, match="inner sizes"):
        x @ P
    with pytest.raises(ValueError, match="activation must be one of"):
        pr.matmul(P, x, activation="tanh")
    with pytest.raises(ValueError, match="out has shape"):
        pr.matmul(P, x, np.empty((3, 3), F32))
    with pytest.raises(TypeError, match="load"):
        P @ W.T
    with pytest.raises(TypeError, match="load"):
        P + 1
    with pytest.raises(TypeError, match="load"):
        np.add(P, 1)
    with pytest.raises(TypeError, match="load"):
        np.asarray(P.T)
    with pytest.raises(TypeError, match="densify"):
        pr.matmul(P, x, densify=True)
    with pytest.raises(ValueError, match="at least one dimension"):
        pr.matmul(P, np.float32(1))


def test_closed_and_replaced_files(rng, tmp_path):
    W = sparse(rng, (24, 40), (4, 8), F32, poison=False)
    x = values(rng, (40, 3), F32)
    path = tmp_path / "w.safetensors"
    pr.save(path, {"w": W})
    file = pr.open(path, budget=MIB)
    P = file["w"]
    P @ x
    pr.save(path, {"w": W})
    with pytest.raises(OSError, match=r"replaced|changed"):
        P @ x
    file.close()
    with pytest.raises((OSError, ValueError), match="closed"):
        P @ x


def test_a_budget_too_small_names_the_least(rng, stored):
    W = sparse(rng, (24, 40), (4, 8), F32, poison=False)
    file = stored(W, budget=100 << 10)
    with pytest.raises(pr.PrunusError, match="131072"):
        file["w"] @ values(rng, (40, 3), F32)


def test_a_trace_tells_what_was_read(rng, stored):
    W = sparse(rng, (64, 64), (8, 8), F32, density=0.25, poison=False)
    P = stored(W)["w"]
    with pr.trace() as t:
        P @ values(rng, (64, 5), F32)
    (record,) = t.records
    assert record.name == "matmul"
    assert t.bytes_io == W.data.nbytes  # a multiple of a sector
    assert t.bytes_io + t.bytes_skipped == 64 * 64 * 4
    assert t.flops == 2 * W.data.size * 5
    assert record.path.split(", ")[-1] in ("io_uring", "direct", "buffered")


def test_transposes_know_what_they_are(rng, stored):
    W = sparse(rng, (24, 40), (4, 8), F32, poison=False)
    P = stored(W)["w"]
    assert P.T.shape == (40, 24)
    assert P.T.blocksize == (8, 4)
    assert P.T.T is P
    assert P.T.nnzb == W.nnzb
    assert P.T.dtype == F32
    np.testing.assert_array_equal(P.T.load().toarray(), W.toarray().T)
    assert math.isclose(P.T.density, W.density)
    assert "transpose of" in repr(P.T)
