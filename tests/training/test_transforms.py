"""Transforms of ``torch.func``: gradients, of single samples too, and Jacobians, beside those of autograd."""

import pytest
import torch
from torch.func import functional_call, functionalize, grad, hessian, jacrev, vjp, vmap

import prunus as pr
import prunus.torch as pt

F64 = torch.float64


def products(generator):
    """Functions of tensors to one value, one for each kind of operation."""
    w = pt.BSR.from_dense(torch.randn(6, 10, dtype=F64, generator=generator), (3, 4), 0.6)
    u = pt.BSR.from_dense(torch.randn(10, 9, dtype=F64, generator=generator), (4, 3), 0.6)
    x, q, k, v = (
        torch.randn(*s, dtype=F64, generator=generator) for s in ((7, 10), (2, 8, 4), (2, 8, 4), (2, 8, 4))
    )
    up, down, router = (
        torch.randn(*s, dtype=F64, generator=generator) for s in ((3, 6, 10), (3, 10, 6), (3, 10))
    )
    mask = pr.BlockMask.causal(7, blocksize=2)
    units = torch.arange(6) % 3 > 0
    return {
        "linear": (lambda d, x: pt.linear(x, w._with(d), activation="silu").square().sum(), (w.data, x)),
        "matmul": (lambda d, x: (w._with(d) @ x.T).square().sum(), (w.data, x)),
        "sddmm": (lambda x: pt.sddmm(x, x.T, mask).data.square().sum(), (x,)),
        "both": (lambda d, e: (w._with(d) @ u._with(e)).data.square().sum(), (w.data, u.data)),
        "chain": (
            lambda d, e, x: ((w._with(d) @ u._with(e)) @ x[:, :9].T).square().sum(),
            (w.data, u.data, x),
        ),
        "softmax": (lambda x: (pt.softmax(pt.sddmm(x, x.T, mask)) @ x).square().sum(), (x,)),
        "ffn": (
            lambda x, a, b: pt.ffn(x, a, b, prune=pr.Threshold(0.5), branch=2).square().sum(),
            (x, up[0], down[0]),
        ),
        "mask": (lambda x, a, b: pt.ffn(x, a, b, prune=units).square().sum(), (x, up[0], down[0])),
        "attention": (
            lambda q, k, v: pt.attention(q, k, v, causal=True, prune=pr.TopK(2), blocksize=2).square().sum(),
            (q, k, v),
        ),
        "moe": (lambda x, r, a, b: pt.moe(x, r, a, b).square().sum(), (x, router, up, down)),
        "pruned moe": (
            lambda x, r, a, b: pt.moe(x, r, a, b, a, prune=pr.TopK(2), branch=2).square().sum(),
            (x, router, up, down),
        ),
    }


NAMES = list(products(torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_as_autograd(name, generator):
    f, inputs = products(generator)[name]
    leaves = [one.clone().requires_grad_() for one in inputs]
    expected = torch.autograd.grad(f(*leaves), leaves)
    every = tuple(range(len(inputs)))
    torch.testing.assert_close(grad(f, every)(*inputs), expected)
    torch.testing.assert_close(vjp(f, *inputs)[1](torch.ones((), dtype=F64)), expected)


@pytest.mark.parametrize("name", ["linear", "sddmm", "ffn", "attention", "pruned moe"])
def test_gradients_of_gradients(name, generator):
    f, inputs = products(generator)[name]
    along = torch.randn(inputs[0].shape, dtype=F64, generator=generator)
    found = grad(lambda x: (grad(f)(x, *inputs[1:]) * along).sum())(inputs[0])
    expected = torch.autograd.functional.vhp(lambda x: f(x, *inputs[1:]), inputs[0], along)[1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_jacobians(name, generator):
    f, inputs = products(generator)[name]
    found = jacrev(lambda x: f(x, *inputs[1:]) * torch.arange(3.0, dtype=F64))(inputs[0])
    first = grad(f)(*inputs)
    torch.testing.assert_close(found, torch.stack([one * first for one in (0.0, 1.0, 2.0)]))


@pytest.mark.parametrize("pruned", [False, True])
def test_gradients_of_samples(pruned, generator):
    if pruned:
        layer = pt.nn.PrunedFFN(10, 12, 6, prune=pr.TopK(3))
    else:
        layer = pt.nn.BlockSparseLinear(10, 6, blocksize=(3, 4), density=0.6)
    layer = layer.double().eval()
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    learned = {name: one.detach() for name, one in layer.named_parameters()}
    x = torch.randn(5, 10, dtype=F64, generator=generator)

    def loss(parameters, row):
        return functional_call(layer, {**state, **parameters}, (row,)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(learned, x)
    for at, row in enumerate(x):
        layer.zero_grad()
        layer(row).square().sum().backward()
        for name, one in layer.named_parameters():
            torch.testing.assert_close(found[name][at], one.grad)


@pytest.mark.parametrize("name", NAMES)
def test_transforms_in_any_order(name, generator):
    f, inputs = products(generator)[name]
    every = tuple(torch.stack([one, 0.7 * one]) for one in inputs)
    members = list(zip(*every, strict=True))
    values = torch.stack([f(*one) for one in members])
    grads = torch.stack([grad(f)(*one) for one in members])

    def of_all(f):
        return grad(lambda *every: vmap(f)(*every).sum())(*every)

    torch.testing.assert_close(vmap(f)(*every), values)
    torch.testing.assert_close(vmap(grad(f))(*every), grads)
    torch.testing.assert_close(of_all(f), grads)
    torch.testing.assert_close(vmap(vmap(f))(*(one[None] for one in every)), values[None])
    torch.testing.assert_close(vmap(vmap(grad(f)))(*(one[None] for one in every)), grads[None])
    jacobian = jacrev(vmap(f))(*every)
    torch.testing.assert_close(jacobian[[0, 1], [0, 1]], grads)
    torch.testing.assert_close(functionalize(f)(*inputs), values[0])


@pytest.mark.parametrize("prune", [None, pr.TopK(2)])
def test_lists_have_no_gradients_under_transforms(prune, generator):
    x, router, up, down = products(generator)["moe"][1]

    def mixture(x):
        return pt.moe(x, router, list(up), list(down), prune=prune).sum()

    torch.testing.assert_close(vmap(mixture)(x[None]), mixture(x)[None])
    torch.testing.assert_close(vmap(vmap(mixture))(x[None, None]), mixture(x)[None, None])
    with pytest.raises(NotImplementedError, match="takes a list of matrices"):
        grad(mixture)(x)
    with pytest.raises(NotImplementedError, match="takes a list of matrices"):
        grad(lambda every: vmap(mixture)(every).sum())(x[None])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_no_forward_mode_within_gradients(generator):
    f, inputs = products(generator)["linear"]
    with pytest.raises(NotImplementedError, match="forward-mode"):
        hessian(f)(*inputs)
