"""Mixtures of experts with gradients: against ``pr.moe``, and against torch on dense tensors."""

from itertools import chain

import numpy as np
import pytest
import torch

import prunus as pr
import prunus.torch as pt
from prunus import engines
from prunus.torch.ops import grouped
from support.torch_checks import gradgradcheck, opcheck

F64 = torch.float64
E, D, F, OUT, ROWS = 4, 6, 9, 5, 7


@pytest.fixture(autouse=True)
def seed():
    """The same numbers each time, and no threads: the operands are small."""
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)


def operands(dtype=F64):
    shapes = (ROWS, D), (E, D), (E, F, D), (E, OUT, F), (E, F, D)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def dense(x, router, up, down, gate=None, top_k=2, activation="silu", renormalize=True, logits=None):
    """Each row through all experts, times weights that are mostly 0."""
    act = getattr(torch.nn.functional, activation)
    scores = x @ router.T if logits is None else logits
    chosen = scores.topk(top_k).indices
    keep = torch.zeros_like(scores).scatter(1, chosen, 1.0)
    power = torch.softmax(scores, -1) * keep
    weights = power / power.sum(-1, keepdim=True) if renormalize else power
    h = torch.einsum("td,efd->tef", x, up)
    h = act(h) if gate is None else act(torch.einsum("td,efd->tef", x, gate)) * h
    return torch.einsum("te,tef,eof->to", weights, h, down)


OPTIONS = {
    "plain": {},
    "gated": {"top_k": 3},
    "softmax over all": {"renormalize": False, "top_k": 1},
    "relu": {"activation": "relu", "top_k": 4},
}


@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_values_and_gradients(options, gated, apart):
    x, router, up, down, gate = operands()
    gate = gate if gated else None
    parts = [x, router, up, down, *([gate] if gated else [])]

    def mixture(x, router, *w):
        return pt.moe(x, router, *(list(one) for one in w) if apart else w, **options)

    y, expected = mixture(*parts), dense(*parts, **options)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    got = torch.autograd.grad(y, parts, weight)
    # Which experts are chosen has no gradient, and with one weight of 1 neither has the router.
    for one, exact in zip(got, torch.autograd.grad(expected, parts, weight), strict=True):
        torch.testing.assert_close(one, exact)
    assert torch.autograd.gradcheck(mixture, parts, fast_mode=True)
    assert gradgradcheck(mixture, parts, fast_mode=True)


def sparse(w, turned=False):
    """Each expert's matrix as a BSR, with a pattern of its own."""
    if turned:
        return [pt.BSR.from_dense(one.mT, (2, 3), density=0.6).T for one in w]
    return [pt.BSR.from_dense(one, (3, 2), density=0.6) for one in w]


