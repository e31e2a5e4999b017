"""Products of arrays on the device at the edges: results that lie oddly, empty members, unusual tensors."""

import numpy as np
import pytest
import torch

import prunus as pr
from helpers import F32, sparse, values
from prunus.cuda.transfer import upload


def there(array, place):
    """An ndarray on the device, in memory of its own."""
    return upload(np.ascontiguousarray(array), place).clone()


def near(got, want):
    torch.testing.assert_close(got.resolve_neg(), want.to(got.dtype), atol=1e-4, rtol=1e-5)


def negated(shape, place):
    """A tensor whose sign is a bit of the tensor, and not in its memory."""
    made = torch.randn(*shape, dtype=torch.complex64).to(place.device).conj().imag
    assert made.is_neg()
    return made


@pytest.mark.parametrize("packed", [False, True])
def test_negated_tensors(rng, place, packed):
    W = sparse(rng, (64, 48), (16, 16), poison=False).to("cuda")
    W = W.pack() if packed else W
    x = negated((48, 4), place)
    for _ in range(3):  # the first call, and those that repeat it
        near(W @ x.contiguous(), W.toarray() @ x)
        near(W @ x, W.toarray() @ x)
    near(x.T @ W.T, x.T @ W.toarray().T)
    out = negated((64, 4), place)
    assert pr.matmul(W, x, out=out) is out
    near(out, W.toarray() @ x)


def test_results_of_any_strides(rng, place):
    W = sparse(rng, (64, 48), (16, 16), poison=False).to("cuda")
    x = there(values(rng, (2, 3, 48, 7), F32), place)
    big = torch.full((2, 5, 64, 7), torch.nan, device=place.device)
    for out in (big[:, :3], big.new_empty(3, 2, 64, 7).transpose(0, 1), big.new_empty(2, 3, 7, 64).mT):
        assert pr.matmul(W, x, out=out) is out
        near(out, W.toarray() @ x)
    assert big[:, 3:].isnan().all()


def test_where_results_cannot_go(rng, place):
    W = sparse(rng, (64, 48), (16, 16), poison=False).to("cuda")
    x = there(values(rng, (48, 3), F32), place)
    for a in (W, W.toarray()):
        with pytest.raises(pr.PrunusError, match="out lives on meta"):
            pr.matmul(a, x, out=torch.empty(64, 3, device="meta"))
        with pytest.raises(TypeError, match="out is a tensor that requires grad"):
            pr.matmul(a, x, out=torch.zeros(64, 3, device=place.device, requires_grad=True))


def test_nothing_in_a_batch(rng, place):
    W = sparse(rng, (2, 32, 48), (16, 16), poison=False).to("cuda")
    assert (W @ torch.zeros(2, 48, 0, device=place.device)).shape == (2, 32, 0)
    assert (torch.zeros(2, 0, 48, device=place.device) @ W.T).shape == (2, 0, 32)
    data = torch.zeros(2, 0, 16, 16, device=place.device)
    none, rows = (torch.zeros(n, dtype=torch.int32, device=place.device) for n in (0, 3))
    empty = pr.cuda.BSR((data, none, rows), shape=(2, 32, 48))
    assert empty.nnzb == 0
    near(empty.toarray(), torch.zeros(2, 32, 48, device=place.device))
    near(empty @ torch.ones(2, 48, 3, device=place.device), torch.zeros(2, 32, 3, device=place.device))
    host = empty.to("cpu")
    assert not (host @ np.ones((2, 48, 3), np.float32)).any()  # by the engine for NumPy's arrays


@pytest.mark.parametrize("packed", [False, True])
def test_room_for_more_in_members_that_broadcast(rng, place, packed):
    data = torch.full((2, 1, 5, 16, 16), torch.nan, device=place.device)
    data[:, :, :3] = there(values(rng, (2, 1, 3, 16, 16), F32), place)
    indices = torch.tensor([2, 0, 1, 1, 99], dtype=torch.int32, device=place.device)
    indptr = torch.tensor([0, 1, 3], dtype=torch.int32, device=place.device)
    W = pr.cuda.BSR((data, indices, indptr), shape=(2, 1, 32, 48))
    W = W.pack() if packed else W
    near(W @ (x := there(values(rng, (3, 48, 5), F32), place)), W.toarray() @ x)
    near((x := there(values(rng, (3, 5, 32), F32), place)) @ W, x @ W.toarray())


