"""Products of arrays on disk with tensors on the GPU: what memory there gives, whatever is cut where."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, sparse, values
from prunus.cuda import dtypes, finishing, products, streaming
from prunus.cuda.paged import sources
from prunus.cuda.paged.blocks import Pieces, least_buffer
from prunus.cuda.transfer import upload
from prunus.paged.blocks import BlockFile

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Buffers of which even small arrays need many."""
    streaming.release()
    monkeypatch.setattr(streaming, "BUFFER", 20_000)
    yield
    streaming.release()


@pytest.fixture
def stored(tmp_path):
    opened = []

    def make(budget=MIB, **arrays):
        path = tmp_path / f"{len(opened)}.safetensors"
        pr.save(path, arrays)
        opened.append(pr.open(path, budget=budget))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


@pytest.fixture
def there(place):
    return lambda array: upload(np.ascontiguousarray(array), place).clone()


def same(got, wanted):
    """Assert that tensors are of one dtype, on one device, and equal to the bit."""
    assert (got.dtype, got.device, got.shape) == (wanted.dtype, wanted.device, wanted.shape)
    assert torch.equal(got, wanted), float((got.double() - wanted.double()).abs().max())


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_products_are_those_of_memory(rng, stored, there, monkeypatch, dtype, long):
    """With rows of blocks that fit a buffer, and in parts; both sides, and transposes."""
    if long:
        monkeypatch.setattr(streaming, "BUFFER", 1)  # a block at a time
    W = sparse(rng, (150, 210), (32, 64), dtype)
    on_disk, G = stored(W=W)["W"], W.to("cuda")
    kind = dtypes.torch_of(dtype)
    x, z = there(values(rng, (210, 6), dtype)), there(values(rng, (3, 150), dtype))
    same(on_disk @ x, G @ x)
    same(z @ on_disk, z @ G)
    same(on_disk.T @ z.T, G.T @ z.T)
    same(x.T @ on_disk.T, x.T @ G.T)
    if dtype == I8:
        return
    bias = there(values(rng, 150, dtype))
    how = {"bias": bias, "activation": "silu"}
    same(pr.matmul(on_disk, x, **how), pr.matmul(G, x, **how))
    same(pr.matmul(x.T, on_disk.T, **how), pr.matmul(x.T, G.T, **how))
    how = {"bias": there(values(rng, 210, dtype)), "activation": "gelu", "dtype": "float32"}
    if kind != torch.float64:
        same(pr.matmul(z, on_disk, **how), pr.matmul(z, G, **how))


def test_vectors_batches_and_out(rng, stored, there):
    W = sparse(rng, (70, 90), (16, 32), F32)
    own = pr.BSR.from_dense(
        np.stack([sparse(rng, (70, 90), (16, 32), F32, poison=False).toarray() for _ in range(3)]), 32
    )
    shared = sparse(rng, (3, 70, 90), (16, 32), F32)
    f = stored(W=W, own=own, shared=shared)
    x, stack, many = (there(values(rng, s, F32)) for s in ((90,), (3, 90, 4), (2, 3, 90, 4)))
    same(f["W"] @ x, W.to("cuda") @ x)
    same(f["W"] @ stack, W.to("cuda") @ stack)
    for name, W in (("own", own), ("shared", shared)):
        G = W.to("cuda")
        for one in (stack, many, x):
            same(f[name] @ one, G @ one)
        left = there(values(rng, (2, 3, 5, 70), F32))
        same(left @ f[name], left @ G)
    out = torch.full((70, 8), 7.0, device=x.device)[:, ::2]
    assert pr.matmul(f["W"], stack[0], out=out) is out
    same(out.contiguous(), in_memory(f["W"]) @ stack[0])
    square = sparse(rng, (90, 90), (16, 32), F32)
    own_out = stack[0].clone()
    wanted = square.to("cuda") @ own_out
    pr.matmul(stored(S=square)["S"], own_out, out=own_out)  # over its own operand
    same(own_out, wanted)


