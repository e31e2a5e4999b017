"""Experts whose dead units are left out: the operations, and mixtures of them beside a masked dense form."""

import numpy as np
import pytest
import torch

import prunus as pr
import prunus.torch as pt
from prunus import engines
from prunus.torch.ops import grouped_live as ops
from prunus.torch.ops import kernels_grouped_live, kernels_live
from prunus.torch.ops.kernels_live import spread
from support.torch_checks import gradgradcheck, opcheck

F64 = torch.float64
E, D, F, OUT, ROWS = 4, 6, 9, 5, 7
OFFSETS = torch.tensor([0, 3, 3, 5, 6], dtype=torch.int32)  # a group without rows, and a row without group
OPS = ["linear", "known", "combine", "outer"]


@pytest.fixture(autouse=True)
def seed():
    """The same numbers each time, and no threads: the operands are small."""
    torch.manual_seed(6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["sparse", "dense"])
def route(request, monkeypatch):
    """Each route by itself: none depends on how much is live then."""
    limits(monkeypatch, -1.0 if request.param == "dense" else 1e9)


def limits(monkeypatch, share):
    for name in ("_UNITS", "_ROWS", "_OUTER", "_HALF"):
        monkeypatch.setattr(kernels_live, name, kernels_live._Limits(share, share))


# The operations ------------------------------------------------------------------------------------------


