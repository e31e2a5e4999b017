"""The operations that torch knows: values, gradients of gradients, what compiles, what is mapped over."""

import copy
import io
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import prunus as pr
import prunus.torch as pt
from prunus import engines
from prunus.torch import blocks
from prunus.torch.ops import products
from support.torch_checks import gradgradcheck, opcheck

F64 = torch.float64
# Shape and block: divided and ragged, square and not, down to single values.
CASES = [(8, 8, (2, 2)), (7, 10, (3, 4)), (5, 9, (4, 2)), (33, 20, (16, 16)), (6, 5, (1, 1))]


def make(m, k, block, generator, density=0.5, dtype=F64):
    return pt.BSR.from_dense(torch.randn(m, k, dtype=F64, generator=generator).to(dtype), block, density)


def leaf(*shape, generator, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=generator, requires_grad=True)


@pytest.mark.parametrize(("m", "k", "block"), CASES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_dsd(m, k, block, transposed, flip, generator):
    w = make(m, k, block, generator)
    v = w.T if transposed else w
    rows, inner = v.shape
    x = leaf(*((5, inner) if flip else (inner, 5)), generator=generator)
    bias = leaf(rows, generator=generator)
    args = w.data.clone().requires_grad_(), w.indices, w.indptr, m, k, transposed, x, bias, flip
    dense = v.toarray()
    torch.testing.assert_close(products.dsd(*args), x @ dense.T + bias if flip else dense @ x + bias[:, None])
    opcheck(products.dsd, args)
    assert gradcheck(products.dsd, args)
    assert gradgradcheck(products.dsd, args)


@pytest.mark.parametrize(("m", "n", "block"), CASES)
def test_sdd(m, n, block, generator):
    at = make(m, n, block, generator)
    args = leaf(m, 3, generator=generator), leaf(3, n, generator=generator), at.indices, at.indptr, *block
    found = pt.BSR((products.sdd(*args), at.indices, at.indptr), (m, n)).toarray()
    there = pt.BSR((torch.ones_like(at.data), at.indices, at.indptr), (m, n)).toarray()
    torch.testing.assert_close(found, (args[0] @ args[1]) * there)
    opcheck(products.sdd, args)
    assert gradcheck(products.sdd, args)
    assert gradgradcheck(products.sdd, args)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_ssd(turned, generator):
    sizes = [(7, 10, (3, 4)), (10, 9, (4, 2))]
    parts = []
    for turn, (m, k, block) in zip(turned, sizes, strict=True):
        shape = (k, m, block[::-1]) if turn else (m, k, block)
        w = make(*shape, generator)
        parts.append((w.data.clone().requires_grad_(), w.indices, w.indptr, *shape[:2], turn))
    args = (*parts[0], *parts[1])
    opcheck(products.ssd, args)

    def product(a, b):
        left, right = (pt.BSR((data, *part[1:3]), part[3:5]) for data, part in ((a, parts[0]), (b, parts[1])))
        return ((left.T if turned[0] else left) @ (right.T if turned[1] else right)).toarray()

    dense = [pt.BSR(part[:3], part[3:5]).toarray() for part in parts]
    left, right = (one.T if turn else one for one, turn in zip(dense, turned, strict=True))
    torch.testing.assert_close(product(parts[0][0], parts[1][0]), left @ right)
    assert gradcheck(product, (parts[0][0], parts[1][0]))
    assert gradgradcheck(product, (parts[0][0], parts[1][0]))


def test_ssd_at_a_pattern_that_the_product_has_not(generator):
    a, b = make(7, 10, (3, 4), generator), make(10, 9, (4, 2), generator, density=0.2)
    at = make(7, 9, (3, 2), generator, density=0.7)
    args = (
        *(a.data.clone().requires_grad_(), a.indices, a.indptr, 7, 10, False),
        *(b.data.clone().requires_grad_(), b.indices, b.indptr, 10, 9, False),
        *(at.indices, at.indptr, 3, 2),
    )
    there = pt.BSR((torch.ones_like(at.data), at.indices, at.indptr), (7, 9)).toarray()
    found = pt.BSR((products.ssd_at(*args), at.indices, at.indptr), (7, 9)).toarray()
    torch.testing.assert_close(found, a.toarray() @ b.toarray() * there)
    opcheck(products.ssd_at, args)
    assert gradcheck(products.ssd_at, args)
    assert gradgradcheck(products.ssd_at, args)


def test_chosen_blocks_in_any_order_and_twice(generator):
    a, b = make(7, 10, (3, 4), generator), make(10, 9, (4, 2), generator)
    whole = (a.toarray() @ b.toarray()).detach()
    indptr, indices = torch.tensor([0, 3, 3, 5], dtype=torch.int32), torch.tensor([4, 0, 4, 2, 1, 3])
    args = (
        *(a.data.clone().requires_grad_(), a.indices, a.indptr, 7, 10, False),
        *(b.data.clone().requires_grad_(), b.indices, b.indptr, 10, 9, False),
        *(indices.to(torch.int32), indptr, 3, 2),
    )
    expected = blocks.gather(whole, indices[:5], indptr, (3, 2))
    found = products.ssd_at(*args)
    torch.testing.assert_close(found[:5], expected)
    assert (found[5] == 0).all()  # what offsets do not tell of is in no product


def test_gradients_of_a_product_take_memory_in_proportion_to_the_operands(generator):
    # Every two rows of b share its first column: dC @ b.T holds all blocks, of which a has a diagonal.
    n, size = 256, 8
    rows, count = torch.arange(n), n * size
    a = pt.BSR((torch.randn(n, size, size, generator=generator), rows, torch.arange(n + 1)), (count, count))
    places = torch.stack([torch.zeros(n, dtype=torch.int64), rows], 1).reshape(-1)[1:]
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), 2 * rows + 1])
    values = torch.randn(len(places), size, size, generator=generator)
    b = pt.BSR((values, places, indptr), (count, count))
    for one in (a, b):
        one.requires_grad_()
    c = a @ b
    assert len(c.indices) == len(places)
    grad = torch.randn(c.data.shape, generator=generator)
    tracemalloc.start()
    try:
        c.data.backward(grad)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    whole = n * n * size * size * 4
    assert peak < whole / 16  # NumPy's arrays, of which a product that the engine makes is one
    assert grad.nbytes < whole / 100
    told = pt.BSR((grad, c.indices, c.indptr), c.shape).toarray()
    left, right = (one.detach().toarray() for one in (a, b))
    for one, full in ((a, told @ right.T), (b, left.T @ told)):
        expected = blocks.gather(full, one.indices, one.indptr, one.blocksize)
        torch.testing.assert_close(one.data.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype, generator):
    w = make(40, 50, (16, 16), generator, dtype=dtype).requires_grad_()
    x = leaf(12, 50, generator=generator, dtype=dtype)
    y = pt.linear(x, w)
    grad = torch.randn(y.shape, generator=generator).to(dtype)
    y.backward(grad)
    dense = w.detach().toarray().float().requires_grad_()
    wide = x.detach().float().requires_grad_()
    expected = wide @ dense.T
    expected.backward(grad.float())
    assert y.dtype == x.grad.dtype == w.grad.dtype == dtype
    near = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-1}
    torch.testing.assert_close(y.float(), expected, **near)
    torch.testing.assert_close(x.grad.float(), wide.grad, **near)
    at = blocks.gather(dense.grad, w.indices, w.indptr, w.blocksize)
    torch.testing.assert_close(w.grad.float(), at, **near)


