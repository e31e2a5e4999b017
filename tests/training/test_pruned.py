"""Layers whose branches die as they run: decisions, ``linear``, ``ffn``, thresholds that learn, PrunedFFN."""

import copy
import os
import pickle

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

import prunus as pr
import prunus.torch as pt
from prunus.interop.torch import as_array
from prunus.pruning import policies
from prunus.torch import deciding
from prunus.torch.ops.kernels_live import spread
from support.torch_checks import gradgradcheck

F64 = torch.float64
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
POLICIES = {
    "exact": pr.Threshold(0.0),
    "threshold": pr.Threshold(0.3),
    "l2": pr.Threshold(0.4, norm="l2"),
    "pooled": pr.Threshold(0.7, rows=3),
    "count": pr.TopK(count=2),
    "fraction": pr.TopK(fraction=0.3, norm="l2"),
    "pooled top": pr.TopK(count=1, rows=2),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)
    torch._dynamo.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of small tensors, several would only wait for each other
    yield
    torch.set_num_threads(threads)


def layer(d=5, hidden=14, out=4, dtype=F64, grad=True):
    """Inputs and weights of a gated layer, by the names that ffn has for them."""
    shapes = {
        "x": (7, d),
        "w_up": (hidden, d),
        "w_down": (out, hidden),
        "w_gate": (hidden, d),
        "b_up": (hidden,),
        "b_down": (out,),
    }
    made = {name: torch.randn(*shape, dtype=F64) / max(shape[-1], 1) ** 0.5 for name, shape in shapes.items()}
    made["x"] = made["x"] * 3
    return {name: one.to(dtype).requires_grad_(grad) for name, one in made.items()}


def numbers(o):
    return {name: as_array(one) for name, one in o.items()}


def plain(o, live, branch, gated, activation="relu", straight=False):
    """The layer in plain torch, of which is known what is live."""
    act = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}[activation]
    up = o["x"] @ o["w_up"].T + o["b_up"]
    h = act(o["x"] @ o["w_gate"].T) * up if gated else act(up)
    each = spread(live, branch, len(o["w_up"])).to(h.dtype)
    masked = h + (h * each - h).detach() if straight else h * each
    return masked @ o["w_down"].T + o["b_down"]


def compared(y, want, o):
    torch.testing.assert_close(y, want)
    dy = torch.randn_like(want)
    mine, theirs = (torch.autograd.grad(one, o.values(), dy, allow_unused=True) for one in (y, want))
    for name, a, b in zip(o, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"gradient of {name}: {text}")


def live_of(o, prune, branch, gated, decide=None, activation="relu"):
    """What a policy says of the layer, in NumPy."""
    up, gate = o["x"] @ o["w_up"].T + o["b_up"], o["x"] @ o["w_gate"].T
    first = (
        up if gated and decide == "up" else getattr(torch.nn.functional, activation)(gate if gated else up)
    )
    norms = deciding.norms_of(first.detach(), branch, prune.norm)
    return torch.from_numpy(np.ascontiguousarray(policies.decide(prune, norms.numpy())))


# Decisions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_policies_decide_as_on_arrays(policy, dtype):
    for rows, branches in ((1, 1), (7, 10), (6, 3), (0, 4)):
        norms = torch.rand(rows, branches, dtype=dtype)
        norms[norms < 0.2] = 0.3  # ties, and the threshold itself
        if rows > 2 and branches > 4:
            norms[0, 1], norms[1, 2], norms[1, 3] = torch.nan, torch.inf, torch.inf
        want = policies.decide(policy, norms.numpy())
        assert np.array_equal(deciding.decide(policy, norms).numpy(), want)


