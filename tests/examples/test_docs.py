"""What the pages in docs/ show is run: examples in Python and command lines, on a model of random weights."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from prunus.cli import main, parser
from support.llama import small

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the pages speak of."""
    small(max_position_embeddings=512, num_hidden_layers=3).gguf(tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("The sea is salty because rivers carry salt into it. " * 8)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_all_are_tested():
    names = sorted(path.name for path in DOCS.glob("*.md"))
    assert names == [
        "cuda-runs.md",
        "cuda.md",
        "language-models.md",
        "tensix-validation.md",
        "tensix.md",
        "torch.md",
    ]


def test_language_models(here, capsys):
    page = DOCS / "language-models.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried > 10
    assert not failed, capsys.readouterr().out
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "prunus"]
        assert main(words[3:]) == 0, line
    assert not capsys.readouterr().err


def test_tensix_validation(tmp_path, monkeypatch, capsys):
    page = DOCS / "tensix-validation.md"
    text = page.read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```sh\n(.*?)```", text, re.S)).splitlines()
    assert len(lines) == 2
    (tmp_path / "tests").symlink_to(DOCS.parent / "tests")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "prunus"]
        options = parser().parse_args(words[3:])
        if options.gemm:  # takes minutes
            continue
        assert main(words[3:]) == 0
        tables = capsys.readouterr().out.partition("\n\npredictions:")[0]
        for table in tables.split("\n\n"):
            assert table in text


def test_tensix(monkeypatch, capsys):
    page = DOCS / "tensix.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried > 20
    assert not failed, capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```sh\n(.*?)```", text, re.S)).splitlines()
    # What a bench prints is its machine's.
    lines = [line for line in lines if " matmul " in line]
    assert len(lines) == 5
    assert sum("--mesh" in line for line in lines) == 1
    # Each of several densities takes seconds.
    for line in {*lines[::3], *(line for line in lines if "--mesh" in line)}:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "prunus"]
        assert main(words[3:]) == 0
        assert capsys.readouterr().out.strip() in text


def test_torch(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="docs/torch.md needs torch")
    monkeypatch.chdir(tmp_path)
    page = DOCS / "torch.md"
    # The page sets what torch compiles by; it is as it was afterwards.
    with torch._dynamo.config.patch(force_parameter_static_shapes=True):
        failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried > 60
    assert not failed, capsys.readouterr().out
    lines = "".join(re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)).splitlines()
    kinds = {"pip": [], "examples/train_charlm.py": [], "-m": []}
    for line in lines:
        words = shlex.split(line)
        kinds["pip" if words[0] == "pip" else words[1]].append(words)
    # The others take minutes: that they are what the parsers take.
    (words,) = kinds["-m"]
    assert parser().parse_args(words[3:]).size == 4096
    (words,) = kinds["examples/train_charlm.py"]
    source = (DOCS.parent / words[1]).read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))


def test_links():
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target
