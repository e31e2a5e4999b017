"""What products cost on a chip: dense, and with a pattern of live blocks."""

import dataclasses

import numpy as np
import pytest

from prunus.cli import main
from prunus.tensix import ChipSpec, UnsupportedError
from prunus.tensix.estimate import estimate_matmul, random_blocks


def test_dead_blocks_save_time_and_traffic():
    dense = estimate_matmul(1024, 1024, 1024)
    found = [estimate_matmul(1024, 1024, 1024, live=random_blocks(32, 32, d)) for d in (1.0, 0.5, 0.1)]
    assert found[0].cycles > found[1].cycles > found[2].cycles
    assert dense.dram_bytes > found[1].dram_bytes > found[2].dram_bytes
    assert dense.noc_bytes > found[1].noc_bytes > found[2].noc_bytes
    # All blocks are live: the same operands are read, and the result written.
    assert found[0].dram_bytes == 3 * 1024 * 1024 * 2
    assert found[0].flops == dense.flops == 2 * 1024**3
    assert 0 < dense.utilisation < 1
    assert dense.tflops == pytest.approx(dense.flops / dense.seconds / 1e12)
    assert set(dense.busy) == {"math", "unpack", "pack", "NoC", "DRAM"}
    assert all(0 < share <= 1 for share in dense.busy.values())


def test_estimates_are_the_same_every_time():
    live = random_blocks(8, 16, 0.3, seed=4)
    first = estimate_matmul(512, 1024, 256, "p150", live=live, block=64)
    assert estimate_matmul(512, 1024, 256, "p150", live=live, block=64) == first
    assert first.density == live.mean()


def test_nothing_is_live():
    none = estimate_matmul(256, 256, 256, live=np.zeros((8, 8), bool))
    assert none.flops == none.tflops == 0
    assert none.dram_bytes == 256 * 256 * 2  # zeros are written


def test_only_values_that_are_there_count_as_useful():
    """Blocks at the ends of a matrix have fewer values: 32 rows and columns of 128 here."""
    for at, values in (((0, 0), 128 * 128), ((0, 1), 128 * 32), ((1, 0), 32 * 128), ((1, 1), 32 * 32)):
        live = np.zeros((2, 2), bool)
        live[at] = True
        one = estimate_matmul(160, 160, 64, live=live, block=128)
        assert (one.flops, one.density) == (2 * values * 64, 0.25)


def test_the_share_of_the_peak_is_of_the_chips_own_rate():
    spec = ChipSpec.named("n150")
    for cycles in (spec.matrix.tile_cycles, 2 * spec.matrix.tile_cycles):
        one = estimate_matmul(1024, 1024, 1024, spec.replace(matrix={"tile_cycles": cycles}))
        ideal = 32**3 * 2 * cycles / 64  # two phases, on 64 cores
        assert one.utilisation == pytest.approx(ideal / one.cycles)


def test_imbalance_is_named():
    live = np.zeros((32, 32), bool)
    live[:4] = True
    one_row = estimate_matmul(1024, 1024, 1024, live=live, fidelity="HiFi4")
    assert one_row.imbalance > 0.3


def test_ragged_sizes_and_chips_of_ones_own():
    faster = ChipSpec.named("n150").replace(clock_ghz=2.0, dram={"nominal_gb_per_s": 600.0})
    slow, fast = (estimate_matmul(100, 65, 33, chip) for chip in ("n150", faster))
    assert fast.cycles == slow.cycles
    assert fast.seconds == slow.seconds / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 0}, "at least 1"),
        ({"k": 1 << 80}, "at most"),
        ({"m": 1 << 30}, "at most"),
        ({"dtype": "int32"}, "tiles of int32"),
        ({"chip": "n151"}, "n151"),
        ({"block": 48}, "multiple of 32"),
        ({"fidelity": "HiFi5"}, "HiFi5"),
        ({"dtype": "bfloat3"}, "bfloat3"),
        ({"live": np.ones((3, 3), bool)}, "shape"),
        ({"live": np.ones((2, 2), np.int8)}, "int8"),
    ],
    ids=str,
)
def test_bad_input(change, message):
    arguments = {"m": 64, "k": 64, "n": 64} | change
    with pytest.raises((ValueError, UnsupportedError), match=message):
        estimate_matmul(**arguments)
    with pytest.raises(ValueError, match="density"):
        random_blocks(2, 2, 1.5)


def test_command_prints_a_dense_product(capsys):
    assert main(["tensix", "matmul", "256", "256", "256"]) == 0
    text = capsys.readouterr().out
    assert "n150: 256 x 256 x 256" in text
    assert [line.split()[0] for line in text.splitlines()[4:]] == ["dense"]


def test_command_refuses_what_there_is_not(capsys):
    assert main(["tensix", "matmul", "64", "64", "64", "--chip", "n151"]) != 0
    assert "n151" in capsys.readouterr().err


def test_estimates_are_records():
    one = estimate_matmul(64, 64, 64)
    assert dataclasses.asdict(one)["chip"] == "n150"
