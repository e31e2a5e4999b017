"""Modules of attention and of experts: states, copies, what compiles and what is exported."""

import copy
import pickle

import pytest
import torch

import prunus as pr
import prunus.torch as pt
from support.torch_checks import gradgradcheck


@pytest.fixture(autouse=True)
def seed():
    """The same numbers each time, and no threads: the operands are small."""
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)


def attention(**options):
    return pt.nn.BlockSparseAttention(24, 4, num_kv_heads=2, blocksize=8, **options)


LAYERS = {
    "causal": lambda: attention(causal=True),
    "mask": lambda: attention(mask=pr.BlockMask.causal(40, blocksize=8), bias=False),
    "heads": lambda: attention(mask=torch.rand(4, 5, 5) < 0.7, prune=pr.TopK(2)),
    "pruned": lambda: attention(causal=True, prune=pr.Threshold(0.2), scale=0.5),
    "experts": lambda: pt.nn.MoE(24, 16, 4),
    "gated": lambda: pt.nn.MoE(24, 16, 4, 3, gated=True, activation="silu", renormalize=False),
    "units": lambda: pt.nn.MoE(24, 16, 4, prune=pr.TopK(fraction=0.3), branch=4),
}


@pytest.fixture(params=list(LAYERS.values()), ids=list(LAYERS))
def layer(request):
    return request.param()


def trained(layer, x):
    """Return a loss, and all gradients."""
    layer.zero_grad()
    loss = layer(x).square().mean()
    loss.backward()
    return loss.detach(), [one.grad.clone() for one in layer.parameters()]


def test_states_and_copies(layer):
    x = torch.randn(2, 33, 24)
    y = layer(x)
    assert y.shape == x.shape
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y)
    state = layer.state_dict()
    with torch.no_grad():
        for one in layer.parameters():
            one.mul_(0.5)
    assert not torch.equal(layer(x), y)
    # Buffers and parameters of a state are the layer's own memory.
    with torch.no_grad():
        for one in layer.parameters():
            one.mul_(2)
    fresh = copy.deepcopy(layer)
    for one in fresh.parameters():
        torch.nn.init.zeros_(one)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), y)
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert type(layer).__name__ in repr(layer)


def check_compiled(layer, backend):
    x = torch.randn(2, 33, 24)
    loss, gradients = trained(layer, x)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    layer.zero_grad()
    found = compiled(x).square().mean()
    found.backward()
    torch.testing.assert_close(found.detach(), loss)
    for one, exact in zip(layer.parameters(), gradients, strict=True):
        torch.testing.assert_close(one.grad, exact, rtol=1e-4, atol=1e-6)


def test_compiled(layer):
    check_compiled(layer, "aot_eager")


@pytest.mark.parametrize("name", ["causal", "experts"])
def test_compiled_to_code(name):
    check_compiled(LAYERS[name](), "inductor")