def stacked(w):
    """All experts' matrices as one BSR of a pattern."""
    mask = pr.BlockMask(
        np.random.default_rng(0).random((-(-w.shape[1] // 3), -(-w.shape[2] // 2))) < 0.6, (3, 2), w.shape[1:]
    )
    one = [pt.BSR.from_dense(m, (3, 2), mask=mask) for m in w]
    data = torch.stack([m.data for m in one])
    return pt.BSR((data, one[0].indices, one[0].indptr), tuple(w.shape))


@pytest.mark.parametrize("form", ["apart", "turned", "stacked"])
def test_block_sparse_experts(form):
    x, router, up, down, gate = (w.detach().requires_grad_() for w in operands())
    make = {"apart": sparse, "turned": lambda w: sparse(w, True), "stacked": stacked}[form]
    parts = [make(w) for w in (up, down, gate)]
    exact = [torch.stack([one.toarray() for one in w]) if isinstance(w, list) else w.toarray() for w in parts]
    y = pt.moe(x, router, *parts)
    expected = dense(x, router, *exact)
    torch.testing.assert_close(y, expected)
    weight, leaves = torch.randn_like(y), (x, router, up, down, gate)
    got = torch.autograd.grad(y, leaves, weight, retain_graph=True)
    for one, right in zip(got, torch.autograd.grad(expected, leaves, weight, retain_graph=True), strict=True):
        torch.testing.assert_close(one, right)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_block_sparse_operations(own, transposed):
    w = stacked(torch.randn(E, F, D, dtype=F64))
    if own:
        every = sparse(torch.randn(E, F, D, dtype=F64))
        starts = torch.stack([one.indptr + at * one.nnzb for at, one in enumerate(every)])
        data, indices = (torch.cat([getattr(one, name) for one in every]) for name in ("data", "indices"))
        w = pt.BSR((data, indices, starts), (E, F, D))
    data = w.data.detach().requires_grad_()
    cols = F if transposed else D
    x = torch.randn(ROWS, cols, dtype=F64, requires_grad=True)
    offsets = torch.tensor([0, 3, 3, 5, 6], dtype=torch.int32)
    args = (data, w.indices, w.indptr, F, D, transposed, x, offsets)
    opcheck(grouped.grouped_dsd, args)
    assert torch.autograd.gradcheck(grouped.grouped_dsd, args)
    assert gradgradcheck(grouped.grouped_dsd, args, fast_mode=True)
    a = torch.randn(ROWS, F, dtype=F64, requires_grad=True)
    b = torch.randn(ROWS, D, dtype=F64, requires_grad=True)
    opcheck(grouped.grouped_sdd, (a, b, offsets, w.indices, w.indptr, 3, 2))
    exact = (w._with(data).T if transposed else w._with(data)).toarray()
    y = grouped.grouped_dsd(*args)
    for e in range(E):
        part = slice(int(offsets[e]), int(offsets[e + 1]))
        torch.testing.assert_close(y[part], x[part] @ exact[e].T)
    assert not y[6:].any()


def test_operations():
    x = torch.randn(ROWS, D, dtype=F64, requires_grad=True)
    w = torch.randn(E, F, D, dtype=F64, requires_grad=True)
    b = torch.randn(ROWS, F, dtype=F64, requires_grad=True)
    offsets = torch.tensor([0, 3, 3, 5, 6], dtype=torch.int32)
    each = [one.detach().requires_grad_() for one in w]
    for op, args in (
        (grouped.grouped_mm, (x, w, offsets)),
        (grouped.grouped_outer, (b, x, offsets)),
    ):
        opcheck(op, args)
        assert torch.autograd.gradcheck(op, args)
        assert gradgradcheck(op, args, fast_mode=True)
    opcheck(grouped.grouped_mm_each, (x, each, offsets))
    torch.testing.assert_close(grouped.grouped_mm_each(x, each, offsets), grouped.grouped_mm(x, w, offsets))
    opcheck(grouped.route, (torch.randn(ROWS, E), 2))
    turned = torch.randn(E, D, F, dtype=F64).mT
    torch.testing.assert_close(
        grouped.grouped_mm(x, turned, offsets), grouped.grouped_mm(x, turned.contiguous(), offsets)
    )


def test_only_chosen_experts_are_looked_at():
    x, router, up, down, _ = operands()
    logits = torch.zeros(ROWS, E, dtype=F64)
    logits[:, 2] = -torch.inf
    with torch.no_grad():
        up[2], down[2] = torch.nan, torch.inf
    y = pt.moe(x, None, up, down, logits=logits, top_k=3)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert not up.grad[2].any()
    assert not down.grad[2].any()
    assert router.grad is None


def host(value):
    if isinstance(value, (list, tuple)):
        return type(value)(host(one) for one in value)
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


def as_pr(*given, **options):
    return pr.moe(*(host(one) for one in given), **{name: host(one) for name, one in options.items()})


RNG = np.random.default_rng(3)
LIVE = {
    "threshold": {"prune": pr.Threshold(0.2), "branch": 2},
    "norm": {"prune": pr.Threshold(0.2, norm="l2"), "branch": 4},
    "count": {"prune": pr.TopK(3)},
    "fraction": {"prune": pr.TopK(fraction=0.3), "branch": 2},
    "fixed": {"prune": pr.Fixed(RNG.random((ROWS, 5)) < 0.5), "branch": 2},
    "mixed": {"prune": [None, pr.TopK(2), pr.Threshold(0.1), pr.Fixed(RNG.random(F) < 0.5)]},
}


@pytest.mark.parametrize("options", list(LIVE.values()), ids=list(LIVE))
@pytest.mark.parametrize("gated", [False, True])
def test_units_are_pruned_as_without_gradients(options, gated):
    parts = operands()[: 5 if gated else 4]
    shared = (parts[2][0].detach(), parts[3][0].detach())
    y = pt.moe(*parts, shared=shared, **options)
    exact = as_pr(*parts, shared=shared, **options)
    np.testing.assert_allclose(y.detach().numpy(), exact, rtol=1e-9, atol=1e-9)
    compiled = torch.compile(
        lambda *w: pt.moe(*w, shared=shared, **options), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*parts), y)


def test_dead_units_have_no_gradient():
    x, router, up, down, _ = operands()
    live = np.arange(F) % 2 == 0
    pt.moe(x, router, up, down, prune=pr.Fixed(live)).sum().backward()
    assert not up.grad[:, 1::2].any()
    assert not down.grad[..., 1::2].any()
    assert up.grad[:, ::2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    parts = [one.detach().to(dtype).requires_grad_() for one in operands()]
    y = pt.moe(*parts)
    assert y.dtype == dtype
    exact = pt.moe(*(one.detach().double() for one in parts))
    error = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=error, atol=error * float(exact.abs().max()))
    y.sum().backward()
    assert all(one.grad.dtype == dtype for one in parts)


def test_autocast_leaves_the_router_alone():
    parts = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = pt.moe(*parts)
        y.sum().backward()
    assert y.dtype == torch.bfloat16
    x, router, *experts = parts
    logits = (x @ router.T).detach()
    exact = pt.moe(x.bfloat16(), None, *(w.bfloat16() for w in experts), logits=logits)
    torch.testing.assert_close(y, exact)


def test_leading_dimensions_ties_and_no_rows():
    x, router, up, down, gate = (one.detach() for one in operands())
    y = pt.moe(x, router, up, down, gate)
    torch.testing.assert_close(pt.moe(x.reshape(1, ROWS, 1, D), router, up, down, gate)[0, :, 0], y)
    torch.testing.assert_close(pt.moe(x[3], router, up, down, gate), y[3])
    assert pt.moe(x[:0], router, up, down, gate).shape == (0, OUT)
    same = torch.zeros(ROWS, E, dtype=F64)
    first = pt.moe(x, None, up[:2], down[:2], logits=same[:, :2])
    torch.testing.assert_close(pt.moe(x, None, up, down, logits=same), first)


def _cut(w, e):
    return pt.BSR.from_dense(w if e else w.float(), 3)


def test_bad_operands():
    x, router, up, down, gate = (one.detach() for one in operands())
    for wrong, error, match in (
        ({"x": x.float()}, TypeError, "router must be"),
        ({"x": x.float(), "router": router.float()}, TypeError, "one dtype"),
        ({"top_k": 5}, ValueError, "from 1 to the number of experts, 4"),
        ({"router": router[:3]}, ValueError, r"router must have shape \(4, 6\)"),
        ({"w_up": up[0]}, ValueError, "axis 0 of three"),
        ({"w_down": down[:3]}, ValueError, "4 experts in w_up, but 3 in w_down"),
        ({"w_gate": gate[:, :3]}, ValueError, "w_gate has shape"),
        ({"w_down": down[..., :3]}, ValueError, "columns"),
        ({"w_up": []}, ValueError, "no experts"),
        ({"w_up": [*up[:3], up[3, :2]]}, ValueError, "of expert 3 has shape"),
        ({"w_up": [*up[:3], pt.BSR.from_dense(up[3], 2)]}, TypeError, "not both"),
        ({"logits": x}, TypeError, "either a router or logits="),
        ({"prune": pr.Threshold(0.0, rows=2)}, ValueError, "rows=1"),
        ({"prune": [None]}, ValueError, "1 policies for 4 experts"),
        ({"prune": lambda seen: seen.norms > 0}, TypeError, "a Threshold, a TopK or a Fixed"),
        ({"prune": pr.Fixed(np.ones((2, F), bool))}, ValueError, "each of the 7 rows"),
        ({"w_up": [_cut(one, e) for e, one in enumerate(up)]}, TypeError, "one dtype"),
        ({"shared": up}, TypeError, "a shared expert is a tuple"),
        ({"shared": (up[0].numpy(), down[0])}, TypeError, "w_up of a shared expert must be a tensor"),
        ({"shared": (up[0], down[0, :1])}, ValueError, "a shared expert takes w_up"),
        ({"shared": (up[0], down[0], gate[0, :1])}, ValueError, "w_gate of a shared expert"),
        ({"activation": "tanh"}, ValueError, "activation"),
    ):
        given = {"x": x, "router": router, "w_up": up, "w_down": down, "w_gate": gate, **wrong}
        with pytest.raises(error, match=match):
            pt.moe(**given)
    for value, match in ((torch.nan, "hold NaN"), (torch.inf, r"hold \+inf"), (-torch.inf, "all -inf")):
        logits = torch.zeros(ROWS, E, dtype=F64)
        logits[2] = value
        with pytest.raises(ValueError, match=f"row 2 .*{match}"):
            pt.moe(x, None, up, down, logits=logits)


def test_what_is_written_before_backward_is_told():
    parts = operands()
    for which in (0, 2, 3):
        copies = [one.clone() for one in parts]
        y = pt.moe(*copies)
        with torch.no_grad():
            copies[which].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_balance_is_as_in_switch_transformers():
    logits = torch.randn(50, E, dtype=F64, requires_grad=True)
    share = torch.nn.functional.one_hot(logits.argmax(1), E).double().mean(0)
    exact = E * (share * torch.softmax(logits, 1).mean(0)).sum()
    torch.testing.assert_close(pt.load_balancing_loss(logits, 1), exact)
    assert torch.autograd.gradcheck(lambda x: pt.load_balancing_loss(x, 2), (logits,), fast_mode=True)
    torch.testing.assert_close(
        pt.load_balancing_loss(torch.tensor([[50.0, 0, 0, 0]] * 3), 1), torch.tensor(4.0)
    )
    with pytest.raises(ValueError, match="experts"):
        pt.load_balancing_loss(logits, 5)


@pytest.mark.skipif("cuda" not in engines.names(), reason="needs a GPU, or TRITON_INTERPRET=1")
def test_on_the_device():
    parts = operands(torch.float32)
    blocks = [sparse(w.detach()) for w in parts[2:]]
    with pr.device("cuda") as engine:
        place = engine.where.device
        there = [one.detach().to(place).requires_grad_() for one in parts]
        moved = [[one.to(place).requires_grad_() for one in w] for w in blocks]
        y = pt.moe(*there)
        y.square().sum().backward()
        apart = pt.moe(there[0], there[1], *(list(w) for w in there[2:]))
        few = pt.moe(*there[:2], *moved)
        few.square().sum().backward()
    mine = [one.detach().clone().requires_grad_() for one in parts]
    exact = pt.moe(*mine)
    exact.square().sum().backward()
    torch.testing.assert_close(y.cpu(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(apart.cpu(), exact, rtol=1e-4, atol=1e-4)
    for one in blocks:
        for w in one:
            w.requires_grad_()
    again = pt.moe(mine[0], mine[1], *blocks)
    again.square().sum().backward()
    torch.testing.assert_close(few.cpu(), again, rtol=1e-4, atol=1e-4)
    for one, right in zip(there, mine, strict=True):
        torch.testing.assert_close(one.grad.cpu(), right.grad, rtol=1e-3, atol=1e-3)
    for one, right in zip(chain(*moved), chain(*blocks), strict=True):
        torch.testing.assert_close(one.grad.cpu(), right.grad, rtol=1e-3, atol=1e-3)
