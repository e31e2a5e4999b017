"""Models that exist: which of their linear layers become block-sparse, and why others do not."""

import copy

import pytest
import torch

import prunus.torch as pt

nn = torch.nn


class Block(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.small = nn.Linear(32, 4)
        self.head = nn.Linear(32, 40, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x), self.small(x)


class Known(nn.Linear):
    pass


def sparse(model):
    return sorted(name for name, one in model.named_modules() if isinstance(one, pt.nn.BlockSparseLinear))


FFN = ["layers.0.down", "layers.0.up", "layers.1.down", "layers.1.up"]


def test_a_model_and_its_report():
    torch.manual_seed(0)
    model = Model()
    dense, embedding = copy.deepcopy(model), model.embed.weight
    report = pt.sparsify_(model, density=0.25, blocksize=16)
    assert sparse(model) == FFN
    why = {entry.name: entry.what for entry in report if not entry.done}
    assert why == {
        "layers.0.attention.out_proj": "left: MultiheadAttention reads its weights",
        "layers.1.attention.out_proj": "left: MultiheadAttention reads its weights",
        "small": "left: smaller than 16 x 16",
        "head": "left: shared with embed.weight",
    }
    assert model.head.weight is model.embed.weight is embedding
    (up,) = (entry for entry in report if entry.name == "layers.0.up")
    assert up[:4] == ("layers.0.up", (128, 32), True, "4 of 16 blocks of 16 x 16")
    assert up[4:] == (0.25, 32 * 128 + 128, 1024 + 128)
    linears = [one for one in dense.modules() if isinstance(one, nn.Linear)]
    assert report.before == sum(p.numel() for one in linears for p in one.parameters())
    assert report.after == report.before - 4 * 3 * 1024
    text = str(report)
    assert "layers.0.up" in text
    assert "4 of 8 layers" in text
    # The strongest blocks are those of the dense layer.
    for name in FFN:
        old, new = dense.get_submodule(name), model.get_submodule(name)
        mask = torch.from_numpy(new.mask.toarray())
        torch.testing.assert_close(new.weight.toarray(), old.weight * mask)
        assert new.bias.equal(old.bias)
    tokens = torch.randint(40, (2, 6))
    out, _ = model(tokens)
    out.sum().backward()
    assert model.layers[0].up.values.grad is not None
    whole = copy.deepcopy(dense)
    pt.sparsify_(whole, density=1.0, blocksize=16)
    for a, b in zip(whole(tokens), dense(tokens), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_skipped():
    cases = [
        ("layers.0.up", FFN[:1] + FFN[2:]),
        ("layers.0", FFN[2:]),
        ("*.up", ["layers.0.down", "layers.1.down"]),
        (["layers.0", "*.down"], ["layers.1.up"]),
        (Block, []),
        (nn.Linear, []),
        (lambda name, module: module.in_features == 32, ["layers.0.down", "layers.1.down"]),
    ]
    for skip, expected in cases:
        model = Model()
        report = pt.sparsify_(model, 0.25, 16, skip=skip)
        assert sparse(model) == expected
        assert all(entry.done == (entry.name in expected) for entry in report)
    model = Model()
    for skip, error, message in [
        ("lm_head", ValueError, "skip: 'lm_head' matches nothing; there are embed, layers"),
        (3, TypeError, "names, types and functions, got 3"),
    ]:
        with pytest.raises(error, match=message):
            pt.sparsify_(model, 0.25, 16, skip=skip)
    assert sparse(model) == []


def test_densities_by_name():
    model = Model()
    report = pt.sparsify_(model, {"*.0.up": 0.5, "*.up": 0.25, "*.down": None}, 16)
    assert {entry.name: entry.density for entry in report if entry.done} == {
        "layers.0.up": 0.5,
        "layers.1.up": 0.25,
    }
    assert {entry.what for entry in report if entry.name.endswith("down")} == {"left: no density for it"}
    model = Model()
    report = pt.sparsify_(model, lambda name, one: 0.5 if one.out_features > 32 else None, 16)
    assert sparse(model) == ["layers.0.up", "layers.1.up"]
    for density, error, message in [
        ({"up": 0.5}, ValueError, "density: 'up' matches nothing"),
        ({"*.up": 1.5}, ValueError, r"density\['\*.up'\] must lie in \[0, 1\]"),
        (lambda name, one: -1, ValueError, r"density must lie in \[0, 1\]"),
        ("half", TypeError, "must be a number from 0 to 1"),
        ({0: 0.5}, TypeError, "names of layers or patterns of them, got 0"),
    ]:
        model = Model()
        with pytest.raises(error, match=message):
            pt.sparsify_(model, density, 16)
        assert sparse(model) == []


def test_erdos_renyi_keeps_small_layers_denser():
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 128), nn.Linear(128, 128))
    report = pt.sparsify_(model, 0.1, 16, distribution="erdos_renyi")
    densities = [entry.density for entry in report]
    assert densities == sorted(densities)
    stored = sum(one.values.numel() for one in model)
    whole = 512 * 512 + 512 * 128 + 128 * 128
    assert abs(stored / whole - 0.1) < 0.005
    with pytest.raises(TypeError, match="one number"):
        pt.sparsify_(Model(), {"*": 0.1}, 16, distribution="erdos_renyi")
    with pytest.raises(ValueError, match="distribution must be"):
        pt.sparsify_(Model(), 0.1, 16, distribution="even")


