"""Block-sparse linear layers: beside dense ones, as state, on the way through torch's tools."""

import copy
import io
import pickle

import pytest
import torch

import prunus as pr
import prunus.torch as pt
from prunus.torch.nn.balanced import balanced
from support.torch_checks import gradgradcheck

# in, out, block: ragged or not, single values, larger than the layer, one block
SIZES = [(50, 70, (16, 8)), (64, 32, (8, 16)), (7, 5, (1, 1)), (3, 4, (8, 8)), (40, 24, (5, 7))]


def layer_of(n=50, m=70, block=(16, 8), density=0.4, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return pt.nn.BlockSparseLinear(n, m, blocksize=block, density=density, dtype=dtype, **options)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(("n", "m", "block"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_dense_layer(n, m, block, bias):
    layer = layer_of(n, m, block, bias=bias)
    dense = layer.to_linear()
    x = torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(x2)
    torch.testing.assert_close(y, expected)
    out = torch.randn_like(y)
    y.backward(out)
    expected.backward(out)
    torch.testing.assert_close(x.grad, x2.grad)
    mask = torch.from_numpy(layer.mask.toarray())
    got = pt.BSR((layer.values.grad, layer.indices, layer.indptr), (m, n)).toarray()
    torch.testing.assert_close(got, torch.where(mask, dense.weight.grad, 0))
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    torch.testing.assert_close(layer(x[0, 0]), dense(x[0, 0]))


@pytest.mark.parametrize(("n", "m", "block"), SIZES)
def test_gradients_twice(n, m, block):
    layer = layer_of(n, m, block)
    x = torch.randn(4, n, dtype=torch.float64, requires_grad=True)

    def call(values, bias, x):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    # Values that stand for something: those that hang over the edges have no part.
    inputs = (layer.values.detach().requires_grad_(), layer.bias.detach().requires_grad_(), x)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    layer = layer_of(dtype=dtype)
    x = torch.randn(3, 50, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y, layer.to_linear()(x), rtol=tolerance, atol=tolerance)
    y.sum().backward()
    assert layer.values.grad.dtype == dtype
    half = layer.to(torch.bfloat16)
    assert half.values.dtype == torch.bfloat16
    assert half.indices.dtype == half.indptr.dtype == torch.int32
    with pytest.raises(TypeError, match="expected operands of one dtype"):
        half(torch.randn(3, 50, dtype=torch.float32))


def test_conversions_leave_the_pattern_alone():
    layer = layer_of()
    pattern = layer.mask
    for convert in (
        lambda one: one.half(),
        lambda one: one.type(torch.float32),
        lambda one: one.to("meta").to_empty(device="cpu"),
        lambda one: one.to_empty(device="cpu"),
        lambda one: one.double(),
    ):
        layer = convert(layer)
        assert layer.mask == pattern
        assert layer.indices.dtype == layer.indptr.dtype == torch.int32
        layer.reset_parameters()
        assert torch.isfinite(layer(torch.randn(2, 50, dtype=layer.values.dtype))).all()


def test_compiled_and_exported():
    layer = layer_of(dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True)
    for rows in (3, 5):
        x = torch.randn(rows, 50, requires_grad=True)
        x2 = x.detach().clone().requires_grad_()
        same(compiled(x), layer(x2))
        (values,) = torch.autograd.grad(compiled(x).square().sum(), layer.values)
        (expected,) = torch.autograd.grad(layer(x2).square().sum(), layer.values)
        torch.testing.assert_close(values, expected)
    x = torch.randn(4, 50)
    same(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_autocast():
    layer = layer_of(dtype=torch.float32)
    x = torch.randn(4, 50)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.02)
    y.float().sum().backward()
    assert layer.values.grad.dtype == torch.float32


def test_functions_of_torch():
    layer = layer_of()
    x = torch.randn(5, 50, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
    jacobian = torch.autograd.functional.jacobian(layer, x[0])
    torch.testing.assert_close(jacobian, layer.weight.detach().toarray())


# Patterns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 6, 10), (7, 3, 20), (5, 5, 0), (64, 48, 400), (3, 50, 70), (50, 3, 70)])
def test_random_patterns_are_balanced(size):
    rows, cols, count = size
    seen = set()
    for seed in range(20):
        grid = balanced(rows, cols, count, torch.Generator().manual_seed(seed))
        seen.add(tuple(grid.flatten().tolist()))
        assert int(grid.sum()) == count
        for axis in (0, 1):
            sums = grid.sum(axis)
            assert int(sums.max() - sums.min()) <= 1
    assert len(seen) > 10 or count == 0
    again = balanced(rows, cols, count, torch.Generator().manual_seed(0))
    same(again, balanced(rows, cols, count, torch.Generator().manual_seed(0)))


def test_all_places_are_equally_likely():
    source = torch.Generator().manual_seed(0)
    hits = sum(balanced(5, 7, 12, source).double() for _ in range(2000)) / 2000
    assert (hits - 12 / 35).abs().max() < 0.05


def test_padding_is_zero_and_stays_so():
    layer = layer_of(50, 70, (16, 8), density=1.0)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        layer(torch.randn(8, 50, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    values = layer.values.detach().reshape(5, 7, 16, 8)
    assert values[-1, :, 70 - 64 :].abs().max() == values[:, -1, :, 50 - 48 :].abs().max() == 0
    assert values.abs().max() > 0


def test_from_a_dense_layer_and_back():
    dense = torch.nn.Linear(50, 70)
    layer = pt.nn.BlockSparseLinear.from_linear(dense, blocksize=(16, 8), density=0.4)
    norms = (
        torch.nn.functional.pad(dense.weight.detach(), (0, 6, 0, 10)).reshape(5, 16, 7, 8).norm(dim=(1, 3))
    )
    expected = torch.zeros(35, dtype=torch.bool)
    expected[norms.flatten().topk(14).indices] = True
    same(torch.from_numpy(layer.mask.to_blocks()).flatten(), expected)
    same(layer.bias, dense.bias)
    assert layer.bias is not dense.bias
    mask = pr.BlockMask.random((70, 50), (16, 8), 0.3, 1)
    layer = pt.nn.BlockSparseLinear.from_linear(dense.requires_grad_(False).eval(), mask=mask)
    assert layer.mask == mask
    assert not layer.values.requires_grad
    assert not layer.training
    back = layer.to_linear()
    same(back.weight, torch.where(torch.from_numpy(mask.toarray()), dense.weight, 0))
    assert not back.weight.requires_grad


def test_what_does_not_fit_is_refused():
    make = pt.nn.BlockSparseLinear
    mask = pr.BlockMask.full((4, 6), 2)
    with pytest.raises(ValueError, match=r"shape \(out_features, in_features\), \(6, 4\), got \(4, 6\)"):
        make(4, 6, mask=mask)
    with pytest.raises(ValueError, match="pass one"):
        make(6, 4, mask=mask, density=0.5)
    with pytest.raises(ValueError, match="blocks of"):
        make(6, 4, mask=mask, blocksize=4)
    with pytest.raises(TypeError, match="must be a BlockMask"):
        make(6, 4, mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"density must lie in \[0, 1\]"):
        make(6, 4, density=1.5)
    with pytest.raises(TypeError, match="must hold float32"):
        make(6, 4, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"expected a torch.nn.Linear, got ReLU"):
        make.from_linear(torch.nn.ReLU())
    with pytest.raises(ValueError, match="on the meta device"):
        make.from_linear(torch.nn.Linear(4, 4, device="meta"))
    with pytest.raises(ValueError, match="inner sizes differ"):
        make(6, 4)(torch.ones(5))


def test_no_blocks_and_all_blocks():
    none = layer_of(density=0.0)
    x = torch.randn(3, 50, dtype=torch.float64, requires_grad=True)
    y = none(x)
    same(y, none.bias.expand(3, 70))
    y.sum().backward()
    assert none.values.grad.shape == (0, 16, 8)
    every = layer_of(density=1.0)
    assert every.density == 1


# State ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("density", [0.4, 0.1, 0.9])
def test_states_round_trip(density, assign):
    layer, other = layer_of(density=0.4), layer_of(density=density)
    parameter = other.values
    other(torch.ones(50, dtype=torch.float64)).sum().backward()
    other.load_state_dict(copy.deepcopy(layer.state_dict()), assign=assign)
    x = torch.randn(3, 50, dtype=torch.float64)
    same(other(x), layer(x))
    assert other.mask == layer.mask
    assert (other.values is parameter) != assign
    assert other.values.grad is None or other.values.grad.shape == other.values.shape
    other(x).sum().backward()
    assert other.values.grad.shape == layer.values.shape


def test_states_into_models_on_the_meta_device():
    layer = layer_of()
    with torch.device("meta"):
        models = [layer_of(density=density) for density in (0.4, 0.8)]
    x = torch.randn(3, 50, dtype=torch.float64)
    for model in models:
        assert model.values.is_meta
        assert len(model.mask.indices) > 0
        model.load_state_dict(layer.state_dict(), assign=True)
        same(model(x), layer(x))
        assert model.mask == layer.mask


def test_pickles_and_copies():
    layer = layer_of()
    x = torch.randn(3, 50, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = layer_of(density=0.2)
    loaded.load_state_dict(torch.load(file))
    for one in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        same(one(x), layer(x))
        assert one.values.data_ptr() != layer.values.data_ptr()


@pytest.mark.parametrize("shape", [(50, 64), (48, 70), (64, 70)])
def test_states_of_other_shapes_are_refused(shape, tmp_path):
    layer = layer_of()
    other = pt.nn.BlockSparseLinear(*shape, blocksize=(16, 8), density=0.9, dtype=torch.float64)
    before = copy.deepcopy(other.state_dict())
    pt.save_weights(layer, tmp_path / "a.safetensors")
    for load in (
        lambda: other.load_state_dict(layer.state_dict(), strict=False),
        lambda: pt.load_weights_(other, tmp_path / "a.safetensors"),
    ):
        with pytest.raises(RuntimeError, match=r"expected a layer of \(out_features, in_features\)"):
            load()
        assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def broken(name):
    state = copy.deepcopy(layer_of().state_dict())
    if name == "block":
        state["values"] = state["values"].mT
    elif name == "missing":
        del state["indices"]
    elif name == "columns":
        state["indices"][0] = 99
    elif name == "order":
        state["indices"][:2] = state["indices"][:2].flip(0)
    elif name == "offsets":
        state["indptr"][-1] -= 1
    elif name == "rows":
        state["indptr"] = torch.cat([state["indptr"], state["indptr"][-1:]])
    elif name == "dense":
        state = {"weight": torch.zeros(70, 50), "bias": state["bias"]}
    return state


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block", r"expected values of shape \(blocks, \*\(16, 8\)\), got \(14, 8, 16\)"),
        ("missing", "no indices"),
        ("columns", r"must lie in \[0, 7\)"),
        ("order", "ascend within each row"),
        ("offsets", "must ascend from 0 to the number of blocks"),
        ("rows", r"indptr must have shape \(6,\)"),
        ("dense", "from_linear"),
    ],
)
def test_states_that_do_not_fit_are_refused_and_change_nothing(name, message):
    model = torch.nn.Sequential(layer_of(density=0.2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict({f"0.{key}": value for key, value in broken(name).items()})
    for key, value in model.state_dict().items():
        same(value, before[key])


def test_loading_between_forward_and_backward_is_an_error():
    for density in (0.4, 0.2):
        layer = layer_of()
        y = layer(torch.ones(3, 50, dtype=torch.float64)).sum()
        layer.load_state_dict(layer_of(density=density).state_dict())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_encoders_of_torch_take_it():
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0).eval()
    pt.sparsify_(model, 1.0, 16)
    assert isinstance(model.linear1, pt.nn.BlockSparseLinear)
    dense = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0).eval()
    state = {key: value for key, value in model.state_dict().items() if "linear" not in key}
    for name in ("linear1", "linear2"):
        state.update({f"{name}.{key}": v for key, v in getattr(model, name).to_linear().state_dict().items()})
    dense.load_state_dict(state)
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "convert",
    [lambda layer: layer.to("cpu"), lambda layer: layer.double(), lambda layer: layer.share_memory()],
    ids=["to", "double", "share_memory"],
)
def test_conversions_that_change_nothing_between_passes(convert):
    layer = layer_of()
    x = torch.randn(3, 50, dtype=torch.float64)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.values)
    # torch.nn.Linear goes on from there, too.
    y = layer(x)
    assert convert(layer) is layer
    (got,) = torch.autograd.grad(y.square().sum(), layer.values)
    same(got, expected)
