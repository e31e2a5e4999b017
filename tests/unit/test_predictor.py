"""Predictor: a low-rank guess of what will be live."""

import os
import signal
import threading

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from prunus.pruning import _pieces
from prunus.pruning.lowrank import fit_low_rank


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def layer(rng):
    """Weights of rank 12 and a little more, samples, and inputs of the same kind."""
    mix = rng.standard_normal((32, 32))
    up, gate = (
        rng.standard_normal((96, 12)) @ rng.standard_normal((12, 32)) + 0.05 * rng.standard_normal((96, 32))
        for _ in range(2)
    )
    down = rng.standard_normal((24, 96))
    x, held = (rng.standard_normal((n, 32)) @ mix + 0.5 for n in (400, 100))
    return {"up": up, "gate": gate, "down": down, "x": x, "held": held}


def test_the_approximation_is_the_best_of_its_rank(rng):
    x, w, b = rng.standard_normal((50, 20)) + 1, rng.standard_normal((30, 20)), rng.standard_normal(30)
    z = x @ w.T + b
    centred = z - z.mean(axis=0)
    u, s, v = np.linalg.svd(centred, full_matrices=False)
    for samples, rank in ((50, 1), (50, 7), (50, 20), (12, 5)):
        part = x[:samples]
        z = part @ w.T + b
        u, s, v = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ v[:rank] + z.mean(axis=0)
        low = fit_low_rank(part, w, b, rank)
        got = (part @ low.narrow.T.astype(float)) @ low.wide.T + low.offset
        np.testing.assert_allclose(got, best, atol=2e-4)
        np.testing.assert_allclose(low.spread, np.sqrt(((z - best) ** 2).mean(axis=0)), atol=1e-3)


def test_samples_that_do_not_vary(rng):
    x = np.repeat(rng.standard_normal((1, 8)), 5, axis=0)
    w = rng.standard_normal((6, 8))
    p = pr.Predictor.fit(x, w, rank=3, keep=0.5)
    np.testing.assert_array_equal(p.scores(x) > 0, x @ w.T > 0)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", None])
def test_full_rank_finds_what_is_live(layer, gated, activation):
    gate = layer["gate"] if gated else None
    p = pr.Predictor.fit(layer["x"], layer["up"], w_gate=gate, rank=32, keep=0.25, activation=activation)
    h = layer["held"] @ layer["up"].T
    first = layer["held"] @ gate.T if gated else h
    if activation == "relu":
        first = np.maximum(first, 0)
    elif activation == "silu":
        first = first / (1 + np.exp(-first))
    elif activation == "gelu":
        from math import erf

        first = first * 0.5 * (1 + np.vectorize(erf)(first / np.sqrt(2)))
    h = np.abs(first * h) if gated else np.abs(first)
    live = p.foresee(layer["held"], 96)
    assert live.dtype == bool
    assert (live.sum(axis=1) == 24).all()
    if gated or activation != "relu":
        # The strongest quarter of each row.
        cut = np.sort(h, axis=1)[:, -24][:, None]
        assert (live == (h >= cut)).mean() > 0.99
    else:
        assert (h[live.nonzero()] > 0).mean() > 0.99


def test_recall_and_error_improve_with_rank_and_keep(layer):
    x, up, down, held = (layer[k] for k in ("x", "up", "down", "held"))
    b = -np.quantile(x @ up.T, 0.9, axis=0)
    recall, error = [], []
    for rank in (1, 4, 12, 32):
        p = pr.Predictor.fit(x, up, b_up=b, rank=rank, keep=0.2)
        found = p.evaluate(held, up, down, b_up=b)
        assert 0.05 < found["live"] < 0.2
        assert found["kept"] == pytest.approx(20 / 96)
        recall.append(found["recall"])
        error.append(found["error"])
    assert recall == sorted(recall)
    assert error == sorted(error, reverse=True)
    assert recall[2] > 0.95
    assert error[3] < 0.05
    wider = p.with_keep(1.0).evaluate(held, up, down, b_up=b)
    assert (wider["recall"], wider["kept"], wider["error"], wider["energy"]) == (1, 1, 0, 1)
    assert p.keep == 0.2


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("gated", [False, True])
def test_branches(layer, norm, gated):
    p = pr.Predictor.fit(
        layer["x"],
        layer["up"],
        rank=32,
        keep=0.3,
        branch=10,
        norm=norm,
        w_gate=layer["gate"] if gated else None,
    )
    scores = p.scores(layer["held"]).astype(float)
    parts = [scores[:, i : i + 10] for i in range(0, 96, 10)]
    if norm == "max":
        pooled = np.stack([part.max(axis=1) for part in parts], axis=1)
    else:
        parts = parts if gated else [np.maximum(part, 0) ** 2 for part in parts]
        pooled = np.stack([part.sum(axis=1) for part in parts], axis=1)
    live = p.foresee(layer["held"], 10)
    assert (live.sum(axis=1) == 3).all()
    for row, marks in zip(pooled, live, strict=True):
        assert row[marks].min() >= row[~marks].max()
    found = p.evaluate(layer["held"], layer["up"], w_gate=layer["gate"] if gated else None)
    assert found["recall"] <= 1
    assert "error" not in found


