"""What a run of ``bench gpu`` says: aims, tables, files and the page of runs, from rows that were made up."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.bench.gpu import peers
from prunus.bench.gpu.files import ENDING, name_of, read, write
from prunus.bench.gpu.page import page
from prunus.bench.gpu.record import Case, Machine, Row, races
from prunus.bench.gpu.report import report
from prunus.bench.gpu.targets import allowed, ceilings_of, targets
from prunus.cli import main

ROOT = Path(__file__).parents[2]
H200 = Machine("NVIDIA H200", "2026-11-30", {"torch": "2.11.0+cu130", "triton": "3.6.0"}, "--minutes 9")
COPY = Row(Case("ceilings", "copy", "bfloat16"), "torch", "ceiling", "timed", 1.0, 1.0, 3, "graph", 0.0, 4e12)
PRODUCT = Row(
    Case("ceilings", "dense product", "bfloat16"), "torch", "ceiling", "timed", 1.0, 1.0, 3, "graph", 8e14, 1
)


def case(block=64, columns=4096, density=1.0, section="dsd", detail=""):
    return Case(section, "W @ x", "bfloat16", 4096, block, columns, density, detail)


def timed(at, name, kind, seconds, flops=1.0, nbytes=1.0, how="graph"):
    return Row(at, name, kind, "timed", seconds, seconds, 3, how, flops, nbytes, 1e-3)


def race(block=64, columns=4096, points=((0.1, 2e-5), (0.5, 1e-4)), dense=2e-4, bsr=3.0, section="dsd"):
    full = 2.0 * 4096 * 4096 * columns
    rows = [timed(case(block, columns, section=section), "torch dense", "dense", dense, full, 1e8)]
    for density, seconds in points:
        at = case(block, columns, density, section)
        rows.append(timed(at, "prunus", "ours", seconds, full * density, 3e7 * density))
        rows.append(timed(at, peers.TORCH_BSR, "peer", bsr * seconds, full * density, 3e7 * density))
    return rows


def aims(rows):
    return {target.what: target for target in targets(rows)}


def test_large_products_are_held_against_the_dense_one():
    found = aims([COPY, PRODUCT, *race()])
    large = found["dsd, blocks 64 and 128 of 10 GFLOP: rate / cuBLAS"]
    assert (large.count, large.reached) == (2, True)
    assert large.worst == pytest.approx(1.0)
    slow = aims([COPY, PRODUCT, *race(points=((0.1, 4e-5),))])
    assert slow["dsd, blocks 64 and 128 of 10 GFLOP: rate / cuBLAS"].reached is False
    # Blocks of 32 are held against the roofline, whatever there is to do.
    small = aims([COPY, PRODUCT, *race(block=32)])
    assert small["dsd, others: (1.5 roofline + 5 us) / time"].count == 2
    assert small["dsd, blocks 64 and 128 of 10 GFLOP: rate / cuBLAS"].count == 0


@pytest.mark.parametrize(("seconds", "reached"), [(9.9e-6, True), (10.2e-6, False)])
def test_small_products_are_held_against_the_roofline(seconds, reached):
    rows = [COPY, PRODUCT, timed(case(columns=16, density=0.1), "prunus", "ours", seconds, 1e8, 1.35e7)]
    ceilings = ceilings_of(rows)
    assert ceilings.roofline(rows[2]) == pytest.approx(1.35e7 / 4e12)
    assert allowed(rows[2], ceilings) == pytest.approx(1.5 * 1.35e7 / 4e12 + 5e-6)
    assert aims(rows)["dsd, others: (1.5 roofline + 5 us) / time"].reached is reached
    without = aims(rows[2:])["dsd, others: (1.5 roofline + 5 us) / time"]
    assert (without.worst, without.where) == (None, "no ceilings were measured")


@pytest.mark.parametrize(
    ("points", "worst"),
    [
        (((0.1, 1e-5), (0.5, 1e-4), (0.7, 2.2e-4)), 0.6667),
        (((0.1, 1e-5), (0.9, 1e-4)), 0.9),
        (((0.1, 3e-4),), 0.0),
        (((0.1, 1e-5), (0.5, 1e-4)), None),
    ],
)
def test_break_even(points, worst):
    found = aims(race(points=points))["dsd: break-even density"]
    assert found.worst == (None if worst is None else pytest.approx(worst, abs=1e-3))


def test_peers_and_layers():
    layer = case(1, 1, section="ffn")
    rows = [
        *race(bsr=1.1),
        timed(layer, "torch dense", "dense", 4e-5),
        timed(case(1, 1, 0.1, "ffn"), "prunus Fixed", "ours", 8e-6),
        timed(case(1, 1, 0.1, "ffn"), "prunus Predictor", "ours", 1.2e-5),
        timed(case(1, 1, 0.1, "ffn"), "prunus Threshold", "ours", 2e-5),
        timed(case(0, 4096, 0.25, "moe"), "prunus", "ours", 1e-3),
        timed(case(0, 4096, 0.25, "moe"), peers.GROUPED, "peer", 2e-3),
        timed(case(0, 4096, 0.25, "moe"), peers.LOOP, "peer", 5e-4),
    ]
    found = aims(rows)
    assert found["dsd: x torch bsr"].worst == pytest.approx(1.1)
    assert found["dsd: x torch bsr"].reached is False
    known = found["ffn, one token, known or predicted: dense / time"]
    assert (known.worst, known.count) == (pytest.approx(40 / 12), 2)
    assert "Predictor" in known.where
    assert found["ffn, one token, decided by a projection: dense / time"].worst == pytest.approx(2.0)
    assert found["moe: x torch's grouped product"].worst == pytest.approx(2.0)
    assert found["attention: x FlexAttention"].where == "no such race"


def test_overhead():
    calls = Case("overhead", "host time of W @ x", "bfloat16", 256)
    names = ("W @ x", "moe", "ffn")
    sync = [Case("overhead", "no synchronisation", "bfloat16", detail=name) for name in names]
    rows = [
        timed(calls, "prunus", "ours", 25e-6, how="host"),
        timed(calls, "prunus out=", "ours", 50e-6, how="host"),
        Row(sync[0], "prunus", "ours", "held"),
        Row(sync[1], "prunus", "ours", "wrong", note="waits"),
        Row(sync[2], "prunus", "ours", "missing", note="needs a GPU"),
    ]
    found = aims(rows)
    assert found["host time of one call, us"].reached is True
    assert found["host time of one call, us"].count == 1
    held = found["no synchronisation (1: yes)"]
    assert (held.reached, held.count, held.where) == (False, 2, "moe")
    assert found["CUDA graph replay equals eager (1: yes)"].where == "no such race"


def test_nothing_is_held_against_no_rows():
    assert all(target.reached is None and target.where for target in targets([]))


def test_tables():
    other = Row(case(density=0.3), "cusparse csr", "peer", "failed", note="RuntimeError: no bfloat16")
    text = report(H200, [COPY, PRODUCT, *race(), other])
    assert "copy 4.00 TB/s, dense product 800 TFLOP/s" in text
    (line,) = (line for line in text.splitlines() if line.startswith("W @ x 4096 b64 N=4096 10%"))
    assert line.split()[7:] == ["prunus", "20.0", "687.2", "1.16", "0.65", "200.0", "1.00", "10.00", "3.00"]
    assert "failed: dsd: cusparse csr: W @ x 4096 b64 N=4096 30%: RuntimeError: no bfloat16" in text
    assert text.index("failed:") < text.index("targets:")


def test_a_run_is_read_as_it_was_written(tmp_path):
    rows = [COPY, *race(), Row(case(), "torch", "peer", "missing", note='issue #7, "quoted"\nlines')]
    path = tmp_path / name_of(H200)
    write(path, H200, rows)
    this, found = read(path)
    assert this == H200
    assert repr(found[:-1]) == repr(rows[:-1])
    assert math.isnan(found[-1].seconds)
    assert found[-1].note == 'issue No. 7, "quoted" lines'
    assert [r.case for r in races(found)] == [r.case for r in races(rows)]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "# gpu: x\n"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / f"other{ENDING}"
    path.write_text(text)
    with pytest.raises(ValueError, match="no run"):
        read(path)


def test_states_are_checked(tmp_path):
    path = tmp_path / f"run{ENDING}"
    write(path, H200, [Row(case(), "prunus", "ours", "perhaps")])
    with pytest.raises(ValueError, match="perhaps"):
        read(path)


def test_the_page_without_a_run(tmp_path):
    text = page(tmp_path)
    assert "No run is recorded: no GPU was at hand yet" in text
    assert "| dsd: x torch bsr | >= 1.2 |" in text


def test_the_page_tells_of_the_latest_run_of_each_gpu(tmp_path):
    old = Machine("NVIDIA H200", "2026-11-29", H200.versions)
    a100 = Machine("NVIDIA A100", "2026-11-01", H200.versions)
    rows = [COPY, PRODUCT, *race()]
    bad = Row(case(density=0.3), "prunus", "ours", "wrong", note="off by 1")
    late = Row(case(section="sdd"), "prunus", "ours", "skipped", note="9 minutes were up")
    write(tmp_path / name_of(H200), H200, [*rows, bad, late])
    (tmp_path / name_of(H200)).with_suffix(".png").write_bytes(b"")
    write(tmp_path / name_of(old), old, rows)
    write(tmp_path / name_of(a100), a100, rows)
    text = page(tmp_path)
    assert "no GPU was at hand" not in text
    assert text.index("## NVIDIA H200, 2026-11-30") < text.index("## NVIDIA A100, 2026-11-01")
    assert "2026-11-29" not in text
    for part in (
        "torch 2.11.0+cu130",
        "`--minutes 9`",
        "copy 4.00 TB/s",
        f"[{name_of(H200)}](../benches/results/{name_of(H200)})",
        ".png",
        "| >= 0.7 | 1.00 | reached | 2 |",
        "dsd, W @ x 4096 b64 N=4096 30%, prunus: off by 1",
        "The time was up before 1 races of these sections: sdd.",
    ):
        assert part in text


def test_the_page_is_what_the_runs_say():
    assert (ROOT / "docs" / "cuda-runs.md").read_text(encoding="utf-8") == page(ROOT / "benches" / "results")


def test_the_page_is_made_in_a_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "gpu", "--docs"]) == 1
    assert "clone's root" in capsys.readouterr().err
    (tmp_path / "docs").mkdir()
    (tmp_path / "benches" / "results").mkdir(parents=True)
    assert main(["bench", "gpu", "--docs"]) == 0
    assert (tmp_path / "docs" / "cuda-runs.md").read_text(encoding="utf-8") == page(tmp_path)


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from prunus.bench.gpu.plot import plot

    path = tmp_path / "out.png"
    plot(path, H200, [*race(), *race(columns=16), *race(section="sdd")])
    assert path.stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to plot"):
        plot(path, H200, [COPY])


def test_the_script_is_a_door():
    script = ROOT / "benches" / "gpu.py"
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "--sections" in done.stdout
    # Without the compiled module it says what is missing.
    code = (
        "import runpy, sys; sys.modules['prunus'] = None; sys.modules['prunus.cli'] = None;"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "compiled module" in done.stderr