def in_memory(on_disk):
    return on_disk.load().to("cuda")


def test_small_blocks_and_nothing(rng, stored, there):
    """Where steps span blocks, sums of a transpose are cut where pieces are; and empty things."""
    for blocksize in ((4, 6), (5, 7), (24, 24)):
        W = sparse(rng, (100, 130), blocksize, F32)
        on_disk, G = stored(W=W)["W"], W.to("cuda")
        x, z = there(values(rng, (130, 9), F32)), there(values(rng, (9, 100), F32))
        same(on_disk @ x, G @ x)
        torch.testing.assert_close(z @ on_disk, z @ G, rtol=1e-5, atol=1e-4)
    none = pr.BSR((np.zeros((0, 8, 8), F32), np.zeros(0, np.int32), np.zeros(5, np.int32)), shape=(30, 40))
    empty = stored(W=none)["W"]
    x, bias = there(values(rng, (40, 3), F32)), there(values(rng, 30, F32))
    same(pr.matmul(empty, x, bias=bias), bias[:, None].expand(30, 3).contiguous())
    same(x[:30].T @ empty, torch.zeros((3, 40), device=x.device))
    assert (empty @ x[:, :0]).shape == (30, 0)


def test_absent_blocks_meet_no_infinity(rng, stored, there):
    W = sparse(rng, (64, 96), (32, 32), F32, density=0.3)
    x = values(rng, (96, 4), F32)
    x[rng.random((96, 4)) < 0.2] = np.inf
    G = W.to("cuda")
    got, wanted = stored(W=W)["W"] @ there(x), G @ there(x)
    assert torch.equal(got.nan_to_num(9), wanted.nan_to_num(9))


def test_a_budget_smaller_than_the_array(rng, stored, there, monkeypatch):
    """Every byte is read once, whatever the number of columns."""
    monkeypatch.setattr(streaming, "BUFFER", MIB)
    W = sparse(rng, (1024, 1024), (128, 128), F32, density=0.9, poison=False)
    on_disk = stored(budget=MIB, W=W)["W"]
    assert on_disk.nbytes > 3 * MIB
    x = there(values(rng, (1024, 40), F32))
    with pr.trace() as t:
        got = on_disk @ x
    (record,) = t.records
    assert record.name == "matmul"
    assert record.path.startswith("cuda, ")
    assert record.flops == 2 * W.nnz * 40
    assert W.data.nbytes <= record.bytes_io < W.data.nbytes * 1.02
    same(got, W.to("cuda") @ x)


def test_numpy_operands_go_the_same_way(rng, stored, there, monkeypatch):
    from prunus.cuda.host import disk

    W = sparse(rng, (150, 210), (32, 32), F32)
    dense = values(rng, (150, 210), F32)
    f, x = stored(W=W, dense=dense), values(rng, (210, 6), F32)
    downloads = []
    real = disk.download
    monkeypatch.setattr(disk, "download", lambda *args: (downloads.append(1), real(*args)))
    got = pr.matmul(f["W"], x, activation="relu")
    assert type(got) is np.ndarray
    assert len(downloads) == 1  # once for all pieces
    wanted = pr.matmul(W.to("cuda"), there(x), activation="relu").cpu().numpy()
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(f["dense"] @ x, dense @ x, rtol=1e-4, atol=1e-4)
    assert len(downloads) == 2


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
def test_dense_arrays(rng, stored, there, dtype):
    a, x, z = (values(rng, shape, dtype) for shape in ((150, 210), (210, 6), (3, 150)))
    f = stored(a=a)["a"]
    wide = [one.astype(F64) for one in (a, x, z)]
    kind = dtypes.torch_of(np.dtype(np.int32) if dtype == I8 else dtype)
    error = {F16: 2e-2, BF16: 0.1}.get(dtype, 1e-3)
    for got, wanted in (
        (f @ there(x), wide[0] @ wide[1]),
        (there(z) @ f, wide[2] @ wide[0]),
        (f.T @ there(z).T, wide[0].T @ wide[2].T),
        (there(x).T @ f.T, wide[1].T @ wide[0].T),
        (f @ there(x)[:, 0], wide[0] @ wide[1][:, 0]),
        (there(z)[0] @ f, wide[2][0] @ wide[0]),
    ):
        assert got.dtype == kind
        np.testing.assert_allclose(got.double().cpu().numpy(), wanted, rtol=error, atol=error * 10)
    if dtype == I8:
        return
    got = (f * 2 + f) @ there(x)  # computed as it is read
    np.testing.assert_allclose(got.double().cpu().numpy(), 3 * wide[0] @ wide[1], rtol=error, atol=error * 50)