def test_batches_broadcast(generator):
    w = make(7, 10, (3, 4), generator)
    every = pt.BSR(
        (torch.randn(3, w.nnzb, 3, 4, dtype=F64, generator=generator), w.indices, w.indptr), (3, 7, 10)
    )
    x = torch.randn(2, 3, 10, 4, dtype=F64, generator=generator)
    for one in (w, every):
        dense = one.toarray()
        for right in (x, x[:, :1], x[0, 0], x[0, 0, :, 0]):
            torch.testing.assert_close(one @ right, dense @ right)
        for left in (x.mT, x[0, 0].mT, x[0, 0, :, 0]):
            torch.testing.assert_close(left @ one.T, left @ dense.mT)


def test_members_with_patterns_of_their_own(generator):
    mask = pr.BlockMask.random((3, 7, 10), (3, 4), 0.5)
    w = pt.BSR.zeros(mask, dtype=F64)
    w.data.normal_(generator=generator)
    w.requires_grad_()
    x = leaf(2, 3, 10, 4, generator=generator)
    dense = w.detach().toarray()
    torch.testing.assert_close(w @ x, dense @ x)
    assert gradcheck(lambda data, x: pt.BSR((data, w.indices, w.indptr), (3, 7, 10)) @ x, (w.data, x))
    made = pt.sddmm(x[0].mT, torch.randn(3, 10, 6, dtype=F64), pr.BlockMask.random((3, 4, 6), (2, 3), 0.5))
    assert made.shape == (3, 4, 6)
    with pytest.raises(ValueError, match="does not repeat"):
        pt.BSR((w.data[:0], w.indices[:0], w.indptr[:1] * 0), (1, 7, 10)) @ x