def test_layers_with_more_to_them_are_left():
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(32, 32),
            "subclass": Known(32, 32),
            "parametrised": nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)),
            "lazy": nn.LazyLinear(32),
            "hooked": nn.Linear(32, 32),
            "meta": nn.Linear(32, 32, device="meta"),
            "complex": nn.Linear(32, 32, dtype=torch.complex64),
        }
    )
    model["hooked"].register_forward_hook(lambda module, inputs, output: None)
    report = pt.sparsify_(model, 0.25, 16)
    assert {entry.name: entry.what for entry in report if not entry.done} == {
        "subclass": "left: a Known, not known",
        "parametrised": "left: a ParametrizedLinear, not known",
        "lazy": "left: a LazyLinear, not known",
        "hooked": "left: has hooks",
        "meta": "left: has no values, on the meta device",
        "complex": "left: holds complex64",
    }


def test_a_module_in_two_places_stays_one():
    shared = nn.Linear(32, 32)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = pt.sparsify_(model, 0.5, 16)
    assert len(report) == 1
    assert model[0] is model[2]
    assert isinstance(model[0], pt.nn.BlockSparseLinear)
    # The same weights in two modules are left in both.
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight = model[0].weight
    assert [entry.what for entry in pt.sparsify_(model, 0.5, 16)] == [
        "left: shared with 1.weight",
        "left: shared with 0.weight",
    ]


def test_frozen_and_training_stay_as_they_are():
    model = nn.Sequential(nn.Linear(32, 32).eval(), nn.Linear(32, 32, bias=False).requires_grad_(False))
    pt.sparsify_(model, 0.5, 16)
    assert not model[0].training
    assert not model[1].values.requires_grad
    assert model[0].values.requires_grad


def test_a_layer_alone_cannot_be_replaced_in_place():
    with pytest.raises(ValueError, match="from_linear"):
        pt.sparsify_(nn.Linear(32, 32))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        pt.sparsify_([nn.Linear(32, 32)])
    assert list(pt.sparsify_(nn.ReLU())) == []


def test_a_model_compiled_exported_and_trained():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Model(tied=False)
    pt.sparsify_(model, 0.5, 16, skip=["head", "small"])
    tokens = torch.randint(40, (2, 6))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(tokens), model(tokens), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model.eval(), (tokens,)).module()
    for a, b in zip(exported(tokens), model(tokens), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rigl = pt.learning.RigL(compiled, optimizer, every=3, end=20)
    assert sorted(rigl.layers) == FFN
    losses, changes = [], []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(compiled(tokens)[0].flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        changes += rigl.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert len(changes) == 4 * 4
    assert sum(change.grown for change in changes) > 0
