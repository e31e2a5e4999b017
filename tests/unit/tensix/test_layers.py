"""Large products of layers by multicast: values, norms and liveness as by lists, for fewer cycles."""

import ml_dtypes
import numpy as np
import pytest

import prunus as pr
from prunus.cli import main
from prunus.engines.base import Blocks, Found
from prunus.pruning._rows import norms_of
from prunus.tensix import estimate_matmul
from prunus.tensix.mapping import layers

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def lists(monkeypatch):
    """Have products go by lists, or by multicast, whatever is predicted to be faster."""
    choose = layers.way

    def shared(run, sizes, formats, e, wanted):
        return choose(run, sizes, formats, e, 1e12)

    def by(lists):
        monkeypatch.setattr(layers, "way", (lambda *_: None) if lists else shared)

    return by


def whole(rng, shape, dtype=np.float32):
    """Return small integers, whose sums every format of this size holds."""
    return rng.integers(-2, 3, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(("m", "n"), [(250, 600), (3, 1500), (1500, 20)])
def test_a_layer_is_what_it_is_by_lists(rng, lists, m, n, activation, dtype):
    x, w, b = whole(rng, (m, 500), dtype), whole(rng, (n, 500), dtype), whole(rng, n, dtype)
    lists(False)
    with pr.device("tensix:n150") as shared:
        y = pr.linear(x, w, b, activation=activation)
    lists(True)
    with pr.device("tensix:n150") as alone:
        want = pr.linear(x, w, b, activation=activation)
    np.testing.assert_array_equal(y.astype(float), want.astype(float))
    assert shared.report().dram_bytes < alone.report().dram_bytes
    assert shared.report().cycles < 1.1 * alone.report().cycles


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("branch", [1, 32, 48, 128])
@pytest.mark.parametrize("decides", [False, True])
def test_norms_and_what_is_live_are_the_same_words(rng, lists, norm, branch, decides):
    x, w, b = whole(rng, (200, 512)), whole(rng, (520, 512)), whole(rng, 520)
    branches = -(-520 // branch)
    results = []
    tau = float(np.median(norms_of(np.maximum(x @ w.T + b, 0), branch, norm)))
    for by_lists in (False, True):
        lists(by_lists)
        norms, live = np.empty((200, branches), np.float32), np.empty((200, branches), bool)
        out = np.empty((200, 520), np.float32)
        found = Found(branch, norm, norms, live if decides else None, tau)
        with pr.device("tensix:n150") as engine:
            engine.dots(x, w, out, None, 1, b, "relu", None, found)
            results.append((out, norms, live, engine.report().dram_bytes))
    (out, norms, live, few), (want, expected, wanted, many) = results
    np.testing.assert_array_equal(norms, expected)
    np.testing.assert_array_equal(out, want)
    if decides:
        np.testing.assert_array_equal(live, wanted)
        assert 0 < live.mean() < 1
    assert few < many


@pytest.mark.parametrize("chip", ["n150", "p150"])
def test_time_alone_takes_as_long(rng, lists, chip):
    x, up, gate = whole(rng, (200, 320)), whole(rng, (520, 320)), whole(rng, (520, 320))
    down, b_up, b_down = whole(rng, (330, 520)), whole(rng, 520), whole(rng, 330)
    W = pr.BSR.from_dense(whole(rng, (320, 512)), blocksize=32, density=0.4)
    lists(False)
    cycles = []
    for mode in ("full", "timing"):
        with pr.device(f"tensix:{chip}", mode=mode) as engine:
            pr.ffn(x, up, down, gate, b_up, b_down, prune=pr.Threshold(30.0), branch=32)
            pr.FFN.pack(up, down, b_down=b_down)(x, prune=pr.TopK(fraction=0.3), branch=32)
            pr.linear(x, up, b_up, activation="relu")
            engine.dsd(*_dsd(W, rng))
            cycles.append([one.cycles for one in engine.report().operations])
    assert cycles[0] == cycles[1]


def _dsd(W, rng):
    blocks = Blocks(W.data, W.indices, W.indptr, W.shape, False)
    x = np.random.default_rng(7).integers(-2, 3, (512, 300)).astype(np.float32)
    return blocks, x, np.empty((320, 300), np.float32), np.arange(320, dtype=np.float32), "relu"


def test_block_sparse_products_with_an_epilogue(rng):
    W = pr.BSR.from_dense(whole(rng, (320, 512)), blocksize=32, density=0.4)
    with pr.device("tensix:n150") as engine:
        blocks, x, out, bias, activation = _dsd(W, rng)
        want = np.maximum(W.toarray() @ x + bias[:, None], 0)
        engine.dsd(blocks, x, out, bias, activation)
        np.testing.assert_array_equal(out, want)
        engine.dsd(blocks, x, out, None, None, None, True)
        np.testing.assert_array_equal(out, want + W.toarray() @ x)
        # Operands are read once by each row or column of cores.
        tiles = len(W.indices) + 16 * 10
        for one in engine.report().operations:
            assert one.dram_bytes < 4096 * (tiles + 3 * 8 * 10 + 2 * 10 * 10)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.95])