def called(name, apart, flip, branch, dtype=F64, share=0.5):
    """An operation of tensors that have gradients, these tensors, and the same in plain torch."""
    x, h = torch.randn(ROWS, D, dtype=F64), torch.randn(ROWS, F, dtype=F64)
    w = torch.randn(E, F, D, dtype=F64)
    live = torch.rand(ROWS, -(-F // branch)) < share
    live[0] = True  # of a group some rows are live throughout
    x, h, w = (one.to(dtype) for one in (x, h, w))
    mask = spread(live, branch, F).to(dtype)
    rest = live, branch, OFFSETS
    group = torch.tensor([0, 0, 0, 2, 2, 3])
    mask[6:] = 0
    lying = w.mT.contiguous() if flip else w

    def each(w):
        # A copy of a group's matrix for each row; the last row has none.
        every = torch.stack(list(w)) if isinstance(w, (list, tuple)) else w
        every = every.mT if flip else every
        return torch.cat([every[group], torch.zeros_like(every[:1])])

    def linear(x, *w):
        if name == "known":
            with torch.no_grad():
                sums = ops.grouped_live_sums(x, list(w), None, branch, OFFSETS)
            return ops.grouped_live_known(sums, x, list(w), *rest)
        return ops.grouped_live_linear(x, list(w), *rest)

    if name in ("linear", "known"):
        parts = [x, *(w.unbind(0) if apart else [w])]
        exact = lambda x, *w: torch.einsum("td,tfd->tf", x, each(w if apart else w[0])) * mask  # noqa: E731
        return linear, parts, exact
    if name == "combine":
        parts = [h, *(lying.unbind(0) if apart else [lying])]
        exact = lambda h, *w: torch.einsum("tf,tfd->td", h * mask, each(w if apart else w[0]))  # noqa: E731
        return lambda h, *w: ops.grouped_live_combine(h, list(w), *rest, False, flip), parts, exact
    pick = torch.nn.functional.one_hot(group, E).to(dtype)

    def outer(h, x):
        made = torch.einsum("te,tf,td->efd", pick, (h * mask)[:6], x[:6])
        return made.mT if flip else made

    return lambda h, x: ops.grouped_live_outer(h, x, *rest, False, flip), [h, x], outer


CASES = [(name, apart, flip) for name in OPS for apart in (False, True) for flip in (False, True)]
CASES = [(n, a, f) for n, a, f in CASES if not (a and n == "outer") and not (f and n in OPS[:2])]


@pytest.mark.parametrize("branch", [1, 4])
@pytest.mark.parametrize(("name", "apart", "flip"), CASES)
def test_values_and_derivatives(route, name, apart, flip, branch):
    call, parts, exact = called(name, apart, flip, branch)
    parts = [one.requires_grad_() for one in parts]
    got, want = call(*parts), exact(*parts)
    torch.testing.assert_close(got, want)
    dy = torch.randn_like(want)
    for mine, theirs in zip(
        torch.autograd.grad(got, parts, dy), torch.autograd.grad(want, parts, dy), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    if name == "known":
        return  # of what is perturbed, sums are others: that is as if it had a gradient, and in linear's test
    assert torch.autograd.gradcheck(call, parts, fast_mode=True)
    assert gradgradcheck(call, parts)


def test_known_sums_have_the_gradients_of_their_product():
    call, parts, _ = called("known", False, False, 2)
    parts = [one.requires_grad_() for one in parts]
    assert torch.autograd.gradcheck(call, parts)
    assert gradgradcheck(call, parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "apart", "flip"), CASES)
def test_dtypes(name, apart, flip, dtype):
    call, parts, exact = called(name, apart, flip, 2, dtype)
    got, want = call(*parts), exact(*parts)
    assert got.dtype == dtype
    error = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(got, want, rtol=error, atol=error)


def test_what_torch_knows_of_them():
    x, h, w = (torch.randn(s, dtype=F64, requires_grad=True) for s in ((ROWS, D), (ROWS, F), (E, F, D)))
    each = [one.detach().requires_grad_() for one in w]
    live = torch.rand(ROWS, 3) < 0.5
    rest = live, 4, OFFSETS
    for form, matrices, turned in ((0, w, w.mT), (1, each, [one.mT for one in each])):
        opcheck(ops._LINEAR.forms[form], (x, matrices, *rest, True))
        sums = ops._SUMS.forms[form](x, matrices, live, 4, OFFSETS).detach()
        plain = [one.detach() for one in each] if form else w.detach()
        opcheck(ops._SUMS.forms[form], (x.detach(), plain, None, 4, OFFSETS))
        opcheck(ops._KNOWN.forms[form], (sums, x, matrices, *rest, False))
        opcheck(ops._COMBINE.forms[form], (h, matrices, *rest, False, False))
        opcheck(ops._COMBINE.forms[form], (h, turned, *rest, False, True))
    opcheck(ops._SUMS.forms[0], (x.detach().half(), w.detach().half(), None, 4, OFFSETS))
    opcheck(ops.grouped_live_outer, (h, x, *rest))
    opcheck(ops.grouped_live_outer, (h, x, *rest, False, True))


def test_only_gradients_that_are_needed():
    """A matrix without gradient has none, and those beside it have theirs."""
    call, (x, *w), exact = called("combine", True, True, 2)
    w[0].requires_grad_()
    w[2].requires_grad_()
    for mine, theirs in zip(
        torch.autograd.grad(call(x, *w).sum(), (w[0], w[2])),
        torch.autograd.grad(exact(x, *w).sum(), (w[0], w[2])),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.grad(call(x.requires_grad_(), *(one.detach() for one in w)).sum(), x)[0].any()


# Mixtures ------------------------------------------------------------------------------------------------


def operands(dtype=F64, features=D, units=F, width=OUT):
    shapes = (ROWS, features), (E, features), (E, units, features), (E, width, units), (E, units, features)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def alive(policy, h, branch):
    """What a policy keeps of hidden units (rows, F), as booleans of their shape."""
    if policy is None:
        return torch.ones_like(h, dtype=torch.bool)
    if isinstance(policy, pr.Fixed):
        mask = torch.from_numpy(policy.mask.copy()).expand(len(h), -1)
    else:
        norms = torch.nn.functional.pad(h.detach().abs(), (0, -h.shape[1] % branch))
        norms = norms.reshape(len(h), -1, branch).amax(2)
        if isinstance(policy, pr.Threshold):
            mask = norms > policy.tau
        else:
            count = (
                policy.count if policy.count is not None else max(round(policy.fraction * norms.shape[1]), 1)
            )
            mask = torch.zeros_like(norms, dtype=torch.bool).scatter(1, norms.topk(count).indices, True)
    return mask.repeat_interleave(branch, 1)[:, : h.shape[1]]


def dense(x, router, up, down, gate=None, *, prune, branch=1, top_k=2, logits=None, shared=None):
    """Each row through all experts, whose dead units are set to 0, times weights that are mostly 0."""
    scores = x @ router.T if logits is None else logits
    keep = torch.zeros_like(scores).scatter(1, scores.topk(top_k).indices, 1.0)
    power = torch.softmax(scores, -1) * keep
    weights = power / power.sum(-1, keepdim=True)
    policies = prune if isinstance(prune, list) else [prune] * len(up)
    silu = torch.nn.functional.silu

    def expert(up, down, gate, policy):
        decides = silu(x @ (up if gate is None else gate).T)
        h = decides if gate is None else decides * (x @ up.T)
        return torch.where(alive(policy, decides, branch), h, 0) @ down.T

    gates = [None] * len(up) if gate is None else gate
    parts = zip(up, down, gates, policies, strict=True)
    out = sum(weights[:, e, None] * expert(*one) for e, one in enumerate(parts))
    return out if shared is None else out + expert(*shared[:2], *(shared[2:] or [None]), prune)


RNG = np.random.default_rng(3)
LIVE = {
    "threshold": {"prune": pr.Threshold(0.2), "branch": 2},
    "count": {"prune": pr.TopK(3)},
    "fraction": {"prune": pr.TopK(fraction=0.4), "branch": 2},
    "fixed": {"prune": pr.Fixed(RNG.random(F) < 0.5)},
    "rows": {"prune": pr.Fixed(RNG.random((ROWS, 5)) < 0.5), "branch": 2},
    "some": {"prune": [None, pr.Fixed(RNG.random((ROWS, F)) < 0.5), None, pr.Fixed(RNG.random(F) < 0.5)]},
    "mixed": {"prune": [None, pr.TopK(2), pr.Threshold(0.1), pr.Fixed(RNG.random(F) < 0.5)]},
    "wide": {"prune": pr.Threshold(1.0), "branch": 20},
}


def same_gradients(y, exact, parts):
    torch.testing.assert_close(y, exact)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, parts, dy, retain_graph=True)
    for one, right in zip(got, torch.autograd.grad(exact, parts, dy, retain_graph=True), strict=True):
        torch.testing.assert_close(one, right)


@pytest.mark.parametrize("name", list(LIVE))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_as_a_masked_dense_layer(name, gated, apart):
    parts, options = operands()[: 5 if gated else 4], dict(LIVE[name])

    def mixture(x, router, *w):
        return pt.moe(x, router, *(list(one) for one in w) if apart else w, **options)

    y = mixture(*parts)
    same_gradients(y, dense(*parts, **options), parts)
    if not apart and name in ("fraction", "rows", "mixed"):
        assert torch.autograd.gradcheck(mixture, parts, fast_mode=True)
        assert gradgradcheck(mixture, parts)
        compiled = torch.compile(mixture, fullgraph=True, backend="aot_eager")
        same_gradients(compiled(*parts), y, parts)


@pytest.mark.parametrize("name", ["fraction", "mixed"])
def test_experts_without_rows(route, name):
    x, _, up, down, gate = operands()
    logits = torch.randn(ROWS, E, dtype=F64)
    logits[:, 1] = -torch.inf
    with torch.no_grad():
        up[1], down[1], gate[1] = torch.nan, torch.inf, torch.nan
    y = pt.moe(x, None, up, down, gate, logits=logits, **LIVE[name])
    y.sum().backward()
    assert y.isfinite().all()
    assert all(one.grad.isfinite().all() and not one.grad[1].any() for one in (up, down, gate))
    # A row may have fewer experts than the others.
    logits[2, 2:] = -torch.inf
    few = pt.moe(x, None, up, down, gate, logits=logits, **LIVE[name])
    assert few.isfinite().all()
    assert pt.moe(x[:0], None, up, down, gate, logits=logits[:0], prune=pr.TopK(2)).shape == (0, OUT)


@pytest.mark.parametrize("prune", [None, pr.TopK(2)])
def test_rows_without_features(prune):
    x, router, up, down = operands(features=0)[:4]
    y = pt.moe(x, router, up, down, prune=prune)
    y.sum().backward()
    assert y.shape == (ROWS, OUT)
    assert not y.any()
    assert x.grad.shape == (ROWS, 0)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_dead_units_are_not_looked_at(route, gated, apart):
    """What is dead in all rows may hold NaN; so may what is live for others only, where it contributes."""
    parts = operands()[: 5 if gated else 4]
    live = np.arange(F) % 3 == 0
    with torch.no_grad():
        for one in parts[2:]:
            (one if one.shape[-1] == D else one.mT)[:, ~live] = torch.nan
    w = (list(one) for one in parts[2:]) if apart else parts[2:]
    y = pt.moe(*parts[:2], *w, prune=pr.Fixed(live))
    y.square().sum().backward()
    assert y.isfinite().all()
    for one in parts:
        assert one.grad.isfinite().all()
    assert not parts[2].grad[:, ~live].any()
    # A row does not meet the infinity that another one needs.
    mask = np.ones((ROWS, F), bool)
    mask[1:, 4] = False
    x, router, up, down = (one.detach().nan_to_num(0.5).requires_grad_() for one in parts[:4])
    with torch.no_grad():
        down[:, 0, 4] = torch.inf
    y = pt.moe(x, router, up, down, prune=pr.Fixed(mask))
    assert y[1:].isfinite().all()
    assert not y[0].isfinite().all()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "prune", [pr.Fixed(RNG.random((ROWS, 40)) < 0.03), pr.TopK(1)], ids=["fixed", "count"]
)
def test_few_live_units_take_routes_that_skip(monkeypatch, gated, prune):
    """Where little is live, no product but the deciding one is dense, forward and backward."""
    multiplied = []
    for name in ("_dense_linear", "_dense_combine", "_dense_outer"):
        monkeypatch.setattr(kernels_live, name, counting(multiplied, getattr(kernels_live, name)))
    parts = operands(torch.float32, 512, 320, 512)[: 5 if gated else 4]
    y = pt.moe(*parts, prune=prune, branch=8)
    y.square().sum().backward()
    # But for the deciding one, of each expert that has rows.
    chosen = len((parts[0] @ parts[1].T).topk(2).indices.unique())
    assert len(multiplied) == (0 if isinstance(prune, pr.Fixed) else chosen)
    assert all(live is None for _, _, _, live, *_ in multiplied)
    exact = dense(*parts, prune=prune, branch=8)
    torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-1)


