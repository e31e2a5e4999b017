"""Products over a liveness mask: values, gradients of gradients, routes, and what torch knows of them."""

import os

import numpy as np
import pytest
import torch

import prunus as pr
from prunus.torch.ops import kernels_live
from prunus.torch.ops import live as ops
from prunus.torch.ops.kernels_live import spread
from support.torch_checks import gradgradcheck, opcheck

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# rows, units, features, branch: ragged last branches, branches of one unit, of all units.
SHAPES = [(5, 7, 4, 3), (6, 8, 5, 4), (4, 9, 3, 1), (1, 5, 2, 5), (3, 1, 1, 1)]
OPS = ["live_linear", "live_known", "live_combine", "live_outer"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(7)


@pytest.fixture(params=["sparse", "dense", "engine"])
def route(request, monkeypatch):
    """Each route by itself: none depends on how much is live then."""
    share = -1.0 if request.param == "dense" else 1e9
    for name in ("_UNITS", "_ROWS", "_OUTER", "_HALF"):
        monkeypatch.setattr(kernels_live, name, kernels_live._Limits(share, share))
    if request.param == "engine":
        monkeypatch.setattr(kernels_live, "_HALF", kernels_live._Limits(-1.0, -1.0))
        monkeypatch.setattr(kernels_live, "_dense_is_fast", lambda dtype: False)
    return request.param


def operands(rows, units, features, dtype=torch.float64, grad=False):
    made = {
        "x": torch.randn(rows, features, dtype=torch.float64),
        "w": torch.randn(units, features, dtype=torch.float64),
        "b": torch.randn(units, dtype=torch.float64),
        "h": torch.randn(rows, units, dtype=torch.float64),
    }
    return {name: one.to(dtype).requires_grad_(grad) for name, one in made.items()}


def mask(rows, units, branch, share=0.5):
    return torch.rand(rows, -(-units // branch)) < share


def called(name, o, live, branch):
    """The operation by name, the arguments it takes, and how many of them gradients go to."""
    if name == "live_known":
        sums = ops.live_sums(o["x"].detach(), o["w"].detach(), o["b"].detach())
        return ops.live_known, (sums, o["x"], o["w"], o["b"], live, branch)
    if name == "live_linear":
        return ops.live_linear, (o["x"], o["w"], o["b"], live, branch)
    return getattr(ops, name), (o["h"], o["w" if name == "live_combine" else "x"], live, branch)


def wanted(name, o, live, branch):
    """The same in plain torch."""
    each = 1 if live is None else spread(live, branch, len(o["w"])).to(o["x"].dtype)
    if name in ("live_linear", "live_known"):
        return (o["x"] @ o["w"].T + o["b"]) * each
    return (o["h"] * each) @ o["w"] if name == "live_combine" else (o["h"] * each).T @ o["x"]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_values_and_gradients(route, name, shape, share):
    rows, units, features, branch = shape
    o = operands(rows, units, features, grad=True)
    live = mask(rows, units, branch, share)
    op, args = called(name, o, live, branch)
    got, want = op(*args), wanted(name, o, live, branch)
    torch.testing.assert_close(got, want)
    dy = torch.randn_like(want)
    inputs = [one for one in args if isinstance(one, torch.Tensor) and one.requires_grad]
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, dy), torch.autograd.grad(want, inputs, dy), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.7, None])
def test_derivatives_of_any_order(name, shape, share):
    rows, units, features, branch = shape
    if share is None and name == "live_known":
        pytest.skip("what is known is known of a mask")
    o = operands(rows, units, features, grad=True)
    live = None if share is None else mask(rows, units, branch, share)

    def function(*inputs):
        if name != "live_known":
            return called(name, o, live, branch)[0](*inputs, live, branch)
        # Sums that go with what is multiplied: the operation has no gradient for them.
        sums = (inputs[0] @ inputs[1].T + inputs[2]).detach()
        return ops.live_known(sums, *inputs, live, branch)

    args = called(name, o, live, branch)[1]
    inputs = [one for one in args if isinstance(one, torch.Tensor) and one.requires_grad]
    assert torch.autograd.gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_what_torch_knows_of_them(name, dtype, grad):
    o = operands(5, 7, 4, dtype, grad)
    op, args = called(name, o, mask(5, 7, 3), 3)
    opcheck(op, args)
    if name != "live_known":
        opcheck(op, (*args[:-2], None, 3))