def test_ties_go_to_the_lowest_index():
    x, w = np.ones((4, 3)), np.ones((8, 3))
    live = pr.Predictor.fit(x, w, rank=1, keep=0.25).foresee(x, 8)
    np.testing.assert_array_equal(live, np.tile(np.arange(8) < 2, (4, 1)))


def test_a_row_is_decided_alone(layer):
    p = pr.Predictor.fit(layer["x"], layer["up"], w_gate=layer["gate"], rank=8, keep=0.3, activation="silu")
    for dtype in (np.float32, np.float64, np.float16, BF16):
        held = layer["held"].astype(dtype)
        whole = p.foresee(held, 96)
        for i in (0, 17, 99):
            np.testing.assert_array_equal(p.foresee(held[i : i + 1], 96)[0], whole[i])
        np.testing.assert_array_equal(p.foresee(held[::-3], 96), whole[::-3])


def test_in_a_layer(layer):
    x, up, gate, down, held = (layer[k].astype(np.float32) for k in ("x", "up", "gate", "down", "held"))
    p = pr.Predictor.fit(x, up, rank=12, keep=0.7)
    live = p.foresee(held, 96)
    h = np.maximum(held @ up.T, 0) * live
    F = pr.FFN.pack(up, down, decide="predictor")
    np.testing.assert_allclose(F(held, prune=p), h @ down.T, rtol=1e-5, atol=5e-3)
    with pr.trace() as t:
        F(held, prune=p)
    assert t.live_fraction == pytest.approx(68 / 96)
    np.testing.assert_allclose(pr.ffn(held, up, down, prune=p), h @ down.T, rtol=1e-5, atol=5e-3)
    got = pr.linear(held, up, activation="relu", prune=p, branch=1)
    np.testing.assert_allclose(got.toarray(), h, rtol=1e-5, atol=1e-4)
    g = pr.Predictor.fit(x, up, w_gate=gate, rank=12, keep=0.7, activation="silu")
    F = pr.FFN.pack(up, down, gate, decide="predictor")
    first = held.astype(float) @ gate.T
    h = first / (1 + np.exp(-first)) * (held @ up.T) * g.foresee(held, 96)
    np.testing.assert_allclose(F(held, activation="silu", prune=g), h @ down.T, rtol=1e-3, atol=5e-2)


@pytest.mark.parametrize("gated", [False, True])
def test_save_and_load(layer, gated, tmp_path):
    p = pr.Predictor.fit(
        layer["x"],
        layer["up"],
        w_gate=layer["gate"] if gated else None,
        rank=5,
        keep=0.3,
        branch=3,
        norm="l2",
        activation="silu" if gated else None,
    )
    path = tmp_path / "layer.predictor"
    for _ in range(2):  # the second time over the first
        p.save(path)
    assert os.listdir(tmp_path) == ["layer.predictor"]
    q = pr.Predictor.load(str(path))
    assert repr(q) == repr(p)
    assert (q.activation, q.norm, q.branch, q.nbytes) == (p.activation, p.norm, p.branch, p.nbytes)
    np.testing.assert_array_equal(q.scores(layer["held"]), p.scores(layer["held"]))
    np.testing.assert_array_equal(q.foresee(layer["held"], 32), p.foresee(layer["held"], 32))