def test_strongest_blocks_are_those_of_the_host(rng, place):
    w = np.zeros((48, 32), np.float32)
    w[:16, :16], w[16:32, 16:], w[:16, 16:], w[16:32, :16], w[32:, :] = 1e20, 1e30, np.inf, np.nan, 1e-30
    for count in range(7):
        got = pr.cuda.BSR.from_dense(there(w, place), 16, count / 6).to("cpu")
        want = pr.BSR.from_dense(w, 16, count / 6)
        assert (got.indices.tolist(), got.indptr.tolist()) == (want.indices.tolist(), want.indptr.tolist())


def test_torchs_linear_by_names(rng, place):
    W = sparse(rng, (64, 48), (16, 16), poison=False).to("cuda")
    x, bias = (there(values(rng, shape, F32), place) for shape in ((3, 48), (64,)))
    want = x @ W.toarray().T + bias
    near(torch.nn.functional.linear(x, weight=W, bias=bias), want)
    near(torch.nn.functional.linear(input=x, weight=W, bias=bias), want)


@pytest.mark.parametrize("number", [np.float32(2), np.int8(2), np.float64(2), torch.tensor(2.0)])
def test_numbers_scale(rng, number):
    W = sparse(rng, (64, 48), (16, 16), poison=False).to("cuda")
    for made in (W * number, number * W if not isinstance(number, torch.Tensor) else W * number):
        assert made.dtype == torch.float32
        near(made.toarray(), 2 * W.toarray())
    near((W / number).toarray(), W.toarray() / 2)


def test_measured_tiles_serve_what_was_launched_before(rng, place):
    from prunus.cuda import tuning

    W = sparse(rng, (64, 48), (16, 16), poison=False).to("cuda")
    x = there(values(rng, (48, 3), F32), place)
    W @ x, W @ x
    assert len(W._plans) == 1
    tuning.forget()  # as a process does when it has measured
    near(W @ x, W.toarray() @ x)
    assert len(W._plans) == 2  # the tile was chosen anew


def test_autotune_measures_on_the_gpu_it_was_told(place, monkeypatch):
    import contextlib

    from prunus.cuda import measuring

    inside = []

    @contextlib.contextmanager
    def on(where):
        inside.append(where)
        yield
        inside.pop()

    def timer(run):
        assert inside  # the GPU that events are recorded on
        run()
        return 1.0

    chosen = measuring.Tile(16, 16, 16)
    monkeypatch.setattr(measuring, "on", on)
    monkeypatch.setattr(measuring, "candidates", lambda where, what: [chosen])
    monkeypatch.setattr(measuring, "seconds", lambda *args: 1.0)
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    found = measuring.autotune((16, 16), (16, 16), 4, "float32", 1.0, keep=False, timer=timer)
    assert found.best == chosen
    assert not inside


@pytest.mark.parametrize("blocksize", [(16, 16), (4, 16)])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_inner_dimensions_beyond_32_bits(place, blocksize, kind):
    k = 2**31 + 8
    data = torch.full((2, *blocksize), torch.nan, device=place.device)
    data[0], data[1, :, :8] = 1, 2  # half of the last block hangs over the edge
    indices = torch.tensor([0, k // 16], dtype=kind, device=place.device)
    indptr = torch.tensor([0, 2], dtype=kind, device=place.device)
    W = pr.cuda.BSR((data, indices, indptr), shape=(blocksize[0], k))
    x = torch.ones(1, 1, device=place.device).expand(k, 3)
    near(W @ x, torch.full((blocksize[0], 3), 32.0, device=place.device))