def counting(calls, function):
    def call(*args):
        calls.append(args)
        return function(*args)

    return call


@pytest.mark.parametrize("gated", [False, True])
def test_block_sparse_experts(gated):
    """Of these, products are as dense as their blocks, and what is dead is 0."""
    options = LIVE["threshold"]
    x, router, *w = (one.detach().requires_grad_() for one in operands()[: 5 if gated else 4])
    for sparse in range(1, 1 << len(w)):  # which of them are block-sparse
        blocks = [
            [pt.BSR.from_dense(m, (3, 2), density=0.6) for m in one] if sparse >> at & 1 else one
            for at, one in enumerate(w)
        ]
        exact = [torch.stack([m.toarray() for m in one]) if isinstance(one, list) else one for one in blocks]
        y = pt.moe(x, router, *blocks, **options)
        same_gradients(y, dense(x, router, *exact, **options), [x, router, *w])


@pytest.mark.parametrize("name", ["threshold", "fraction", "fixed", "rows"])
@pytest.mark.parametrize("gated", [False, True])
def test_shared_experts_are_pruned(name, gated):
    parts = operands()[: 5 if gated else 4]
    shared = tuple(one.detach()[0].clone().requires_grad_() for one in operands()[2 : 5 if gated else 4])

    def mixture(*w):
        return pt.moe(*w[: len(parts)], shared=w[len(parts) :], **LIVE[name])

    y, every = mixture(*parts, *shared), [*parts, *shared]
    same_gradients(y, dense(*parts, shared=shared, **LIVE[name]), every)
    compiled = torch.compile(mixture, fullgraph=True, backend="aot_eager")
    same_gradients(compiled(*every), y, every)
    if name == "fixed":
        dead = ~LIVE[name]["prune"].mask
        with torch.no_grad():
            shared[0][dead], shared[1][:, dead] = torch.nan, torch.inf
        again = mixture(*parts, *shared)
        torch.testing.assert_close(again, y)
        assert all(one.isfinite().all() for one in torch.autograd.grad(again.sum(), every))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mixtures_of_dtypes(dtype):
    parts = [one.detach().to(dtype).requires_grad_() for one in operands()]
    options = {"prune": pr.Fixed(RNG.random((ROWS, 5)) < 0.5), "branch": 2}
    y = pt.moe(*parts, **options)
    assert y.dtype == dtype
    exact = pt.moe(*(one.detach().double() for one in parts), **options)
    error = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=error, atol=error * float(exact.detach().abs().max()))
    y.sum().backward()
    assert all(one.grad.dtype == dtype for one in parts)
    with torch.autocast("cpu", torch.bfloat16):
        shared = tuple(one[0].detach() for one in parts[2:])
        assert pt.moe(*parts, prune=pr.TopK(2), shared=shared).dtype == torch.bfloat16


