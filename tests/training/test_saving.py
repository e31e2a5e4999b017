"""Models through files: what runs from the disk is what was trained."""

import numpy as np
import pytest
import torch

import prunus as pr
import prunus.torch as pt
from prunus.interop.torch import as_array


def model_of(dtype=torch.float32, density=0.4):
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict(
        {
            "up": pt.nn.BlockSparseLinear(50, 70, blocksize=(16, 8), density=density, dtype=dtype),
            "norm": torch.nn.BatchNorm1d(70, dtype=dtype),
            "down": pt.nn.BlockSparseLinear(70, 33, blocksize=8, density=density, bias=False, dtype=dtype),
            "head": torch.nn.Linear(33, 5, dtype=dtype),
        }
    )
    return torch.nn.ModuleDict({"layers": layers})


def run(model, x):
    for layer in model["layers"].values():
        x = layer(x)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_files_run_and_come_back(tmp_path, dtype):
    model, path = model_of(dtype), tmp_path / "model.safetensors"
    pt.save_weights(model, path, metadata={"note": "a model"}, checksums=True)
    x = torch.randn(50, dtype=dtype)
    with pr.open(path) as file:
        assert not file.verify()
        up = file["layers.up"]
        assert (up.shape, up.blocksize, up.nnzb) == ((70, 50), (16, 8), 14)
        y = (up @ as_array(x)).astype(np.float64) + file["layers.up.bias"].load().astype(np.float64)
    expected = model["layers"]["up"](x).detach().double().numpy()
    np.testing.assert_allclose(y, expected, rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    other = model_of(dtype, density=0.1)
    before = other["layers"]["up"].values
    assert pt.load_weights_(other, path) == ([], [])
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)
    assert other["layers"]["up"].values is before
    batch = torch.randn(4, 50, dtype=dtype)
    torch.testing.assert_close(run(other.eval(), batch), run(model.eval(), batch), rtol=0, atol=0)


def test_other_readers_see_the_state_dict(tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    model, path = model_of(), tmp_path / "model.safetensors"
    pt.save_weights(model, path)
    state = {key: value for key, value in load_file(path).items() if not key.startswith("__pad_")}
    assert sorted(state) == sorted(model.state_dict())
    other = model_of(density=0.8)
    other.load_state_dict(state)
    x = torch.randn(4, 50)
    torch.testing.assert_close(run(other.eval(), x), run(model.eval(), x))


def test_a_layer_alone(tmp_path):
    layer, path = model_of()["layers"]["up"], tmp_path / "layer.safetensors"
    pt.save_weights(layer, path)
    with pr.open(path) as file:
        assert sorted(file) == ["bias", "weight"]
        x = torch.randn(50, 3)
        np.testing.assert_allclose(file["weight"] @ x.numpy(), (layer.weight.detach() @ x).numpy(), rtol=1e-5)
    other = model_of(density=1.0)["layers"]["up"]
    pt.load_weights_(other, path)
    assert other.mask == layer.mask


def test_tensors_and_operands_by_name(tmp_path):
    path = tmp_path / "some.safetensors"
    w = pt.BSR.from_dense(torch.randn(20, 12), 4, density=0.5)
    pt.save_weights({"w": w, "b": torch.arange(4), "t": torch.randn(3, 5).T}, path)
    with pr.open(path) as file:
        assert sorted(file) == ["b", "t", "w"]
        np.testing.assert_array_equal(file["w"].load().toarray(), w.toarray().numpy())


def test_what_does_not_fit_is_told(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="transpose is not stored"):
        pt.save_weights({"w": pt.BSR.from_dense(torch.eye(4), 2).T}, path)
    with pytest.raises(TypeError, match="n: expected a tensor"):
        pt.save_weights({"n": 3}, path)
    with pytest.raises(ValueError, match="safetensors"):
        pt.save_weights(model_of(), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
    pt.save_weights(model_of(), path)
    dense = model_of()
    dense["layers"]["up"] = torch.nn.Linear(50, 70)
    with pytest.raises(RuntimeError, match=r"layers\.up\.weight"):
        pt.load_weights_(dense, path)
    coarse = model_of()
    coarse["layers"]["up"] = pt.nn.BlockSparseLinear(50, 70, blocksize=16)
    with pytest.raises(RuntimeError, match=r"expected values of shape \(blocks, \*\(16, 16\)\), got"):
        pt.load_weights_(coarse, path)
    pr.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(pr.FormatError, match="this is one array"):
        pt.load_weights_(dense, tmp_path / "one.npy")


def ffn_of(dtype=torch.float32, gated=False, bias=True, decide=None, seed=1, **given):
    torch.manual_seed(seed)
    return pt.nn.PrunedFFN(
        24, 50, 17, gated=gated, bias=bias, decide=decide, branch=4, dtype=dtype, activation="silu", **given
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("gated", "bias", "decide"),
    [
        (False, True, None),
        (False, False, "up"),
        (True, True, None),
        (True, False, "up"),
        (True, True, "gate"),
    ],
)
def test_pruned_ffns_run_from_disk_and_come_back(tmp_path, dtype, gated, bias, decide):
    policy, path = pr.Threshold(0.1), tmp_path / "model.safetensors"
    model = torch.nn.ModuleDict(
        {"ffn": ffn_of(dtype, gated, bias, decide, prune=policy), "head": torch.nn.Linear(17, 3, dtype=dtype)}
    )
    pt.save_weights(model, path, checksums=True)
    x = torch.randn(6, 24, dtype=dtype)
    with pr.open(path) as file:
        assert not file.verify()
        assert sorted(file) == ["ffn", "head.bias", "head.weight"]
        layer = file["ffn"]
        assert (layer.decide, layer.gated, layer.hidden) == (model["ffn"].decide, gated, 50)
        y = layer(as_array(x), "silu", policy, 4)
        # What is packed in memory computes the same, to the bit.
        np.testing.assert_array_equal(y, model["ffn"].pack()(as_array(x), "silu", policy, 4))
    eps = torch.finfo(dtype).eps
    expected = model["ffn"](x).detach().double().numpy()
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=8 * eps, atol=8 * eps)
    other = torch.nn.ModuleDict(
        {
            "ffn": ffn_of(dtype, gated, bias, decide, seed=2, prune=policy),
            "head": torch.nn.Linear(17, 3, dtype=dtype),
        }
    )
    before = other["ffn"].w_up
    assert pt.load_weights_(other, path) == ([], [])
    assert other["ffn"].w_up is before
    assert sorted(other.state_dict()) == sorted(model.state_dict())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)
    torch.testing.assert_close(other["ffn"](x), model["ffn"](x), rtol=0, atol=0)