@pytest.mark.parametrize("add", [False, True])
def test_what_units_contribute_of_two_formats(rng, share, add):
    h, w, bias = whole(rng, (300, 512)), whole(rng, (512, 320), BF16), whole(rng, 320)
    live = rng.random((300, 16)) < share
    live[:, 3] = True
    # Rows of cores of which nothing is live still have a bias.
    live[64:128] = False
    start = whole(rng, (300, 320))
    out = start.copy()
    with pr.device("tensix:n150") as engine:
        engine.combine(h, w, out, live, 32, bias, add)
    want = np.where(np.repeat(live, 32, axis=1), h, 0) @ w.astype(np.float32) + bias
    np.testing.assert_array_equal(out, want + start if add else want)


def test_large_layers_are_bound_by_math_and_not_by_dram():
    x, w, b = np.ones((2048, 2048), BF16), np.ones((2048, 2048), BF16), np.ones(2048, BF16)
    with pr.device("tensix:n150", mode="timing") as engine:
        pr.linear(x, w, b, activation="relu")
    (one,) = engine.report().operations
    # Each operand goes to the chip twice at most, and the result from it once.
    assert one.dram_bytes < 5.5 * 2 * 2048**2
    assert one.busiest["math"] > 0.7


@pytest.mark.parametrize("chip", ["n150", "p150"])
def test_tall_and_flat_products_take_what_dram_takes(chip):
    flat, tall = estimate_matmul(32, 4096, 4096, chip), estimate_matmul(4096, 4096, 32, chip)
    for one in (flat, tall):
        assert one.busy["DRAM"] > 0.6
        assert one.dram_bytes < 1.05 * 2 * 4096**2 + 4 * 32 * 4096 * 2


def test_operands_in_l1():
    places = [{}, {"in0": "l1"}, {"out": "l1"}, {"in0": "l1", "out": "l1"}]
    found = [estimate_matmul(1024, 1024, 1024, "n150", **place) for place in places]
    matrix = 2 * 1024**2
    assert [round(one.dram_bytes / matrix) for one in found] == [3, 2, 2, 1]
    assert found[3].cycles < found[0].cycles
    with pytest.raises(
        ValueError, match="need at least 4296704 B, with in0 in L1: 1499136 B of n150 are there"
    ):
        estimate_matmul(4096, 4096, 32, "n150", in0="l1")
    with pytest.raises(ValueError, match="in0 must be one of dram, l1, got 'sram'"):
        estimate_matmul(64, 64, 64, in0="sram")
    with pytest.raises(ValueError, match="operands of sparse ones lie in DRAM"):
        estimate_matmul(64, 64, 64, live=0.5, out="l1")


def test_the_command_takes_places(capsys):
    assert main(["tensix", "matmul", "512", "512", "512", "--in0", "l1", "--out", "l1"]) == 0
    assert "dense" in capsys.readouterr().out
    assert main(["tensix", "matmul", "512", "512", "512", "--in0", "l1", "--sweep", "0.5"]) != 0
    assert "leave out --in0" in capsys.readouterr().err


def test_units_that_no_row_needs_are_not_read(rng):
    x, w, b = whole(rng, (256, 320)), whole(rng, (640, 320)), whole(rng, 640)
    scale = whole(rng, (256, 640))
    want = np.maximum(x @ w.T + b, 0) * scale
    moved = []
    for share in (4, 1):
        live = np.zeros((256, 20), bool)
        live[: 64 * share, : 5 * share] = rng.random((64 * share, 5 * share)) < 0.5
        out = np.full((256, 640), np.nan, np.float32)
        with pr.device("tensix:n150") as engine:
            engine.dots(x, w, out, live, 32, b, "relu", scale)
            moved.append(engine.report().dram_bytes)
        np.testing.assert_array_equal(out, np.where(np.repeat(live, 32, axis=1), want, 0))
    assert moved[1] < moved[0] / 2.5
    with pr.device("tensix:n150") as engine:
        engine.dots(x, w, out, np.zeros((256, 20), bool), 32, b, "relu", scale)
    assert not out.any()


def test_threads_change_nothing(rng):
    x, w = rng.standard_normal((200, 320)).astype(np.float32), rng.standard_normal((400, 320)).astype(BF16)
    found = []
    for threads in (1, 3):
        with pr.num_threads(threads), pr.device("tensix:n150") as engine:
            found.append((pr.linear(x, w, activation="silu"), engine.report().cycles))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