def test_vmap_equals_a_loop(generator):
    w = make(7, 10, (3, 4), generator)
    values = torch.randn(5, w.nnzb, 3, 4, dtype=F64, generator=generator)
    x = torch.randn(5, 10, 6, dtype=F64, generator=generator)
    bias = torch.randn(5, 7, dtype=F64, generator=generator)

    def of(data):
        return pt.BSR((data, w.indices, w.indptr), (7, 10))

    calls = [
        (lambda x: w @ x, (x,)),
        (lambda x: x.mT @ w.T, (x,)),
        (lambda data, x: of(data) @ x, (values, x)),
        (lambda data: of(data) @ x[0], (values,)),
        (lambda x, b: pt.linear(x.mT, w, b), (x, bias)),
        (lambda b: pt.linear(x[0].mT, w, b), (bias,)),
        (lambda x: pt.sddmm(x.mT, x[:, :3], pr.BlockMask.full((6, 3), (4, 2))).data, (x,)),
    ]
    for call, args in calls:
        each = torch.stack([call(*(arg[i] for arg in args)) for i in range(5)])
        torch.testing.assert_close(torch.vmap(call)(*args), each)


def test_compiled_in_one_graph(generator):
    w = make(40, 50, (16, 16), generator, dtype=torch.float32)
    bias = leaf(40, generator=generator, dtype=torch.float32)

    def step(x, data, bias):
        y = pt.linear(x, pt.BSR((data, w.indices, w.indptr), (40, 50)), bias, activation="gelu")
        return y.square().sum() + pt.matmul(y, pt.BSR((data, w.indices, w.indptr), (40, 50))).sum()

    grads = []
    for call in (step, torch.compile(step, fullgraph=True)):
        x, data = leaf(9, 50, generator=generator.manual_seed(1), dtype=torch.float32), w.data.clone()
        data.requires_grad_()
        call(x, data, bias).backward()
        grads.append((x.grad, data.grad, bias.grad.clone()))
        bias.grad = None
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_compiled_operators_never_swap_operands(generator):
    w, x = make(16, 16, (4, 4), generator), torch.randn(16, 16, dtype=F64, generator=generator)
    for call in (lambda w, x: w @ x, lambda w, x: x @ w):
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(call, backend="eager")(w, x), call(w, x))
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"prunus\.torch\.matmul"):
            torch.compile(call, backend="eager", fullgraph=True)(w, x)
    calls = [pt.matmul, lambda w, x: torch.matmul(x, w)]
    if torch.__version__ >= torch.torch_version.TorchVersion("2.12"):  # 2.11 refuses `@` of two BSRs
        calls.append(lambda w, x: (w @ w.T).data)
    for call in calls:
        torch._dynamo.reset()
        compiled = torch.compile(call, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(w, x), call(w, x))
    torch._dynamo.reset()
    layer = Operators(w)
    found = torch.export.export(layer, (x,), strict=True).module()(x)
    torch.testing.assert_close(found, layer(x))


class Operators(torch.nn.Module):
    """A BSR on both sides."""

    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, x):
        return self.w @ x, x @ self.w


def test_autocast(generator):
    w, x = make(40, 50, (16, 16), generator, dtype=torch.float32).requires_grad_(), torch.randn(9, 50)
    with torch.autocast("cpu", torch.bfloat16):
        y = pt.linear(x, w, torch.zeros(40))
        assert y.dtype == torch.bfloat16
        assert (w @ x.T).dtype == torch.bfloat16
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), x @ w.detach().toarray().T, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("grown", [1, 0])
def test_a_pattern_that_changes_between_forward_and_backward_is_an_error(grown, generator):
    w = make(8, 8, (2, 2), generator)
    x = torch.randn(8, 3, dtype=F64)
    y = w.requires_grad_() @ x
    w.indices.copy_(w.indices.flip(0) if grown else w.indices)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_values_that_change_in_place_are_an_error(generator):
    w, x = make(8, 8, (2, 2), generator), leaf(8, 3, generator=generator)
    y = w @ x
    w.data.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_only_what_is_needed_is_kept_for_backward(generator):
    w, x = make(8, 8, (2, 2), generator), leaf(8, 3, generator=generator)
    w @ x
    y = w.requires_grad_() @ x.detach()
    w.data.detach().mul_(1)  # no gradient needs the values
    y.sum().backward()
    assert w.grad is not None


