"""Feed-forward layers on disk: the same results as in memory, and dead units are never read."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64
from prunus.paged import tables

MIB = 1 << 20
LAYERS = [(False, "up"), (False, "predictor"), (True, "up"), (True, "gate"), (True, "predictor")]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def packed(rng, gated, decide, dtype=F32, units=96, d=20, out=12, biases=True):
    up, gate = (rng.standard_normal((units, d)).astype(dtype) for _ in range(2))
    down = rng.standard_normal((out, units)).astype(dtype)
    more = {
        "b_up": rng.standard_normal(units).astype(dtype),
        "b_down": rng.standard_normal(out).astype(dtype),
    }
    return pr.FFN.pack(up, down, gate if gated else None, decide, **(more if biases else {}))


@pytest.fixture
def stored(tmp_path):
    number = iter(range(1000))

    def make(layer, budget=MIB, resident=None):
        path = tmp_path / f"{next(number)}.safetensors"
        layer.save(path)
        return pr.FFN.open(path, budget=budget, resident=resident)

    return make


def policies(rng, rows, branches, decide):
    mask = rng.random(branches) < 0.2
    every = [
        None,
        pr.Fixed(mask),
        pr.Fixed(rng.random((rows, branches)) < 0.1),
        pr.Fixed(np.zeros(branches, bool)),
    ]
    if decide == "predictor":
        return every
    return [
        *every,
        pr.Threshold(1.0),
        pr.Threshold(3.0, norm="l2"),
        pr.TopK(count=2),
        pr.TopK(fraction=0.2, rows=2),
    ]


@pytest.mark.parametrize(("gated", "decide"), LAYERS)
@pytest.mark.parametrize("resident", ["panel", "none"])
@pytest.mark.parametrize("branch", [1, 7, 32])
def test_results_are_those_of_memory(rng, stored, gated, decide, resident, branch):
    layer = packed(rng, gated, decide)
    disk = stored(layer, resident=resident)
    branches = -(-96 // branch)
    for rows in (1, 5):
        x = rng.standard_normal((rows, 20)).astype(F32)
        for policy in policies(rng, rows, branches, decide):
            for activation in ("relu", "silu", None):
                want = layer(x, activation, policy, branch)
                got = disk(x, activation, policy, branch)
                np.testing.assert_array_equal(got, want, err_msg=f"{policy} {activation}")


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("span", [1, 1500, 16 * MIB])
def test_dtypes_and_spans(rng, stored, monkeypatch, dtype, span):
    monkeypatch.setattr(tables, "SPAN", span)
    for gated, decide in LAYERS:
        layer = packed(rng, gated, decide, dtype)
        disk = stored(layer)
        x = rng.standard_normal((3, 20)).astype(dtype)
        for policy in policies(rng, 3, 96, decide):
            got, want = disk(x, "relu", policy), layer(x, "relu", policy)
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want, err_msg=f"{policy} {decide}")


def test_a_row_is_the_same_alone_and_with_any_budget(rng, stored, monkeypatch):
    monkeypatch.setattr(tables, "SPAN", 2000)
    layer = packed(rng, True, "gate")
    small, large = stored(layer, 128 << 10, "none"), stored(layer, 64 * MIB, "panel")
    x = rng.standard_normal((6, 20)).astype(F32)
    policy = pr.Threshold(2.0)
    every = large(x, "relu", policy)
    np.testing.assert_array_equal(small(x, "relu", policy), every)
    for i in range(6):
        np.testing.assert_array_equal(small(x[i], "relu", policy), every[i])


def test_dead_bundles_are_never_read(rng, stored):
    # Bundles of two pages each, padded; a branch is 4 of them.
    layer = packed(rng, False, "predictor", units=256, d=700, out=700, biases=False)
    disk = stored(layer, 8 * MIB)
    pitch = 8192
    assert disk.nbytes == 256 * pitch
    live = np.zeros(64, bool)
    live[[0, 9, 10, 63]] = True
    pager = disk._bundle.store.pager
    before = pager.stats()["bytes_read"]
    with pr.trace() as t:
        disk(rng.standard_normal((3, 700)).astype(F32), prune=pr.Fixed(live), branch=4)
    used = 16 * 1400 * 4
    read = pager.stats()["bytes_read"] - before
    assert used <= read <= 16 * pitch
    assert t.bytes_io == read
    assert t.bytes_skipped == 240 * 1400 * 4


def test_many_layers_leave_room_to_read(rng, tmp_path):
    """Each panel is below a quarter of the budget, all of them are more than it."""
    layers = {f"l{i}": packed(rng, False, "up", units=256, d=700, out=700) for i in range(8)}
    pr.save(tmp_path / "m.safetensors", layers)
    x = rng.standard_normal((2, 700)).astype(F32)
    with pr.open(tmp_path / "m.safetensors", budget=4 * MIB) as file:
        disk = {name: file[name] for name in layers}
        for _ in range(2):
            for name, layer in layers.items():
                policy = pr.Threshold(1.0)
                np.testing.assert_array_equal(disk[name](x, "relu", policy), layer(x, "relu", policy))


def test_resident_panels_are_read_once(rng, stored):
    layer = packed(rng, False, "up", units=256, d=700, out=700)
    disk = stored(layer, 8 * MIB)
    assert disk.resident == "panel"
    assert stored(layer, MIB).resident == "none"
    x = rng.standard_normal(700).astype(F32)
    policy = pr.Threshold(1e9)
    with pr.trace() as first:
        assert not (disk(x, prune=policy) - layer._b_down).any()
    with pr.trace() as second:
        disk(x, prune=policy)
    assert first.bytes_io >= 256 * 700 * 4
    assert second.bytes_io == 0
    assert second.bytes_skipped == 256 * 700 * 4
    assert first.live_fraction == 0


@pytest.mark.parametrize(("gated", "decide"), LAYERS)
@pytest.mark.parametrize("d", [20, 700])  # bundles of 700 values and more are padded to pages
def test_layers_with_each_matrix_by_itself_are_the_same(rng, tmp_path, gated, decide, d):
    layer = packed(rng, gated, decide, d=d)
    apart = layer.apart()
    assert apart.nbytes == (1 + gated) * 96 * d * 4 + 96 * 12 * 4 <= layer.nbytes
    x = rng.standard_normal((3, d)).astype(F32)
    for policy in policies(rng, 3, 96, decide):
        np.testing.assert_array_equal(apart(x, "silu", policy), layer(x, "silu", policy))
    with pytest.raises(ValueError, match="read-only"):
        apart._down[0, 0] = 1
    layer.save(tmp_path / "a.safetensors")
    apart.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert apart.apart().nbytes == apart.nbytes


def test_files_hold_layers_beside_arrays(rng, tmp_path):
    path = tmp_path / "m.safetensors"
    first, second = packed(rng, True, "gate"), packed(rng, False, "up", biases=False)
    pr.save(path, {"a": first, "w": np.ones((3, 4), F32), "b.c": second}, checksums=True)
    with pr.open(path, budget=MIB, verify=True) as file:
        assert sorted(file) == ["a", "b.c", "w"]
        assert file.layers == ["a", "b.c"]
        assert file.shapes["a"] == (12, 96, 20)
        assert file.dtypes["b.c"] == F32
        assert not file.verify()
        x = rng.standard_normal((2, 20)).astype(F32)
        file.prefetch(["a", "w"])
        np.testing.assert_array_equal(file["a"](x), first(x))
        np.testing.assert_array_equal(file["b.c"](x), second(x))
        loaded = file["a"].load()
        assert isinstance(loaded, pr.FFN)
        np.testing.assert_array_equal(loaded(x, "silu", pr.TopK(count=3)), first(x, "silu", pr.TopK(count=3)))
        again = tmp_path / "again.safetensors"
        pr.save(again, {"a": file["a"], "t": file["w"]})
        with pr.open(again, budget=MIB) as copy:
            np.testing.assert_array_equal(copy["a"](x), first(x))
        assert "gated, decided by gate" in repr(file["a"])
    with pytest.raises(pr.PrunusError, match="say which"):
        pr.FFN.open(path)
    with pytest.raises(KeyError, match="no layer"):
        pr.FFN.open(path, "w")
    np.testing.assert_array_equal(pr.FFN.open(path, "a", budget="2 MiB")(x), first(x))
    with pytest.raises(ValueError, match="resident"):
        pr.FFN.open(path, "a", resident="all")
    pr.save(path, {"w": np.ones(3, F32)})
    with pytest.raises(pr.PrunusError, match="expected a file with"):
        pr.FFN.open(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"decide": "gate"},
        {"decide": "down"},
        {"decide": "predictor"},
        {"hidden": 95},
        {"features": 21},
        {"out_features": 4000},
        {"hidden": "x"},
        {"gated": 1},
        {"gated": True},
    ],
    ids=str,
)
def test_descriptions_that_do_not_fit(rng, tmp_path, wrong, monkeypatch):
    from prunus.paged import layers, save

    layer = packed(rng, False, "up")
    described, parts = layers.layer_parts(layer, "f")
    monkeypatch.setattr(save, "layer_parts", lambda *_: ({**described, **wrong}, parts), raising=False)
    import sys

    module = sys.modules["prunus.paged.save"]
    monkeypatch.setattr(module, "layer_parts", lambda *_: ({**described, **wrong}, parts))
    module.save(tmp_path / "f.safetensors", {"f": layer})
    with pytest.raises(pr.PrunusError, match="describe no feed-forward layers"):
        pr.open(tmp_path / "f.safetensors", budget=MIB)


def test_calls_are_checked_as_in_memory(rng, stored):
    disk = stored(packed(rng, True, "predictor"))
    x = rng.standard_normal((2, 20)).astype(F32)
    with pytest.raises(ValueError, match="features"):
        disk(x[:, :5])
    with pytest.raises(ValueError, match="activation"):
        disk(x, "tanh")
    with pytest.raises(ValueError, match="foresees"):
        disk(x, prune=pr.Threshold(0.0))
    out = np.empty((2, 12), F32)
    assert disk(x, out=out) is out
    with pytest.raises(ValueError, match="out must be"):
        disk(x, out=np.empty((2, 11), F32))


def test_closed_and_replaced_files(rng, tmp_path):
    path = tmp_path / "f.safetensors"
    layer = packed(rng, False, "up")
    layer.save(path)
    file = pr.open(path, budget=MIB)
    disk = file["ffn"]
    x = rng.standard_normal(20).astype(F32)
    disk(x)
    layer.save(path)
    with pytest.raises(OSError, match=r"replaced|changed"):
        disk(x)
    file.close()
    with pytest.raises((OSError, ValueError), match="closed"):
        disk(x)