def test_exported(layer):
    x = torch.randn(2, 33, 24)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_any_length_and_batch_is_exported():
    layer = attention(causal=True)
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=16, max=1024)
    x = torch.randn(3, 33, 24)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch, 1: length},))
    for shape in ((3, 33, 24), (5, 70, 24)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


def test_autocast(layer):
    x = torch.randn(2, 33, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert all(one.grad.dtype == torch.float32 for one in layer.parameters())


def test_gradients_of_a_layer(layer):
    layer = layer.double()
    if getattr(layer, "prune", None) is not None:
        layer.prune = None  # what is live may change between two evaluations
    x = torch.randn(1, 10, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)
    assert gradgradcheck(layer, (x,), fast_mode=True)


def dense(layer, query, key, value, seen):
    """The module with torch's own attention."""
    q, k, v = layer.q_proj(query), layer.k_proj(key), layer.v_proj(value)
    q, k, v = (x.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2) for x in (q, k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return layer.out_proj(y.transpose(1, 2).flatten(2))


def test_attention_is_torchs():
    layer = attention(causal=True)
    x = torch.randn(2, 33, 24)
    seen = torch.ones(33, 33, dtype=torch.bool).tril()
    torch.testing.assert_close(layer(x), dense(layer, x, x, x, seen))
    layer = pt.nn.BlockSparseAttention(24, 4, kdim=7, vdim=5, blocksize=8, mask=torch.eye(3, 4) + 1 > 1)
    inputs = torch.randn(2, 20, 24), torch.randn(2, 28, 7), torch.randn(2, 28, 5)
    seen = (torch.arange(20)[:, None] // 8) == (torch.arange(28) // 8)
    torch.testing.assert_close(layer(*inputs), dense(layer, *inputs, seen))


def test_shorter_inputs_take_the_masks_corner():
    layer = attention(mask=pr.BlockMask.causal(40, blocksize=8), causal=True)
    x = torch.randn(2, 40, 24)
    torch.testing.assert_close(layer(x[:, :19]), layer(x)[:, :19])
    torch.testing.assert_close(layer(x[:, :3]), layer(x)[:, :3])
    with pytest.raises(ValueError, match="6 and 6 blocks"):
        layer(torch.randn(2, 41, 24))


def test_bad_attention():
    make = pt.nn.BlockSparseAttention
    for options, error, match in (
        ({"num_heads": 5}, ValueError, "multiple of num_heads 5"),
        ({"num_kv_heads": 3}, ValueError, "multiple of num_kv_heads 3"),
        ({"mask": pr.BlockMask.causal(40, blocksize=16)}, ValueError, "blocksize=16"),
        ({"mask": torch.ones(3, 3, 3, dtype=torch.bool)}, ValueError, "4 heads"),
        ({"mask": torch.ones(3, 3)}, TypeError, "booleans"),
        ({"prune": 3}, TypeError, "policy"),
        ({"scale": float("nan")}, ValueError, "scale must be finite"),
        ({"kdim": 0}, ValueError, "kdim must be at least 1"),
    ):
        with pytest.raises(error, match=match):
            make(**{"embed_dim": 24, "num_heads": 4, "blocksize": 8, **options})
    with pytest.raises(ValueError, match="as many dimensions"):
        attention()(torch.randn(2, 3, 24), torch.randn(3, 24))


def test_experts_balance_and_initialise():
    layer = pt.nn.MoE(24, 16, 4, top_k=1)
    assert layer.w_gate is None
    bound = 24**-0.5
    assert 0.9 * bound < float(layer.w_up.detach().abs().max()) <= bound
    x = torch.randn(64, 24)
    y, balance = layer(x, with_loss=True)
    assert torch.equal(y, layer(x))
    torch.testing.assert_close(balance, pt.load_balancing_loss(layer.logits(x), 1))
    torch.testing.assert_close(
        y, pt.moe(x, layer.router, layer.w_up, layer.w_down, top_k=1, activation="relu")
    )
    balance.backward()
    assert layer.router.grad.any()
    assert layer.w_up.grad is None


def test_balance_spreads_rows_over_experts():
    layer = pt.nn.MoE(8, 4, 4, top_k=1)
    with torch.no_grad():
        layer.router[0] += 0.3
    x = torch.rand(256, 8)
    optimiser = torch.optim.SGD([layer.router], lr=1.0)
    before = layer(x, with_loss=True)[1].item()
    for _ in range(30):
        optimiser.zero_grad()
        layer(x, with_loss=True)[1].backward()
        optimiser.step()
    after = layer(x, with_loss=True)[1].item()
    assert before > 2
    assert after < 0.8 * before


def test_bad_experts():
    for options, error, match in (
        ({"top_k": 5}, ValueError, "number of experts, 4"),
        ({"hidden": 0}, ValueError, "hidden must be at least 1"),
        ({"activation": "tanh"}, ValueError, "activation"),
        ({"prune": lambda seen: seen.norms > 0}, TypeError, "Threshold"),
    ):
        with pytest.raises(error, match=match):
            pt.nn.MoE(**{"d_model": 8, "hidden": 8, "experts": 4, **options})
    with pytest.raises(ValueError, match=r"\(\*B, 8\)"):
        pt.nn.MoE(8, 8, 4)(torch.randn(3, 9))