def test_what_torch_knows_of_decisions():
    norms = torch.rand(4, 6)
    opcheck(ops.largest, (norms, 2))
    opcheck(ops.above, (norms, 0.3))
    # What comes out lies as the fake kernels say, whatever lies how.
    columns = torch.rand(6, 4).mT
    opcheck(ops.above, (columns, 0.3))
    opcheck(ops.largest, (columns, 2))
    opcheck(ops.step, (columns, torch.full((), 0.5, requires_grad=True), 0.2))
    opcheck(ops.live_sums, (torch.randn(3, 4), torch.randn(6, 4), None))
    h = torch.randn(4, 17, requires_grad=True)
    opcheck(ops.straight, (h, mask(4, 17, 3), 3))
    for shape in ((), (6,)):
        opcheck(ops.step, (norms, torch.full(shape, 0.5, requires_grad=True), 0.2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_dtypes(route, name, dtype):
    o = operands(20, 33, 40, dtype)
    live = mask(20, 33, 4)
    op, args = called(name, o, live, 4)
    got = op(*args)
    assert got.dtype == dtype
    wide = {key: one.double() for key, one in o.items()}
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    want = wanted(name, wide, live, 4)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("name", OPS)
def test_operands_of_any_strides(route, name):
    rows, units, features, branch = 6, 10, 4, 3
    o = operands(rows, units, features)
    strided = {
        "x": o["x"].T.contiguous().T,
        "w": torch.cat([o["w"], o["w"]], 1)[:, :features],
        "b": torch.stack([o["b"], o["b"]], 1)[:, 0],
        "h": o["h"].T.contiguous().T,
    }
    live = mask(rows, units, branch)
    for alive in (live.T.contiguous().T, mask(1, units, branch).expand(rows, -1)):
        op, args = called(name, strided, alive, branch)
        torch.testing.assert_close(op(*args), wanted(name, o, alive, branch))


def test_dead_units_contribute_nothing_against_infinities(route):
    """Of weights, of inputs, and of what dead units hold; rows that need them are as in plain torch."""
    o = operands(4, 12, 3, torch.float32)
    live = torch.ones(4, 12, dtype=torch.bool)
    live[:3, 2] = live[1:, 5] = False
    o["w"][2], o["h"][1:, 5] = torch.inf, torch.nan
    y = ops.live_combine(o["h"], o["w"], live, 1)
    assert y[:3].isfinite().all()
    assert not y[3].isfinite().any()
    z = ops.live_linear(o["x"], o["w"], None, live, 1)
    assert (z[:3, 2] == 0).all()
    o["x"][0] = torch.inf
    live[0] = False
    assert ops.live_outer(o["h"], o["x"], live, 1).isfinite().all()


def test_units_that_are_dead_in_all_rows_are_not_looked_at(monkeypatch):
    """In the dense route: fewer columns are multiplied, with the same result."""
    monkeypatch.setattr(kernels_live, "_UNITS", kernels_live._Limits(-1.0, -1.0))
    seen = []
    plain = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, b: (seen.append(len(w)), plain(x, w, b))[1]
    )
    o = operands(6, 20, 3)
    live = mask(6, 20, 4, 0.9)
    live[:, 2:] = False
    got = ops.live_linear(o["x"], o["w"], o["b"], live, 4)
    assert seen == [8]
    torch.testing.assert_close(got, wanted("live_linear", o, live, 4))


@pytest.mark.parametrize("engine", ["reference"])
@pytest.mark.parametrize("name", OPS)
def test_other_engines(engine, name):
    o = operands(5, 7, 4, torch.float32)
    live = mask(5, 7, 3)
    with pr.device(engine):
        op, args = called(name, o, live, 3)
        torch.testing.assert_close(op(*args), wanted(name, o, live, 3))


@pytest.mark.parametrize("name", OPS)
def test_vmap(name):
    rows, units, features, branch = 4, 7, 3, 2
    members = [operands(rows, units, features) for _ in range(3)]
    masks = [mask(rows, units, branch) for _ in range(3)]
    calls = [called(name, o, live, branch) for o, live in zip(members, masks, strict=True)]
    op = calls[0][0]
    first = calls[0][1][:-1]
    stacked = [torch.stack([args[at] for _, args in calls]) for at in range(len(first))]
    each = range(len(first))
    for dims in [(0,) * len(first), *[tuple(0 if at == one else None for at in each) for one in each]]:
        given = [stacked[at] if dim == 0 else first[at] for at, dim in enumerate(dims)]
        got = torch.vmap(lambda *a: op(*a, branch), in_dims=dims)(*given)
        want = [
            op(*(one[i] if dim == 0 else one for one, dim in zip(given, dims, strict=True)), branch)
            for i in range(3)
        ]
        torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.parametrize("branch", [1, 4])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_what_is_zero_already_need_not_be_cleared(route, branch, share):
    """A promise about units, or about the gradient that comes back: the same results."""
    o = operands(16, 24, 5)
    live = mask(16, 24, branch, share)
    each = spread(live, branch, 24)
    h = (o["h"] * each).requires_grad_()
    for op, other in ((ops.live_combine, o["w"]), (ops.live_outer, o["x"])):
        made = [op(h, other.requires_grad_(), live, branch, zeroed) for zeroed in (False, True)]
        torch.testing.assert_close(*made)
        torch.testing.assert_close(
            *(torch.autograd.grad(one, (h, other), torch.ones_like(one)) for one in made)
        )
    inputs = [o[name].requires_grad_() for name in ("x", "w", "b")]
    made = [ops.live_linear(*inputs, live, branch, zeroed) for zeroed in (False, True)]
    torch.testing.assert_close(*(torch.autograd.grad(one, inputs, h.detach()) for one in made))


@pytest.mark.parametrize("share", [0.02, 0.5, None])
def test_weights_that_lie_by_outputs(route, share):
    o = operands(6, 10, 4, grad=True)
    live = None if share is None else mask(6, 10, 3, share)
    turned = o["w"].detach().T.contiguous().requires_grad_()
    for op, other, plain, turn in (
        (ops.live_combine, turned, o["w"], False),
        (ops.live_outer, o["x"], o["x"], True),
    ):
        got, want = op(o["h"], other, live, 3, False, True), op(o["h"], plain, live, 3)
        torch.testing.assert_close(got.T if turn else got, want)
        dy = torch.randn_like(want)
        mine = torch.autograd.grad(got, (o["h"], other), dy.T if turn else dy)
        theirs = torch.autograd.grad(want, (o["h"], plain), dy)
        torch.testing.assert_close(mine[0], theirs[0])
        torch.testing.assert_close(mine[1] if turn else mine[1].T, theirs[1])
        opcheck(op, (o["h"], other, live, 3, False, True))
        assert gradgradcheck(lambda h, x, op=op: op(h, x, live, 3, False, True), (o["h"], other))


def test_empty():
    for rows, units, features in ((0, 4, 3), (3, 0, 4), (3, 4, 0)):
        o = operands(rows, units, features, torch.float32, grad=True)
        live = mask(rows, units, 2)
        for name in OPS:
            op, args = called(name, o, live, 2)
            torch.testing.assert_close(op(*args), wanted(name, o, live, 2))
            op(*args).sum().backward()


def test_a_mask_that_is_written_before_backward_raises():
    o = operands(5, 7, 4, grad=True)
    for name in OPS:
        live = mask(5, 7, 3)
        op, args = called(name, o, live, 3)
        y = op(*args)
        live.logical_not_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_largest_takes_the_first_of_equal_ones_and_nan_before_all():
    values = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, torch.nan, 5.0, torch.inf]])
    assert ops.largest(values, 2).tolist() == [[False, True, True, False], [False, True, False, True]]
    assert ops.largest(values, 9).all()


