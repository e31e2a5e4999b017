"""Patterns that change while layers train: beside dense training with masks, and between passes."""

import copy
import pickle

import pytest
import torch

import prunus as pr
import prunus.torch as pt
from prunus.torch.learning import SET, GradualMagnitude, RigL, cosine, cubic, erdos_renyi
from prunus.torch.learning.patterns import absent_keys, keys_of
from support.torch_checks import opcheck

BLOCK = (4, 8)
OUT, IN = 22, 36
GRID = (6, 5)


@pytest.fixture(autouse=True)
def compiled_anew():
    """What is compiled counts for one code object in all tests."""
    torch._dynamo.reset()


def layer_of(density=0.4, seed=0, **options):
    torch.manual_seed(seed)
    return pt.nn.BlockSparseLinear(IN, OUT, blocksize=BLOCK, density=density, dtype=torch.float64, **options)


def grid_of(layer):
    return torch.from_numpy(layer.mask.to_blocks())


def random_grid(count, seed):
    keys = torch.randperm(GRID[0] * GRID[1], generator=torch.Generator().manual_seed(seed))[:count]
    grid = torch.zeros(GRID[0] * GRID[1], dtype=torch.bool)
    grid[keys] = True
    return grid.reshape(GRID)


def elements(grid):
    """A grid of blocks as a mask of values."""
    return grid.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)[:OUT, :IN]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


# One change ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_a_dense_layer_with_a_mask(name):
    """Every other step another pattern: fewer blocks, as many, more, none, all."""
    layer = layer_of()
    weight = layer.weight.detach().toarray().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    mask = elements(grid_of(layer))
    sparse = OPTIMIZERS[name](layer.parameters())
    dense = OPTIMIZERS[name]([weight, bias])
    parameter, source = layer.values, torch.Generator().manual_seed(5)
    for step, count in enumerate([12, 12, 7, 7, 20, 30, 1, 0, 12, 9, 9]):
        x = torch.randn(8, IN, dtype=torch.float64, generator=source)
        target = torch.randn(8, OUT, dtype=torch.float64, generator=source)
        for optimizer in (sparse, dense):
            optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        (torch.nn.functional.linear(x, weight, bias) - target).square().mean().backward()
        weight.grad.mul_(mask)
        sparse.step()
        dense.step()
        if name == "adagrad" and step == 0:
            assert sparse.state[parameter]["sum"].shape == parameter.shape
        if step % 2:
            old, grid = mask, random_grid(count, step)
            change = pt.learning.set_pattern(layer, grid, sparse)
            mask = elements(grid)
            assert change.after == layer.nnzb == count
            assert change.before - change.dropped + change.grown == count
            assert layer.values is parameter
            with torch.no_grad():
                stays = old & mask
                weight.mul_(stays)
                for value in dense.state[weight].values():
                    if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                        value.mul_(stays)
        torch.testing.assert_close(layer.weight.toarray(), weight)
        torch.testing.assert_close(layer.bias, bias)
    for value in sparse.state[parameter].values():
        if isinstance(value, torch.Tensor) and value.ndim:
            assert value.shape == parameter.shape


@pytest.mark.parametrize("kind", ["mask", "grid", "keys"])
def test_patterns_are_told_in_several_ways(kind):
    layer, grid = layer_of(), random_grid(9, 3)
    given = {
        "mask": pr.BlockMask(grid.numpy(), BLOCK, shape=(OUT, IN)),
        "grid": grid,
        "keys": grid.flatten().nonzero()[:, 0].flip(0).to(torch.int32),
    }[kind]
    before, dense = grid_of(layer), layer.weight.toarray()
    change = pt.learning.set_pattern(layer, given)
    assert torch.equal(grid_of(layer), grid)
    assert (change.dropped, change.grown) == (int((before & ~grid).sum()), int((grid & ~before).sum()))
    torch.testing.assert_close(layer.weight.toarray(), dense * elements(grid & before))
    assert layer.indices.dtype == layer.indptr.dtype == torch.int32
    layer.weight.check_format()


def test_gradients_follow_their_blocks():
    for count in (12, 8):
        layer, grid = layer_of(), random_grid(count, 4)
        layer(torch.randn(3, IN, dtype=torch.float64)).square().sum().backward()
        dense = pt.BSR((layer.values.grad, layer.indices, layer.indptr), (OUT, IN)).toarray()
        expected = dense * elements(grid & grid_of(layer))
        pt.learning.set_pattern(layer, grid)
        got = pt.BSR((layer.values.grad, layer.indices, layer.indptr), (OUT, IN)).toarray()
        torch.testing.assert_close(got, expected)


