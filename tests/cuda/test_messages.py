"""What somebody meets first: a model's weights replaced, and messages that say what to do instead."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import prunus as pr
from prunus import PrunusError
from prunus.cuda import BSR


class Foreign:
    """Another library's array: it speaks DLPack and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)


@pytest.fixture
def layer(place):
    torch.manual_seed(0)
    return torch.nn.Linear(64, 32).to(place.device)


@pytest.fixture
def W(layer):  # noqa: N802
    return BSR.from_dense(layer.weight.detach(), blocksize=16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_parameters_are_taken_where_torch_records_nothing(layer, W, place, mode):
    x = torch.randn(3, 64, device=place.device)
    with mode():
        got = torch.nn.functional.linear(x, W, layer.bias)
        want = torch.nn.functional.linear(x, layer.weight, layer.bias)
        again = BSR.from_dense(layer.weight, blocksize=16)
    torch.testing.assert_close(got, want)
    assert not got.requires_grad
    assert not again.data.requires_grad
    with pytest.raises(TypeError, match=r"bias is a tensor that requires grad.*torch\.no_grad\(\)"):
        torch.nn.functional.linear(x, W, layer.bias)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta state")
def test_a_sparse_tensor_of_torch_that_requires_grad_is_refused(layer):
    sparse = layer.weight.detach().to_sparse_bsr((16, 16)).requires_grad_()
    with pytest.raises(TypeError, match="requires grad"):
        BSR(sparse)


def test_numpy_makes_no_array_of_a_bsr(W):
    with pytest.raises(TypeError, match=r"behind your back; call W\.toarray\(\).*W\.to\(\"cpu\"\)"):
        np.asarray(W)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("torch.sum", torch.sum),
        ("torch.cat", lambda W: torch.cat([W, W])),
        ("torch.addmm", lambda W: torch.addmm(torch.ones(64), torch.ones(3, 32), W)),
    ],
)
def test_functions_of_torch_that_take_no_bsr_name_those_that_do(W, name, call):
    with pytest.raises(TypeError, match=rf"{name} does not take a BSR: torch\.matmul.*W\.toarray\(\)"):
        call(W)


def test_from_dense_reads_other_libraries_and_refuses_the_host(layer, W):
    dense = layer.weight.detach()
    got = BSR.from_dense(Foreign(dense), blocksize=16)
    assert torch.equal(got.toarray(), W.toarray())
    with pytest.raises(TypeError, match=r"tensor on the GPU, got ndarray; prunus\.BSR\.from_dense"):
        BSR.from_dense(np.ones((4, 4), np.float32), blocksize=2)
    with pytest.raises(TypeError, match=r"got BSR; \.to\('cuda'\)"):
        BSR(W.to("cpu"))


def test_what_the_host_does_says_so(W, place, tmp_path):
    up, down = (torch.randn(*shape, device=place.device) for shape in ((32, 16), (16, 32)))
    layer, x = pr.FFN.pack(up, down), torch.randn(5, 16, device=place.device)
    path = tmp_path / "a.safetensors"
    hint = r"one on a GPU \(prunus\.cuda\.(BSR|FFN)\).*\.to\('cpu'\)"
    for call in (
        lambda: pr.save(path, {"w": W}),
        lambda: pr.save(path, {"f": layer}),
        lambda: pr.prune(W, density=0.5),
        lambda: pr.grow(W, density=0.5),
        lambda: pr.calibrate(layer, x.cpu(), 0.5),
        lambda: pr.calibrate([layer], [x.cpu()], 0.5),
    ):
        with pytest.raises(TypeError, match=hint):
            call()
    assert not path.exists()
    with pytest.raises(PrunusError, match=r"weights are in host memory; move them with layer\.to\('cuda'\)"):
        layer.to("cpu")(x)


def _run(text, **environment):
    """Run a program in an environment of its own; return what it printed."""
    import os

    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", text], env=kept | environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_interpreter_asked_for_too_late_is_named():
    program = (
        "import os, triton.language, prunus as pr\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "try:\n    pr.device('cuda')\n"
        "except pr.PrunusError as error:\n    print(error)\n"
    )
    assert "set after Triton had been imported" in _run(program)


@pytest.mark.parametrize(("hidden", "said"), [("torch", "torch"), ("triton", "triton")])
def test_only_what_is_missing_is_named(hidden, said):
    program = (
        f"import sys; sys.modules[{hidden!r}] = None\n"
        "import prunus as pr\n"
        "pr.show_config()\n"
        "try:\n    pr.device('cuda')\n"
        "except pr.PrunusError as error:\n    print(error)\n"
    )
    got = _run(program)
    assert f"GPUs        none: {said} not installed (pip install 'prunus[cuda]')" in got
    assert f"needs {said}, which is not installed" in got