def test_dense_batches_vectors_and_out(rng, stored, there):
    a, v = values(rng, (3, 40, 50), F32), values(rng, 50, F32)
    f = stored(a=a, v=v)
    x, left = values(rng, (3, 50, 4), F32), values(rng, (2, 1, 5, 40), F32)
    for got, wanted in (
        (f["a"] @ there(x), a @ x),
        (f["a"] @ there(x[0]), a @ x[0]),
        (there(left) @ f["a"], left @ a),
        (f["v"] @ there(x[0]), v @ x[0]),
        (there(a[0]) @ f["v"], a[0] @ v),
        (f["a"] @ there(v), a @ v),
    ):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got.cpu().numpy(), wanted, rtol=1e-4, atol=1e-4)
    out = there(np.zeros((3, 40, 4), F32))
    assert pr.matmul(f["a"], there(x), out=out) is out
    np.testing.assert_allclose(out.cpu().numpy(), a @ x, rtol=1e-4, atol=1e-4)
    assert (f["a"] @ there(x[..., :0])).shape == (3, 40, 0)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_finishing_is_the_end_of_dsd(rng, place, there, dtype, activation):
    if dtype == I8 and activation == "gelu":
        return
    W = sparse(rng, (70, 64), (32, 32), dtype, density=1.0).to("cuda")
    x, bias = there(values(rng, (2, 64, 90), dtype)), there(values(rng, 70, dtype))
    kind = torch.int32 if dtype == I8 else dtypes.torch_of(dtype)
    sums = torch.empty((2, 70, 90), dtype=dtypes.sums(dtypes.torch_of(dtype)), device=x.device)
    whole, got = (torch.empty((2, 90, 70), dtype=kind, device=x.device) for _ in range(2))
    products.dsd(place, W._operand, x, whole.transpose(1, 2), bias, activation)
    products.dsd(place, W._operand, x, sums)
    finishing.finish(place, sums, got.transpose(1, 2), bias, activation)
    same(got, whole)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pieces_are_all_blocks_in_order(data):
    rows = data.draw(st.integers(0, 12))
    counts = data.draw(st.lists(st.integers(0, 40), min_size=rows, max_size=rows))
    br, bc = data.draw(st.sampled_from([(1, 1), (4, 8), (32, 32), (3, 5)]))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    indices = np.concatenate([np.arange(n) for n in counts] or [np.zeros(0)]).astype(np.int32)
    turned = data.draw(st.booleans())
    w = BlockFile(None, 0, F32, (br, bc), indices, indptr, (rows * br, 40 * bc), turned)
    room = least_buffer(w) + data.draw(st.integers(0, 4 * least_buffer(w)))
    pieces, first, row = Pieces(w, room), 0, 0
    for cut in pieces.cuts():
        assert cut.first == first
        assert cut.row == row
        view = np.zeros(room, np.uint8)
        blocks = np.zeros((cut.end - cut.first) * w.block_bytes, np.uint8)
        assert pieces.fill(sources.InOrder([blocks] if len(blocks) else []), cut, view) <= room
        part = pieces.operand(cut, torch.from_numpy(view))
        lengths = np.diff(part.indptr.numpy())
        np.testing.assert_array_equal(part.indices.numpy(), indices[cut.first : cut.end])
        if cut.begins and cut.ends:
            np.testing.assert_array_equal(lengths, counts[cut.row : cut.stop])
        else:
            assert cut.stop == cut.row + 1
            assert cut.begins == (cut.first == indptr[cut.row])
            assert cut.ends == (cut.end == indptr[cut.stop])
        first, row = cut.end, cut.stop if cut.ends else cut.row
    assert (first, row) == (len(indices), rows)


