"""Layers and patterns that learn by the kernels of a GPU, in Triton's interpreter or on one."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="kernels of a GPU need triton")
if os.environ.get("TRITON_INTERPRET", "0") != "1" and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

import prunus as pr
import prunus.torch as pt
from prunus.torch.learning.patterns import absent_keys


@pytest.fixture
def where():
    """The device; host memory stands for a GPU's where kernels are interpreted."""
    with pr.device("cuda"):
        yield "cuda" if torch.cuda.is_available() else "cpu"


def test_a_layer_learns_its_pattern(where):
    torch.manual_seed(0)
    layer = pt.nn.BlockSparseLinear(40, 48, blocksize=16, density=0.5, device=where)
    dense = layer.to_linear()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    rigl = pt.learning.RigL(layer, optimizer, every=1, end=10, fraction=0.5)
    x = torch.randn(8, 40, device=where)
    y, expected = layer(x), dense(x)
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    y.square().sum().backward()
    expected.square().sum().backward()
    padded = torch.nn.functional.pad(dense.weight.grad, (0, 8))
    whole = padded.reshape(3, 16, 3, 16).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(layer._probe.at.grad, whole[absent_keys(layer)], rtol=1e-2, atol=5e-2)
    optimizer.step()
    (change,) = rigl.step()
    assert change.grown == change.dropped == 2
    assert optimizer.state[layer.values]["exp_avg"].shape == layer.values.shape
    layer(x).sum().backward()
    layer.weight.check_format()
    pt.learning.set_pattern(layer, torch.eye(3, dtype=torch.bool, device=where), optimizer)
    layer(x).sum().backward()
    optimizer.step()
    assert layer.values.grad.shape == (3, 16, 16)