def test_leading_dimensions_of_samples(layer):
    flat = pr.Predictor.fit(layer["x"], layer["up"], rank=5, keep=0.3)
    batches = layer["x"].reshape(4, 100, 32)
    p = pr.Predictor.fit(batches, layer["up"], rank=5, keep=0.3)
    np.testing.assert_array_equal(p.scores(layer["held"]), flat.scores(layer["held"]))
    assert p.evaluate(batches, layer["up"], layer["down"]) == flat.evaluate(
        layer["x"], layer["up"], layer["down"]
    )


def test_one_vector_is_one_sample(layer):
    up, one = layer["up"], layer["held"][0]
    p = pr.Predictor.fit(layer["x"], up, rank=5, keep=0.3)
    assert p.evaluate(one, up, layer["down"]) == p.evaluate(one[None], up, layer["down"])
    np.testing.assert_array_equal(
        pr.Predictor.fit(one, up, rank=1, keep=0.3).scores(one[None]),
        pr.Predictor.fit(one[None], up, rank=1, keep=0.3).scores(one[None]),
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x": np.ones((2, 31))}, "x has 31 features, the predictor was fitted to 32"),
        ({"w_up": np.ones((95, 32))}, r"w_up has shape \(95, 32\), the predictor was fitted to \(96, 32\)"),
        ({"w_gate": np.ones((1, 32))}, r"w_gate has shape \(1, 32\), the predictor was fitted to"),
        ({"w_gate": np.ones((96, 31))}, r"w_gate has shape \(96, 31\), the predictor was fitted to"),
        ({"w_down": np.ones((24, 95))}, r"w_down has shape \(24, 95\), expected \(d_out, 96\)"),
    ],
)
def test_a_layer_that_it_was_not_fitted_to(layer, changes, match):
    p = pr.Predictor.fit(layer["x"], layer["up"], rank=5, keep=0.3)
    with pytest.raises(ValueError, match=match):
        p.evaluate(**{"x": layer["held"], "w_up": layer["up"], **changes})


def test_strips_are_the_whole(layer, monkeypatch):
    def run(gate):
        options = {"w_gate": layer["gate"] if gate else None, "b_up": np.ones(96)}
        p = pr.Predictor.fit(
            layer["x"], layer["up"], rank=5, keep=0.3, activation="silu" if gate else "relu", **options
        )
        return p, p.evaluate(layer["held"], layer["up"], layer["down"], **options)

    whole = [run(gate) for gate in (False, True)]
    monkeypatch.setattr(_pieces, "_STRIP", 96 * 7)
    monkeypatch.setattr(_pieces, "_SHORT", 0)
    for gate, (p, found) in enumerate(whole):
        q, again = run(gate)
        np.testing.assert_allclose(q.scores(layer["held"]), p.scores(layer["held"]), rtol=1e-5, atol=1e-5)
        assert again == pytest.approx(found)


def test_no_long_call_keeps_the_main_thread_from_signals(layer, monkeypatch):
    monkeypatch.setattr(_pieces, "_SHORT", 0)
    seen = {}
    for module, name in ((np, "matmul"), (np.linalg, "eigh"), (np.linalg, "cholesky")):
        original = getattr(module, name)

        def spy(*arrays, function=original, name=name):
            seen.setdefault(name, []).append(threading.current_thread() is threading.main_thread())
            return function(*arrays)

        monkeypatch.setattr(module, name, spy)
    pr.Predictor.fit(layer["x"], layer["up"], rank=5, keep=0.3)
    assert set(seen) == {"matmul", "eigh", "cholesky"}
    assert not any(main for calls in seen.values() for main in calls)


@pytest.mark.parametrize("work", [1, 1 << 60])
def test_errors_are_the_callers_to_choose_however_long_it_takes(work):
    large = np.array([1e300])
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        _pieces.apart(np.square, large, work=work)
    with np.errstate(over="ignore"):
        assert np.isinf(_pieces.apart(np.square, large, work=work))


def test_a_signal_frees_who_waits():
    here, go_on = threading.Event(), threading.Event()

    def endless(matrix):
        here.set()
        go_on.wait()

    def interrupt():
        here.wait()
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            _pieces.apart(endless, np.eye(2), work=1 << 60)
    finally:
        go_on.set()
        signal.signal(signal.SIGINT, before)
    with pytest.raises(np.linalg.LinAlgError):
        _pieces.apart(np.linalg.cholesky, -np.eye(2), work=1 << 60)


