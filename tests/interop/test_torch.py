"""torch BSR tensors and DLPack, both ways."""

import sys

import ml_dtypes
import numpy as np
import pytest

import prunus as pr

torch = pytest.importorskip("torch")

# torch announces its sparse layouts as a beta.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16, torch.bfloat16: BF16,
    torch.int8: np.int8,
}  # fmt: skip


def tensor(dtype=torch.float32):
    dense = torch.zeros(4, 6, dtype=dtype)
    dense[:2, 3:] = torch.arange(1, 7).reshape(2, 3).to(dtype)
    dense[2:, :3] = torch.arange(7, 13).reshape(2, 3).to(dtype)
    return dense, dense.to_sparse_bsr((2, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways_share_the_values(dtype):
    dense, t = tensor(dtype)
    for W in (pr.BSR.from_torch(t), pr.BSR(t), pr.BSR.from_torch(t, copy=False)):
        assert W.dtype == DTYPES[dtype]
        assert W.data.__array_interface__["data"][0] == t.values().data_ptr()
        np.testing.assert_array_equal(W.toarray().astype(float), dense.double().numpy())
    back = W.to_torch()
    assert back.layout == torch.sparse_bsr
    assert back.dtype == dtype
    assert back.values().data_ptr() == t.values().data_ptr()
    assert torch.equal(back.to_dense(), dense)
    assert W.to_torch(copy=True).values().data_ptr() != t.values().data_ptr()
    t.values()[0, 0, 0] = 64
    assert float(W[0, 3]) == 64
    W.data[0, 0, 1] = 32
    assert float(back.to_dense()[0, 4]) == 32


def test_names_agree():
    _, t = tensor()
    W = pr.BSR(t)
    np.testing.assert_array_equal(W.crow_indices(), t.crow_indices().numpy())
    np.testing.assert_array_equal(W.col_indices(), t.col_indices().numpy())
    np.testing.assert_array_equal(W.values(), t.values().numpy())


def test_batches():
    dense = torch.stack([tensor()[0], -tensor()[0].flip(1)])
    t = dense.to_sparse_bsr((2, 3))
    W = pr.BSR(t)
    assert W.shape == (2, 4, 6)
    assert W.data.__array_interface__["data"][0] == t.values().data_ptr()
    np.testing.assert_array_equal(W.toarray(), dense.numpy())
    back = W.to_torch()
    assert back.values().data_ptr() == t.values().data_ptr()
    assert torch.equal(back.to_dense(), dense)
    shared = pr.BSR((np.ones((2, 1, 2, 2), np.float32), [1], [0, 1]), shape=(2, 2, 4))
    np.testing.assert_array_equal(shared.to_torch().to_dense().numpy(), shared.toarray())
    uneven = pr.BSR(np.stack([np.eye(4), 0 * np.eye(4)]), blocksize=2)
    with pytest.raises(ValueError, match="as many blocks"):
        uneven.to_torch()


def test_what_needs_a_copy():
    W = pr.BSR(np.kron(np.eye(3), np.ones((2, 2))), blocksize=2)
    for array in (W.T, W.pack(), W[:5, :5], pr.BSR((np.ones((2, 1, 1)), [1, 0], [0, 2]))):
        np.testing.assert_array_equal(array.to_torch().to_dense().numpy(), array.toarray())
        with pytest.raises(ValueError, match="copy=False"):
            array.to_torch(copy=False)
    assert W.to_torch(copy=False) is not None


def test_gradients_are_left_behind():
    _, t = tensor()
    t = t.detach().requires_grad_()
    np.testing.assert_array_equal(pr.BSR(t).toarray(), t.detach().to_dense().numpy())


def test_refusals():
    dense, t = tensor()
    with pytest.raises(ValueError, match="sparse_bsr"):
        pr.BSR.from_torch(dense)
    with pytest.raises(ValueError, match="sparse_bsr"):
        pr.BSR(dense.to_sparse_csr())
    with pytest.raises(TypeError, match="tensor"):
        pr.BSR.from_torch(dense.numpy())
    with pytest.raises(pr.PrunusError, match="cpu"):
        pr.BSR.from_torch(t.to("meta"))
    with pytest.raises(TypeError, match="would be dense"):
        pr.BSR(t) + dense


def test_dlpack_of_the_parts():
    W = pr.BSR(np.kron(np.eye(2, dtype=np.float32), np.ones((2, 2), np.float32)), blocksize=2)
    for part in (W.data, W.indices, W.indptr):
        shared = torch.from_dlpack(part)
        assert shared.data_ptr() == part.__array_interface__["data"][0]
    half = W.astype("bfloat16")
    # bfloat16 has no DLPack conversion of its own in ml_dtypes: 16-bit views, without a copy.
    shared = torch.from_dlpack(half.data.view(np.int16)).view(torch.bfloat16)
    assert shared.data_ptr() == half.data.__array_interface__["data"][0]
    assert shared.sum() == 8


def test_torch_is_imported_only_when_used():
    import subprocess

    code = (
        "import sys, prunus, numpy; prunus.BSR(numpy.eye(4), blocksize=2); "
        "print('torch' in sys.modules, 'scipy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_through_torch_are_seen_by_the_next_product(dtype):
    _, t = tensor(dtype)
    W = pr.BSR.from_torch(t, copy=False)
    x = np.ones((6, 3), DTYPES[dtype])
    before = W @ x
    t.values().mul_(2)
    np.testing.assert_array_equal(W @ x, 2 * before)
    W.to_torch(copy=False).values().fill_(1)
    np.testing.assert_array_equal((W @ x).astype(float), 3)


def test_arrays_on_disk_refuse_in_words():
    a = pr.paged.zeros((2, 2), budget="1 MiB")
    for convert in (torch.as_tensor, torch.from_dlpack):
        with pytest.raises((BufferError, TypeError), match=r"\.load\(\)"):
            convert(a)