def test_grown_blocks_can_be_drawn():
    layer = layer_of()
    before = grid_of(layer)
    grid = torch.ones(GRID, dtype=torch.bool)
    dense = layer.weight.detach().toarray().clone()
    pt.learning.set_pattern(layer, grid, grown="kaiming_uniform")
    now, old = layer.weight.detach().toarray(), elements(before)
    torch.testing.assert_close(now[old], dense[old])
    assert (now[~old] != 0).all()
    assert float(now[~old].abs().max()) <= IN**-0.5


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("count", [12, 7, 20])
def test_a_change_between_forward_and_backward_is_an_error(count, needs, compiled):
    layer = layer_of()
    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=needs)
    y = call(x)
    pt.learning.set_pattern(layer, random_grid(count, 6))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert layer.values.grad is None
    # With the old graph still alive, which holds what autograd knew of the parameter.
    again = call(x)
    again.sum().backward()
    assert layer.values.grad.shape == layer.values.shape
    dense = layer.to_linear()
    torch.testing.assert_close(again, dense(x))
    assert y is not again


def test_hooks_of_the_parameter_stay():
    layer, seen = layer_of(), []
    layer.values.register_hook(lambda grad: seen.append(("hook", tuple(grad.shape))))
    layer.values.register_post_accumulate_grad_hook(lambda p: seen.append(("post", tuple(p.grad.shape))))
    pt.learning.set_pattern(layer, random_grid(7, 1))
    layer(torch.ones(IN, dtype=torch.float64)).sum().backward()
    assert seen == [("hook", (7, *BLOCK)), ("post", (7, *BLOCK))]