# What goes wrong ----------------------------------------------------------------------------------------


def test_bad_input(rng, stored, there):
    W, a = sparse(rng, (64, 96), (32, 32), F32), values(rng, (64, 96), F32)
    f = stored(W=W, a=a)
    x, G = there(values(rng, (96, 4), F32)), W.to("cuda")
    for error, message, call in (
        (ValueError, "inner sizes differ", lambda: f["W"] @ x[:-1]),
        (ValueError, "inner sizes differ", lambda: f["a"] @ x[:-1]),
        (ValueError, "bias must have one value", lambda: pr.matmul(f["W"], x, bias=x[:3, 0])),
        (ValueError, "activation must be one of", lambda: pr.matmul(f["W"], x, activation="tanh")),
        (ValueError, "out has shape", lambda: pr.matmul(f["W"], x, out=x)),
        (TypeError, "out must be a tensor", lambda: pr.matmul(f["W"], x, out=np.zeros((64, 4), F32))),
        (TypeError, "densify=True would load", lambda: pr.matmul(f["W"], x, densify=True)),
        (TypeError, "call .load\\(\\)", lambda: pr.matmul(G, f["a"])),
        (TypeError, "need a BSR operand", lambda: pr.matmul(f["a"], x, bias=x[0])),
        (TypeError, "requires grad", lambda: f["W"] @ x.clone().requires_grad_()),
        (TypeError, "dtype", lambda: f["W"] @ x.to(torch.complex64)),
    ):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(pr.PrunusError, match="cannot stream"):
        stored(budget=65536, W=W)["W"] @ x
    f.close()
    with pytest.raises(ValueError, match="closed"):
        f["W"] @ x


def test_a_file_that_fails_in_the_middle(rng, stored, there, monkeypatch):
    W = sparse(rng, (1024, 1024), (128, 128), F32, density=0.9, poison=False)
    f = stored(budget=MIB // 2, W=W)
    x = there(values(rng, (1024, 4), F32))
    real, count, drained = sources.InOrder.take, [], []
    real_drain = streaming.Ring.drain
    monkeypatch.setattr(streaming.Ring, "drain", lambda self: (drained.append(len(count)), real_drain(self)))

    def take(self, into):
        count.append(1)
        if len(count) == 3:
            os.truncate(f.path, 1 << 16)
        real(self, into)

    monkeypatch.setattr(sources.InOrder, "take", take)
    with pytest.raises(OSError, match=r".+"):
        f["W"] @ x
    assert len(count) >= 3
    assert drained  # nothing was under way when it was raised
    monkeypatch.undo()
    other = stored(W=W)["W"]
    same(other @ x, W.to("cuda") @ x)


@pytest.mark.parametrize("what", ["disk", "kernel"])
def test_an_interrupted_call(rng, stored, there, monkeypatch, what):
    W = sparse(rng, (200, 200), (64, 64), F32, density=0.9)
    on_disk, x = stored(W=W)["W"], there(values(rng, (200, 4), F32))
    owner, name = (sources.InOrder, "take") if what == "disk" else (products, "dsd")
    real, count = getattr(owner, name), []

    def interrupted(*args, **options):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        real(*args, **options)

    monkeypatch.setattr(owner, name, interrupted)
    for left in (on_disk, on_disk.T):
        count.clear()
        with pytest.raises(KeyboardInterrupt):
            left @ x
    monkeypatch.setattr(owner, name, real)
    same(on_disk @ x, W.to("cuda") @ x)
    same(on_disk.T @ x, W.to("cuda").T @ x)
