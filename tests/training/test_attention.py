"""Attention and softmax over live blocks: values and gradients against torch's own on dense tensors."""

import numpy as np
import pytest
import torch

import prunus as pr
import prunus.torch as pt
from helpers import interpreted
from prunus import engines
from support.torch_checks import gradgradcheck, opcheck

OPS = torch.ops.prunus
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@pytest.fixture(autouse=True)
def seed():
    """The same numbers each time, and no threads: the operands are small."""
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def operands(heads=4, groups=2, n=10, m=13, d=5, features=3, batch=(2,), dtype=torch.float64):
    shapes = (*batch, heads, n, d), (*batch, groups, m, d), (*batch, groups, m, features)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def visible(grid, size, n, m, causal):
    """The elements that a grid of blocks lets be seen."""
    seen = grid.repeat_interleave(size, -1).repeat_interleave(size, -2)[..., :n, :m]
    return seen & torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else seen


def dense(q, k, v, seen, scale=None):
    """Attention with torch alone; torch gives NaN where nothing is seen."""
    share = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(share, -3) for x in (k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    return torch.where(seen.any(-1, keepdim=True), y, 0)


def near(got, expected, dtype=torch.float64):
    torch.testing.assert_close(got.double(), expected.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def gradients(y, operands, weight):
    return torch.autograd.grad(y, operands, weight.to(y.dtype))


CASES = [(10, 10, 4, True, 4, 2), (7, 13, 3, True, 2, 2), (13, 7, 3, True, 2, 1), (9, 11, 4, False, 4, 4)]


@pytest.mark.parametrize(("n", "m", "size", "causal", "heads", "groups"), CASES)
def test_values_and_gradients_are_those_of_a_dense_mask(n, m, size, causal, heads, groups):
    q, k, v = operands(heads, groups, n, m)
    grid = torch.rand(2, heads, -(-n // size), -(-m // size)) < 0.6
    seen = visible(grid, size, n, m, causal)

    def attend(q, k, v):
        return pt.attention(q, k, v, mask=grid, causal=causal, blocksize=size)

    y, expected = attend(q, k, v), dense(q, k, v, seen)
    near(y, expected)
    weight = torch.randn_like(y)
    pairs = zip(gradients(y, (q, k, v), weight), gradients(expected, (q, k, v), weight), strict=True)
    for got, exact in pairs:
        near(got, exact)
    assert torch.autograd.gradcheck(attend, (q, k, v))
    assert gradgradcheck(attend, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("grads", [False, True])
def test_torch_takes_the_operations(grads):
    q, k, v = (x.detach().requires_grad_(grads) for x in operands())
    grid = torch.rand(2, 4, 3, 4) < 0.6
    rest = (grid, 0.3, True, 4)
    opcheck(OPS.attention.default, (q, k, v, *rest))
    grad = torch.randn(2, 4, 10, 3, dtype=q.dtype, requires_grad=grads)
    opcheck(OPS.attention_backward.default, (grad, q, k, v, *rest))
    given = [torch.randn_like(x) for x in (q, k, v, grad)] + [x.detach() for x in (q, k, v)]
    opcheck(OPS.attention_double_backward.default, (*given, *rest))
    opcheck(OPS.attention_live.default, (q.detach(), k.detach(), grid, "count", 2.0, 1, 0.3, True, 4))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_dtypes(dtype):
    q, k, v = operands(n=40, m=50, d=16, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    grid = torch.rand(4, 3, 4) < 0.7
    y = pt.attention(q, k, v, mask=grid, blocksize=16)
    expected = dense(*exact, visible(grid, 16, 40, 50, False).expand(2, 4, 40, 50))
    assert y.dtype == dtype
    near(y, expected, dtype)
    weight = torch.randn_like(y)
    for got, right in zip(gradients(y, (q, k, v), weight), gradients(expected, exact, weight), strict=True):
        assert got.dtype == dtype
        near(got, right, dtype)


def test_any_strides():
    q, k, v = operands()
    turned = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    y, same = (pt.attention(*x, causal=True, blocksize=4) for x in ((q, k, v), turned))
    assert torch.equal(y, same)
    weight = torch.randn(3, 10, 4, 2, dtype=y.dtype).permute(3, 2, 1, 0)
    for a, b in zip(gradients(y, (q, k, v), weight), gradients(same, turned, weight), strict=True):
        assert torch.equal(a, b)


MASK = pr.BlockMask(np.random.default_rng(0).random((4, 3, 4)) < 0.7, 4, shape=(4, 10, 13))
POLICIES = {
    "none": {},
    "mask": {"mask": MASK},
    "count": {"prune": pr.TopK(2)},
    "fraction": {"prune": pr.TopK(fraction=0.3, rows=2), "mask": MASK},
    "threshold": {"prune": pr.Threshold(0.3), "causal": True},
    "fixed": {"prune": pr.Fixed(np.random.default_rng(0).random((24, 4)) < 0.5), "causal": True},
    "blocks": {"prune": pr.Fixed(pr.BlockMask.causal(10, 13, 4))},
    "function": {"prune": lambda seen: seen.norms > 0},
}


@pytest.mark.parametrize("options", list(POLICIES.values()), ids=list(POLICIES))
def test_the_same_as_without_gradients_and_compiled(options):
    q, k, v = operands()

    def attend(q, k, v):
        return pt.attention(q, k, v, blocksize=4, scale=0.9, **options)

    y = attend(q, k, v)
    exact = pr.attention(*(x.detach().numpy() for x in (q, k, v)), blocksize=4, scale=0.9, **options)
    np.testing.assert_array_equal(y.detach().numpy(), exact)
    compiled = torch.compile(attend, fullgraph="function" not in str(options), backend="aot_eager")
    made = compiled(q, k, v)
    assert torch.equal(made, y)
    weight = torch.randn_like(y)
    for a, b in zip(gradients(y, (q, k, v), weight), gradients(made, (q, k, v), weight), strict=True):
        assert torch.equal(a, b)


def test_dead_blocks_have_no_gradient():
    q, k, v = operands(heads=1, groups=1, n=8, m=12, batch=())
    with torch.no_grad():
        k[:, 8:], v[:, 8:] = torch.nan, torch.inf
    y = pt.attention(q, k, v, mask=torch.tensor([[True, True, False]] * 2), blocksize=4)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(q.grad).all()
    assert not k.grad[:, 8:].any()
    assert not v.grad[:, 8:].any()


def test_queries_that_see_nothing():
    q, k, v = operands(heads=2, groups=2, n=9, m=4)
    y = pt.attention(q, k, v, causal=True, blocksize=4)
    assert not y[..., :5, :].any()
    y.sum().backward()
    assert not q.grad[..., :5, :].any()
    assert torch.isfinite(q.grad).all()


def test_nothing_at_all():
    q, k, v = operands(n=0, m=0)
    y = pt.attention(q, k, v, causal=True, prune=pr.TopK(1))
    y.sum().backward()
    assert y.shape == (2, 4, 0, 3)
    q, k, v = operands(m=0)
    y = pt.attention(q, k, v)
    y.sum().backward()
    assert not y.any()
    assert not q.grad.any()


def test_heads_are_taken_together_or_one_by_one(monkeypatch):
    from prunus.torch.ops import kernels_attention

    q, k, v = operands(heads=6, groups=3)
    made = []
    for together in (1, 100, 1 << 20):
        monkeypatch.setattr(kernels_attention, "_TOGETHER", together)
        y = pt.attention(q, k, v, causal=True, blocksize=4)
        made.append(gradients(y.square().sum(), (q, k, v), torch.ones(())))
    for one in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, made[0], strict=True))


def test_what_is_written_before_backward_is_told():
    q, k, v = operands()
    for which in range(4):
        grid = torch.rand(2, 4, 3, 4) < 0.6
        copies = [x.clone() for x in (q, k, v)]
        y = pt.attention(*copies, mask=grid, blocksize=4)
        with torch.no_grad():
            [*copies, grid][which].logical_not_() if which == 3 else copies[which].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_third_derivatives_raise():
    q, k, v = operands(batch=())
    first = torch.autograd.grad(pt.attention(q, k, v).square().sum(), q, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), q, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no autograd formula"):
        second.sum().backward()


def test_vmap():
    q, k, v = operands(batch=(3, 2))

    def attend(q, k, v):
        return pt.attention(q, k, v, causal=True, prune=pr.TopK(2), blocksize=4)

    assert torch.equal(torch.func.vmap(attend)(q, k, v), attend(q, k, v))
    shared = torch.func.vmap(attend, in_dims=(0, None, None))(q, k[0], v[0])
    assert torch.equal(shared[2], attend(q[2], k[0], v[0]))


def test_autocast():
    q, k, v = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = pt.attention(q, k, v, causal=True)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert q.grad.dtype == torch.float32
    near(y, pt.attention(*(x.bfloat16() for x in (q, k, v)), causal=True), torch.bfloat16)


def test_bad_operands():
    q, k, v = (x.detach() for x in operands())
    with pytest.raises(TypeError, match=r"float64 and torch\.float32"):
        pt.attention(q, k.float(), v)
    with pytest.raises(TypeError, match="q must be a tensor"):
        pt.attention(q.numpy(), k, v)
    with pytest.raises(TypeError, match="BSR"):
        pt.attention(pt.BSR.from_dense(q[0, 0], 4), k, v)
    with pytest.raises(ValueError, match="one device"):
        pt.attention(q, k.to("meta"), v)
    with pytest.raises(ValueError, match="multiple"):
        pt.attention(q, k[:, :1].expand(2, 3, 13, 5), v[:, :1].expand(2, 3, 13, 3))
    with pytest.raises(ValueError, match="blocks of queries"):
        pt.attention(q, k, v, mask=torch.ones(2, 2, dtype=torch.bool), blocksize=4)
    with pytest.raises(ValueError, match="broadcast"):
        pt.attention(q, k, v, mask=torch.ones(3, 3, 4, dtype=torch.bool), blocksize=4)
    with pytest.raises(TypeError, match="booleans"):
        pt.attention(q, k, v, mask=torch.ones(3, 4), blocksize=4)
    with pytest.raises(TypeError, match="BlockMask"):
        pt.attention(q, k, v, mask=np.ones((3, 4), bool), blocksize=4)
    with pytest.raises(TypeError, match="policy"):
        pt.attention(q, k, v, prune=3)
    with pytest.raises(ValueError, match="scale"):
        pt.attention(q, k, v, scale=float("nan"))
    with pytest.raises(TypeError, match="without a gradient"):
        pt.attention(q, k, v, scale=torch.tensor(0.5, requires_grad=True))
    for shape in ((1, 2, 3, 4), (5, 3, 4), ()):
        with pytest.raises(ValueError, match="Fixed has a mask of shape"):
            pt.attention(q, k, v, prune=torch.ones(shape, dtype=torch.bool), blocksize=4)


@pytest.mark.skipif("cuda" not in engines.names(), reason="needs a GPU, or TRITON_INTERPRET=1")
def test_on_the_device():
    q, k, v = operands(heads=2, groups=1, n=20, m=24, dtype=torch.float32)
    with pr.device("cuda"):
        place = "cpu" if interpreted() else "cuda"
        for options in ({"causal": True}, {"prune": pr.TopK(2)}):
            there = [x.detach().to(place).requires_grad_() for x in (q, k, v)]
            y = pt.attention(*there, blocksize=16, **options)
            y.square().sum().backward()
            first = torch.autograd.grad(
                pt.attention(*there, blocksize=16, **options).square().sum(), there, create_graph=True
            )
            second = torch.autograd.grad(first[0].sum(), there)
            for x in (q, k, v):
                x.grad = None
            with pr.device("cpu"):
                here = pt.attention(q, k, v, blocksize=16, **options)
                here.square().sum().backward()
                again = torch.autograd.grad(here_gradient(q, k, v, options), (q, k, v))
            near(y.cpu(), here, torch.float32)
            for a, b in zip(there, (q, k, v), strict=True):
                torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-4, atol=1e-4)
            for a, b in zip(second, again, strict=True):
                torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3)


def here_gradient(q, k, v, options):
    y = pt.attention(q, k, v, blocksize=16, **options)
    return torch.autograd.grad(y.square().sum(), q, create_graph=True)[0].sum()


# Softmax -------------------------------------------------------------------------------------------------


def of_dense(w):
    """The softmax of a BSR with torch alone."""
    stored = w._with(torch.ones_like(w.data)).toarray() > 0
    scores = w.toarray().masked_fill(~stored, -torch.inf)
    return torch.softmax(scores, -1).masked_fill(~stored, 0)


@pytest.mark.parametrize(
    ("shape", "own"), [((6, 8), False), ((7, 11), False), ((2, 5, 7), False), ((2, 5, 7), True)], ids=str
)
@pytest.mark.parametrize("transposed", [False, True])
def test_softmax(shape, own, transposed):
    rng = np.random.default_rng(1)
    size = (3, 4)
    mask = pr.BlockMask.random(shape if own else shape[-2:], size, 0.6, rng)
    data = torch.randn(*(() if own else shape[:-2]), len(mask.indices), *size, dtype=torch.float64)
    w = pt.BSR.zeros(mask, dtype=torch.float64)
    w = pt.BSR((data, w.indices, w.indptr), shape=shape)
    w = (w.T if transposed else w).requires_grad_()
    made = pt.softmax(w)
    near(made.toarray(), of_dense(w))
    (expected,) = torch.autograd.grad(of_dense(w).pow(2).sum(), w.data)
    (got,) = torch.autograd.grad(made.toarray().pow(2).sum(), w.data)
    near(got, expected)

    def values(data):
        return pt.softmax(w._with(data)).data

    assert torch.autograd.gradcheck(values, (w.data,), fast_mode=True)
    assert gradgradcheck(values, (w.data,), fast_mode=True)
    compiled = torch.compile(lambda data: pt.softmax(w._with(data)).data, fullgraph=True, backend="aot_eager")
    near(compiled(w.data), made.data)


def test_softmax_dtypes_and_rows_of_nothing():
    w = pt.BSR.zeros(pr.BlockMask.causal(4, blocksize=2), dtype=torch.bfloat16)
    assert pt.softmax(w).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert pt.softmax(w).dtype == torch.float32
    w.data[0, 0] = -torch.inf
    assert not pt.softmax(w).toarray()[0].any()
    with pytest.raises(TypeError, match=r"torch\.softmax"):
        pt.softmax(torch.ones(2, 2))
