"""``linear``, ``ffn`` and ``moe`` of tensors on the GPU with weights on disk: what memory gives."""

import os

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, values
from prunus import PrunusError
from prunus.cuda import streaming
from prunus.cuda.dtypes import numpy_of
from prunus.cuda.paged import tables
from prunus.cuda.transfer import download, upload
from prunus.paged import tables as on_host

UNITS, IN, OUT = 100, 40, 24


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Buffers of which even small tables need many."""
    streaming.release()
    monkeypatch.setattr(streaming, "BUFFER", 10_000)
    yield
    streaming.release()


@pytest.fixture
def stored(tmp_path):
    opened = []

    def make(budget="1 MiB", **arrays):
        path = tmp_path / f"{len(opened)}.safetensors"
        pr.save(path, arrays)
        opened.append(pr.open(path, budget=budget))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


@pytest.fixture
def there(place):
    return lambda array: None if array is None else upload(np.ascontiguousarray(array), place).clone()


@pytest.fixture
def asked(monkeypatch):
    """Count what is read back of the union of live units."""
    found, real = [], tables.read_back
    monkeypatch.setattr(tables, "read_back", lambda each: (found.append(tuple(each.shape)), real(each))[1])
    return found


def near(got, wanted, dtype=F32):
    """Compare with an ndarray, or with a BSR: the same blocks too."""
    if isinstance(wanted, pr.BSR):
        assert isinstance(got, pr.cuda.BSR)
        got = got.to("cpu")
        assert got.blocksize == wanted.blocksize
        np.testing.assert_array_equal(got.indptr, wanted.indptr)
        np.testing.assert_array_equal(got.indices, wanted.indices)
        got, wanted = got.data, wanted.data
    else:
        host = np.empty(tuple(got.shape), numpy_of(got.dtype))
        download(got, host)
        got = host
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    error = {F64: 1e-10, F32: 2e-5, F16: 2e-2, BF16: 5e-2}[dtype]
    wanted = wanted.astype(F64)
    np.testing.assert_allclose(
        got.astype(F64), wanted, rtol=error, atol=error * np.abs(wanted).max(initial=1e-3)
    )


def policies(units, branch, rng, rows=3):
    count = -(-units // branch)
    return [
        None,
        pr.Threshold(4.0),
        pr.Threshold(9.0, norm="l2"),
        pr.TopK(count=1),
        pr.Fixed(rng.random(count) < 0.2),
        pr.Fixed(rng.random((rows, count)) < 0.2),
        pr.Fixed(np.zeros(count, bool)),
    ]


@pytest.mark.parametrize(("branch", "lead"), [(1, (3,)), (8, (3,)), (40, (1, 3)), (70, ())])
@pytest.mark.parametrize("sparse", [False, True])
def test_linear(rng, stored, there, branch, lead, sparse):
    w, b, x = values(rng, (UNITS, IN), F32), values(rng, UNITS, F32), values(rng, (*lead, IN), F32)
    w = pr.BSR.from_dense(w, blocksize=(8, 16), density=0.5) if sparse else w
    on_disk = stored(w=w)["w"]
    for policy in policies(UNITS, branch, rng, max(np.prod(lead, dtype=int), 1)):
        how = {"activation": "relu", "prune": policy, "branch": branch, "blockrows": 2}
        with pr.device("reference"):
            wanted = pr.linear(x, w, b, **how)
        near(pr.linear(there(x), on_disk, there(b), **how), wanted)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
def test_linear_of_every_dtype(rng, stored, there, dtype):
    w, b, x = values(rng, (UNITS, IN), dtype), values(rng, UNITS, dtype), values(rng, (5, IN), dtype)
    on_disk = stored(w=w)["w"]
    for policy in (None, pr.Fixed(np.arange(13) % 4 == 0), pr.TopK(count=2)):
        how = {"activation": "gelu", "prune": policy, "branch": 8}
        with pr.device("reference"):
            wanted = pr.linear(x, w, b, **how)
        near(pr.linear(there(x), on_disk, there(b), **how), wanted, dtype)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("in_line", [False, True])
@pytest.mark.parametrize("branch", [1, 40])
def test_ffn(rng, stored, there, gated, in_line, branch):
    up, gate, down = (
        values(rng, (UNITS, IN), F32),
        values(rng, (UNITS, IN), F32),
        values(rng, (OUT, UNITS), F32),
    )
    b_up, b_down, x = values(rng, UNITS, F32), values(rng, OUT, F32), values(rng, (3, IN), F32)
    file = stored(up=up, gate=gate, down=np.ascontiguousarray(down.T) if in_line else down)
    on_disk = file["down"].T if in_line else file["down"]
    for policy in policies(UNITS, branch, rng):
        how = {"activation": "relu", "prune": policy, "branch": branch}
        with pr.device("reference"):
            wanted = pr.ffn(x, up, down, gate if gated else None, b_up, b_down, **how)
        biases = there(b_up), there(b_down)
        got = pr.ffn(there(x), file["up"], on_disk, file["gate"] if gated else None, *biases, **how)
        near(got, wanted)
        if not isinstance(policy, pr.TopK):
            continue
        # Some on the GPU.
        got = pr.ffn(there(x), there(up), on_disk, file["gate"] if gated else None, *biases, **how)
        near(got, wanted)


def test_dead_rows_never_leave_the_disk(rng, stored, there, asked, monkeypatch):
    """One look at which units are live, and none where the host knows, or nobody needs it."""
    monkeypatch.setattr(streaming, "BUFFER", 100_000)
    up, gate, down = (values(rng, (64, 1024), F32) for _ in range(3))
    file = stored("8 MiB", up=up, gate=gate, units=down)
    x, page = there(values(rng, (5, 1024), F32)), 4096
    mask = np.zeros(64, bool)
    mask[[3, 20, 21, 50]] = True
    with pr.trace() as t:
        pr.linear(x, file["up"], prune=pr.Fixed(mask), branch=1)
    assert (t.bytes_io, t.bytes_skipped) == (4 * page, 60 * page)
    assert asked == []
    pr.linear(x, file["up"], prune=pr.TopK(count=3), branch=1)
    assert asked == []  # all was read for the policy, and nothing after it
    with pr.trace() as t:
        pr.ffn(x[:1], file["gate"], file["units"].T, file["up"], prune=pr.TopK(count=6), activation=None)
    assert len(asked) == 1
    assert t.bytes_skipped == 2 * 58 * page
    assert t.live_fraction == 6 / 64
    asked.clear()
    with pr.trace() as t:
        pr.ffn(x, file["gate"], file["units"].T, file["up"], prune=pr.Fixed(mask))
    assert asked == []
    assert t.bytes_skipped == 3 * 60 * page


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("in_line", [False, True])
def test_dead_units_do_not_meet_infinities(rng, stored, there, value, in_line):
    up, down = values(rng, (UNITS, IN), F32), values(rng, (OUT, UNITS), F32)
    mask = rng.random((3, UNITS)) < 0.4
    mask[0, 7], mask[1, 7] = False, True
    down[:, 7] = value
    file = stored(up=up, down=np.ascontiguousarray(down.T) if in_line else down)
    x = values(rng, (3, IN), F32)
    with pr.device("reference"):
        wanted = pr.ffn(x, up, down, prune=pr.Fixed(mask), activation=None)
    on_disk = file["down"].T if in_line else file["down"]
    got = pr.ffn(there(x), file["up"], on_disk, prune=pr.Fixed(mask), activation=None).cpu().numpy()
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted))
    assert np.isfinite(got[0]).all()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


def test_functions_decide(rng, stored, there):
    w, x = values(rng, (UNITS, IN), F32), values(rng, (3, IN), F32)
    on_disk = stored(w=w)["w"]

    def above(seen):
        return seen.norms > seen.norms.mean()

    with pr.device("reference"):
        wanted = pr.linear(x, w, prune=above, branch=8)
    near(pr.linear(there(x), on_disk, prune=above, branch=8), wanted)


def test_nothing_to_multiply(rng, stored, there):
    w, x = values(rng, (UNITS, IN), F32), values(rng, (2, 0, IN), F32)
    on_disk = stored(w=w, down=values(rng, (OUT, UNITS), F32))
    assert pr.linear(there(x), on_disk["w"]).shape == (2, 0, UNITS)
    for policy in (pr.Threshold(1.0), pr.Fixed(np.ones(UNITS, bool))):
        assert pr.linear(there(x), on_disk["w"], prune=policy, branch=1).shape == (2, 0, UNITS)
        assert pr.ffn(there(x), on_disk["w"], on_disk["down"], prune=policy).shape == (2, 0, OUT)


def test_faults(rng, stored, there, monkeypatch):
    w, down = values(rng, (UNITS, IN), F32), values(rng, (OUT, UNITS), F32)
    file = stored(w=w, down=down, i=np.ones((UNITS, IN), np.int32), s=pr.BSR(w, blocksize=4))
    x = there(values(rng, (2, IN), F32))
    with pytest.raises(ValueError, match="x has 39 features, the weights expect 40"):
        pr.linear(x[:, 1:], file["w"])
    with pytest.raises(TypeError, match="w must hold floats"):
        pr.linear(x, file["i"])
    with pytest.raises(TypeError, match="w is an expression over arrays on disk"):
        pr.linear(x, file["w"] * 2)
    with pytest.raises(ValueError, match=r"w .* is stored by columns"):
        pr.linear(there(down), file["w"].T)
    with pytest.raises(ValueError, match=r"w_down has shape \(100, 40\), expected \(d_out, 100\)"):
        pr.ffn(x, file["w"], file["w"])
    with pytest.raises(TypeError, match="w_up must be a dense array"):
        pr.ffn(x, file["s"], file["down"])
    with pytest.raises(PrunusError, match=r"b .* is in host memory"):
        pr.linear(x, file["w"], w[:, 0])
    monkeypatch.setattr(streaming, "BUFFER", 3_000)
    real, count, drained = on_host.Table.gather_into, [], []
    drain = streaming.Ring.drain

    def gather_into(self, units, raw):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        real(self, units, raw)

    monkeypatch.setattr(on_host.Table, "gather_into", gather_into)
    monkeypatch.setattr(on_host, "MOSTLY", 9.0)
    monkeypatch.setattr(streaming.Ring, "drain", lambda self: (drained.append(1), drain(self)))
    policy = pr.Fixed(np.arange(UNITS) % 2 == 0)
    with pytest.raises(KeyboardInterrupt):
        pr.linear(x, file["w"], prune=policy, branch=1)
    assert drained
    monkeypatch.undo()
    with pr.device("reference"):
        wanted = pr.linear(x.cpu().numpy(), w, prune=policy, branch=1)
    near(pr.linear(x, file["w"], prune=policy, branch=1), wanted)
    os.truncate(file["w"]._store.file.path, 5000)
    with pytest.raises(OSError, match=r".+"):
        pr.linear(x, file["w"])


E, F, D, ROWS = 5, 32, 20, 6


@pytest.fixture
def mixture(rng):
    """x, logits by which expert 2 is chosen by no row, and matrices."""
    x, logits = values(rng, (ROWS, D), F32), values(rng, (ROWS, E), F32)
    logits[:, 2] = -np.inf
    return x, logits, *(values(rng, (E, F, D), F32) / 4 for _ in range(2)), values(rng, (E, 12, F), F32) / 4


def above_mean(seen):
    return seen.norms > seen.norms.mean()


NAMES = ["none", "threshold", "top", "mask", "mask of rows", "function", "list"]
POLICIES = [
    None,
    pr.Threshold(0.5),
    pr.TopK(count=2),
    pr.Fixed(np.arange(16) % 3 == 0),
    pr.Fixed(np.random.default_rng(1).random((ROWS, 16)) < 0.4),
    above_mean,
    [pr.Threshold(0.5), None, above_mean, pr.TopK(count=3), above_mean],
]


@pytest.mark.parametrize("prune", POLICIES, ids=NAMES)
@pytest.mark.parametrize("gated", [False, True])
def test_experts(stored, there, mixture, prune, gated):
    """Stacks of dense matrices; some of them on the GPU, some by hidden unit."""
    x, logits, up, gate, down = mixture
    gate = gate if gated else None
    units = np.ascontiguousarray(np.swapaxes(down, 1, 2))
    each = {f"u{e}": up[e] for e in range(E)}
    file = stored(up=up, down=down, units=units, gate=up if gate is None else gate, **each)
    how = {"activation": "relu", "prune": prune, "branch": 2}
    with pr.device("reference"):
        wanted = pr.moe(x, None, up, down, gate, logits=logits, **how)
    given = there(x), None
    how["logits"] = there(logits)
    g = file["gate"] if gated else None
    near(pr.moe(*given, file["up"], file["down"], g, **how), wanted)
    near(pr.moe(*given, there(up), file["units"].transpose(0, 2, 1), there(gate), **how), wanted)
    if not gated:
        return
    # Only some of the experts are on disk.
    mixed = [there(up[e]) if e % 2 else file[f"u{e}"] for e in range(E)]
    near(pr.moe(*given, mixed, there(down), there(gate), **how), wanted)


@pytest.mark.parametrize(
    ("prune", "poison"),
    [(POLICIES[0], False), (POLICIES[2], False), (POLICIES[5], False), (POLICIES[4], True)],
    ids=["none", "top", "function", "infinities"],
)
def test_block_sparse_experts(stored, there, mixture, prune, poison):
    x, logits, up, gate, down = mixture
    if poison:
        down[:, 3, 5] = np.inf
    hosts = [pr.BSR(w, blocksize=4) for w in (up, down, gate)]
    file = stored(up=hosts[0], down=hosts[1], gate=hosts[2])
    how = {"activation": "relu", "prune": prune, "branch": 2}
    with pr.device("reference"), np.errstate(all="ignore"):
        wanted = pr.moe(x, None, up, down, gate, logits=logits, **how)
    how["logits"] = there(logits)
    got = [
        pr.moe(there(x), None, file["up"], file["down"], file["gate"], **how),
        pr.moe(there(x), None, hosts[0].to("cuda"), file["down"], there(gate), **how),
        pr.moe(there(x), None, file["up"], hosts[1].to("cuda"), file["gate"], **how),
    ]
    for one in got:
        np.testing.assert_allclose(one.cpu().numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("prune", "dtype"),
    [(None, BF16), (POLICIES[1], F32), (POLICIES[2], F32), (POLICIES[3], BF16), (POLICIES[4], F32)],
    ids=["none", "threshold", "top", "mask", "mask of rows"],
)
def test_experts_that_are_layers(stored, there, mixture, prune, dtype):
    x, logits, up, gate, down = (w.astype(dtype) for w in mixture)
    layers = [pr.FFN.pack(up[e], down[e], gate[e], "gate") for e in range(E)]
    file = stored(**{f"e{e}": one for e, one in enumerate(layers)}, up=up[0], down=down[0])
    on_disk = [file[f"e{e}"] for e in range(E)]
    how = {"activation": "relu", "prune": prune, "branch": 2}
    with pr.device("reference"):
        wanted = pr.moe(x, None, layers, logits=logits, shared=[layers[0], (up[0], down[0])], **how)
    shared = [on_disk[0], (file["up"], there(down[0]))]
    got = pr.moe(there(x), None, on_disk, logits=there(logits), shared=shared, **how)
    near(got, wanted, dtype)


def test_experts_that_nobody_chose_are_not_read(rng, stored, there, monkeypatch):
    monkeypatch.setattr(streaming, "BUFFER", 200_000)
    up, down = values(rng, (E, 64, 1024), F32) / 32, values(rng, (E, 1024, 64), F32)
    file = stored("4 MiB", up=up, down=down)
    x = values(rng, (3, 1024), F32)
    logits = np.full((3, E), -10.0, F32)
    logits[:, [1, 4]] = 5
    with pr.trace() as t:
        got = pr.moe(there(x), None, file["up"], file["down"], logits=there(logits))
    with pr.device("reference"):
        near(got, pr.moe(x, None, up, down, logits=logits))
    both = 2 * (up[0].nbytes + down[0].nbytes)
    assert 0 < t.bytes_io <= both
    assert t.bytes_skipped == (E - 2) * (up[0].nbytes + down[0].nbytes)
    assert pr.moe(there(x[:0]), None, file["up"], file["down"], logits=there(logits[:0])).shape == (0, 1024)


def test_experts_that_are_refused(stored, there, mixture):
    x, logits, up, _, down = mixture
    file = stored(up=up, i=np.ones((E, F, D), np.int32), down=down, layer=pr.FFN.pack(up[0], down[0]))
    how = {"logits": there(logits)}
    with pytest.raises(ValueError, match="one after the other"):
        pr.moe(there(x), None, file["up"].transpose(1, 0, 2), file["down"], **how)
    with pytest.raises(TypeError, match="must hold floats"):
        pr.moe(there(x), None, file["i"], file["down"], **how)
    with pytest.raises(ValueError, match="expected 32 columns"):
        pr.moe(there(x), None, file["up"], file["up"], **how)
    with pytest.raises(TypeError, match="on disk"):
        pr.moe(there(x), None, file["up"] * 2, file["down"], **how)
    with pytest.raises(ValueError, match=r"w_up of expert 0 .* is stored by columns"):
        pr.moe(there(x[:, :12]), None, file["down"].transpose(0, 2, 1), there(down), **how)
    with pytest.raises(TypeError, match="expert 0 is an FFN, which has its own"):
        pr.moe(there(x), None, [file["layer"]] * E, file["down"], **how)