def test_what_does_not_fit_is_refused_and_changes_nothing():
    layer = layer_of()
    before = copy.deepcopy(layer.state_dict())
    change = pt.learning.set_pattern
    bad = [
        (torch.ones(2, 2, dtype=torch.bool), ValueError, r"a grid of \(6, 5\)"),
        (pr.BlockMask.full((OUT, IN), 4), ValueError, "blocks of"),
        (torch.tensor([0, 30]), ValueError, r"\[0, 30\)"),
        (torch.tensor([-1, 3]), ValueError, r"\[0, 30\)"),
        (torch.tensor([1, 1]), ValueError, "more than once"),
        (torch.tensor([[1, 2]]), ValueError, r"shape \(n,\)"),
        (torch.tensor([1.0]), TypeError, "booleans or integers"),
        ([1, 2], TypeError, "a BlockMask or a tensor"),
    ]
    for pattern, error, message in bad:
        with pytest.raises(error, match=message):
            change(layer, pattern)
    with pytest.raises(TypeError, match="expected a BlockSparseLinear, got Linear"):
        change(torch.nn.Linear(3, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="grown must be one of"):
        change(layer, torch.tensor([0]), grown="ones")
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer"):
        change(layer, torch.tensor([0]), optimizer="adam")
    optimizer = torch.optim.LBFGS(layer.parameters())
    x = torch.ones(IN, dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = layer(x).square().sum()
        loss.backward()
        return loss

    reference = copy.deepcopy(layer)
    with pytest.raises(TypeError, match=r"LBFGS keeps .* cannot follow blocks"):
        RigL(layer, optimizer, every=1, end=2)
    optimizer.step(closure)
    with pytest.raises(TypeError, match=r"LBFGS keeps .* cannot follow blocks"):
        change(layer, torch.tensor([0]), optimizer)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(value, before[key])
    assert layer.nnzb == 12


def test_adafactor_s_rows_and_columns_follow():
    layer = layer_of()
    optimizer = torch.optim.Adafactor(layer.parameters(), lr=0.01)
    layer(torch.randn(3, IN, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    kept = grid_of(layer)
    rows = optimizer.state[layer.values]["row_var"].clone()
    grid = kept.clone()
    first = int(kept.flatten().nonzero()[0, 0])
    grid.view(-1)[first] = False
    pt.learning.set_pattern(layer, grid, optimizer)
    torch.testing.assert_close(optimizer.state[layer.values]["row_var"], rows[1:])
    layer(torch.randn(3, IN, dtype=torch.float64)).square().sum().backward()
    optimizer.step()


def test_absent_keys():
    for density in (0.0, 0.4, 1.0):
        layer = layer_of(density)
        both = torch.cat([keys_of(layer), absent_keys(layer)])
        assert torch.equal(torch.sort(both).values, torch.arange(30))
        assert torch.equal(torch.sort(absent_keys(layer)).values, absent_keys(layer))


# Schedules -----------------------------------------------------------------------------------------------


def test_gradual_magnitude_meets_its_schedule():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        pt.nn.BlockSparseLinear(64, 80, blocksize=8, density=1),
        torch.nn.ReLU(),
        pt.nn.BlockSparseLinear(80, 20, blocksize=4, density=0.5),
    )
    optimizer = torch.optim.Adam(model.parameters())
    learner = GradualMagnitude(model, optimizer, 0.1, begin=2, end=11, every=3)
    seen = {}
    for _ in range(15):
        optimizer.zero_grad()
        model(torch.randn(4, 64)).square().mean().backward()
        optimizer.step()
        norms = {name: layer.values.detach().norm(dim=(1, 2)) for name, layer in learner.layers.items()}
        for change in learner.step():
            seen[change.step, change.name] = change
            layer = learner.layers[change.name]
            torch.testing.assert_close(
                torch.sort(layer.values.detach().norm(dim=(1, 2))).values,
                torch.sort(norms[change.name]).values[change.dropped :],
            )
    assert sorted({step for step, _ in seen}) == [2, 5, 8, 11]
    for (step, name), change in seen.items():
        first, total = (1.0, 80) if name == "0" else (0.5, 100)
        wanted = 0.1 + (first - 0.1) * (1 - (step - 2) / 9) ** 3
        assert change.after == -(-wanted * total // 1) or abs(wanted * total - change.after) < 1e-9
    assert {name: layer.nnzb for name, layer in learner.layers.items()} == {"0": 8, "2": 10}
    assert optimizer.state[model[0].values]["exp_avg"].shape == (8, 8, 8)


def test_global_magnitude_competes_across_layers():
    torch.manual_seed(0)
    model = torch.nn.ModuleList(pt.nn.BlockSparseLinear(32, 32, blocksize=8, density=1) for _ in range(3))
    with torch.no_grad():
        model[1].values.mul_(10)
    learner = GradualMagnitude(model, None, 0.5, 0, 1, 1, distribution="global")
    learner.step()
    assert model[1].nnzb == 16
    assert model[0].nnzb + model[2].nnzb == 8
    with pytest.raises(ValueError, match="blocks of one size"):
        GradualMagnitude([layer_of(), model[0]], None, 0.5, 0, 1, 1, distribution="global")


def test_schedules():
    assert cubic(0, 0, 10, 1.0, 0.2) == 1.0
    assert cubic(5, 10, 20, 0.9, 0.2) == pytest.approx(0.9)
    assert cubic(15, 10, 20, 1.0, 0.0) == 0.125
    assert cosine(0, 10, 0.4) == 0.4
    assert cosine(10, 10, 0.4) == 0.0
    shapes = [(512, 512), (128, 512), (16, 16), (0, 5)]
    for density in (0.0, 0.05, 0.3, 0.9, 1.0):
        got = erdos_renyi(shapes, density)
        assert all(0 <= one <= 1 for one in got)
        total = sum(a * b * one for (a, b), one in zip(shapes, got, strict=True))
        assert total == pytest.approx(density * sum(a * b for a, b in shapes))
    uncapped = erdos_renyi(shapes[:2], 0.05)
    assert uncapped[0] / uncapped[1] == pytest.approx((1024 / 512**2) / (640 / (128 * 512)))


# Dropping and growing ------------------------------------------------------------------------------------


def absent_gradient(layer, passes):
    """The dense gradient of some losses, block by block, by the plain way."""
    weight = layer.weight.detach().toarray().requires_grad_()
    for x, target in passes:
        y = torch.nn.functional.linear(x, weight.to(x.dtype), layer.bias.detach().to(x.dtype))
        (y - target).square().sum().backward()
    padded = torch.nn.functional.pad(weight.grad, (0, GRID[1] * 8 - IN, 0, GRID[0] * 4 - OUT))
    return padded.reshape(GRID[0], 4, GRID[1], 8).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("passes", [1, 3])
def test_gradients_at_absent_blocks_are_those_of_the_dense_layer(passes, compiled):
    layer = layer_of()
    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    rigl = RigL(layer, optimizer, every=2, end=100, fraction=0.5)
    batches = [(torch.randn(2, 3, IN).double(), torch.randn(2, 3, OUT).double()) for _ in range(passes)]
    assert layer._probe is None
    (call(batches[0][0]) - batches[0][1]).square().sum().backward()  # not the step that counts
    optimizer.step()
    rigl.step()
    assert layer._probe is not None
    for x, target in batches:
        with torch.no_grad():
            call(x)  # evaluation in between is not seen
        (call(x) - target).square().sum().backward()
    expected = absent_gradient(layer, batches)
    absent, norms = absent_keys(layer), layer.values.detach().norm(dim=(1, 2))
    torch.testing.assert_close(layer._probe.at.grad, expected[absent])
    present = keys_of(layer)
    optimizer.step()
    (change,) = rigl.step()
    count = int(0.25 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 100)).item()) * 12)
    assert (change.dropped, change.grown, change.after) == (count, count, 12)
    strongest = absent[expected[absent].norm(dim=(1, 2)).topk(count).indices]
    weakest = present[norms.topk(count, largest=False).indices]
    now = set(keys_of(layer).tolist())
    assert set(strongest.tolist()) <= now
    assert not set(weakest.tolist()) & now
    assert layer._probe is None


def test_gradients_under_autocast_are_summed_in_the_parameter_s_dtype():
    layer = layer_of().float()
    rigl = RigL(layer, None, every=1, end=10)
    x, target = torch.randn(5, IN), torch.randn(5, OUT)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    (y.float() - target).square().sum().backward()
    grad = layer._probe.at.grad
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, absent_gradient(layer, [(x, target)])[absent_keys(layer)],
                               rtol=0.1, atol=0.5)  # fmt: skip
    rigl.close()
    assert layer._probe is None