@pytest.mark.parametrize("decide", ["up", "predictor"])
def test_a_pruned_ffn_alone_with_a_threshold_that_learns(tmp_path, decide):
    path = tmp_path / "layer.safetensors"
    prune = pt.LearnedThreshold(0.25, branches=13) if decide == "up" else torch.arange(13) % 3 == 0
    layer = ffn_of(decide=decide, prune=prune)
    pt.save_weights(layer, path)
    with pr.open(path) as file:
        assert sorted(file) == ["ffn", "prune.log_tau"] if decide == "up" else ["ffn"]
        x = torch.randn(3, 24)
        fixed = pr.Fixed(np.arange(13) % 3 == 0)
        expected = ffn_of(decide=decide, prune=fixed)(x).detach().numpy()
        np.testing.assert_allclose(file["ffn"](x.numpy(), "silu", fixed, 4), expected, rtol=1e-4, atol=1e-6)
    again = pt.LearnedThreshold(0.5, branches=13) if decide == "up" else prune
    other = ffn_of(decide=decide, seed=2, prune=again)
    assert pt.load_weights_(other, path) == ([], [])
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)


def test_ffns_of_other_origin_are_read_and_others_refused(tmp_path):
    path = tmp_path / "layer.safetensors"
    layer = ffn_of(gated=True)
    layer.pack().save(path)
    other = ffn_of(gated=True, seed=2)
    assert pt.load_weights_(other, path) == ([], [])
    torch.testing.assert_close(other.state_dict(), layer.state_dict(), rtol=0, atol=0)
    pt.save_weights({"packed": layer.pack()}, path)
    with pytest.raises(RuntimeError, match=r"w_up"):
        pt.load_weights_(ffn_of(gated=True), path)
    pt.save_weights(ffn_of(), path)
    with pytest.raises(RuntimeError, match=r'Missing key.*"w_gate"'):
        pt.load_weights_(layer, path)
    layer.w_down = torch.nn.Parameter(layer.w_down.detach().double())
    with pytest.raises(TypeError, match=r"matrices of one dtype, got torch\.float32 and torch\.float64"):
        pt.save_weights(layer, path)


def test_saving_an_ffn_copies_no_matrix(tmp_path):
    layer = ffn_of(gated=True)
    for key, value in pt.saving._of_model(layer).items():
        assert key == "ffn"
        for mine, theirs in (
            (value._up, layer.w_up),
            (value._gate, layer.w_gate),
            (value._sums, layer.w_down),
        ):
            assert np.shares_memory(mine, theirs.detach().numpy())
        assert not value._up.flags.writeable
    layer.w_up.detach().numpy()[...] = 1  # what is saved may still be written by its owner


def test_parametrised_layers_are_saved_as_their_state(tmp_path):
    path = tmp_path / "model.safetensors"

    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    def model(seed):
        made = ffn_of(seed=seed)
        torch.nn.utils.parametrize.register_parametrization(made, "w_up", Twice())
        return made

    first, other = model(1), model(2)
    pt.save_weights(first, path)
    assert pt.load_weights_(other, path) == ([], [])
    torch.testing.assert_close(other.state_dict(), first.state_dict(), rtol=0, atol=0)