def test_straight_through_passes_all_gradients():
    h = torch.randn(3, 8, requires_grad=True)
    live = mask(3, 8, 2)
    y = ops.straight(h, live, 2)
    torch.testing.assert_close(y, h * spread(live, 2, 8))
    dy = torch.randn(3, 8)
    assert torch.equal(torch.autograd.grad(y, h, dy)[0], dy)


@pytest.mark.parametrize("name", OPS)
def test_on_the_device(name):
    """Kernels of the CUDA engine, in Triton's interpreter."""
    pytest.importorskip("triton")
    if not interpreted():
        pytest.skip("needs TRITON_INTERPRET=1")
    o = operands(5, 18, 6, torch.float32, grad=True)
    live = mask(5, 18, 4)
    with pr.device("cuda"):
        op, args = called(name, o, live, 4)
        got, want = op(*args), wanted(name, o, live, 4)
        torch.testing.assert_close(got, want)
        inputs = [one for one in args if isinstance(one, torch.Tensor) and one.requires_grad]
        dy = torch.randn_like(want)
        for mine, theirs in zip(
            torch.autograd.grad(got, inputs, dy), torch.autograd.grad(want, inputs, dy), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        norms = torch.rand(4, 6)
        assert ops.largest(norms, 2).sum(1).tolist() == [2] * 4


def interpreted():
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def test_what_is_computed_does_not_depend_on_threads():
    o = operands(64, 96, 32, torch.float32)
    for branch, share in ((1, 0.03), (4, 0.1), (1, 0.8)):
        live = mask(64, 96, branch, share)
        for name in OPS[:1] + OPS[2:]:
            op, args = called(name, o, live, branch)
            made = []
            for threads in (1, 2):
                with pr.num_threads(threads):
                    made.append(op(*args))
            assert np.array_equal(made[0].numpy(), made[1].numpy())
