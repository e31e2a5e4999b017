"""torch tensors as operands: read where they lie, and results are ndarrays."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F32
from operations import NAMES, operations, plain

torch = pytest.importorskip("torch")

from prunus.interop.torch import as_tensor  # noqa: E402


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_takes_tensors(name, dtype):
    call = operations(dtype)[name]
    expected = call()
    tensors = {operand: as_tensor(value) for operand, value in call.operands.items()}
    got = call(**tensors)
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(plain(got), plain(expected))
    for operand, tensor in tensors.items():
        np.testing.assert_array_equal(plain(call(**{operand: tensor})), plain(expected))


@pytest.mark.parametrize("name", NAMES)
def test_what_would_lose_something_is_refused(name):
    call = operations()[name]
    for operand, value in call.operands.items():
        tensor = as_tensor(value)
        with pytest.raises(TypeError, match=r"is a tensor that requires grad.*\.detach\(\)"):
            call(**{operand: tensor.clone().requires_grad_()})
        with pytest.raises(TypeError, match="expected a dense one"):
            call(**{operand: tensor.to_sparse()})
        with pytest.raises(pr.PrunusError, match=r"lives on meta.*\.cpu\(\)"):
            call(**{operand: tensor.to("meta")})


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_operands_where_torch_records_nothing(name):
    call = operations()[name]
    expected = call()
    for operand, value in call.operands.items():
        with torch.no_grad():
            got = call(**{operand: as_tensor(value).clone().requires_grad_()})
        np.testing.assert_array_equal(plain(got), plain(expected))


def test_memory_is_shared_and_results_are_new():
    W = pr.BSR(np.eye(4, dtype=np.float32), blocksize=2)
    x = torch.ones(4, 3)
    y = W @ x
    x.mul_(2)
    np.testing.assert_array_equal(W @ x, 2 * y)
    np.testing.assert_array_equal((W * torch.full((4, 4), 3.0)).toarray(), 3 * np.eye(4))
    np.testing.assert_array_equal((torch.full((4, 4), 3.0) * W).toarray(), 3 * np.eye(4))
    np.testing.assert_array_equal(pr.BSR(torch.eye(4), blocksize=2).toarray(), np.eye(4))


def test_dtypes_that_numpy_does_not_have():
    if not hasattr(torch, "float8_e4m3fn"):
        pytest.skip("needs a torch with 8-bit floats")
    with pytest.raises(TypeError, match="x cannot be read as an ndarray"):
        pr.linear(torch.ones(2, 3).to(torch.float8_e4m3fn), np.ones((4, 3), np.float32))


def test_masks_may_be_tensors():
    live = torch.tensor([True, False, True])
    x, w = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    expected = pr.linear(x, w, prune=pr.Fixed([True, False, True]), branch=1).toarray()
    for prune in (live, pr.Fixed(live)):
        np.testing.assert_array_equal(pr.linear(x, w, prune=prune, branch=1).toarray(), expected)
    with pytest.raises(TypeError, match="prune must be a policy or an array of booleans, got dtype float32"):
        pr.linear(x, w, prune=torch.ones(3))