def planted(learner_of, steps=600, seed=0):
    """Train a layer on what another one computes; return the share of its pattern that was found."""
    torch.manual_seed(seed)
    teacher = pt.nn.BlockSparseLinear(64, 64, blocksize=8, density=0.2)
    student = pt.nn.BlockSparseLinear(64, 64, blocksize=8, density=0.25)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    learner = learner_of(student, optimizer)
    for _ in range(steps):
        x = torch.randn(64, 64)
        optimizer.zero_grad()
        loss = (student(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        if learner is not None:
            learner.step()
    assert student.nnzb == 16
    there = torch.from_numpy(teacher.mask.to_blocks() & student.mask.to_blocks()).sum()
    return int(there) / teacher.nnzb, float(loss.detach())


def test_rigl_finds_the_planted_pattern():
    fixed, loss = planted(lambda layer, optimizer: None)
    found, better = planted(lambda layer, optimizer: RigL(layer, optimizer, every=20, end=450))
    assert fixed < 0.6
    assert found == 1.0
    assert better < loss / 50


def test_set_finds_more_than_a_fixed_pattern():
    fixed, loss = planted(lambda layer, optimizer: None)
    source = torch.Generator().manual_seed(0)
    found, better = planted(lambda one, optimizer: SET(one, optimizer, every=20, end=450, generator=source))
    assert found > fixed
    assert better < loss


def trained(steps, resume=None, candidates=5):
    """Train for some steps, with everything through a file in between; return the weights."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(layer_of(), torch.nn.ReLU(), layer_of(seed=1).to_linear())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    source = torch.Generator().manual_seed(1)
    rigl = RigL(model[:1], optimizer, every=3, end=50, candidates=candidates, generator=source)
    for step in range(steps):
        if step == resume:
            state = pickle.dumps([one.state_dict() for one in (model, optimizer, rigl)])
            model = torch.nn.Sequential(layer_of(0.1, seed=7), torch.nn.ReLU(), layer_of(seed=8).to_linear())
            optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
            source = torch.Generator().manual_seed(9)
            rigl = RigL(model[:1], optimizer, every=3, end=50, candidates=candidates, generator=source)
            for one, saved in zip((model, optimizer, rigl), pickle.loads(state), strict=True):
                one.load_state_dict(saved)
        x = torch.randn(4, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model[0](x).square().sum().backward()
        optimizer.step()
        rigl.step()
    return model[0].weight.detach().toarray()


@pytest.mark.parametrize("resume", [1, 2, 3, 5])
def test_a_run_goes_on_as_if_it_had_not_stopped(resume):
    torch.testing.assert_close(trained(8, resume), trained(8), rtol=0, atol=0)


def test_candidates():
    for candidates, expected in ((4, 4), (0.5, 9), (1000, 18), (None, 18)):
        layer = layer_of()
        RigL(layer, None, every=1, end=10, candidates=candidates)
        keys = layer._probe.keys
        assert len(keys) == expected
        assert not torch.isin(keys, keys_of(layer)).any()
    full = layer_of(1.0)
    rigl = RigL([full], None, every=1, end=10)
    full(torch.ones(IN, dtype=torch.float64)).sum().backward()
    assert [(one.dropped, one.grown) for one in rigl.step()] == [(0, 0)]


def test_misuse_is_told():
    layer = layer_of()
    rigl = RigL(layer, None, every=1, end=10)
    with pytest.raises(RuntimeError, match="no gradient reached any layer"):
        rigl.step()
    pt.learning.set_pattern(layer, random_grid(12, 8))
    with pytest.raises(RuntimeError, match=r"patterns of .* were changed"):
        rigl.step()
    rigl.close()
    with pytest.raises(RuntimeError, match="close"):
        rigl.step()
    with pytest.raises(ValueError, match=r"no BlockSparseLinear; prunus\.torch\.sparsify_"):
        RigL(torch.nn.Linear(3, 3), None, 1, 10)
    with pytest.raises(TypeError, match="must be a BlockSparseLinear"):
        SET([torch.nn.Linear(3, 3)], None, 1, 10)
    with pytest.raises(ValueError, match="more than once"):
        SET([layer, layer], None, 1, 10)
    with pytest.raises(ValueError, match="end must come after begin"):
        GradualMagnitude(layer, None, 0.1, 5, 5, 1)
    with pytest.raises(ValueError, match="every must be at least 1"):
        GradualMagnitude(layer, None, 0.1, 0, 5, 0)
    with pytest.raises(TypeError, match="must be a whole number"):
        RigL(layer, None, 1.5, 10)
    with pytest.raises(ValueError, match="the state is of the layers"):
        GradualMagnitude(layer, None, 0.1, 0, 5, 1).load_state_dict({"steps": 1, "initial": {"x": 1.0}})


def test_the_probe_as_torch_checks_operations():
    layer = layer_of()
    keys = absent_keys(layer)
    from prunus.torch.learning.patterns import pattern_of
    from prunus.torch.ops.watching import watch

    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        at = torch.zeros(len(keys), *BLOCK, dtype=dtype, requires_grad=True)
        x = torch.randn(7, IN, dtype=dtype, requires_grad=True)
        y = torch.randn(7, OUT, dtype=dtype, requires_grad=True)
        opcheck(watch, (y, x, at, *pattern_of(keys, GRID)))


@torch._dynamo.config.patch(force_parameter_static_shapes=False)
def test_patterns_change_under_compilation():
    """More different numbers of blocks than torch compiles one function for, and each equals eager."""
    layer = layer_of(1.0)
    call = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, IN, dtype=torch.float64)
    for count in range(30, 18, -1):
        pt.learning.set_pattern(layer, random_grid(count, count))
        layer.values.grad = None
        y = call(x)
        torch.testing.assert_close(y, layer(x))
        y.sum().backward()
        assert layer.values.grad.shape == (count, *BLOCK)


def test_a_conversion_that_changes_nothing_keeps_recorded_gradients():
    layer = layer_of()
    rigl = RigL(layer, None, every=1, end=10)
    layer(torch.randn(4, IN, dtype=torch.float64)).square().sum().backward()
    layer.to("cpu").double()
    assert [change.grown for change in rigl.step()] == [3]
    layer(torch.randn(4, IN, dtype=torch.float64)).square().sum().backward()
    layer.float()
    with pytest.raises(RuntimeError, match="changed or moved"):
        rigl.step()


def test_copies_of_a_layer_hold_no_gradients_of_absent_blocks():
    layer = layer_of()
    plain = len(pickle.dumps(layer))
    rigl = RigL(layer, torch.optim.SGD(layer.parameters(), lr=0.1), every=1, end=10)
    assert layer._probe is not None
    assert copy.deepcopy(layer)._probe is None
    assert len(pickle.dumps(layer)) == plain
    # A copy of the learner goes on with the copies of its layers.
    x = torch.randn(4, IN, dtype=torch.float64)
    for two, other in (copy.deepcopy((layer, rigl)), pickle.loads(pickle.dumps((layer, rigl)))):
        assert other.layers["" if "" in other.layers else "0"] is two
        two(x).square().sum().backward()
        assert [change.grown for change in other.step()] == [3]
    layer(x).square().sum().backward()
    rigl.step()
    assert layer.mask == two.mask


def test_an_optimizer_of_other_parameters_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    pt.sparsify_(model, 0.5, 16)
    for make in (
        lambda: RigL(model, early, every=1, end=10),
        lambda: GradualMagnitude(model, early, 0.2, begin=0, end=4, every=1),
    ):
        with pytest.raises(ValueError, match="make it after sparsify_"):
            make()
    with pytest.raises(TypeError, match="every must be a whole number, got True"):
        RigL(model, None, every=True, end=10)


# What goes along -----------------------------------------------------------------------------------------


def test_gradients_that_are_not_finite_move_nothing():
    layer = layer_of()
    rigl = RigL(layer, None, every=2, end=20)
    x = torch.randn(7, IN, dtype=torch.float64)
    first = grid_of(layer)
    changes = []
    for step in range(1, 6):
        factor = torch.inf if step in (2, 3) else 1.0
        layer.zero_grad()
        (layer(x).square().sum() * factor).backward()
        changes.append(rigl.step())
        if step == 2:  # a run that goes on from here waits as well
            state, other = rigl.state_dict(), copy.deepcopy(layer)
        if step < 4:
            assert torch.equal(grid_of(layer), first)
    assert [len(one) for one in changes] == [0, 0, 0, 1, 0]
    assert not torch.equal(grid_of(layer), first)
    again = RigL(other, None, every=2, end=20)
    again.load_state_dict(state)
    other(x).sum().backward()
    assert len(again.step()) == 1


def test_states_of_other_learners_are_refused():
    layer = layer_of()
    rigl, moving = RigL(layer, None, every=2, end=9), SET(layer, None, every=2, end=9)
    pruning = GradualMagnitude(layer, None, 0.1, begin=0, end=4, every=2)
    for learner, state, match in (
        (pruning, rigl.state_dict(), "no 'initial': it is not of a GradualMagnitude"),
        (moving, pruning.state_dict(), "no 'generator': it is not of a SET"),
        (rigl, {}, "the state has no"),
    ):
        with pytest.raises(ValueError, match=match):
            learner.load_state_dict(state)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_averages_follow_patterns(buffers, pruned):
    layer, decay = layer_of(density=0.8 if pruned else 0.4), 0.7
    average = pt.learning.AveragedModel(
        layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=buffers
    )
    learner = (
        GradualMagnitude(layer, None, 0.2, begin=0, end=4, every=1)
        if pruned
        else SET(layer, None, every=2, end=9, grown="kaiming_uniform")
    )
    dense = None
    for _ in range(6):
        with torch.no_grad():
            layer.values.add_(torch.randn_like(layer.values))
        learner.step()
        average.update_parameters(layer)
        now = layer.weight.toarray().detach()
        dense = now if dense is None else (decay * dense + (1 - decay) * now) * elements(grid_of(layer))
        torch.testing.assert_close(average.module.weight.toarray().detach(), dense)
    assert average.module.mask == layer.mask


def test_averages_of_models_that_are_wrapped_later():
    """As torch's own take them: a wrapper changes the names of layers, not their order."""
    model = torch.nn.Sequential(layer_of(density=0.4), layer_of(density=0.4))
    average = pt.learning.AveragedModel(model)
    moving = SET(model, None, every=1, end=9)
    for wrapped in (torch.nn.ModuleDict({"module": model}), torch.compile(model, backend="eager")):
        moving.step()
        average.update_parameters(wrapped)
        assert [one.mask for one in average.module] == [one.mask for one in model]
    for other in (model[0], torch.nn.Sequential(model[0], pt.nn.BlockSparseLinear(OUT, IN, blocksize=BLOCK))):
        with pytest.raises(ValueError, match="not those of the average"):
            average.update_parameters(other)
