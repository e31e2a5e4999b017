"""Feed-forward layers on disk with tensors on the GPU: what memory gives, and what is read for it."""

import os

import numpy as np
import pytest
import torch

import prunus as pr
from helpers import BF16, F16, F32, F64, values
from prunus.cuda import rows, streaming
from prunus.cuda.dtypes import numpy_of, torch_of
from prunus.cuda.paged import ffn
from prunus.cuda.transfer import download, upload
from prunus.paged import tables

UNITS, IN, OUT = 100, 40, 24


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Buffers of which even small layers need many."""
    streaming.release()
    monkeypatch.setattr(streaming, "BUFFER", 12_000)
    yield
    pr.cuda.keep(0)
    streaming.release()


@pytest.fixture
def stored(tmp_path):
    opened = []

    def make(layer, **options):
        path = tmp_path / f"{len(opened)}.safetensors"
        pr.save(path, {"ffn": layer})
        opened.append(pr.open(path, **{"budget": "1 MiB", **options}))
        return opened[-1]["ffn"]

    yield make
    for file in opened:
        file.close()


@pytest.fixture
def there(place):
    return lambda array: upload(np.ascontiguousarray(array), place).clone()


def packed(rng, decide, gated, dtype=F32, sizes=(UNITS, IN, OUT)):
    units, features, outs = sizes
    up, gate = (values(rng, (units, features), dtype) for _ in range(2))
    return pr.FFN.pack(
        up,
        values(rng, (outs, units), dtype),
        gate if gated else None,
        decide=decide,
        b_up=values(rng, units, dtype),
        b_down=values(rng, outs, dtype),
    )


def near(got, wanted, dtype=F32):
    assert numpy_of(got.dtype) == wanted.dtype
    host = np.empty(tuple(got.shape), wanted.dtype)
    download(got, host)
    error = {F64: 1e-10, F32: 2e-5, F16: 2e-2, BF16: 5e-2}[dtype]
    wanted = wanted.astype(F64)
    np.testing.assert_allclose(host.astype(F64), wanted, rtol=error, atol=error * np.abs(wanted).max())


def policies(units, branch, rng):
    count = -(-units // branch)
    return [
        None,
        pr.Threshold(4.0),
        pr.TopK(count=3),
        pr.Fixed(rng.random(count) < 0.2),
        pr.Fixed(rng.random((3, count)) < 0.2),
        pr.Fixed(np.zeros(count, bool)),
    ]


@pytest.mark.parametrize(
    ("decide", "gated", "branch"),
    [
        ("up", False, 4),
        ("up", True, 1),
        ("gate", True, 4),
        ("gate", True, 70),  # wider than a piece
        ("predictor", False, 70),
        ("predictor", True, 4),
    ],
)
def test_results_are_those_of_memory(rng, stored, there, gated, decide, branch):
    layer = packed(rng, decide, gated)
    on_disk, x = stored(layer), values(rng, (3, IN), F32)
    for policy in policies(UNITS, branch, rng):
        if decide == "predictor" and not isinstance(policy, (pr.Fixed, type(None))):
            with pytest.raises(ValueError, match="decide='predictor'"):
                on_disk(there(x), "relu", policy, branch)
            continue
        with pr.device("cpu"):
            wanted = layer(x, "relu", policy, branch)
        near(on_disk(there(x), "relu", policy, branch), wanted)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
def test_dtypes_shapes_and_out(rng, stored, there, dtype):
    layer = packed(rng, "gate", True, dtype)
    on_disk = stored(layer)
    for shape in ((IN,), (2, 3, IN), (0, IN)):
        x = values(rng, shape, dtype)
        with pr.device("cpu"):
            wanted = layer(x, "silu", pr.TopK(fraction=0.2))
        out = torch.empty(wanted.shape, dtype=torch_of(dtype), device=there(x).device)
        assert on_disk(there(x), "silu", pr.TopK(fraction=0.2), out=out) is out
        if wanted.size:
            near(out, wanted, dtype)


def test_a_row_needs_its_own_units_only(rng, stored, there):
    """Rows of a batch see nothing of each other's units, which hold infinities here."""
    up, down = values(rng, (UNITS, IN), F32), values(rng, (OUT, UNITS), F32)
    mask = np.zeros((2, UNITS), bool)
    mask[0, :20], mask[1, 20:50] = True, True
    up[20:50] = np.inf
    down[:, 20:50] = np.nan
    down[:, 60:] = np.nan  # which no row needs
    on_disk = stored(pr.FFN.pack(up, down))
    got = on_disk(there(values(rng, (2, IN), F32)), "relu", pr.Fixed(mask))
    assert bool(torch.isfinite(got[0]).all())
    assert bool(torch.isnan(got[1]).all())


