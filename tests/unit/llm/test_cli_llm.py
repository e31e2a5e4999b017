"""``python -m prunus llm``: run, pack, calibrate, perplexity."""

from pathlib import Path

import numpy as np
import pytest

import prunus as pr
from prunus import llm
from prunus.cli import main
from prunus.paged import pagers
from support.llama import Small, small

TEXT = "the sea is not as near to the house as it was, and the hearts of men are heard in the rain. " * 12


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model() -> Small:
    return small(seed=3, max_position_embeddings=512)


@pytest.fixture
def file(model: Small, tmp_path: Path) -> str:
    return str(model.gguf(tmp_path / "m.gguf"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "text.txt")


def rows(shown: str) -> dict[str, list[str]]:
    """Return a table's rows by their first word."""
    return {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails; return the one line that it says."""
    assert main(["llm", *arguments]) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("python -m prunus: ")
    return lines[0]


# run ---------------------------------------------------------------------------------------------------


def test_run_shows_the_text_and_what_it_took(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llm", "run", file, "--prompt", "the sea", "--tokens", "9", "--dtype", "float32"]) == 0
    shown = capsys.readouterr()
    with llm.load(file, dtype="float32") as m:
        expected = m.generate("the sea", 9)
    assert shown.out.startswith(expected.text + "\n")
    assert f"{expected.prompt_tokens} tokens in" in shown.out
    assert f"{len(expected.tokens)} tokens," in shown.out
    assert "all in memory" in shown.out
    assert not shown.err


def test_raw_continues_the_prompt(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llm", "run", file, "--prompt", "the sea", "--tokens", "9", "--raw"]) == 0
    with llm.load(file) as m:
        expected = m.generate("the sea", 9, chat=False)
    assert capsys.readouterr().out.startswith(expected.text + "\n")


def test_several_prompts_are_shown_one_after_the_other(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llm", "run", file, "--prompt", "the sea", "--prompt", "no", "--tokens", "5"]) == 0
    shown = capsys.readouterr().out
    with llm.load(file) as m:
        for prompt, one in zip(("the sea", "no"), m.generate(["the sea", "no"], 5), strict=True):
            assert f"> {prompt}\n{one.text}\n" in shown


def test_drawing_goes_by_the_seed(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(seed: str) -> str:
        drawn = ["--temperature", "3", "--top-p", "0.9", "--seed", seed, "--tokens", "12"]
        assert main(["llm", "run", file, "--prompt", "a", *drawn]) == 0
        return capsys.readouterr().out

    first = run("1")
    with llm.load(file) as m:
        expected = m.generate("a", 12, temperature=3.0, top_p=0.9, seed=1).text
    assert first.startswith(expected)
    assert run("1").startswith(expected)
    assert not run("2").startswith(expected)


def test_a_budget_packs_into_the_cache_folder_once(
    file: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["llm", "run", file, "--prompt", "the sea", "--tokens", "6", "--budget", "1MiB"]
    assert main(line) == 0
    shown = capsys.readouterr().out
    (packed,) = cache.iterdir()
    assert packed.name.startswith("m-bfloat16-up-")
    with llm.load(file) as m:
        assert shown.startswith(m.generate("the sea", 6).text + "\n")
    for word in ("budget 1.0 MiB", "read from disk", "drive in use", "found in memory"):
        assert word in shown
    before = packed.stat().st_mtime_ns
    assert main(line) == 0
    assert [one.stat().st_mtime_ns for one in cache.iterdir()] == [before]
    assert main([*line, "--dtype", "float32", "--decide", "gate"]) == 0
    assert sorted(one.name.rsplit("-", 1)[0] for one in cache.iterdir()) == [
        "m-bfloat16-up",
        "m-float32-gate",
    ]


def test_a_packed_model_runs_where_it_lies(
    file: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "p.safetensors")
    llm.pack(file, path)
    assert (
        main(["llm", "run", path, "--prompt", "no", "--tokens", "4", "--budget", "1MiB", "--keep", "0.5"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "50.0%" in shown
    assert not cache.exists()
    with llm.load(path) as m:
        assert shown.startswith(m.generate("no", 4, keep=0.5).text + "\n")


def test_exact_prunes_nothing(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llm", "run", file, "--prompt", "no", "--tokens", "4", "--prune", "exact"]) == 0
    assert "100.0%" in capsys.readouterr().out


# pack, calibrate, perplexity ---------------------------------------------------------------------------


def test_pack_writes_what_the_function_writes(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, same = tmp_path / "p.safetensors", tmp_path / "same.safetensors"
    options = ["--dtype", "float32", "--decide", "gate", "--no-checksums"]
    assert main(["llm", "pack", file, str(path), *options]) == 0
    assert str(path) in capsys.readouterr().out
    llm.pack(file, same, dtype="float32", decide="gate", checksums=False)
    assert path.read_bytes() == same.read_bytes()
    assert main(["llm", "pack", file, str(path)]) == 0
    llm.pack(file, same)
    assert path.read_bytes() == same.read_bytes()


def test_a_calibration_is_made_and_used(
    file: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "c.safetensors")
    line = [
        "llm",
        "calibrate",
        file,
        path,
        "--text",
        text,
        "--tokens",
        "400",
        "--rank",
        "4",
        "--dtype",
        "float32",
    ]
    assert main(line) == 0
    assert "calibrated on 400 tokens" in capsys.readouterr().out
    with llm.load(file, dtype="float32") as m:
        expected = m.calibrate(m.tokens(TEXT)[:400], rank=4)
        for name, values in llm.Calibration.load(path)._arrays.items():
            np.testing.assert_array_equal(values, expected._arrays[name], err_msg=name)
    run = ["llm", "run", file, "--prompt", "the sea", "--tokens", "8", "--dtype", "float32"]
    assert main([*run, "--prune", path, "--keep", "0.5"]) == 0
    with llm.load(file, dtype="float32") as m:
        assert capsys.readouterr().out.startswith(m.generate("the sea", 8, prune=path, keep=0.5).text + "\n")


@pytest.mark.parametrize("budget", [[], ["--budget", "1MiB"]])
def test_perplexity_for_each_share(
    file: str, text: str, budget: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "p.safetensors")
    llm.pack(file, path)
    line = [
        "llm",
        "perplexity",
        path,
        "--text",
        text,
        "--skip",
        "10",
        "--tokens",
        "100",
        "--keep",
        "0.5,0.25",
    ]
    assert main(line + budget) == 0
    shown = capsys.readouterr().out
    assert "100 tokens" in shown
    assert "decided by up" in shown
    table = rows(shown)
    with llm.load(path) as m:
        tokens = m.tokens(TEXT)[10:110]
        dense = m.perplexity(tokens)
        assert table["1"] == ["1.000", f"{dense:.3f}", "+0.00%"]
        for keep in (0.5, 0.25):
            found = m.perplexity(tokens, keep=keep)
            assert table[f"{keep:g}"] == [f"{keep:.3f}", f"{found:.3f}", f"{found / dense - 1:+.2%}"]


# What is refused ---------------------------------------------------------------------------------------


def test_models_that_are_not_there_or_something_else(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = str(tmp_path / "nothing")
    other = tmp_path / "other.safetensors"
    pr.save(other, {"a": np.ones(3, np.float32)})
    assert "no such model" in refused(capsys, "run", nothing, "--prompt", "a")
    assert nothing in refused(capsys, "run", nothing, "--prompt", "a", "--budget", "1MiB")
    assert nothing in refused(capsys, "pack", nothing, str(tmp_path / "p.safetensors"))
    assert "expected a model that" in refused(capsys, "run", str(other), "--prompt", "a", "--budget", "1MiB")
    whole = Path(file).read_bytes()
    Path(file).write_bytes(whole[: len(whole) // 2])
    assert "GGUF" in refused(capsys, "run", file, "--prompt", "a")
    assert not (tmp_path / "p.safetensors").exists()


def test_options_that_do_not_fit(
    file: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("run", file, "--prompt", "a")
    assert "room for 512" in refused(capsys, *ask, "--tokens", "600")
    assert "at least 131072 bytes" in refused(capsys, *ask, "--budget", "64KiB")
    assert "contradicts" in refused(capsys, *ask, "--prune", "exact", "--keep", "0.5")
    assert "predictor" in refused(capsys, *ask, "--decide", "predictor", "--keep", "0.5")
    assert str(tmp_path / "no") in refused(capsys, *ask, "--prune", str(tmp_path / "no"), "--keep", "0.5")
    output = str(tmp_path / "c.safetensors")
    assert str(tmp_path / "no") in refused(capsys, "calibrate", file, output, "--text", str(tmp_path / "no"))
    assert "rank must be" in refused(
        capsys, "calibrate", file, output, "--text", text, "--tokens", "3", "--rank", "8"
    )
    assert "room for 512" in refused(capsys, "perplexity", file, "--text", text, "--tokens", "600")
    assert "at least two" in refused(capsys, "perplexity", file, "--text", text, "--tokens", "1")
    judge = ("perplexity", file, "--text", text, "--prune", str(tmp_path / "no"))
    for more in ((), ("--keep", "1")):
        shown = refused(capsys, *judge, *more)
        assert str(tmp_path / "no") in shown
        assert "say which with --keep" in shown
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\xff")
    assert "expected text in UTF-8" in refused(capsys, "perplexity", file, "--text", text)
    (tmp_path / "text.txt").write_bytes(b"")
    assert "got nothing" in refused(capsys, "calibrate", file, output, "--text", text)
    assert not Path(output).exists()


def test_a_folder_that_cannot_be_written(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "none" / "p.safetensors")
    assert path in refused(capsys, "pack", file, path)


def test_weights_that_are_no_numbers(
    model: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.tensors["model.norm.weight"][:] = np.nan
    path = str(model.folder(tmp_path / "nan"))
    assert "NaN" in refused(capsys, "run", path, "--prompt", "a")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "m"],
        ["run", "m", "--prompt", "a", "--keep", "0"],
        ["run", "m", "--prompt", "a", "--keep", "1.5"],
        ["run", "m", "--prompt", "a", "--tokens", "0"],
        ["run", "m", "--prompt", "a", "--temperature", "-1"],
        ["run", "m", "--prompt", "a", "--top-p", "2"],
        ["run", "m", "--prompt", "a", "--seed", "-1"],
        ["run", "m", "--prompt", "a", "--budget", "much"],
        ["run", "m", "--prompt", "a", "--dtype", "int8"],
        ["pack", "m", "p", "--decide", "down"],
        ["perplexity", "m", "--text", "t", "--keep", "0.5,x"],
        [],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["llm", *arguments])
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


# Packed copies, and what is said before a model is read -------------------------------------------------


def test_calibrate_and_perplexity_use_the_packed_copy(
    file: str, text: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "c.safetensors")
    few = ("--text", text, "--tokens", "60", "--budget", "1MiB")
    assert main(["llm", "perplexity", file, *few]) == 0
    (packed,) = cache.iterdir()
    before = packed.stat().st_mtime_ns
    shown = rows(capsys.readouterr().out)
    with llm.load(file) as m:
        assert shown["1"][1] == f"{m.perplexity(m.tokens(TEXT)[:60]):.3f}"
        expected = m.calibrate(m.tokens(TEXT)[:60])
    assert main(["llm", "calibrate", file, output, *few]) == 0
    assert [one.stat().st_mtime_ns for one in cache.iterdir()] == [before]
    for name, values in llm.Calibration.load(output)._arrays.items():
        np.testing.assert_allclose(values, expected._arrays[name], rtol=1e-5, err_msg=name)


def test_calibrate_says_a_line_when_it_begins(
    file: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.Model, "calibrate", stop)
    output = str(tmp_path / "c.safetensors")
    assert main(["llm", "calibrate", file, output, "--text", text, "--tokens", "60"]) == 130
    assert capsys.readouterr().out == f"calibrating on 60 tokens of {text}\n"


def test_what_does_not_fit_is_said_before_weights_are_read(
    file: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prunus.llm import model as opening
    from prunus.llm import packing

    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    packed = str(tmp_path / "p.safetensors")
    llm.pack(file, packed)
    for module, name in (
        (opening, "from_checkpoint"),
        (opening, "from_file"),
        (packing, "save_tensors"),
    ):
        monkeypatch.setattr(module, name, never)
    none = str(tmp_path / "none" / "c.safetensors")
    calibration = str(tmp_path / "text.txt")
    for model in (file, packed):
        ask = ("run", model, "--prompt", "a")
        assert "room for 512" in refused(capsys, *ask, "--tokens", "512")
        assert "room for 512" in refused(capsys, *ask, "--tokens", "600", "--budget", "1MiB")
        assert "say which with --keep" in refused(capsys, *ask, "--prune", "c.safetensors")
        assert calibration in refused(capsys, *ask, "--prune", calibration, "--keep", "0.5")
        assert "an empty one" in refused(capsys, "run", model, "--prompt", "")
        assert none in refused(capsys, "calibrate", model, none, "--text", text)
        assert "folder" in refused(capsys, "calibrate", model, str(tmp_path), "--text", text)
        assert ".npz" in refused(capsys, "calibrate", model, str(tmp_path / "c.npz"), "--text", text)
        assert "none.txt" in refused(capsys, "calibrate", model, packed, "--text", str(tmp_path / "none.txt"))
        assert "none.txt" in refused(capsys, "perplexity", model, "--text", str(tmp_path / "none.txt"))
        assert none in refused(capsys, "pack", model, none)
    assert ".npy" in refused(capsys, "pack", file, str(tmp_path / "p.npy"))


def test_a_packed_model_is_not_packed_again(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, again = str(tmp_path / "p.safetensors"), str(tmp_path / "q.safetensors")
    llm.pack(file, packed, decide="gate")
    line = refused(capsys, "pack", packed, again)
    assert "is packed already with dtype=bfloat16, decide=gate" in line
    other = tmp_path / "other.safetensors"
    pr.save(other, {"a": np.ones(3, np.float32)})
    assert "expected a GGUF file or a folder" in refused(capsys, "pack", str(other), again)
    assert not Path(again).exists()


def test_a_budget_without_memory_for_it_is_one_line(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = llm.packed(file)

    def none(size: int) -> None:
        raise MemoryError(f"out of memory: {size} bytes could not be allocated")

    monkeypatch.setitem(pagers._state, "backend", none)
    line = refused(capsys, "run", str(packed), "--prompt", "a", "--budget", "100GiB")
    assert "a budget of 100.0 GiB" in line
    assert "choose a smaller budget" in line


def test_weights_of_a_token_are_the_same_in_memory_and_on_disk(file: str) -> None:
    packed = llm.packed(file)
    with llm.load(file) as direct, llm.load(packed) as memory, llm.load(packed, "1 MiB") as disk:
        assert direct.weights.nbytes == memory.weights.nbytes
        padding = sum(one.ffn.nbytes for one in disk.weights.layers) - sum(
            3 * one.ffn.features * one.ffn.hidden * 2 for one in disk.weights.layers
        )
        assert disk.weights.nbytes == memory.weights.nbytes + padding


def test_a_line_where_pruning_saves_no_reading(tmp_path: Path) -> None:
    from prunus.llm.report import reading_note

    file = small(num_hidden_layers=16).gguf(tmp_path / "deep.gguf")
    with llm.load(llm.packed(file), "128 KiB") as m, llm.load(file) as memory:
        assert m.pager is not None
        dense = m.weights.nbytes - m.pager.budget
        assert dense > 0

        def usage(share: float, live: float) -> llm.Usage:
            return llm.Usage(steps=2, bytes_io=int(2 * share * dense), live_fraction=live)

        note = reading_note(m, usage(1.0, 0.5))
        assert note is not None
        assert "saved arithmetic, not reading" in note
        each = m.weights.layers[0].ffn.features * 2 * 2  # two of three rows, in bfloat16
        assert f"{each} bytes" in note
        assert reading_note(m, usage(0.5, 0.5)) is None
        assert reading_note(m, usage(1.0, 1.0)) is None
        assert reading_note(m, llm.Usage()) is None
        assert reading_note(memory, usage(1.0, 0.5)) is None


def test_what_is_wrong_is_said_before_the_text_is_read(
    file: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> float:
        raise AssertionError("the dense pass had begun")

    monkeypatch.setattr(llm.Model, "perplexity", never)
    line = refused(capsys, "perplexity", file, "--text", text, "--prune", "exact", "--keep", "0.5")
    assert "contradicts" in line
