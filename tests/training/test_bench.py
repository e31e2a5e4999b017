"""A block-sparse layer compared with torch's at small size: that runs, checks results and makes a table."""

import dataclasses
import re

import pytest
import torch

import prunus.torch as pt
from prunus.bench import training
from prunus.bench.machine import cpu
from prunus.bench.peers import WrongResultError
from prunus.bench.training import Case, Race, measure, report
from prunus.cli import main

SMALL = Case(size=128, tokens=8, block=16, density=0.25, dtype="float32")


def race(density=0.1, dtype="float32", block=32, times=5.5):
    case = Case(4096, 128, block, density, dtype)
    return Race(case, 2, 0.25, 1.0, 0.75, times, 10 * 2**20, 100 * 2**20, 1e-7)


@pytest.fixture
def on(monkeypatch):
    """Have the report believe that the CPU has just these instructions."""

    def on(*features):
        told = dataclasses.replace(cpu(), features=features)
        monkeypatch.setattr(training, "cpu", lambda: told)

    return on


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_beside_its_peer(dtype):
    (found,) = measure([dataclasses.replace(SMALL, dtype=dtype)], threads=1, rounds=2)
    assert found.threads == 1
    assert 0 < found.error < (1e-4 if dtype == "float32" else 2e-2)
    assert min(found.forward, found.both, found.dense_forward, found.dense_both) > 0
    # Weights, gradients and two states of a quarter of the blocks, and a bias; patterns are the rest.
    size = 4 if dtype == "float32" else 2
    kept = 4 * size * (128 * 128 // 4 + 128)
    assert kept < found.nbytes < kept + 8 * 128
    assert 0 <= found.dense_nbytes - 4 * size * (128 * 128 + 128) < 64


@pytest.mark.parametrize("of", ["forward", "backward"])
def test_wrong_values_are_not_timed(monkeypatch, of):
    right = pt.nn.BlockSparseLinear.forward

    def forward(layer, x):
        y = right(layer, x)
        return y * 1.5 if of == "forward" else y.detach() + 1.5 * (y - y.detach())

    monkeypatch.setattr(pt.nn.BlockSparseLinear, "forward", forward)
    with pytest.raises(WrongResultError):
        measure([SMALL], threads=1, rounds=1)


@pytest.mark.parametrize(
    ("density", "times", "verdict"), [(0.1, 5.0, "5 yes"), (0.1, 4.9, "5 NO"), (0.3, 2.5, "2 yes")]
)
def test_what_is_asked_for_is_answered(density, times, verdict):
    table = report([race(density, times=times)])
    assert verdict in table
    assert "10.0%" in table
    assert "open" not in table


@pytest.mark.parametrize("untold", [race(0.2), race(block=16), race(0.3, "bfloat16")])
def test_of_what_nothing_is_asked(untold):
    assert untold.wanted is None
    assert not {"yes", "NO", "open"} & set(report([untold]).split())


@pytest.mark.parametrize(("times", "verdict"), [(4.1, "4 yes"), (3.9, "4 NO")])
def test_bfloat16_is_asked_of_cpus_with_amx(on, times, verdict):
    given = race(dtype="bfloat16", times=times)
    on("avx2", "avx512f", "amx")
    assert verdict in report([given])
    on("avx2", "avx512f")
    table = report([race(), given])
    assert "4 open" in table
    assert "5 yes" in table
    assert "open: asked of a CPU with AMX." in table


def test_the_command(capsys, tmp_path):
    path = tmp_path / "table.txt"
    given = "--size 64 --tokens 4 --blocks 16,32 --densities 50% --dtypes float32 --threads 1 --rounds 1"
    assert main(["bench", "training", *given.split(), "--save", str(path)]) == 0
    table = capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == table
    assert f"1 threads, torch {torch.__version__}\nBlockSparseLinear(64, 64)" in table
    assert [line.split()[:4] for line in table.splitlines()[-2:]] == [
        ["float32", "50%", "16", "4"],
        ["float32", "50%", "32", "4"],
    ]


@pytest.mark.parametrize(("device", "told"), [("cuda:77", "cuda|nvidia"), ("nowhere", "nowhere")])
def test_devices_that_are_not_there(capsys, device, told):
    assert main(["bench", "training", "--size", "64", "--device", device, "--rounds", "1"]) == 1
    assert re.search(told, capsys.readouterr().err.lower())