def test_dead_units_never_leave_the_disk(rng, stored, there, monkeypatch):
    """What is read and sent, in a layer whose bundles have pages of their own."""
    monkeypatch.setattr(streaming, "BUFFER", 100_000)
    layer = packed(rng, "gate", True, F32, (UNITS, 600, 500))
    on_disk, x = stored(layer, budget="2 MiB"), there(values(rng, (1, 600), F32))
    each, panel = 8192, 4096  # bundles (600 + 500 values) and rows of the panel, in pages
    sent, real = [], streaming.Ring.pieces

    def pieces(self, plan, fill):
        for piece, tensor in real(self, plan, fill):
            sent.append(len(tensor))
            yield piece, tensor

    monkeypatch.setattr(streaming.Ring, "pieces", pieces)
    with pr.trace() as t:
        on_disk(x, "relu", pr.TopK(count=10))
    (record,) = t.records
    assert record.name == "ffn"
    assert record.path.startswith("cuda, ")
    assert record.bytes_io == UNITS * panel + 10 * each
    assert (record.live, record.total) == (10, UNITS)
    assert record.bytes_skipped == (UNITS - 10) * 1100 * 4
    assert sum(sent) <= UNITS * 2400 + 10 * (1100 * 4 + 64)


def test_the_panel_stays_within_a_budget(rng, stored, there):
    layers = [packed(rng, decide, decide == "gate") for decide in ("up", "gate", "up")]
    x = values(rng, (2, IN), F32)
    on_disk = [stored(layer, budget=1 << 19) for layer in layers]
    size = UNITS * IN * 4
    pr.cuda.keep(2 * size + 100)
    for again in range(2):
        for layer, one in zip(layers, on_disk, strict=True):
            for policy in (pr.TopK(count=7), pr.Fixed(np.arange(UNITS) % 5 == 0)):
                with pr.device("cpu"):
                    wanted = layer(x, "silu", policy, 1)
                near(one(there(x), "silu", policy), wanted)
        assert pr.cuda.kept() == 2 * size, again
    del one, on_disk[0]
    pr.cuda.keep(size - 1)
    assert pr.cuda.kept() == 0


def test_one_round_trip(rng, stored, there, monkeypatch):
    """A call reads back which units are live, once, and nothing with a policy that the host knows."""
    on_disk, x = stored(packed(rng, "up", False)), there(values(rng, (3, IN), F32))
    backs, read_back = [], ffn.Call._read_back

    def mode(name):  # on a GPU, torch raises where anything else waits
        if x.device.type == "cuda":
            torch.cuda.set_sync_debug_mode(name)

    def counted(self, each):
        backs.append(tuple(each.shape))
        mode("default")
        found = read_back(self, each)
        mode("error")
        return found

    monkeypatch.setattr(ffn.Call, "_read_back", counted)
    fixed = pr.Fixed(np.arange(UNITS) % 2 == 0)
    on_disk(x, "relu", fixed)  # its mask is uploaded once
    try:
        for policy, wanted in ((pr.Threshold(1.0), 1), (pr.TopK(count=3), 1), (fixed, 0), (None, 0)):
            backs.clear()
            mode("error")
            on_disk(x, "relu", policy)
            assert len(backs) == wanted
    finally:
        mode("default")


def test_errors_and_interrupts(rng, stored, there, monkeypatch):
    layer = packed(rng, "up", True)
    on_disk, x = stored(layer), there(values(rng, (2, IN), F32))
    for error, message, call in (
        (ValueError, "features, the weights expect", lambda: on_disk(x[:, 1:])),
        (ValueError, "activation must be", lambda: on_disk(x, "tanh")),
        (ValueError, "out has shape", lambda: on_disk(x, out=x)),
        (TypeError, "out must be a tensor", lambda: on_disk(x, out=np.zeros((2, OUT), F32))),
        (TypeError, "must hold floats", lambda: on_disk(x.to(torch.int32))),
        (ValueError, "branch", lambda: on_disk(x, branch=0)),
        (ValueError, "Fixed has a mask", lambda: on_disk(x, prune=pr.Fixed(np.ones(3, bool)))),
    ):
        with pytest.raises(error, match=message):
            call()
    real, count, drained = tables.Table.gather_into, [], []
    real_drain = streaming.Ring.drain

    def gather_into(self, units, raw):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        real(self, units, raw)

    monkeypatch.setattr(tables.Table, "gather_into", gather_into)
    monkeypatch.setattr(streaming.Ring, "drain", lambda self: (drained.append(1), real_drain(self)))
    policy = pr.Fixed(np.arange(UNITS) % 3 == 0)
    monkeypatch.setattr(tables, "MOSTLY", 9.0)
    with pytest.raises(KeyboardInterrupt):
        on_disk(x, "relu", policy)
    assert drained
    monkeypatch.setattr(rows, "combine", None)
    with pytest.raises(TypeError):
        on_disk(x, "relu", None)
    monkeypatch.undo()
    with pr.device("cpu"):
        wanted = layer(x.cpu().numpy(), "relu", policy)
    near(on_disk(x, "relu", policy), wanted)


def test_a_file_that_was_cut(rng, stored, there):
    on_disk, x = stored(packed(rng, "up", True)), there(values(rng, (2, IN), F32))
    os.truncate(on_disk._bundle.store.file.path, 5000)
    with pytest.raises(OSError, match=r".+"):
        on_disk(x, "relu", pr.Threshold(1.0))