def test_a_threshold_that_single_precision_cannot_hold():
    for tau in (0.1, 0.3, 1 / 3, 1e-46, 3e39):
        near = np.float32(min(tau, 3e38))
        values = [np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(np.inf)), np.inf]
        norms = torch.from_numpy(np.array([values], np.float32))
        want = policies.decide(pr.Threshold(tau), norms.numpy())
        assert np.array_equal(deciding.decide(pr.Threshold(tau), norms).numpy(), want)


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("branch", [1, 3, 8, 11])
def test_norms(norm, branch):
    from prunus.pruning._rows import norms_of

    h = torch.randn(4, 11, dtype=F64) * torch.tensor([[1e-200], [1.0], [1e200], [0.0]], dtype=F64)
    got = deciding.norms_of(h, branch, norm)
    np.testing.assert_allclose(got.numpy(), norms_of(h.numpy(), branch, norm), rtol=1e-14)
    h = torch.randn(3, 11, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: deciding.norms_of(h, branch, norm), h)
    strange = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [0.0, 0.0]], requires_grad=True)
    made = deciding.norms_of(strange, 2, norm)
    assert made[0].isnan()
    assert made[1].isinf()
    zero = torch.zeros(1, 2, requires_grad=True)
    deciding.norms_of(zero, 2, norm).sum().backward()
    assert zero.grad.isfinite().all()


def test_functions_are_asked_once_with_statistics():
    seen = []

    def rule(statistics):
        seen.append(statistics)
        return statistics.norms > 0.5

    o = layer()
    y = pt.ffn(**o, prune=rule, branch=3)
    assert len(seen) == 1
    assert isinstance(seen[0].norms, np.ndarray)
    live = torch.from_numpy(seen[0].norms > 0.5)
    compared(y, plain(o, live, 3, True), o)
    with pytest.raises(TypeError, match="array of booleans"):
        pt.ffn(**o, prune=lambda statistics: statistics.norms)


def test_what_is_foreseen_is_all_that_is_computed():
    o = layer()
    mask = torch.rand(7, 5) < 0.5
    predictor = pr.Predictor.fit(
        np.random.default_rng(0).standard_normal((99, 5)),
        as_array(o["w_up"]),
        rank=3,
        keep=0.4,
        w_gate=as_array(o["w_gate"]),
        branch=3,
    )
    guess = torch.from_numpy(predictor.foresee(as_array(o["x"]), 5))
    cases = [
        (mask, mask),
        (mask[0], mask[:1].expand(7, 5)),
        (pr.Fixed(mask.numpy()), mask),
        (predictor, guess),
    ]
    for prune, live in cases:
        with torch.no_grad():  # of what nobody needs, nothing is looked at
            o["w_up"][12:] = o["w_up"][12:] if live[:, 4].any() else torch.nan
        for decide in (None, "predictor"):
            y = pt.ffn(**o, prune=prune, branch=3, decide=decide)
            if live[:, 4].any():
                compared(y, plain(o, live, 3, True), o)
            else:
                assert y.isfinite().all()
        with torch.no_grad():
            o["w_up"].nan_to_num_()