def test_padding_is_never_seen_and_has_no_gradient(generator):
    w = make(7, 10, (4, 4), generator, density=1.0)
    clean = w.toarray()
    dirty = w.clone()
    # The last rows and columns of blocks hang over.
    view = dirty.data.reshape(2, 3, 4, 4)
    view[1, :, 3] = torch.nan
    view[:, 2, :, 2:] = torch.inf
    x = leaf(10, 3, generator=generator)
    torch.testing.assert_close(dirty @ x, clean @ x)
    torch.testing.assert_close(dirty.toarray(), clean)
    (dirty.requires_grad_() @ x).sum().backward()
    grad = dirty.grad.reshape(2, 3, 4, 4)
    assert not grad[1, :, 3].any()
    assert not grad[:, 2, :, 2:].any()
    assert grad[0, 0].all()


def test_strides_and_zero_sizes(generator):
    w = make(7, 10, (3, 4), generator)
    x = torch.randn(6, 20, dtype=F64, generator=generator)[::2, ::2].requires_grad_()
    torch.testing.assert_close(pt.linear(x, w), x @ w.toarray().T)
    assert (x[:0] @ w.T).shape == (0, 7)
    empty = pt.BSR.zeros(pr.BlockMask.empty((7, 10), (3, 4)), dtype=F64).requires_grad_()
    y = x @ empty.T
    assert not y.any()
    y.sum().backward()
    assert empty.grad.shape == (0, 3, 4)


@pytest.mark.parametrize("own", [False, True])
def test_no_blocks_and_nothing_at_all_in_batches(own, generator):
    for m, k in ((6, 5), (0, 5), (6, 0)):
        empty = pr.BlockMask.random((2, m, k) if own else (m, k), (4, 2), 0.0)
        data = torch.zeros(*(() if own else (2,)), 0, 4, 2, dtype=F64, requires_grad=True)
        indptr = torch.tensor(empty.indptr.tolist(), dtype=torch.int64).reshape(empty.indptr.shape)
        w = pt.BSR((data, torch.zeros(0, dtype=torch.int64), indptr), (2, m, k))
        for shape in ((2, k, 3), (k,), (3, 2, k, 0)):
            x = leaf(*shape, generator=generator)
            y = w @ x
            torch.testing.assert_close(y, w.toarray() @ x)
            y.sum().backward()
            assert not x.grad.any()


def test_blocks_that_offsets_do_not_tell_of_have_no_gradient(generator):
    """Memory is filled with NaN before it is written, so that nothing left as it was goes unseen."""
    part = torch.tensor([0, 1, 1]), torch.tensor([[0, 1, 1], [2, 2, 3]])
    torch.use_deterministic_algorithms(True)
    try:
        for indptr, shape, known in ((part[0], (4, 4), [0]), (part[1], (2, 4, 4), [0, 2])):
            count = 2 if indptr.ndim == 1 else 3
            data = leaf(count, 2, 2, generator=generator)
            y = pt.BSR((data, torch.tensor([0, 1, 1][:count]), indptr), shape) @ torch.ones(4, 3, dtype=F64)
            y.sum().backward()
            there = torch.zeros(count, dtype=torch.bool)
            there[known] = True
            torch.testing.assert_close(
                data.grad, torch.where(there[:, None, None], 3.0, 0.0).expand(-1, 2, 2).double()
            )
    finally:
        torch.use_deterministic_algorithms(False)


