"""Products whose left operand is pruned as they run: what they cost, and what they compute."""

import numpy as np
import pytest

import prunus as pr
from prunus import _core
from prunus.cli import main
from prunus.tensix import ChipSpec, MisusedError, tilize, untilize
from prunus.tensix.estimate import DECIDE, estimate_matmul, random_blocks
from prunus.tensix.sweep import Sweep, sweep

SIZES = (512, 512, 512)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_what_is_live_costs_to_be_found_out():
    live = random_blocks(16, 16, 0.2)
    found = {decide: estimate_matmul(*SIZES, live=live, decide=decide) for decide in DECIDE}
    assert found["epilogue"].cycles < found["dynamic"].cycles < found["host"].cycles
    assert found["static"].cycles < found["dynamic"].cycles
    # The scan reads all of the left operand once more; its statistics are a word a tile.
    assert found["epilogue"].dram_bytes == found["static"].dram_bytes
    assert found["dynamic"].dram_bytes == found["static"].dram_bytes + 512 * 512 * 2
    assert found["host"].dram_bytes == found["dynamic"].dram_bytes + 4 * 256
    assert len({one.flops for one in found.values()}) == 1
    assert estimate_matmul(*SIZES, live=live, decide="dynamic") == found["dynamic"]


def test_a_longer_way_to_the_host_takes_longer():
    near = ChipSpec.named("n150")
    far = near.replace(host={"round_trip_us": near.host.round_trip_us + 100})
    first, second = (estimate_matmul(*SIZES, chip, live=0.2, decide="host") for chip in (near, far))
    assert second.cycles - first.cycles == pytest.approx(100e3 * near.clock_ghz)


def test_rows_that_stay_where_they_are_are_not_balanced():
    live = np.zeros((16, 16), bool)
    live[:2] = True
    dealt, kept = (estimate_matmul(*SIZES, live=live, balance=balance) for balance in (True, False))
    assert kept.imbalance > dealt.imbalance