# linear --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,), (9,), (3, 5), (2, 2, 4)], ids=str)
@pytest.mark.parametrize("name", ["exact", "l2", "count"])
@pytest.mark.parametrize("activation", ["relu", "silu", None])
def test_linear_as_on_arrays(lead, name, activation):
    x = torch.randn(*lead, 6, requires_grad=True)
    w, b = torch.randn(21, 6, requires_grad=True), torch.randn(21, requires_grad=True)
    policy = POLICIES[name]
    given = {"activation": activation, "prune": policy, "branch": 4, "blockrows": 2}
    got = pt.linear(x, w, b, **given)
    want = pr.linear(*(as_array(one) for one in (x, w, b)), **given)
    assert got.shape == want.shape
    for part in ("indices", "indptr"):
        assert np.array_equal(getattr(got, part).numpy(), getattr(want, part))
    np.testing.assert_allclose(got.data.detach().numpy(), want.data, rtol=1e-5, atol=1e-6)
    got.check_format()
    down = torch.randn(3, 21, requires_grad=True)
    y = got @ down.T
    held = torch.from_numpy(want.toarray()) != 0
    h = x @ w.T + b if activation is None else getattr(torch.nn.functional, activation)(x @ w.T + b)
    expected = (h.reshape(held.shape) * held) @ down.T
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    dy = torch.randn_like(y)
    for mine, theirs in zip(
        *(torch.autograd.grad(one, (x, w, b, down), dy) for one in (y, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_linear_of_blocks_and_of_masks():
    x, dense = torch.randn(8, 12, dtype=F64), torch.randn(16, 12, dtype=F64)
    W = pt.BSR.from_dense(dense, blocksize=4, density=0.5).requires_grad_()
    whole = W.detach().toarray()
    for prune in (pr.Threshold(1.0), torch.rand(8, 4) < 0.5):
        given = {"activation": "relu", "prune": prune, "branch": 4, "blockrows": 4}
        got, want = pt.linear(x, W, **given), pt.linear(x, whole, **given)
        assert torch.equal(got.indices, want.indices)
        torch.testing.assert_close(got.toarray(), want.toarray())
        got.data.square().sum().backward()
        assert W.grad.isfinite().all()


# ffn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("branch", [1, 4])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_ffn_as_on_arrays_and_its_gradients(policy, gated, branch, activation):
    o = layer()
    if not gated:
        del o["w_gate"]
    y = pt.ffn(**o, prune=policy, branch=branch, activation=activation)
    want = pr.ffn(**numbers(o), prune=policy, branch=branch, activation=activation)
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-10, atol=1e-12)
    full = o if gated else {**o, "w_gate": o["w_up"]}
    live = live_of(full, policy, branch, gated, activation=activation)
    compared(y, plain(full, live, branch, gated, activation), o)


@pytest.mark.parametrize("decide", ["up", "gate"])
def test_what_decides(decide):
    o = layer()
    policy = pr.Threshold(0.5)
    y = pt.ffn(**o, prune=policy, branch=2, decide=decide)
    biases = {name: as_array(o[name]) for name in ("b_up", "b_down")}
    packed = pr.FFN.pack(*(as_array(o[name]) for name in ("w_up", "w_down", "w_gate")), decide, **biases)
    np.testing.assert_allclose(y.detach().numpy(), packed(as_array(o["x"]), prune=policy, branch=2))
    compared(y, plain(o, live_of(o, policy, 2, True, decide), 2, True), o)


@pytest.mark.parametrize("prune", [pr.Threshold(0.2), torch.arange(3) % 2 == 0], ids=["threshold", "mask"])
@pytest.mark.parametrize("gated", [False, True])
def test_ffn_has_second_derivatives(prune, gated):
    o = layer(d=3, hidden=8, out=2)
    if not gated:
        del o["w_gate"]

    def function(*inputs):
        return pt.ffn(**dict(zip(o, inputs, strict=True)), prune=prune, branch=3, activation="silu")

    assert torch.autograd.gradcheck(function, tuple(o.values()))
    assert gradgradcheck(function, tuple(o.values()))


@pytest.mark.parametrize("gated", [False, True])
def test_ffn_of_blocks(gated):
    o = layer(d=8, hidden=16, out=8)
    blocks = {
        name: pt.BSR.from_dense(o[name].detach(), blocksize=4, density=0.6).requires_grad_()
        for name in ("w_up", "w_down", "w_gate")
    }
    dense = {**o, **{name: one.detach().toarray().requires_grad_() for name, one in blocks.items()}}
    if not gated:
        blocks["w_gate"] = dense["w_gate"] = None
    y = pt.ffn(**{**o, **blocks}, prune=pr.Threshold(0.4), branch=3)
    want = pt.ffn(**dense, prune=pr.Threshold(0.4), branch=3)
    torch.testing.assert_close(y, want)
    dy = torch.randn_like(want)
    (mine,), (theirs,) = (torch.autograd.grad(one, [o["x"]], dy, retain_graph=True) for one in (y, want))
    torch.testing.assert_close(mine, theirs)
    y.backward(dy)
    want.backward(dy)
    for name, W in blocks.items():
        if W is not None:
            at = W.detach()._with(W.grad).toarray()
            torch.testing.assert_close(at, dense[name].grad * (W.detach().toarray() != 0))


@pytest.mark.parametrize("gated", [False, True])
def test_straight_through(gated):
    o = layer()
    if not gated:
        del o["w_gate"]
    policy = pr.TopK(count=1)
    y = pt.ffn(**o, prune=policy, branch=4, straight_through=True)
    full = o if gated else {**o, "w_gate": o["w_up"]}
    compared(y, plain(full, live_of(full, policy, 4, gated), 4, gated, straight=True), o)
    torch.testing.assert_close(y, pt.ffn(**o, prune=policy, branch=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    o = layer(dtype=dtype)
    y = pt.ffn(**o, prune=pr.Threshold(0.2), branch=2)
    assert y.dtype == dtype
    want = pr.ffn(**numbers(o), prune=pr.Threshold(0.2), branch=2)
    np.testing.assert_allclose(
        y.detach().double().numpy(), want.astype(float), rtol=1e-2, atol=16 * torch.finfo(dtype).eps
    )
    y.sum().backward()
    assert all(one.grad.dtype == dtype and one.grad.isfinite().all() for one in o.values())


def test_autocast():
    o = layer(dtype=torch.float32)
    module = pt.nn.PrunedFFN(5, 14, gated=True, prune=pt.LearnedThreshold(0.2))
    with torch.autocast("cpu", torch.bfloat16):
        y, z = pt.ffn(**o, branch=2), module(o["x"])
        h = pt.linear(o["x"], o["w_up"], o["b_up"], prune=pr.Threshold(0.0))
    assert y.dtype == z.dtype == h.dtype == torch.bfloat16
    (y.float().sum() + z.float().sum() + h.data.float().sum() + pt.live_penalty(module)).backward()
    assert all(one.grad.dtype == torch.float32 for one in o.values())
    torch.testing.assert_close(y.float(), pt.ffn(**o, branch=2), rtol=5e-2, atol=5e-2)


def test_rows_keep_their_leading_dimensions():
    o = layer()
    x = o["x"].detach()
    weights = {name: one for name, one in o.items() if name != "x"}
    want = pt.ffn(x, **weights)
    torch.testing.assert_close(pt.ffn(x[0], **weights), want[0])
    torch.testing.assert_close(pt.ffn(x[:6].reshape(2, 3, 5), **weights), want[:6].reshape(2, 3, 4))
    assert pt.ffn(x[:0], **weights).shape == (0, 4)


def test_bad_input():
    o = layer()
    for name, bad, error, match in [
        ("x", o["x"][:, :4], ValueError, "expect 5 features"),
        ("w_down", o["w_down"].T, ValueError, "w_down has shape"),
        ("w_gate", o["w_gate"][:3], ValueError, "w_gate has shape"),
        ("b_up", o["b_down"], ValueError, "b_up must have shape"),
        ("w_up", o["w_up"].float(), TypeError, "one dtype"),
        ("x", as_array(o["x"]), TypeError, "x must be a tensor"),
        ("w_up", o["w_up"].to("meta"), ValueError, "one device"),
        ("w_up", o["w_up"][0], ValueError, "two dimensions"),
    ]:
        with pytest.raises(error, match=match):
            pt.ffn(**{**o, name: bad})
    for options, error, match in [
        ({"decide": "down"}, ValueError, "decide must be one of"),
        ({"decide": "predictor"}, ValueError, "policy that foresees"),
        ({"branch": 0}, ValueError, "branch must be at least 1"),
        ({"activation": "tanh"}, ValueError, "activation must be one of"),
        ({"prune": 3}, TypeError, "prune must be a policy"),
        ({"prune": torch.nn.ReLU()}, TypeError, "got the module ReLU"),
        ({"prune": torch.ones(3)}, TypeError, "mask of booleans"),
        ({"prune": torch.ones(3, dtype=torch.bool)}, ValueError, "there are 7 rows of 14 branches"),
        ({"prune": pt.LearnedThreshold(), "straight_through": True}, ValueError, "estimate of its own"),
        ({"prune": pt.LearnedThreshold(branches=3)}, ValueError, r"tau must have shape \(\) or \(14,\)"),
    ]:
        with pytest.raises(error, match=match):
            pt.ffn(**o, **options)
    del o["w_gate"]
    with pytest.raises(ValueError, match="needs w_gate"):
        pt.ffn(**o, decide="gate")
    with pytest.raises(TypeError, match="takes policies"):
        pt.linear(o["x"], o["w_up"], prune=pt.LearnedThreshold())
    with pytest.raises(ValueError, match="expect 5 features"):
        pt.linear(o["x"][:, 1:], o["w_up"], prune=pr.Threshold(0))


def test_a_mask_that_is_written_before_backward_raises():
    o = layer()
    mask = torch.ones(14, dtype=torch.bool)
    y = pt.ffn(**o, prune=mask)
    mask[3] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Thresholds that learn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", [1, 3])
@pytest.mark.parametrize("each", [False, True])
def test_gate(branch, each):
    a = torch.randn(2, 6, 10, dtype=F64, requires_grad=True)
    branches = -(-10 // branch)
    tau = (torch.rand(branches, dtype=F64) if each else torch.tensor(0.8, dtype=F64)).requires_grad_()
    y = pt.gate(a, tau, branch=branch, bandwidth=0.4)
    norms = deciding.norms_of(a.detach().reshape(12, 10), branch, "max")
    at = tau.detach().expand(branches)
    live = spread(norms > at, branch, 10).reshape(2, 6, 10)
    torch.testing.assert_close(y, a * live)
    dy = torch.randn_like(y)
    d_a, d_tau = torch.autograd.grad(y, (a, tau), dy)
    torch.testing.assert_close(d_a, dy * live)
    # The estimate, branch by branch.
    want = torch.zeros(branches, dtype=F64)
    flat, grad = a.detach().reshape(12, 10), dy.reshape(12, 10)
    for row in range(12):
        for b in range(branches):
            part = slice(b * branch, (b + 1) * branch)
            if abs(norms[row, b] - at[b]) < 0.2:
                want[b] -= (flat[row, part] * grad[row, part]).sum() / 0.4
    assert (want != 0).any()
    torch.testing.assert_close(d_tau, want if each else want.sum())


def test_gate_refuses():
    a = torch.randn(3, 4)
    for given, error, match in [
        ((a, torch.ones(3)), ValueError, r"tau must have shape \(\) or \(4,\)"),
        ((a.int(), 0.5), TypeError, "must hold floats"),
        ((torch.tensor(1.0), 0.5), ValueError, "at least one dimension"),
    ]:
        with pytest.raises(error, match=match):
            pt.gate(*given)
    with pytest.raises(ValueError, match="bandwidth must be above 0"):
        pt.gate(a, 0.5, bandwidth=0.0)
    with pytest.raises(ValueError, match="norm must be one of"):
        pt.gate(a, 0.5, norm="l1")
    with pytest.raises(ValueError, match="tau must be above 0"):
        pt.LearnedThreshold(0.0)


@pytest.mark.parametrize("decide", [None, "up"])
@pytest.mark.parametrize("gated", [False, True])
def test_ffn_with_a_threshold_that_learns_is_what_gate_makes(gated, decide):
    """Although what is far below the threshold is not computed."""
    o = layer()
    if not gated:
        del o["w_gate"]
    threshold = pt.LearnedThreshold(0.4, branches=5, bandwidth=0.5, dtype=F64)
    y = pt.ffn(**o, prune=threshold, branch=3, decide=decide)
    up = o["x"] @ o["w_up"].T + o["b_up"]
    if not gated:
        h = threshold(torch.relu(up), branch=3)
    elif decide == "up":
        h = torch.relu(o["x"] @ o["w_gate"].T) * threshold(up, branch=3)
    else:
        h = threshold(torch.relu(o["x"] @ o["w_gate"].T), branch=3) * up
    compared(y, h @ o["w_down"].T + o["b_down"], {**o, "log_tau": threshold.log_tau})


def test_a_penalty_kills_branches_and_raises_thresholds():
    torch.manual_seed(0)
    x = torch.randn(128, 8)
    goal = torch.relu(x @ torch.randn(8, 8)) @ torch.randn(8, 8)
    shares = []
    for weight in (0.0, 0.3):
        torch.manual_seed(1)
        threshold = pt.LearnedThreshold(0.05, bandwidth=0.1)
        model = pt.nn.PrunedFFN(8, 64, prune=threshold)
        optimiser = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(80):
            loss = (model(x) - goal).square().mean() / goal.square().mean() + weight * pt.live_penalty(model)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        shares.append(float(model.live_fraction))
    assert shares[1] < 0.6 * shares[0]
    assert threshold.tau.item() > 0.05
    assert threshold.policy().tau == pytest.approx(threshold.tau.item())


# Modules -------------------------------------------------------------------------------------------------

PRUNES = {
    "threshold": lambda: pr.Threshold(0.3),
    "top": lambda: pr.TopK(fraction=0.4, norm="l2", rows=2),
    "fixed": lambda: pr.Fixed(np.arange(5) % 2 == 0),
    "mask": lambda: torch.arange(5) % 3 == 0,
    "learned": lambda: pt.LearnedThreshold(0.2),
}


def trained(model, x, run=None):
    """A step's loss, gradients and what was recorded."""
    model.zero_grad()
    y = (model if run is None else run)(x)
    (y.square().sum() + pt.live_penalty(model)).backward()
    grads = {name: one.grad for name, one in model.named_parameters()}
    return {"y": y.detach(), "live": model.live_fraction, **grads}


@pytest.mark.parametrize("make", PRUNES.values(), ids=PRUNES)
@pytest.mark.parametrize("gated", [False, True])
def test_compiled_as_eager(make, gated):
    model = pt.nn.PrunedFFN(6, 15, 5, gated=gated, prune=make(), branch=3)
    x = torch.randn(2, 4, 6)
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(trained(model, x, run), trained(model, x))


def test_inductor_compiles_it():
    model = pt.nn.PrunedFFN(6, 15, gated=True, prune=pr.Threshold(0.1), straight_through=False)
    x = torch.randn(9, 6)
    torch.testing.assert_close(trained(model, x, torch.compile(model, fullgraph=True)), trained(model, x))


def test_thresholds_of_compiled_layers_are_their_own():
    x = torch.randn(9, 6)
    for tau in (0.1, 0.5):
        model = pt.nn.PrunedFFN(6, 15, prune=pr.Threshold(tau))
        run = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(trained(model, x, run), trained(model, x))


@pytest.mark.parametrize("make", PRUNES.values(), ids=PRUNES)
def test_exported(make):
    model = pt.nn.PrunedFFN(6, 15, prune=make(), branch=3).eval()
    x = torch.randn(4, 6)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("make", PRUNES.values(), ids=PRUNES)
def test_state_copies_and_pickles(make):
    model = pt.nn.PrunedFFN(6, 15, 5, gated=True, prune=make(), branch=3, bias=False)
    x = torch.randn(4, 6)
    y = model(x)
    pt.live_penalty(model).backward()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), y)
        assert repr(other) == repr(model)
    new = pt.nn.PrunedFFN(6, 15, 5, gated=True, prune=make(), branch=3, bias=False)
    new.load_state_dict(model.state_dict())
    assert torch.equal(new(x), y)
    assert "mask" not in model.state_dict()
    assert model.double()(x.double()).dtype == F64
    assert (model.to("meta").mask is None) or model.mask.is_meta


def test_what_it_says():
    model = pt.nn.PrunedFFN(6, 15, 5, gated=True, prune=pr.TopK(count=2), branch=3, straight_through=True)
    assert repr(model) == (
        "PrunedFFN(6 -> 15 -> 5, gated=True, activation='relu', prune=TopK(count=2), branch=3, bias=True, "
        "decide='gate', straight_through=True)"
    )
    learned = repr(pt.nn.PrunedFFN(6, 15, prune=pt.LearnedThreshold(branches=15)))
    assert "(prune): LearnedThreshold(branches=15, bandwidth=0.05, norm='max')" in learned


def test_live_fraction_and_penalty_are_of_the_last_call():
    model = torch.nn.Sequential(
        pt.nn.PrunedFFN(6, 15, branch=3), pt.nn.PrunedFFN(6, 15, prune=pr.TopK(count=5))
    )
    with pytest.raises(ValueError, match="recorded nothing"):
        pt.live_penalty(model)
    x = torch.randn(4, 6)
    model(x)
    first, second = model
    h = torch.relu(x @ first.w_up.T + first.b_up)
    norms = h.reshape(4, 5, 3).amax(2)
    torch.testing.assert_close(first.live_fraction, (norms > 0).float().mean())
    assert not first.live_fraction.requires_grad
    g = torch.relu(first(x) @ second.w_up.T + second.b_up)
    torch.testing.assert_close(pt.live_penalty(model), norms.mean() + g.topk(5).values.sum() / 60)
    pt.live_penalty(model).backward()
    assert first.w_up.grad.abs().sum() > 0
    model.eval()
    with pytest.raises(ValueError, match="recorded nothing"):
        pt.live_penalty(model)
    model(x)
    assert first._penalty is None
    model.train()
    with torch.no_grad():
        model(x)
    assert first._penalty is None
    with pytest.raises(ValueError, match="no PrunedFFN"):
        pt.live_penalty(torch.nn.Linear(2, 2))


def test_penalty_of_straight_through_sees_what_is_live_only():
    model = pt.nn.PrunedFFN(6, 15, prune=pr.TopK(count=5), straight_through=True)
    x = torch.randn(4, 6)
    model(x)
    g = torch.relu(x @ model.w_up.T + model.b_up)
    torch.testing.assert_close(pt.live_penalty(model), g.topk(5).values.sum() / 60)


@pytest.mark.parametrize("gated", [False, True])
def test_from_dense_and_packed(gated):
    up, down = torch.nn.Linear(6, 16), torch.nn.Linear(16, 3, bias=False)
    gate = torch.nn.Linear(6, 16, bias=False) if gated else None
    policy = pr.Threshold(0.2)
    model = pt.nn.PrunedFFN.from_dense(up, down, gate, prune=policy, branch=4)
    assert model.w_up is up.weight
    assert model.b_down is None
    x = torch.randn(5, 6)
    y = model(x).detach().numpy()
    packed = model.pack()
    assert isinstance(packed, pr.FFN)
    np.testing.assert_allclose(packed(x.numpy(), prune=policy, branch=4), y, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        up.weight.zero_()  # a copy was packed
    np.testing.assert_allclose(packed(x.numpy(), prune=policy, branch=4), y, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="must be a torch"):
        pt.nn.PrunedFFN.from_dense(up, torch.nn.ReLU())
    with pytest.raises(ValueError, match="linear_down takes"):
        pt.nn.PrunedFFN.from_dense(up, torch.nn.Linear(5, 3))
    with pytest.raises(ValueError, match="has a bias"):
        pt.nn.PrunedFFN.from_dense(up, down, torch.nn.Linear(6, 16))
    with pytest.raises(ValueError, match="linear_gate has weights"):
        pt.nn.PrunedFFN.from_dense(up, down, torch.nn.Linear(5, 16, bias=False))


def test_vmap():
    model = pt.nn.PrunedFFN(6, 15, prune=pr.Threshold(0.2), branch=3).eval()
    x = torch.randn(4, 3, 6)
    torch.testing.assert_close(torch.vmap(model)(x), model(x))
    weights = torch.randn(4, 15, 6), torch.randn(4, 2, 15)
    got = torch.vmap(lambda x, up, down: pt.ffn(x, up, down, prune=pr.TopK(count=4)))(x, *weights)
    want = [pt.ffn(x[i], *(w[i] for w in weights), prune=pr.TopK(count=4)) for i in range(4)]
    torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("make", PRUNES.values(), ids=PRUNES)
def test_on_the_device(make):
    """Kernels of the CUDA engine, in Triton's interpreter."""
    pytest.importorskip("triton")
    model = pt.nn.PrunedFFN(6, 15, 5, gated=True, prune=make(), branch=3)
    x = torch.randn(4, 6)
    want = trained(model, x)
    with pr.device("cuda"):
        got = trained(model, x)
        h = pt.linear(x, model.w_up, activation="relu", prune=pr.Threshold(0.1), branch=4)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    on_host = pt.linear(x, model.w_up, activation="relu", prune=pr.Threshold(0.1), branch=4)
    assert torch.equal(h.indices, on_host.indices)
    torch.testing.assert_close(h.data, on_host.data, rtol=1e-4, atol=1e-5)


# What torch does with operations of libraries.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("which", ["x", "w_up", "w_down", "values"])
def test_forward_mode_raises_where_torch_would_say_zero(which):
    o = layer(grad=False)
    values = pt.BSR.from_dense(o["w_down"], 2)
    with torch.autograd.forward_ad.dual_level():
        if which == "values":
            tangent = torch.ones_like(values.data)
            dual = pt.BSR(
                (torch.autograd.forward_ad.make_dual(values.data, tangent), values.indices, values.indptr),
                values.shape,
            )
            with pytest.raises(NotImplementedError, match="w has a tangent"):
                pt.linear(torch.randn(2, 14, dtype=F64), dual)
        else:
            o[which] = torch.autograd.forward_ad.make_dual(o[which], torch.ones_like(o[which]))
            with pytest.raises(NotImplementedError, match=f"{which} has a tangent"):
                pt.ffn(o["x"], o["w_up"], o["w_down"])


def test_modules_on_the_meta_device():
    x = torch.empty(3, 5, 16, device="meta", requires_grad=True)
    for module in (
        pt.nn.BlockSparseLinear(16, 24, blocksize=8, device="meta"),
        pt.nn.PrunedFFN(16, 32, 24, gated=True, device="meta"),
        pt.nn.PrunedFFN(16, 32, 24, prune=pt.LearnedThreshold(device="meta"), device="meta"),
    ):
        y = module(x)
        assert (y.device.type, y.shape) == ("meta", (3, 5, 24))
        y.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_gate_of_columns_compiled(backend):
    a = torch.randn(6, 5, dtype=F64)
    tau = torch.tensor(0.3, dtype=F64)

    def run(a, tau):
        y = pt.gate(a.mT, tau, bandwidth=0.5)
        return y, *torch.autograd.grad(y.square().sum(), (a, tau))

    expected = run(a.clone().requires_grad_(), tau.clone().requires_grad_())
    compiled = torch.compile(
        lambda a, tau: pt.gate(a.mT, tau, bandwidth=0.5), fullgraph=True, backend=backend
    )
    a.requires_grad_(), tau.requires_grad_()
    y = compiled(a, tau)
    for one, other in zip((y, *torch.autograd.grad(y.square().sum(), (a, tau))), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_thresholds_of_gate_that_are_none():
    a = torch.randn(3, 4)
    for tau, error, match in [
        (float("nan"), ValueError, "got nan"),
        ("much", TypeError, "tau must be a number or a tensor, got 'much'"),
        (None, TypeError, "tau must be a number"),
        (torch.tensor(1j), TypeError, "real numbers, got torch.complex64"),
        (torch.tensor(True), TypeError, "real numbers, got torch.bool"),
        (torch.tensor(0.5, device="meta"), ValueError, "a on cpu and tau on meta"),
    ]:
        with pytest.raises(error, match=match):
            pt.gate(a, tau)
    compiled = torch.compile(pt.gate, fullgraph=True, backend="aot_eager")
    for tau in (0.25, 0.5, 0.75, 1, torch.tensor(1)):
        torch.testing.assert_close(compiled(a, tau), torch.where(a.abs() > tau, a, 0))


@pytest.mark.parametrize("prune", [pr.Fixed(np.arange(4) % 2 == 0), torch.arange(4) % 2 == 0])
def test_masks_survive_the_meta_device_and_other_dtypes(prune):
    expected = [True, False, True, False]
    model = pt.nn.PrunedFFN(6, 8, prune=prune, branch=2, device="meta")
    twice = copy.deepcopy(model).to("meta").to_empty(device="cpu").to("meta").to_empty(device="cpu")
    for one in (model.to_empty(device="cpu"), twice):
        assert one.mask.tolist() == expected
        one.reset_parameters()
        assert one(torch.randn(3, 6)).shape == (3, 6)
        assert one.live_fraction == 0.5
    kept = model.mask
    assert model.to("cpu").mask is kept
    model.type(F64)
    assert (model.mask.dtype, model.mask.tolist(), model.w_up.dtype) == (torch.bool, expected, F64)
    assert model(torch.randn(3, 6, dtype=F64)).dtype == F64


def test_a_mask_and_a_policy_and_masks_of_other_sizes_are_refused():
    model = pt.nn.PrunedFFN(6, 8, prune=torch.zeros(8, dtype=torch.bool))
    model.prune = pr.Threshold(0.0)
    with pytest.raises(ValueError, match="there are a mask and a policy"):
        model(torch.randn(3, 6))
    model.mask = None
    model(torch.randn(3, 6))
    assert model.live_fraction > 0
    seven = torch.ones(3, 7, dtype=torch.bool)
    for mask in (seven[0], seven, pr.Fixed(seven[0].numpy())):
        with pytest.raises(ValueError, match="there are 8 branches"):
            pt.nn.PrunedFFN(6, 8, prune=mask)


def test_a_checkpoint_spares_the_graph_that_the_penalty_holds():
    model = pt.nn.PrunedFFN(6, 8, prune=pt.LearnedThreshold(0.3, bandwidth=0.5))
    x = torch.randn(5, 6, requires_grad=True)
    inputs = (x, *model.parameters())
    expected = torch.autograd.grad(model(x).square().sum() + pt.live_penalty(model), inputs)
    y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    got = torch.autograd.grad(y.square().sum() + pt.live_penalty(model), inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    # What ran again in the backward pass has left nothing.
    assert model._penalty is None
