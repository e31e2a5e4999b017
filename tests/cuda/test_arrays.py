"""prunus.cuda.BSR: there and back, arithmetic, products, torch's functions and bad input."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, bound, check, close, dense, natural, sparse, values
from prunus.cuda.dtypes import torch_of
from prunus.cuda.transfer import download, upload


def there(array, place):
    """An ndarray on the device, in memory of its own."""
    return upload(np.ascontiguousarray(array), place).clone()


def back(tensor):
    from prunus.cuda.dtypes import numpy_of

    out = np.empty(tuple(tensor.shape), numpy_of(tensor.dtype))
    download(tensor, out)
    return out


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize(("shape", "blocksize"), [((45, 70), (16, 16)), ((37, 21), (5, 7)), ((0, 5), (4, 4))])
def test_there_and_back(rng, place, dtype, shape, blocksize):
    W = sparse(rng, shape, blocksize, dtype, poison=False)
    G = W.to("cuda")
    assert isinstance(G, pr.cuda.BSR)
    assert (G.shape, G.blocksize, G.dtype) == (W.shape, W.blocksize, torch_of(dtype))
    assert (G.nnz, G.nnzb, G.density) == (W.nnz, W.nnzb, W.density)
    assert G.device.type == place.device.type
    for one, other in ((G, W), (G.T, W.T), (G.pack().T, W.T), (G.copy(), W)):
        np.testing.assert_array_equal(back(one.toarray()).astype(float), other.toarray().astype(float))
        again = one.to("cpu")
        assert isinstance(again, pr.BSR)
        np.testing.assert_array_equal(again.toarray().astype(float), other.toarray().astype(float))
    # What is written on one side is not seen on the other.
    if W.nnz:
        G.data.zero_()
        assert W.data.any()


@pytest.mark.parametrize("own", [False, True])
def test_batches_there_and_back(rng, own):
    one = [sparse(rng, (20, 30), (8, 8), poison=False) for _ in range(3)]
    W = (
        pr.BSR.from_dense(np.stack([w.toarray() for w in one]), blocksize=8)
        if own
        else sparse(rng, (3, 20, 30), (8, 8), poison=False)
    )
    G = W.to("cuda")
    np.testing.assert_array_equal(back(G.toarray()), W.toarray())
    np.testing.assert_array_equal(G.to("cpu").toarray(), W.toarray())
    np.testing.assert_allclose(back(G.sum(axis=0)), W.toarray().sum(1), atol=1e-4)
    np.testing.assert_allclose(back(G.T.sum(axis=0)), W.toarray().sum(2), atol=1e-4)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize("blocksize", [(16, 16), (5, 7)], ids=str)
def test_products_with_tensors(rng, place, dtype, blocksize):
    W = sparse(rng, (45, 70), blocksize, dtype)
    G, w, kind = W.to("cuda"), dense(W), natural(dtype, dtype)
    for one in (G, G.pack()):
        for n in (1, 33):
            x, y = values(rng, (70, n), dtype), values(rng, (n, 45), dtype)
            tx, ty = there(x, place), there(y, place)
            check(back(one @ tx), w, x.astype(float), kind)
            check(back(ty @ one), y.astype(float), w, kind)
            check(back(one.T @ ty.T), w.T, y.T.astype(float), kind)
            check(back(tx.T @ one.T), x.T.astype(float), w.T, kind)
            check(back(torch.matmul(ty, one)), y.astype(float), w, kind)
        v = values(rng, 70, dtype)
        check(back(one @ there(v, place)), w, v.astype(float), kind)
        check(back(pr.matmul(there(v, place), one.T)), v.astype(float), w.T, kind)


def test_strides_and_out(rng, place):
    W = sparse(rng, (45, 70), (16, 16))
    G, w = W.to("cuda"), dense(W)
    wide = there(values(rng, (140, 60), F32), place)
    x = wide[::2, 1::3]
    out = torch.full((20, 45), 7.0, device=place.device).T
    assert pr.matmul(G, x, out=out) is out
    check(back(out), w, back(x).astype(float), F32)
    square = sparse(rng, (32, 32), (16, 16))
    y = there(values(rng, (32, 8), F32), place)
    before = back(y).astype(float)
    pr.matmul(square.to("cuda"), y, out=y)  # over its own operand
    check(back(y), dense(square), before, F32)


@pytest.mark.parametrize("packed", [False, True])
def test_the_second_call_is_the_first_one_again(rng, place, packed):
    """What was launched before is launched again: on other values, and only where all else is the same."""
    W = sparse(rng, (48, 64), (16, 16))
    G = W.to("cuda").pack() if packed else W.to("cuda")
    w = dense(W)
    kept = []
    for n in (5, 5, 7, 5):
        for _ in range(2):
            x, y = values(rng, (64, n), F32), values(rng, (n, 64), F32)
            a, b, c = G @ there(x, place), there(y, place) @ G.T, G.T @ there(w[:, :n].astype(F32), place)
            kept += [(a, w @ x), (b, y @ w.T), (c, w.T @ w[:, :n].astype(F32))]
            check(back(G @ there(x.T, place).T), w, x.astype(float), F32)
            check(back(there(x[:48].T, place) @ G), x[:48].T.astype(float), w, F32)
    for got, want in kept:  # and none was written over
        np.testing.assert_allclose(back(got), want, atol=1e-3)
    assert len(G._plans) >= 3
    if not packed:
        G.data.mul_(2)
        x = values(rng, (64, 5), F32)
        check(back(G @ there(x, place)), 2 * w, x.astype(float), F32)
    with pytest.raises(TypeError, match="grad"):
        G @ there(x, place).requires_grad_()
    with pytest.raises(ValueError, match="inner sizes"):
        G @ there(y, place)


def test_bias_activation_and_linear(rng, place):
    W, x = sparse(rng, (45, 70), (16, 16)), values(rng, (9, 70), F32)
    bias = values(rng, 45, F32)
    sums = x.astype(float) @ dense(W).T + bias
    error = bound(x.astype(float), dense(W).T, F32, more=1)
    got = pr.matmul(there(x, place), W.to("cuda").T, bias=there(bias, place), activation="relu")
    close(back(got), np.maximum(sums, 0), error)
    got = torch.nn.functional.linear(there(x, place), W.to("cuda"), there(bias, place))
    close(back(got), sums, error)


@pytest.mark.parametrize("own", [False, True])
def test_batches_broadcast(rng, place, own):
    W = sparse(rng, (3, 20, 30), (8, 8))
    if own:
        W = pr.BSR.from_dense(W.toarray(), blocksize=8)
    x = values(rng, (2, 1, 30, 5), F32)
    check(back(W.to("cuda") @ there(x, place)), dense(W), x.astype(float), F32)
    y = values(rng, (2, 3, 20, 5), F32)
    check(back(W.to("cuda").T @ there(y, place)), np.swapaxes(dense(W), -1, -2), y.astype(float), F32)
    one = sparse(rng, (20, 30), (8, 8))
    check(back(one.to("cuda") @ there(x, place)), dense(one), x.astype(float), F32)


def test_sampled_and_sparse_products(rng, place):
    a, b = values(rng, (40, 20), F32), values(rng, (20, 50), F32)
    mask = pr.BlockMask.random((40, 50), (8, 8), 0.4, rng=3)
    got = pr.sddmm(there(a, place), there(b, place), mask)
    want = pr.sddmm(a, b, mask)
    np.testing.assert_allclose(got.to("cpu").toarray(), want.toarray(), atol=1e-4)
    again = pr.sddmm(there(a, place), there(b, place), got)
    np.testing.assert_array_equal(back(again.toarray()), back(got.toarray()))
    V = sparse(rng, (50, 30), (8, 16))
    product = got @ V.to("cuda")
    assert isinstance(product, pr.cuda.BSR)
    np.testing.assert_allclose(back(product.toarray()), want.toarray() @ V.toarray(), atol=1e-3)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 40), k=st.integers(1, 40), n=st.integers(1, 20),
    br=st.integers(1, 20), bc=st.integers(1, 20), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(place, m, k, n, br, bc, seed):
    rng = np.random.default_rng(seed)
    W = sparse(rng, (m, k), (br, bc), density=rng.random())
    x, y = values(rng, (k, n), F32), values(rng, (m, n), F32)
    G = W.to("cuda")
    check(back(G @ there(x, place)), dense(W), x.astype(float), F32)
    check(back(G.T @ there(y, place)), dense(W).T, y.astype(float), F32)


@pytest.mark.parametrize("transposed", [False, True])
def test_arithmetic(rng, transposed):
    A, B = (sparse(rng, (37, 50), (8, 16), poison=False) for _ in range(2))
    a, b = A.toarray(), B.toarray()
    G, H = A.to("cuda"), B.to("cuda")
    if transposed:
        G, H, a, b = G.T, H.T, a.T, b.T
    for got, want in (
        (G + H, a + b), (G - H, a - b), (G.multiply(H), a * b), (2 * G, 2 * a), (G / 4, a / 4), (-G, -a),
        (G + G.copy(), a + a), (G.multiply(3), 3 * a),
    ):  # fmt: skip
        np.testing.assert_allclose(back(got.toarray()), want, atol=1e-6)
        np.testing.assert_allclose(got.to("cpu").toarray(), want, atol=1e-6)
    np.testing.assert_allclose(back(G.sum()), a.sum(), atol=1e-3)
    np.testing.assert_allclose(back(G.sum(axis=0)), a.sum(0), atol=1e-4)
    np.testing.assert_allclose(back(G.sum(axis=1)), a.sum(1), atol=1e-4)


def test_sums_do_not_see_what_hangs_over(rng):
    W = sparse(rng, (37, 50), (8, 16))  # NaN past the edge
    for axis in (None, 0, 1):
        np.testing.assert_allclose(back(W.to("cuda").sum(axis=axis)), dense(W).sum(axis), atol=1e-3)


@pytest.mark.parametrize("density", [None, 0.0, 0.3, 1.0])
def test_from_dense(rng, place, density):
    w = values(rng, (45, 70), F32)
    w[:16, 16:48] = 0
    got = pr.cuda.BSR.from_dense(there(w, place), (16, 16), density)
    want = pr.BSR.from_dense(w, (16, 16), density)
    np.testing.assert_array_equal(got.to("cpu").toarray(), want.toarray())
    assert got.nnzb == want.nnzb


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_torchs_own(rng, place):
    W = sparse(rng, (32, 48), (16, 16))
    tensor = W.to("cuda").to_torch()
    assert tensor.layout == torch.sparse_bsr
    again = pr.cuda.BSR(tensor)
    assert again.data.data_ptr() == tensor.values().data_ptr()
    np.testing.assert_array_equal(back(again.toarray()), W.toarray())
    with pytest.raises(ValueError, match="transpose"):
        W.to("cuda").T.to_torch()


def test_a_triple_with_room_for_more(rng, place):
    data = there(values(rng, (4, 8, 8), F32), place)
    indices = torch.tensor([1, 0, 9, 9], device=place.device)
    indptr = torch.tensor([0, 1, 2], device=place.device)
    W = pr.cuda.BSR((data, indices, indptr), shape=(16, 16))
    w = back(W.toarray())
    assert W.nnzb == 2
    x = values(rng, (16, 3), F32)
    for got, want in ((W @ there(x, place), w @ x), (W.T @ there(x, place), w.T @ x)):
        np.testing.assert_allclose(back(got), want, atol=1e-4)
    assert W.data.data_ptr() == data.data_ptr()


def test_bad_input(rng, place):
    W = sparse(rng, (32, 48), (16, 16))
    G = W.to("cuda")
    x = there(values(rng, (48, 4), F32), place)
    with pytest.raises(pr.PrunusError, match="host memory"):
        G @ values(rng, (48, 4), F32)
    with pytest.raises(pr.PrunusError, match="a is a BSR in host memory"):
        pr.matmul(W, x)
    with pytest.raises(ValueError, match="inner sizes differ"):
        G @ x[:40]
    with pytest.raises(TypeError, match="float32"):
        G @ x.to(torch.int64)
    with pytest.raises(TypeError, match="grad"):
        G @ x.clone().requires_grad_()
    with pytest.raises(ValueError, match="out has shape"):
        pr.matmul(G, x, out=torch.empty(3, 4))
    with pytest.raises(TypeError, match="out has dtype"):
        pr.matmul(G, x, out=torch.empty(32, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="32 output features"):
        pr.matmul(G, x, bias=x.new_zeros(5))
    with pytest.raises(ValueError, match="activation"):
        pr.matmul(G, x, activation="tanh")
    with pytest.raises(ValueError, match="rows of blocks"):
        pr.cuda.BSR((G.data, G.indices, G.indptr), shape=(99, 48))
    with pytest.raises(ValueError, match="blocks, indices"):
        pr.cuda.BSR((G.data, G.indices[:1], G.indptr), shape=(32, 48))
    with pytest.raises(TypeError, match="int32 or int64"):
        pr.cuda.BSR((G.data, G.indices.double(), G.indptr), shape=(32, 48))
    with pytest.raises(pr.PrunusError, match="no device"):
        W.to("gpu")
    with pytest.raises(pr.PrunusError, match="no device"):
        W.to("cuda:99")
    with pytest.raises(ValueError, match="one shape"):
        G + G.T
    with pytest.raises(TypeError, match="toarray"):
        G + 1.0
    with pytest.raises(TypeError, match="complex64"):
        pr.BSR(np.eye(4, dtype=np.complex64), blocksize=2).to("cuda")


def test_memory_that_is_not_there(place):
    from prunus.cuda.runtime import empty

    with pytest.raises(MemoryError, match=str(4 << 50)):
        empty((1 << 50,), torch.float32, place)