def test_bad_input(generator):
    w, x = make(7, 10, (3, 4), generator), torch.ones(10, 2, dtype=F64)
    cases = [
        (lambda: w @ x[:5], ValueError, "inner sizes differ, a has 10 columns and b has 5 rows"),
        (lambda: w @ x.float(), TypeError, "one dtype, got torch.float64 and torch.float32"),
        (lambda: w @ x.to("meta"), ValueError, "one device, got cpu and meta"),
        (lambda: w @ [1.0], TypeError, "must be a tensor or a prunus.torch.BSR, got list"),
        (lambda: pt.linear(x.T, w, torch.ones(6, dtype=F64)), ValueError, r"b must have shape \(7,\)"),
        (lambda: pt.linear(x.T, w, activation="tanh"), ValueError, "activation must be one of"),
        (lambda: pt.linear(x.T.long(), w), TypeError, "must hold floats, got torch.int64"),
        (lambda: w @ make(10, 9, (3, 2), generator), ValueError, "must be equal"),
        (lambda: pt.sddmm(x, x, pr.BlockMask.full((10, 2), 2)), ValueError, "sddmm takes"),
        (lambda: pt.sddmm(x, x.T, x), TypeError, "mask must be"),
        (lambda: pt.sddmm(x, x.T, pr.BlockMask.full((9, 9), 3)), ValueError, "the mask"),
        (lambda: pt.BSR((w.data, w.indices + 9, w.indptr), (7, 10)) @ x, ValueError, "ind"),
        (lambda: pt.BSR.from_dense(x.long(), 2), TypeError, "w must hold .*int64"),
        (lambda: pt.BSR.from_dense(x.to_sparse(), 2), TypeError, "dense tensor, got layout"),
        (lambda: pt.BSR.zeros(pr.BlockMask.full((4, 4), 2), dtype=torch.int32), TypeError, "int32"),
        (lambda: w.to(torch.int32), TypeError, "int32"),
        (lambda: pt.BSR((w.data, w.indices, w.indptr), (7.5, 10)), TypeError, "tuple of integers"),
        (lambda: pt.BSR((w.data, w.indices, w.indptr), (-7, 10)), ValueError, "sizes from 0"),
        (lambda: pt.BSR.from_dense(x, 2, mask=torch.ones(5, 1)), TypeError, "BlockMask, got Tensor"),
        (lambda: w * torch.tensor(1j), TypeError, "unsupported operand"),
        (lambda: w * torch.ones(2), TypeError, "unsupported operand"),
    ]
    for call, error, words in cases:
        with pytest.raises(error, match=words):
            call()


def test_saved_and_copied(generator, tmp_path):
    w = make(7, 10, (3, 4), generator).T.requires_grad_()
    torch.save({"w": w}, tmp_path / "w.pt")
    for found in (torch.load(tmp_path / "w.pt")["w"], pickle.loads(pickle.dumps(w)), copy.deepcopy(w)):
        assert (found.shape, found.requires_grad) == (w.shape, True)
        assert found.data is not w.data
        torch.testing.assert_close(found.toarray(), w.toarray())


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_tensors_of_torch_s_own_layout(generator):
    w = make(8, 12, (2, 4), generator)
    there = w.to_torch()
    torch.testing.assert_close(there.to_dense(), w.toarray())
    back = pt.BSR.from_torch(there)
    assert back.data.data_ptr() == w.data.data_ptr()
    torch.testing.assert_close(back.toarray(), w.toarray())

    def odd(indices, indptr):
        return pt.BSR((torch.ones(2, 2, 2), torch.tensor(indices), torch.tensor(indptr)), (4, 4))

    for call, error, words in (
        (lambda: make(7, 12, (2, 4), generator).to_torch(), ValueError, "that blocks divide"),
        (w.T.to_torch, ValueError, "transposed"),
        (lambda: odd([0, 2], [0, 1, 2]).to_torch(), ValueError, "col_indices < ncols"),
        (lambda: odd([1, 1], [0, 2, 2]).to_torch(), ValueError, "sorted and distinct"),
        (lambda: odd([0, 1], [0, 1, 1]).to_torch(), ValueError, "nnz"),
        (lambda: pt.BSR.from_torch(w.toarray()), TypeError, "got torch.strided"),
        (lambda: pt.BSR.from_torch([1.0]), TypeError, "got list"),
    ):
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_chosen_products_compile(shape, generator):
    mask = pr.BlockMask(torch.rand(*shape[:-2], 4, 4, generator=generator).numpy() < 0.5, 2, shape)
    x = torch.randn(8, 4, dtype=F64, generator=generator).requires_grad_()

    def call(x):
        return pt.sddmm(x, x.mT, mask).data.square().sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found = [torch.autograd.grad(one(x), x) for one in (call, compiled)]
    torch.testing.assert_close(*found)


def test_chosen_products_take_no_memory_for_values(generator, monkeypatch):
    monkeypatch.setattr(torch, "zeros", None)
    a = torch.randn(8, 4, dtype=F64, generator=generator)
    made = pt.sddmm(a, a.T, pr.BlockMask.causal(8, blocksize=2))
    torch.testing.assert_close(made.data[0], (a @ a.T)[:2, :2])