def test_damaged_files(layer, tmp_path):
    p = pr.Predictor.fit(layer["x"], layer["up"], rank=5, keep=0.3)
    path = tmp_path / "p.npz"
    p.save(path)
    whole = path.read_bytes()
    path.write_text("Not an archive, but long enough to be one.")
    with pytest.raises(ValueError, match=r"p\.npz is not a predictor.* expected an \.npz file") as caught:
        pr.Predictor.load(path)
    assert "pickle" not in str(caught.value)
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a predictor"):
            pr.Predictor.load(path)
    path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:])
    with pytest.raises(ValueError, match="not a predictor"):
        pr.Predictor.load(path)
    with pytest.raises(FileNotFoundError):
        pr.Predictor.load(tmp_path / "none")

    def altered(**changes):
        with np.load(_restored(path, whole)) as archive:
            parts = {k: archive[k] for k in archive.files} | changes
        np.savez(path, **{k: v for k, v in parts.items() if v is not None})
        with pytest.raises(ValueError, match="not a predictor") as caught:
            pr.Predictor.load(path)
        assert "pickle" not in str(caught.value)

    altered(format="something else")
    altered(keep=2.0)
    altered(activation="tanh")
    altered(**{"up.wide": None})
    altered(**{"up.offset": None})
    altered(**{"up.offset": np.zeros(3, np.float32)})
    altered(**{"up.wide": np.full((96, 5), np.nan, np.float32)})
    altered(**{"up.narrow": np.zeros((5, 32))})
    altered(**{"up.narrow": np.array([{}], object)})


def _restored(path, content):
    path.write_bytes(content)
    return path


def test_a_failed_save_leaves_nothing(layer, tmp_path, monkeypatch):
    p = pr.Predictor.fit(layer["x"], layer["up"], rank=5, keep=0.3)
    path = tmp_path / "p.npz"
    p.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", _fails)
    with pytest.raises(OSError, match="full"):
        p.save(path)
    assert os.listdir(tmp_path) == ["p.npz"]
    assert path.read_bytes() == before


def _fails(_):
    raise OSError("disk full")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"rank": 0}, ValueError, "rank"),
        ({"rank": 33}, ValueError, "from 1 to 32"),
        ({"rank": 2.5}, TypeError, "rank"),
        ({"keep": 0}, ValueError, "keep"),
        ({"keep": 1.5}, ValueError, "keep"),
        ({"keep": float("nan")}, ValueError, "keep"),
        ({"branch": 0}, ValueError, "branch"),
        ({"activation": "tanh"}, ValueError, "activation"),
        ({"norm": "l1"}, ValueError, "norm"),
        ({"b_up": np.zeros(5)}, ValueError, "b_up"),
        ({"w_gate": np.zeros((95, 32))}, ValueError, "w_gate"),
        ({"w_gate": np.zeros((96, 31))}, ValueError, "w_gate"),
        ({"w_up": np.zeros((96, 31))}, ValueError, "w_up"),
        ({"w_up": np.zeros((96, 32), int)}, TypeError, "w_up"),
        ({"x": np.full((40, 32), np.nan)}, ValueError, "row 0"),
        ({"x": np.zeros(())}, ValueError, "x must be a matrix"),
        ({"x": np.zeros(32)}, ValueError, "from 1 to 1 with 1 samples"),
        ({"x": np.zeros((0, 32))}, ValueError, "x must be a matrix"),
    ],
)
def test_bad_input(layer, changes, error, match):
    given = {"x": layer["x"], "w_up": layer["up"], "rank": 4, "keep": 0.5} | changes
    with pytest.raises(error, match=match):
        pr.Predictor.fit(given.pop("x"), given.pop("w_up"), **given)


def test_bad_calls(layer):
    p = pr.Predictor.fit(layer["x"], layer["up"], rank=4, keep=0.5)
    assert repr(p) == "Predictor(96 units of 32 features, rank 4, keep=0.5)"
    with pytest.raises(ValueError, match="96 branches of 1 units, the operation has 12"):
        p.foresee(layer["held"], 12)
    with pytest.raises(ValueError, match="32 features"):
        p.foresee(np.zeros((2, 31)), 96)
    with pytest.raises(TypeError, match="floats"):
        p.foresee(np.zeros((2, 32), int), 96)
    with pytest.raises(TypeError, match="input"):
        p.select(None)
    # All rows, none.
    assert p.foresee(np.zeros((0, 32)), 96).shape == (0, 96)