def test_a_density_draws_blocks():
    drawn = estimate_matmul(*SIZES, live=0.3, seed=7, decide="dynamic")
    assert estimate_matmul(*SIZES, live=random_blocks(16, 16, 0.3, seed=7), decide="dynamic") == drawn
    assert estimate_matmul(*SIZES, live=0.3, seed=8, decide="dynamic") != drawn


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("decide", DECIDE)
def test_nothing_and_everything_on_ragged_sizes(decide, density):
    one = estimate_matmul(100, 65, 33, live=density, decide=decide)
    assert one.density == density
    assert one.cycles > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decide": "guess", "live": 0.5}, "static, dynamic, epilogue, host, got 'guess'"),
        ({"decide": "dynamic"}, "give a mask or a density"),
        ({"live": 1.5}, "density must be between 0 and 1"),
        ({"decide": "dynamic", "live": 0.5, "dtype": "int8"}, "tiles of int8"),
    ],
    ids=str,
)
def test_bad_input(change, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        estimate_matmul(64, 64, 64, **change)


# On values


def pruned(a, b, tau, decide="dynamic", mask=None, values=True):
    """Multiply, on n150, with 32-bit sums, and return the product, the mask and the cycles."""
    (m, k), n = a.shape, b.shape[1]
    tiles = (-(-m // 32), -(-k // 32), -(-n // 32))
    chip = _core.TensixChip(ChipSpec.named("n150").text, values)
    columns = chip.pruned_columns(tiles, "bfloat16", "float32", True)
    assert columns >= tiles[2]
    right = np.zeros((k, 32 * columns), np.float32)
    right[:, :n] = b
    buffers = (
        chip.buffer(2048, tiles[0] * tiles[1]),
        chip.buffer(2048, tiles[1] * columns),
        chip.buffer(4096, tiles[0] * columns),
    )
    chip.write_buffer(buffers[0], tilize(a, "bfloat16"))
    chip.write_buffer(buffers[1], tilize(right, "bfloat16"))
    report, found = chip.pruned_product(
        tiles,
        buffers,
        tau,
        ("bfloat16", "float32"),
        "HiFi4",
        True,
        1e9,
        decide,
        None if mask is None else mask.tobytes(),
        pr.get_num_threads(),
    )
    live = np.frombuffer(found, np.uint8).reshape(tiles[:2]).astype(bool)
    if not values:
        return None, live, report["cycles"]
    product = untilize(chip.read_buffer(buffers[2]), (32 * tiles[0], 32 * columns), "float32")
    return product[:m, :n], live, report["cycles"]


@pytest.mark.parametrize("decide", ["dynamic", "host"])
@pytest.mark.parametrize("shape", [(100, 200, 50), (96, 64, 320), (32, 32, 32)], ids=str)
def test_live_tiles_are_multiplied(rng, shape, decide):
    m, k, n = shape
    a = rng.integers(-3, 4, (m, k)).astype(np.float32)
    b = rng.integers(-3, 4, (k, n)).astype(np.float32)
    dead = rng.random((-(-m // 32), -(-k // 32))) < 0.6
    a *= np.where(dead.repeat(32, 0).repeat(32, 1)[:m, :k], 0.0625, 1)
    product, live, cycles = pruned(a, b, 0.25, decide)
    np.testing.assert_array_equal(live, ~dead)
    kept = np.where(live.repeat(32, 0).repeat(32, 1)[:m, :k], a, 0)
    np.testing.assert_array_equal(product, kept @ b)
    # A chip that only takes time is told what is live, and takes as long.
    _, given, timed = pruned(a, b, 0.25, decide, live, values=False)
    np.testing.assert_array_equal(given, live)
    assert timed == cycles


def test_the_operation_before_knows(rng):
    a, b = (rng.integers(-3, 4, (128, 128)).astype(np.float32) for _ in range(2))
    mask = rng.random((4, 4)) < 0.5
    product, live, _ = pruned(a, b, 0.0, "epilogue", mask)
    np.testing.assert_array_equal(live, mask)
    np.testing.assert_array_equal(product, np.where(mask.repeat(32, 0).repeat(32, 1), a, 0) @ b)


def test_a_mask_is_given_where_none_is_found(rng):
    a = np.ones((32, 32), np.float32)
    with pytest.raises(MisusedError, match="finds the mask by itself"):
        pruned(a, a, 0.0, mask=np.ones((1, 1), bool))
    with pytest.raises(MisusedError, match="a mask is needed"):
        pruned(a, a, 0.0, values=False)
    with pytest.raises(MisusedError, match="the threshold is no number"):
        pruned(a, a, float("nan"))


# The curve


def test_sweep_and_its_break_even():
    found = sweep(256, 256, 256, "n150", [0.1, 1.0])
    assert found.gains(found.static)[0] > found.gains(found.dynamic)[0]
    assert found.every == found.static[-1] == sweep(256, 256, 256, "n150", [0.1]).every
    one = found.dense
    costs = [dict(zip(("cycles",), (one.cycles * part,), strict=True)) for part in (0.5, 0.9, 1.3)]
    line = tuple(type(one)(**{**vars(one), **cost}) for cost in costs)
    curve = Sweep(32, (0.2, 0.4, 0.8), one, line[1], line, line)
    assert curve.break_even(line) == pytest.approx(0.5)
    assert curve.break_even(line, curve.every) == pytest.approx(0.4)
    assert curve.break_even(line[:2]) is None
    # From there on it is slower: not from where it is for once.
    curve = Sweep(32, (0.1, 0.2, 0.4, 0.8), one, one, line, line)
    assert curve.break_even((line[0], line[2], *line[1:])) == pytest.approx(0.5)
    assert curve.break_even((line[0], line[2], line[0], line[1])) is None
    assert curve.break_even((line[2], line[2], line[2], line[2])) is None
    with pytest.raises(ValueError, match=r"must ascend, got 1, 0\.1"):
        sweep(64, 64, 64, "n150", [1.0, 0.1])


def test_command_compares_static_and_dynamic(capsys):
    assert main(["tensix", "matmul", "256", "256", "256", "--density", "10%", "--chip", "p150"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[4:]] == [["10", "%", "static"], ["10", "%", "dynamic"]]


def test_command_draws_the_curve(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curve.png"
    command = ["tensix", "matmul", "256", "256", "256", "--sweep", "0.1,0.5", "--plot", str(picture)]
    assert main(command) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:4] == ["live", "dense", "static", "dynamic"]
    assert [line.split()[0] for line in lines[4:6]] == ["10", "50"]
    assert [line.split(":")[0] for line in lines[7:]] == ["static", "dynamic", "plot"]


def test_a_sweep_may_name_what_it_sweeps(capsys):
    shown = []
    for sweep_of in (["--sweep"], ["--sweep", "density"]):
        assert main(["tensix", "matmul", "64", "64", "64", *sweep_of]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "dynamic" in shown[0]


def test_a_plot_needs_a_sweep(capsys, tmp_path):
    command = ["tensix", "matmul", "64", "64", "64", "--plot", str(tmp_path / "x.png")]
    assert main(command) != 0
    assert "--sweep" in capsys.readouterr().err


def test_a_sweep_has_densities_of_its_own(capsys):
    assert main(["tensix", "matmul", "64", "64", "64", "--density", "0.1", "--sweep"]) != 0
    assert "--sweep" in capsys.readouterr().err