@pytest.mark.skipif("cuda" not in engines.names(), reason="needs a GPU, or TRITON_INTERPRET=1")
def test_on_the_device(generator):
    with pr.device("cuda") as engine:
        where = engine.where.device
        w = make(40, 50, (16, 16), generator, dtype=torch.float32).to(where)
        v = make(50, 30, (16, 16), generator, dtype=torch.float32).to(where)
        x = torch.randn(9, 50, generator=generator).to(where).requires_grad_()
        parts = w.data.clone().requires_grad_(), v.data.clone().requires_grad_()
        left, right = (
            pt.BSR((data, one.indices, one.indptr), one.shape)
            for data, one in zip(parts, (w, v), strict=True)
        )
        y = pt.linear(x, left)
        chosen = pt.sddmm(y.mT, x, left)
        (y.square().sum() + chosen.data.square().sum() + (left @ right).data.square().sum()).backward()
        found = [x.grad, *(one.grad for one in parts)]
    dense = [one.detach().to("cpu", F64).toarray().requires_grad_() for one in (w, v)]
    again = x.detach().cpu().double().requires_grad_()
    y = again @ dense[0].T
    there = pt.BSR((torch.ones_like(w.data.cpu()), w.indices.cpu(), w.indptr.cpu()), w.shape).toarray()
    total = y.square().sum() + (y.T @ again * there).square().sum() + (dense[0] @ dense[1]).square().sum()
    total.backward()
    at = [
        blocks.gather(one.grad, w_.indices.cpu(), w_.indptr.cpu(), w_.blocksize)
        for one, w_ in zip(dense, (w, v), strict=True)
    ]
    for one, expected in zip(found, [again.grad, *at], strict=True):
        torch.testing.assert_close(one.cpu().double(), expected, rtol=1e-4, atol=1e-3)


def test_scaled_by_one_value_of_any_shape(generator):
    w = make(7, 10, (3, 4), generator, dtype=torch.float32)
    double = w.data * 2
    for scale in (2, 2.0, np.float32(2), torch.tensor(2.0), torch.full((1, 1, 1, 1), 2.0, dtype=F64)):
        for made in (w * scale, scale * w):
            assert made.dtype == w.dtype
            torch.testing.assert_close(made.data, double)
    torch._dynamo.reset()
    compiled = torch.compile(lambda w, s: (s * w).data, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(w, torch.tensor(2.0)), double)


def test_members_of_a_shared_pattern_are_results(generator):
    w = make(7, 10, (3, 4), generator)
    three = pt.BSR((torch.ones(3, *w.data.shape, dtype=F64), w.indices, w.indptr), (3, 7, 10))
    a, b = leaf(2, 1, 7, 5, generator=generator), leaf(5, 10, generator=generator)
    made = pt.sddmm(a, b, three)
    assert made.shape == (2, 3, 7, 10)
    torch.testing.assert_close(made.toarray(), (a @ b) * three.toarray())
    with pytest.raises(ValueError, match="do not broadcast"):
        pt.sddmm(a[:, 0], b, three)


@pytest.mark.filterwarnings("ignore:.*jit.script")
def test_forward_mode_raises_and_gives_no_zeros(generator):
    w = make(8, 8, (4, 4), generator)
    x, q = torch.randn(8, dtype=F64), torch.randn(2, 6, 4, dtype=F64)
    experts = torch.randn(3, 4, dtype=F64), torch.randn(3, 5, 4, dtype=F64), torch.randn(3, 4, 5, dtype=F64)
    for call, at in (
        (lambda x: w @ x, x),
        (lambda data: w._with(data) @ x, w.data),
        (lambda q: pt.attention(q, q, q), q),
        (lambda q: pt.moe(q, *experts), q),
    ):
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(call, (at,), (at,))


def test_shapes_on_the_meta_device(generator):
    w = make(7, 10, (3, 4), generator).to("meta")
    x = torch.ones(5, 10, dtype=F64, device="meta")
    assert pt.linear(x, w).shape == (5, 7)
    assert pt.attention(x, x, x).shape == (5, 10)
    assert pt.nn.MoE(10, 6, 4, device="meta", dtype=F64)(x).shape == (5, 10)


class Product(torch.nn.Module):
    """A program that takes a BSR and returns one."""

    def forward(self, w, x):
        return pt.matmul(w, x), w.T


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_a_bsr_is_saved(generator):
    w, x = make(7, 10, (3, 4), generator), torch.randn(10, 2, dtype=F64)
    file = io.BytesIO()
    torch.export.save(torch.export.export(Product(), (w, x)), file)
    file.seek(0)
    product, turned = torch.export.load(file).module()(w, x)
    torch.testing.assert_close(product, w @ x)
    assert turned.shape == (10, 7)
    assert isinstance(turned._stored, tuple)