def test_sums_of_half_precision_decide_before_they_are_rounded():
    # 1 + 2**-11 and 1: one half-precision number, and two sums.
    x = torch.tensor([[1.0, 2**-11]]).half()
    up = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]).half()
    down = torch.tensor([[[1.0, 2.0]]]).half()
    y = pt.moe(x, None, up, down, logits=torch.zeros(1, 1), top_k=1, activation=None, prune=pr.TopK(1))
    assert y.item() == 2.0


def test_what_is_written_before_backward_is_told():
    for which in (0, 2, 3):
        copies = [one.detach().requires_grad_().clone() for one in operands()]
        y = pt.moe(*copies, prune=pr.TopK(3))
        with torch.no_grad():
            copies[which].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("shape", [(F,), (ROWS, F)])
def test_a_fixed_mask_that_is_written_before_backward_stays_what_it_was(shape):
    parts, mask = operands(), RNG.random(shape) < 0.5
    shared = tuple(one.detach()[0] for one in parts[2:4])
    found = []
    for written in (False, True):
        policy = pr.Fixed(mask)
        y = pt.moe(*parts[:4], prune=policy, shared=shared)
        if written:
            policy.mask[...] = ~policy.mask
        found.append(torch.autograd.grad(y.sum(), parts[:4]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.skipif("cuda" not in engines.names(), reason="needs a GPU, or TRITON_INTERPRET=1")
@pytest.mark.parametrize("apart", [False, True])
def test_on_the_device(apart):
    parts = operands(torch.float32)
    shared = tuple(one.detach()[0] for one in parts[2:])
    for options in (LIVE["fraction"], LIVE["rows"]):
        mine = [one.detach().clone().requires_grad_() for one in parts]
        exact = pt.moe(*mine, shared=shared, **options)
        exact.square().sum().backward()
        with pr.device("cuda") as engine:
            place = engine.where.device
            there = [one.detach().to(place).requires_grad_() for one in parts]
            w = [list(one) for one in there[2:]] if apart else there[2:]
            also = tuple(one.to(place) for one in shared)
            y = pt.moe(*there[:2], *w, shared=also, **options)
            y.square().sum().backward()
        torch.testing.assert_close(y.cpu(), exact, rtol=1e-4, atol=1e-4)
        for one, right in zip(there, mine, strict=True):
            torch.testing.assert_close(one.grad.cpu(), right.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif("cuda" not in engines.names(), reason="needs a GPU, or TRITON_INTERPRET=1")
def test_what_dead_units_hold_is_not_looked_at_on_the_device():
    live = torch.rand(ROWS, 5) < 0.5
    h, w = torch.randn(ROWS, F), torch.randn(E, F, D)
    x = torch.randn(ROWS, D)
    dead = ~spread(live, 2, F)
    exact = kernels_grouped_live.combine(h, [w], live, 2, OFFSETS, False, False)
    outer = kernels_grouped_live.outer(h, x, live, 2, OFFSETS, False, True)
    with pr.device("cuda") as engine:
        place = engine.where.device
        odd, mask, ends = h.masked_fill(dead, torch.nan).to(place), live.to(place), OFFSETS.to(place)
        y = kernels_grouped_live.combine(odd, [w.to(place)], mask, 2, ends, False, False)
        made = kernels_grouped_live.outer(odd, x.to(place), mask, 2, ends, False, True)
    torch.testing.assert_close(y.cpu(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.cpu(), outer, rtol=1e-4, atol=1e-4)
