"""What operations on the device take for a dense array."""

import numpy as np
import pytest
import torch

import prunus as pr
from prunus import PrunusError
from prunus.cuda import BSR
from prunus.cuda.operands import as_floats, as_tensor, where_of


class Foreign:
    """Another library's array: it speaks DLPack and nothing else."""

    def __init__(self, tensor, device=None):
        self.tensor, self.device = tensor, device

    def __dlpack_device__(self):
        return self.device or self.tensor.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)


def test_tensors_are_taken_as_they_are(place):
    x = torch.ones(3, 4, device=place.device)
    assert as_tensor(x, "x", place) is x
    view = x.T
    assert as_floats(view, "x", place) is view
    assert where_of(None, [None, 3.0], x) == place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_other_libraries_share_their_memory(place, dtype):
    x = torch.arange(12, device=place.device).to(dtype).reshape(3, 4)
    got = as_tensor(Foreign(x.T), "x", place)
    assert got.data_ptr() == x.data_ptr()
    assert got.stride() == x.T.stride()
    assert got.dtype == dtype


def test_operations_take_other_libraries_arrays(place):
    x = torch.randn(8, 6, device=place.device)
    eye = (
        torch.eye(8, device=place.device).reshape(2, 4, 2, 4).diagonal(0, 0, 2).permute(2, 0, 1).contiguous()
    )
    indices = torch.arange(2, device=place.device)
    indptr = torch.arange(3, device=place.device)
    W = BSR((Foreign(eye), Foreign(indices), Foreign(indptr)), shape=(8, 8))
    assert W.data.data_ptr() == eye.data_ptr()
    assert torch.equal(pr.matmul(W, Foreign(x)), x)
    parts = [torch.randn(*shape, device=place.device) for shape in ((3, 6), (3, 5, 6), (3, 6, 5))]
    assert torch.equal(pr.moe(x, *map(Foreign, parts)), pr.moe(x, *parts))


def test_wrong_places_are_named(place):
    with pytest.raises(PrunusError, match=r"x \(numpy\.ndarray\) is in host memory.*\.to\('cuda"):
        as_tensor(np.ones(3), "x", place)
    with pytest.raises(PrunusError, match=r"w lives on meta.*w\.to\('cuda"):
        as_tensor(torch.ones(3, device="meta"), "w", place)
    with pytest.raises(PrunusError, match="another device"):
        as_tensor(Foreign(torch.ones(3), (10, 0)), "x", place)
    with pytest.raises(PrunusError, match="no operand lives on a GPU"):
        where_of(np.ones(3), None, 2)


def test_what_is_no_tensor_is_named(place):
    with pytest.raises(TypeError, match=r"x is a tensor that requires grad.*x\.detach"):
        as_tensor(torch.ones(3, device=place.device, requires_grad=True), "x", place)
    with pytest.raises(TypeError, match="x must be a tensor on the GPU, got list"):
        as_tensor([1.0], "x", place)
    with pytest.raises(TypeError, match=r"layout torch\.sparse"):
        as_tensor(torch.eye(4, device=place.device).to_sparse(), "x", place)
    with pytest.raises(TypeError, match=r"x must hold floats.*got dtype torch\.int8"):
        as_floats(torch.ones(3, dtype=torch.int8, device=place.device), "x", place)
