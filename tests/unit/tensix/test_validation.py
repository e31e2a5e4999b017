"""The validation of the simulator: files, statistics, what fails and how, the form of what is written."""

import csv
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prunus import _core
from prunus.cli import main
from prunus.tensix.validation import groups, rows, run
from prunus.tensix.validation.blocking import product_of
from prunus.tensix.validation.chips import chip_of, compute_grid
from prunus.tensix.validation.rows import Cells

DATA = Path(__file__).parents[2] / "data" / "tensix"

NOC = "arch,mechanism,pattern,num_transactions,num_subordinates,transaction_bytes,latency_cycles\n"
DRAM = "arch,placement,direction,num_readers,num_tx,tx_bytes,agg_bytes_per_cycle\n"
GEMM = "device,m,k,n,in0,out,dtype,fidelity,device_cycles_derived\n"


@pytest.fixture
def write(tmp_path):
    def make(text, name=None):
        path = tmp_path / (name or f"{len(list(tmp_path.iterdir()))}.csv")
        path.write_text(text, encoding="utf-8")
        return str(path)

    return make


def validate(*arguments):
    return main(["tensix", "validate", *arguments])


def table(name):
    with open(DATA / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


# What cells mean


def test_whole_numbers():
    cells = Cells({"a": "8", "b": "8.0", "c": "8.5", "d": "-1", "e": "x", "f": "", "g": "1e30"})
    assert (cells.whole("a"), cells.whole("b"), cells.whole("f", 3), cells.whole("h", 4)) == (8, 8, 3, 4)
    for column in "cdefgh":
        with pytest.raises(ValueError, match=column):
            cells.whole(column)


def test_truth_and_numbers():
    cells = Cells({"a": "True", "b": "false", "c": "maybe", "d": "2.5", "e": "-2", "f": "nan"})
    assert (cells.yes("a"), cells.yes("b"), cells.yes("none", True)) == (True, False, True)
    assert (cells.number("d"), cells.number("none")) == (2.5, None)
    for bad in (lambda: cells.yes("c"), lambda: cells.number("e"), lambda: cells.number("f")):
        with pytest.raises(ValueError, match=r"c is|e is|f is"):
            bad()


@pytest.mark.parametrize(
    ("device", "arch", "chip"),
    [
        ("n150", "", "n150"),
        ("P150b", "wormhole_b0", "p150"),
        ("", "blackhole", "p150"),
        ("", "wormhole_b0", "n150"),
        ("", "grayskull", "e150"),
        ("n300s", "", "n300"),
    ],
)
def test_chips(device, arch, chip):
    assert chip_of(device, arch) == chip


def test_unknown_chips():
    for device, arch, what in (
        ("n151", "", "unknown device"),
        ("", "c64", "unknown arch"),
        ("", "", "neither"),
    ):
        with pytest.raises(ValueError, match=what):
            chip_of(device, arch)
    with pytest.raises(ValueError, match="n150"):
        _core.chip_text("n151")


def test_all_chips_have_a_grid():
    assert {chip: compute_grid(chip) for chip in _core.chip_names()}["n150"] == (8, 8)


# Statistics


def test_summary():
    errors = [(share / 100, line) for line, share in enumerate([1, -2, 3, -4, 5, 6, 7, 8, 9, -20], 2)]
    found = groups.summary("g", errors)
    assert (found.rows, found.worst, found.line) == (10, -20, 11)
    assert (found.mean, found.median) == (pytest.approx(6.5), pytest.approx(5.5))
    assert found.p90 == pytest.approx(10.1)  # a tenth of the way from 9 to 20


def test_null_model():
    assert run.null_cycles(82.0) == pytest.approx(7600)
    row = rows.Row("gemm", 2, Cells({}))
    one = run.Prediction(row, "g", 1.0, measured=7600.0, predicted=7600.0, ideal=82.0)
    assert groups.null_summary([one]).mean == pytest.approx(0)
    assert groups.null_summary([run.Prediction(row, error="no")]) is None


def test_rows_without_measurement_are_left_out():
    row = rows.Row("noc", 2, Cells({}))
    assert groups.summaries([run.Prediction(row, "g", 5.0, None, 5.0)]) == []
    assert "5" in groups.report("noc", [run.Prediction(row, "g", 5.0, None, 5.0)])


# How products are cut


def shape_of(row):
    return {
        k: int(row[k]) for k in row if k.startswith(("in0_block_w", "per_core", "out_block", "out_subblock"))
    }


@pytest.mark.parametrize("number", range(78))
def test_the_rule_gives_the_published_configuration(number):
    row = table("gemm_n150_tuned.csv")[number]
    chosen = product_of(Cells(row), configured=False)
    assert chosen.blocking() == shape_of(row)
    assert chosen == product_of(Cells(row))
    assert chosen.ideal_cycles == pytest.approx(float(row["ideal_cycles_derived"]), rel=1e-3)


def test_every_rule_is_used():
    text = _core.chip_text("n150")
    for rule in table("gemm_config_rule.csv"):
        figures = {k: int(v) // (32 if "per_grid" in k else 1) for k, v in rule.items() if k != "dtype"}
        m, k, n = (
            figures[f"{axis}_per_grid_{side}"] for axis, side in (("m", "row"), ("k", "col"), ("n", "col"))
        )
        wanted = (
            k // figures["in0_block_w_div"],
            (m // figures["num_out_blocks_h"], n // figures["num_out_blocks_w"]),
        )
        tiles, dtype = (4 * m, 4 * k, 4 * n), rule["dtype"].lower()
        cuts = [
            _core.tensix_blocking(text, tiles, (4, 4), dtype, sharded, sharded, False, True)
            for sharded in (False, *([True] if max(m, k, n) <= 8 else []))
        ]
        assert {(cut["in0_block_w"], cut["out_block"]) for cut in cuts} == {wanted}


@pytest.mark.parametrize("chip", ["n150", "p150", "p100", "n300", "e150"])
@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 100, 257), (2047, 2048, 2049), (32, 8192, 4096)])
def test_shapes_out_of_the_rule_are_cut_into_parts_that_divide(chip, tuned, shape):
    grid = compute_grid(chip)
    tiles = tuple(-(-side // 32) for side in shape)
    text = _core.chip_text(chip)
    for in0, out in ((False, False), (True, False), (False, True)):
        if (in0 or out) and max(tiles) > 64:
            continue
        cut = _core.tensix_blocking(text, tiles, grid, "bfloat16", in0, out, False, tuned)
        assert cut["k"] >= tiles[1]
        assert cut["k"] % cut["in0_block_w"] == 0
        assert cut["per_core"] == (-(-tiles[0] // grid[1]), -(-tiles[2] // grid[0]))
        for whole, part in zip(cut["per_core"], cut["out_block"], strict=True):
            assert whole % part == 0
        for whole, part in zip(cut["out_block"], cut["out_subblock"], strict=True):
            assert whole % part == 0
        if out:
            assert cut["out_subblock"][0] == 1
        if in0:
            assert cut["k"] % grid[0] == 0


def test_what_cannot_be_cut():
    text = _core.chip_text("n150")
    with pytest.raises(ValueError, match="L1 overflow"):
        _core.tensix_blocking(text, (1024, 1024, 1024), (8, 8), "bfloat16", True, True, False, True)
    with pytest.raises(ValueError, match="empty"):
        _core.tensix_blocking(text, (1, 0, 1), (8, 8), "bfloat16", False, False, False, True)
    with pytest.raises(ValueError, match="format"):
        _core.tensix_blocking(text, (1, 1, 1), (8, 8), "decimal", False, False, False, True)


def test_configuration_of_a_row_is_taken_where_it_is_whole():
    row = table("gemm_n150_tuned.csv")[0] | {"in0_block_w": "1"}
    assert product_of(Cells(row)).in0_block_w == 1
    assert product_of(Cells(row | {"per_core_M": ""})).in0_block_w == 2
    with pytest.raises(ValueError, match="does not cover"):
        product_of(Cells(row | {"per_core_M": "1"}))


# Files


def test_files_that_are_none(write, tmp_path, capsys):
    cases = [
        (str(tmp_path / "none.csv"), "No such file"),
        (str(tmp_path), "directory"),
        (write(""), "missing columns"),
        (write("arch,mechanism\n1,2\n"), "pattern, num_transactions, transaction_bytes"),
        (write(NOC), "no rows"),
        (write(NOC.replace("\n", ",arch\n") + "a\n"), "there twice: arch"),
        (write(NOC + "a,b,c,1,2,3,4,5\n"), "line 2: 8 cells under 7 columns"),
    ]
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    cases.append((str(binary), "UTF-8"))
    for path, message in cases:
        assert validate("--noc", path) == 1
        assert message in capsys.readouterr().err


def test_nothing_to_do(capsys):
    assert validate() == 1
    assert "--gemm, --noc, --dram" in capsys.readouterr().err


def test_results_that_cannot_be_written(write, tmp_path, capsys):
    file = write(NOC + "blackhole,UNICAST,ONE_TO_ONE,1,0,64,\n")
    assert validate("--noc", file, "--json", str(tmp_path / "none" / "x.json")) == 1
    assert "no folder" in capsys.readouterr().err


def test_bad_rows_do_not_keep_the_others(write, tmp_path, capsys):
    noc = write(
        NOC
        + "blackhole,UNICAST,ONE_TO_ONE,1,0,64,200\n"
        + "moonshot,UNICAST,ONE_TO_ONE,1,0,64,200\n"
        + "blackhole,PIGEON,ONE_TO_ONE,1,0,64,200\n"
        + "\n"
        + "blackhole,UNICAST,NONE_TO_NONE,1,0,64,200\n"
        + "blackhole,MULTICAST,ALL_TO_ALL,1,0,64,200\n"
        + "blackhole,UNICAST,ONE_TO_ONE,many,0,64,200\n"
        + "blackhole,UNICAST,ONE_TO_ONE,1,0,999999999,200\n"
        + "wormhole_b0,UNICAST,ONE_TO_ONE,1,0,64,\n",
        "noc.csv",
    )
    out = tmp_path / "out.json"
    assert validate("--noc", noc, "--json", str(out)) == 0
    told = capsys.readouterr().err
    for line, what in (
        (3, "moonshot"),
        (4, "PIGEON"),
        (6, "NONE_TO_NONE"),
        (7, "unsupported"),
        (8, "many"),
        (9, "L1"),
    ):
        assert any(f"line {line}: " in text and what in text for text in told.splitlines()), (line, told)
    found = json.loads(out.read_text())
    assert (found["gemm"], found["dram"]) == ([], [])
    assert [row["predicted_cycles"] is None for row in found["noc"]] == [False, *[True] * 6, False]
    assert ["error" in row for row in found["noc"]] == [False, *[True] * 6, False]


def test_only_bad_rows(write, tmp_path, capsys):
    bad, out = write(DRAM + "blackhole,nowhere,read,1,1,64,\n"), tmp_path / "out.json"
    assert validate("--dram", bad, "--json", str(out)) == 1
    # A file of results has a row for each of these as well.
    (row,) = json.loads(out.read_text())["dram"]
    assert (row["placement"], row["predicted_cycles"]) == ("nowhere", None)
    told = capsys.readouterr().err
    assert "line 2: placement is 'nowhere'" in told
    assert "no row could be run" in told


def test_a_table_says_what_it_leaves_out(write, capsys):
    rows = ["many,0,64,200\n", "1,0,64,200\n", "1,0,64,\n", "1,0,64,\n"]
    assert validate("--noc", write(NOC + "".join(f"blackhole,UNICAST,ONE_TO_ONE,{row}" for row in rows))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "1 of 4 rows could not be run",
        "2 of 4 rows are predicted only: nothing was measured",
    ]
    assert validate("--noc", write(NOC + f"blackhole,UNICAST,ONE_TO_ONE,{rows[1]}")) == 0
    assert "rows" not in capsys.readouterr().out.splitlines()[-1]


def test_odd_columns(write, tmp_path, capsys):
    """Columns that mean nothing, names of results among them, a comma at the end of lines."""
    head, text = NOC.strip() + ",error,predicted_cycles,far\n", "blackhole,UNICAST,ONE_TO_ONE,1,0,64,200"
    out = tmp_path / "out.json"
    assert validate("--noc", write(f"{head}{text},late,7,1e400,,\n"), "--json", str(out)) == 0
    (row,) = json.loads(out.read_text(), parse_constant=pytest.fail)["noc"]
    assert "error" not in row
    assert row["predicted_cycles"] > 100
    assert row["far"] == "1e400"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("64,64,64,DRAM,DRAM,INT8,LoFi", "tiles of int8"),
        ("64,64,64,L1,DRAM,BFLOAT16,LoFi,False", "in0 interleaved in L1"),
        ("64,64,64,DRAM,DRAM,BFLOAT16,LoFi,True", "in0 sharded in DRAM"),
        ("4294967295,64,64,DRAM,DRAM,BFLOAT16,LoFi", "at most"),
    ],
)
def test_products_that_are_none(cells, message):
    names = ["m", "k", "n", "in0", "out", "dtype", "fidelity", "in0_sharded"]
    row = dict(zip(names, cells.split(","), strict=False))
    found = run.predict(rows.Row("gemm", 2, Cells(row | {"device": "n150"})))
    assert message in found.error


def test_partners_that_are_said_take_part():
    def cycles(partners):
        row = "blackhole,UNICAST,ONE_TO_ALL,440," + f"{partners},64,"
        cells = Cells(dict(zip(NOC.strip().split(","), row.split(","), strict=True)))
        return run.predict(rows.Row("noc", 2, cells)).cycles

    # The same transactions: each partner costs, however many they are.
    assert cycles(10) < cycles(20) < cycles(50) < cycles(0) == cycles(109) == cycles(110)


def test_all_kinds_patterns_and_chips(write, tmp_path, capsys):
    patterns = [
        "ONE_TO_ONE",
        "ONE_FROM_ONE",
        "ONE_TO_ROW",
        "ONE_TO_ALL",
        "ONE_FROM_ALL",
        "ALL_TO_ALL",
        "ALL_FROM_ALL",
        "ROW_TO_ROW",
        "ONE_TO_COLUMN",
        "COLUMN_TO_COLUMN",
    ]
    noc = write(
        NOC
        + "".join(f"{arch},UNICAST,{p},1,0,64,\n" for arch in ("blackhole", "wormhole_b0") for p in patterns)
        + "blackhole,MULTICAST,ONE_TO_ALL,1,0,64,\nwormhole_b0,MULTICAST_LINKED,ONE_TO_ROW,2,8,64,\n",
        "noc.csv",
    )
    dram = write(
        DRAM
        + "".join(
            f"{arch},{place},{way},4,16,4096,\n"
            for arch in ("blackhole", "wormhole_b0", "grayskull")
            for place in ("one_channel", "spread")
            for way in ("read", "write")
        ),
        "dram.csv",
    )
    gemm = write(
        GEMM
        + "".join(
            f"{chip},300,500,700,{in0},{out},{dtype},LoFi,\n"
            for chip in ("n150", "n300", "p150", "p100", "e150")
            for in0, out, dtype in (("L1", "L1", "BFLOAT8_B"), ("DRAM", "DRAM", "BFLOAT16"))
        ),
        "gemm.csv",
    )
    out = tmp_path / "out.json"
    assert validate("--noc", noc, "--dram", dram, "--gemm", gemm, "--json", str(out)) == 0
    assert capsys.readouterr().err == ""
    found = json.loads(out.read_text())
    assert [len(found[kind]) for kind in ("gemm", "noc", "dram")] == [10, 22, 12]
    for row in (*found["gemm"], *found["noc"], *found["dram"]):
        assert row["predicted_cycles"] > 0
    for row in found["dram"]:
        assert row["predicted_bytes_per_cycle"] == pytest.approx(4 * 16 * 4096 / row["predicted_cycles"])
    assert [row["pattern"] for row in found["noc"][:10]] == patterns
    assert "in0_block_w" in found["gemm"][0]


def test_json_has_a_row_for_each_row_in_order(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert validate("--dram", str(DATA / "dram_calibration.csv"), "--json", str(out)) == 0
    assert "one_channel read" in capsys.readouterr().out
    found = json.loads(out.read_text())["dram"]
    for row, source in zip(found, table("dram_calibration.csv"), strict=True):
        for column in ("arch", "placement", "direction"):
            assert row[column] == source[column]
        for column in ("num_readers", "num_tx", "tx_bytes"):
            assert row[column] == int(source[column])
        assert row["measured_bytes_per_cycle"] == float(source["agg_bytes_per_cycle"])
        assert "source" not in row


def test_predictions_do_not_depend_on_threads():
    some = rows.read(DATA / "noc_calibration.csv", "noc")[::40] + rows.read(
        DATA / "dram_calibration.csv", "dram"
    )
    one, several = run.predict_all(some, 1), run.predict_all(some, 4)
    assert one == several
    assert [p.row for p in one] == some


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    assert validate("--dram", str(DATA / "dram_calibration.csv"), "--plot", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_pictures_that_cannot_be_saved_are_refused_first(write, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name in ("x.nope", "x"):
        noc = write(NOC + "blackhole,UNICAST,ONE_TO_ONE,1,0,64,200\n")
        assert validate("--noc", noc, "--plot", str(tmp_path / name)) == 1
        told = capsys.readouterr()
        assert ".png" in told.err
        assert told.out == ""


def test_plot_of_nothing(write, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = write(NOC + "blackhole,UNICAST,ONE_TO_ONE,1,0,64,\n")
    assert validate("--noc", file, "--plot", str(tmp_path / "x.png")) == 1
    assert "nothing to plot" in capsys.readouterr().err


# Interrupts


def test_a_run_stops_when_it_is_told_to():
    stop = threading.Event()
    stop.set()
    big = next(
        row for row in rows.read(DATA / "gemm_n150_tuned.csv", "gemm") if row.cells.whole("m") == 16384
    )
    with pytest.raises(KeyboardInterrupt):
        run.predict(big, stop)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_stops_the_command(tmp_path):
    big = tmp_path / "big.csv"
    lines = (DATA / "gemm_n150_tuned.csv").read_text().splitlines()
    big.write_text("\n".join([lines[0], *[line for line in lines if "tuned,16384," in line]]) + "\n")
    code = (
        "import os, signal, sys, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from prunus import _core\n"
        "from prunus.cli import main\n"
        "from prunus.tensix.validation import run\n"
        "running = threading.Event()\n"
        "plain = run.predict\n"
        "def predict(row, stop=None):\n"
        "    running.set()\n"
        "    return plain(row, stop)\n"
        "run.predict = predict\n"
        "def interrupt():\n"
        "    running.wait()\n"
        "    time.sleep(0.3)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "sys.exit(main(['tensix', 'validate', '--gemm', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(big)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr
