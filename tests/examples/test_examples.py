"""Every example runs, and finds what it says it finds."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PATHS = sorted(EXAMPLES.rglob("*.py"))
SMALL = ["--steps", "4", "--width", "32", "--wide", "64", "--rows", "2", "--length", "16"]
NEEDS = {"graph_network": ("networkx", "scipy"), "train_charlm": ("torch",)}


def need(name):
    """Skip where a library is missing that an example needs."""
    for library in NEEDS.get(name, ()):
        pytest.importorskip(library, reason=f"examples/{name}.py needs {library}")


def run(name, *size):
    """Run an example, at its small size unless told; returns what its ``main`` returns."""
    need(name)
    spec = importlib.util.spec_from_file_location(Path(name).name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their module there.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        if not size:
            return module.main("small")
        patch.setattr(sys, "argv", [f"{name}.py", *size])
        return module.main()


def test_all_are_tested():
    here = Path(__file__).read_text(encoding="utf-8")
    names = [path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in PATHS]
    missing = [name for name in names if f'run("{name}"' not in here]
    assert not missing


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_help(path):
    need(path.stem)
    shown = subprocess.run(
        [sys.executable, path, "--help"], capture_output=True, text=True, check=True
    ).stdout
    first = path.read_text(encoding="utf-8").splitlines()[0].strip('"')
    assert first in " ".join(shown.split())
    if path.stem == "train_charlm":  # it has sizes of a model
        assert "--steps" in shown
        assert "{docstrings,licences}" in shown
        return
    assert "{small,full}" in shown
    wrong = subprocess.run([sys.executable, path, "huge"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "invalid choice: 'huge'" in wrong.stderr


def test_graph_network(capsys):
    found = run("graph_network")
    assert {name: graph["nodes"] for name, graph in found.items()} == {
        "florentine": 15,
        "karate": 34,
        "miserables": 77,
        "ring": 640,
        "faint": 640,
    }
    for name in ("florentine", "karate", "miserables", "ring"):
        assert found[name]["error"] < 1e-5
    for graph in found.values():
        # One node speaks first, and news only spreads.
        assert graph["live"][0] == 1 / graph["nodes"]
        assert graph["live"] == sorted(graph["live"])
        assert graph["blocks"] == sorted(graph["blocks"])
        assert all(live <= 1 and read <= 1 for live, read in zip(graph["live"], graph["blocks"], strict=True))
    # Ordered for bandwidth, the ring's adjacency is a band, and what is read of it stays near the news.
    assert found["ring"]["density"] < 0.1
    assert found["ring"]["blocks"][-1] < 0.2
    assert found["faint"]["live"][-1] < found["ring"]["live"][-1]
    assert 1e-4 < found["faint"]["error"] < 0.05
    assert "Les Misérables" in capsys.readouterr().out


def test_mamba(capsys):
    found = run("mamba")
    for name in ("scan", "scan, exact pruning", "step by step"):
        assert found[name]["error"] < 1e-5
    assert found["scan, exact pruning"]["live"] == 1  # no gate is exactly closed
    loose = found["scan, gate above 0.05"]
    assert 0.4 < loose["live"] < 0.8
    assert 1e-6 < loose["error"] < 0.1
    assert found["scan, half the gates"]["live"] == 0.5
    known = found["scan, known channels"]
    assert (known["live"], known["skipped"]) == (0.5, 0.5)
    assert "step by step" in capsys.readouterr().out


def test_relu_ffn(capsys):
    found = run("relu_ffn")
    for name in ("NumPy, dense", "FFN, units above 0", "FFN, units known before"):
        assert found[name]["error"] < 1e-5
    live = found["FFN, units above 0"]["live"]
    assert 0.05 < live < 0.2
    # The down-projection is half of the work; who knows before skips both.
    assert found["FFN, units above 0"]["skipped"] == pytest.approx((1 - live) / 2, abs=0.02)
    assert found["FFN, units known before"]["skipped"] == pytest.approx(1 - live, abs=0.02)
    half = found["FFN, the stronger half"]
    assert half["live"] == pytest.approx(live / 2, abs=0.01)
    assert 1e-3 < half["error"] < 0.6
    assert np.isfinite([value for way in found.values() for value in way.values()]).all()
    assert "one token" in capsys.readouterr().out


def test_mixture_of_experts(capsys):
    found = run("mixture_of_experts")
    for batch in found.values():
        # Experts that nobody chose hold NaN: one look at them, and this is no number.
        assert batch["error"] < 1e-5
        # Two experts of sixteen for each token; the router's own product is all there is besides.
        assert batch["skipped"] == pytest.approx(14 / 16, abs=0.02)
    assert found["one token"]["experts"] == 2
    assert found["8 tokens of one topic"]["experts"] < found["8 tokens of any topic"]["experts"]
    assert found["64 tokens of any topic"]["experts"] == 16
    assert "experts" in capsys.readouterr().out


def test_long_attention(capsys):
    found = run("long_attention")
    for name in ("all blocks", "decode, all blocks"):
        assert found[name]["error"] < 1e-5
        assert found[name]["live"] == 1
    for name in ("its own block and one more", "blocks above 1 %"):
        for step, share in ((name, 0.3), ("decode, " + name, 0.15)):
            assert found[step]["live"] < share
            assert found[step]["error"] < 0.02
    # All blocks of keys but one or two for each of 16 blocks of queries, (1 + 15 * 2) of 136 visible ones.
    assert found["its own block and one more"]["live"] == 31 / 136
    assert "decode" in capsys.readouterr().out


def test_larger_than_ram(capsys):
    found = run("larger_than_ram")
    memory = found.pop("memory")
    assert memory["table"] == 4 * memory["budget"]
    assert 0 < memory["peak"] <= memory["budget"]
    assert set(found) == {"statistics", "running mean", "sort by key", "product"}
    for name in ("statistics", "product"):
        assert found[name]["error"] < 1e-5
    for name in ("running mean", "sort by key"):
        assert found[name]["error"] == 0
    assert found["sort by key"]["sorted"] == 1
    # Everything is read or written at least once, and nothing much more often than the steps say.
    for name in ("statistics", "product"):
        assert 0.5 <= found[name]["moved"] <= 1.05
    assert 1 <= found["running mean"]["moved"] <= 2.3
    assert 3 <= found["sort by key"]["moved"] <= 6
    assert "budget" in capsys.readouterr().out


def test_llm(capsys):
    found = run("llm")
    memory, disk, half = (found[name] for name in ("in memory", "on disk", "on disk, half the units"))
    assert disk.tokens == memory.tokens
    assert len(half.tokens) == 12
    assert half.tokens != disk.tokens
    assert memory.usage.bytes_io == 0
    assert half.usage.live_fraction == 0.5
    # 544 KiB of weights on a budget of 256 KiB: something is read for each token, and not more than all.
    for answer in (disk, half):
        assert 0 < answer.usage.bytes_per_step <= 1.1 * 544 * 1024
    assert "budget 256.0 KiB" in capsys.readouterr().out


def test_tensix_add(capsys):
    found = run("tensix/add")
    assert list(found) == [1, 2, 4, 8]
    for cores in found.values():
        assert cores["error"] < 1e-2
        # Two matrices of 16 tiles are read, and one is written.
        assert cores["bytes"] == 3 * 16 * 2048
    cycles = [cores["cycles"] for cores in found.values()]
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[0] > 4 * cycles[-1]
    assert "cycles" in capsys.readouterr().out


def test_tensix_matmul(capsys):
    found = run("tensix/matmul")
    for block in found.values():
        assert block["error"] < 0.03
    assert found["2 x 4"]["cycles"] < found["1 x 4"]["cycles"] < found["1 x 1"]["cycles"] / 2
    # 64 products: two tiles each, or six for eight of them; and 16 tiles of the result.
    assert found["1 x 1"]["bytes"] == (64 * 2 + 16) * 2048
    assert found["2 x 4"]["bytes"] == (8 * 6 + 16) * 2048
    assert "of the peak" in capsys.readouterr().out


def test_tensix_matmul_multicast(capsys):
    found = run("tensix/matmul_multicast")
    alone, together = found["each reads its own"], found["read once, multicast"]
    assert alone["error"] == together["error"] < 0.03
    # 4 x 8 tiles of the left matrix, 8 x 12 of the right one, 4 x 12 of the result; alone for 3 and 2 cores.
    assert together["bytes"] == (32 + 96 + 48) * 2048
    assert alone["bytes"] == (3 * 32 + 2 * 96 + 48) * 2048
    assert "into the NoC" in capsys.readouterr().out


def test_tensix_matmul_block_sparse(capsys):
    found = run("tensix/matmul_block_sparse")
    for product in found.values():
        # Dead tiles hold NaN: one of them read, and this is no number.
        assert product["error"] < 0.03
    for what in ("cycles", "dram", "noc"):
        values = [product[what] for product in found.values()]
        assert values == sorted(values, reverse=True)
    # 64 tiles of W if all live; X and the result have 64 each.
    assert found[1.0]["dram"] == 3 * 64 * 2048
    assert found[0.25]["dram"] == (16 + 2 * 64) * 2048
    assert "imbalance" in capsys.readouterr().out


def test_tensix_ring_all_reduce(capsys):
    found = run("tensix/ring_all_reduce")
    assert set(found) == {"4 cores, 1 tiles", "8 cores, 1 tiles"}
    for ring in found.values():
        assert ring["error"] < 0.02
        assert ring["rate"] > 3
    assert "KiB each" in capsys.readouterr().out


def test_tensix_chips_all_reduce(capsys):
    found = run("tensix/chips_all_reduce")
    assert set(found) == {"2 n300, 16 tiles", "4 n300, 16 tiles", "4 p150, 16 tiles"}
    for name, line in found.items():
        assert line["error"] < 0.02
        assert line["same"] == 1.0, "all chips have the same sum"
        # Each tile goes along the line once, and back once.
        assert line["bytes"] == 2 * (int(name[0]) - 1) * 16 * 2048
    assert found["4 p150, 16 tiles"]["cycles"] > 0
    assert "Ethernet MB" in capsys.readouterr().out


def test_train_charlm(capsys):
    torch = pytest.importorskip("torch", reason="examples/train_charlm.py needs torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sizes at which threads only wait for each other
    try:
        run("train_charlm", *SMALL)
    finally:
        torch.set_num_threads(threads)
    _, rule, *rows = capsys.readouterr().out.splitlines()
    assert set(rule) <= set("|-: ")
    table = {cells[0]: cells for cells in ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)}
    assert list(table) == ["dense", "sparse", "pruned"]
    # Of characters that are all alike it would be the logarithm of 128, which four steps hardly change.
    assert all(3 < float(cells[1]) < math.log(128) + 1 for cells in table.values())
    share = {name: float(cells[3].rstrip("%")) for name, cells in table.items()}
    assert share["sparse"] < share["pruned"] < share["dense"] == 100
    weights = {name: int(cells[4].replace(",", "")) for name, cells in table.items()}
    assert weights["sparse"] < weights["pruned"] == weights["dense"]
