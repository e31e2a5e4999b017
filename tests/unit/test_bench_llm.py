"""``python -m prunus bench llm`` with models small enough to make up: it runs, and judges what it finds."""

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest

from prunus import llm
from prunus.bench.llm import curve, decode, disk, mapped, memory, peers, run, words, worker
from prunus.bench.llm.found import Section, Verdict, report, write_csv
from prunus.bench.llm.plan import Drive, Plan
from prunus.bench.paging import limits
from prunus.bench.peers import WrongResultError
from prunus.cli import main
from support.llama import small

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bench llm is for Linux")


@pytest.fixture
def plan(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setattr(words, "text", lambda: "the sea and the shore, hearts and stones " * 100)
    source = small(vocab_size=2400, hidden_size=64, intermediate_size=192).gguf(tmp_path / "tiny.gguf")
    packed = tmp_path / "packed.safetensors"
    llm.pack(source, packed)
    return Plan(source, packed, tmp_path, 192 << 10, 2, 3, 60, 200, "the sea", lambda text: None)


def test_decoding_beside_its_bound(plan):
    found = decode.bound(plan)
    assert [row[0] for row in found.rows][1:] == ["within the budget", "in memory", "the bound"]
    assert len(found.verdicts[0].values) == 2
    assert min(found.verdicts[0].values) > 0
    text = report(found)
    assert "time of a token / its bound" in text
    assert "peak memory over the budget" in text


def test_maps_beside_the_model(plan, monkeypatch):
    try:
        with limits.limited(1 << 30):
            pass
    except limits.NoLimitError as error:
        pytest.skip(str(error))
    found = decode.maps(plan)
    assert found.rows[0][0] == "prunus"
    assert len(found.rows) > 1
    assert found.verdicts[0].values or found.verdicts[0].why


def test_maps_where_there_is_no_limit(plan, monkeypatch):
    def refuse(nbytes):
        raise limits.NoLimitError("no group here")

    monkeypatch.setattr(decode, "limited", refuse)
    found = decode.maps(plan)
    assert found.verdicts[0].row[-1] == "not measured: no group here"
    assert [row[0] for row in found.rows] == ["prunus"]


@pytest.mark.parametrize("advice", mapped.ADVICE)
@pytest.mark.parametrize("decide", ["up", "gate", "predictor"])
def test_a_mapped_model_computes_the_same(advice, decide, tmp_path):
    path = tmp_path / "p.safetensors"
    llm.pack(small(tie_word_embeddings=decide == "up").folder(tmp_path / "m"), path, decide=decide)
    with llm.load(path) as memory, mapped.load(str(path), advice) as model:
        assert np.array_equal(model.logits([1, 2, 3, 250]), memory.logits([1, 2, 3, 250]))
        assert model.generate("the sea", 5).tokens == memory.generate("the sea", 5).tokens


def test_a_gguf_file_of_16_bits_is_the_same_model(plan, tmp_path):
    told = []
    for bits, close in (("bf16", 1e-2), ("f16", 2e-3)):
        path = tmp_path / f"{bits}.gguf"
        peers.write_gguf(str(plan.source), path, bits, told.append)
        with (
            llm.load(path, dtype="float32") as copy,
            llm.load(plan.source, dtype="float32") as model,
        ):
            assert copy.speech == model.speech
            want, found = model.logits([1, 2, 3]), copy.logits([1, 2, 3])
            assert np.abs(found - want).max() < close * np.abs(want).max()
    assert len(told) == 2 * len(small().tensors)


def test_peers_take_turns(plan, monkeypatch):
    calls = []

    def work(task, arguments, **more):
        calls.append(task)
        return {"seconds": 1.0 if task == "generate" else 0.5, "steps": 2}

    monkeypatch.setattr(memory, "work", work)
    monkeypatch.setattr(memory, "optional", lambda name: sys if name == "llama_cpp" else None)
    found = memory.peer_speeds(plan)
    assert calls == ["generate", "llama.cpp", "llama.cpp"] * 2
    assert found.verdicts[0].values == [0.5, 0.5]
    assert found.verdicts[0].row[-1] == "MISSED"
    assert not list(plan.folder.glob("*16.gguf"))
    monkeypatch.setattr(memory, "optional", lambda name: None)
    assert "not measured: llama-cpp-python" in memory.peer_speeds(plan).verdicts[0].row[-1]


def test_transformers_generate(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    folder = small().folder(tmp_path / "m")
    config = '{"architectures": ["LlamaForCausalLM"], ' + (folder / "config.json").read_text()[1:]
    (folder / "config.json").write_text(config)
    asked = {"model": str(folder), "prompt": "the sea", "tokens": 3, "threads": 1}
    assert worker.work("transformers", asked)["steps"] == 3


def test_the_curve(plan, tmp_path):
    modes = [("up", None), ("up", 0), ("gate", None), ("gate", 0), ("predictor", 4)]
    points = curve.measure(plan, [0.5], modes)
    assert [point.mode for point in points] == [
        "dense",
        "up, plain",
        "up, calibrated",
        "gate, plain",
        "gate, calibrated",
        "predictor, rank 4",
    ]
    dense, *rest = points
    assert (dense.keep, dense.live, dense.loss) == (1.0, 1.0, 0.0)
    for point in rest:
        assert point.live == pytest.approx(0.5, abs=0.15)
        assert point.loss == pytest.approx(point.perplexity / dense.perplexity - 1)
        assert point.flops < dense.flops
        assert point.loaded < dense.loaded
    # The predictor leaves out three matrices of a dead unit, the others two, or one's own weights.
    assert rest[-1].flops < rest[0].flops
    found = curve.section(replace(plan), points)
    assert found.verdicts[0].values == [rest[1].loss]
    assert "MFLOP" in report(found)
    pytest.importorskip("matplotlib")
    curve.plot(tmp_path / "curve.png", points)
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_what_is_judged_did_not_calibrate(plan, monkeypatch):
    seen = {}
    monkeypatch.setattr(words, "text", lambda: "".join(chr(97 + i % 26) for i in range(8000)))
    monkeypatch.setattr(llm.Model, "calibrate", lambda self, tokens, **more: seen.update(calibrated=tokens))
    monkeypatch.setattr(curve, "_point", lambda *args: seen.update(judged=args[3]))
    monkeypatch.setattr(curve, "_endless", lambda model: None)
    with pytest.raises(AttributeError):
        curve.measure(plan, [0.5], [("up", 0)])  # ends after the dense point, which is None
    assert len(seen["calibrated"]) == 200
    assert len(seen["judged"]) == 60


def test_the_disks_case(plan, monkeypatch):
    shape = disk.Shape(512, 640, 4)
    found = disk.foreseen(replace(plan, budget=1 << 20), shape)
    read, faster = found.verdicts
    assert "gated layers 512 -> 640" in found.title
    assert len(faster.values) == 2
    # 3 KiB a bundle is less than a page.
    assert all(1 <= value < 4 for value in read.values)
    assert not (plan.folder / "layers.safetensors").exists()
    factors = iter((1.0, 2.0, 3.0))
    monkeypatch.setattr(disk, "_weights", lambda shape: scaled(shape, next(factors)))
    with pytest.raises(WrongResultError, match="relative error"):
        disk.foreseen(replace(plan, budget=1 << 20), shape)


def scaled(shape, factor):
    rng = np.random.default_rng(1)
    return {
        n: factor * rng.standard_normal((shape.units, shape.features), np.float32)
        for n in ("up", "gate", "down")
    }


def test_verdicts():
    assert Verdict("a", [1, 2, 3], 2.0).row == ["a", "2", "1 .. 3", ">= 2", "ok"]
    assert Verdict("a", [1, 2, 3], 1.9, False).row[-1] == "MISSED"
    assert Verdict("a", [2], 2.5, False).row == ["a", "2", "-", "<= 2.5", "ok"]
    assert Verdict("a", [], 1.0, why="no disk").row[-1] == "not measured: no disk"


def test_csv(tmp_path):
    section = Section("s", "t", ["", "x"], [["one", "1"]], [Verdict("v", [2.0], 1.0)])
    write_csv(tmp_path / "a.csv", [section])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[1] == ["s", "one", "x", "1"]
    assert ["s", "v", "verdict", "ok"] in lines


def test_the_drive(plan):
    assert Drive(plan.packed, lambda text: None).rate() > 0


def test_the_command(plan, tmp_path, capsys):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ["--model", str(plan.source), "--budget", "192KiB", "--rounds", "1", "--tokens", "2"]
    where = ["--path", str(scratch), "--csv", str(tmp_path / "a.csv")]
    assert main(["bench", "llm", *options, *where, "--sections", "decode"]) == 0
    assert "time of a token / its bound" in capsys.readouterr().out
    assert (tmp_path / "a.csv").exists()
    assert not list(scratch.iterdir())


def test_wrong_options(plan, tmp_path, capsys, monkeypatch):
    nowhere = str(tmp_path / "nowhere" / "a.csv")
    assert main(["bench", "llm", "--csv", nowhere]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["bench", "llm", "--model", nowhere, "--sections", "decode", "--path", str(tmp_path)]) == 1
    assert "nowhere" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "llm", "--plot", str(tmp_path / "a.png")]) == 1
    assert "--plot needs matplotlib" in capsys.readouterr().err


def test_all_sections_are_offered():
    from prunus.cli import bench_llm

    assert bench_llm._SECTIONS == run.SECTIONS
