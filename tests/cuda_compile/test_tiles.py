"""Which tiles serve: by the model of costs, or as measured. No GPU is needed; timers are handed in."""

import itertools
import json
import math
from dataclasses import replace
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="tiles are chosen for torch's tensors")
pytest.importorskip("triton", reason="tiles are chosen for Triton's kernels")

import prunus as pr
from prunus.cuda import attention_configs, configs, measuring, moe_configs, plans, products, tuning
from prunus.cuda.chips import CHIPS
from prunus.cuda.compiling.recording import ahead
from prunus.cuda.configs import Tile
from prunus.cuda.costs import Cut, Product, fits, held, roofline, seconds, shared
from prunus.cuda.measuring import autotune, candidates

KINDS = ["half", "int8", "tf32", "float32", "float64"]
PROBLEM = ((256, 256), (32, 32), 64)


@pytest.fixture
def gpu():
    """What stands for a GPU: nothing runs on it."""
    return replace(ahead("sm_90"), device=torch.device("cpu"), name="a GPU")


@pytest.fixture
def findings(monkeypatch, tmp_path):
    path = tmp_path / "folder" / "tiles.json"
    monkeypatch.setenv(tuning.ENVIRONMENT, str(path))
    tuning.forget()
    yield path
    tuning.forget()


@pytest.fixture
def tune(monkeypatch, gpu):
    """Tune with products that NumPy's way multiplies, and times that the test says."""

    def dsd(where, w, x, out, tile=None):
        wrong = tile.n == 32 and tile.loads == "descriptors"
        if tile.n == 16:
            raise RuntimeError("does not fit")
        out.copy_(torch.ones_like(out) * (2 if wrong else 1))
        last.append(tile)

    last = []
    monkeypatch.setattr(products, "dsd", dsd)
    monkeypatch.setattr(measuring, "current", lambda index=None: gpu)

    def timer(times, run):
        run()
        return times(last[-1])

    return lambda times, **options: autotune(*PROBLEM, timer=partial(timer, times), **options)


@pytest.mark.parametrize("arch", list(CHIPS))
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_fit(arch, kind):
    where = ahead(arch)
    for block in (16, 24, 32, 48, 64, 100, 128, 300):
        for columns in (1, 16, 100, 512, 8192):
            what = Product((block, block), columns, kind, 64, 8)
            tiles = configs.dsd_tiles(where, what)
            assert tiles
            for tile in tiles:
                assert fits(where, what, tile.cut)
                assert shared(where, what, tile.cut) <= CHIPS[arch].shared
                assert tile.k % (32 if kind == "int8" else 16) == 0
                assert tile.loads == "pointers"
            heavy = configs.dsd_tiles(where, what, "gelu")
            assert heavy
            assert all(tile.m * tile.n <= 64 * 32 * tile.warps for tile in heavy)


def test_small_gpus_of_a_family():
    """Compute capability 8.6, 8.9 and 12.0 have 99 KiB."""
    for arch in CHIPS:
        where = replace(ahead(arch), shared=99 * 1024)
        what = Product((128, 128), 4096, "half", 64, 16)
        assert all(shared(where, what, tile.cut) <= 99 * 1024 for tile in configs.dsd_tiles(where, what))


SMALL = replace(ahead("sm_80"), shared=99 * 1024, multiprocessors=84, name="RTX A6000")
PLACES = [SMALL, *(ahead(arch) for arch in CHIPS)]
ROWS = [1, 16, 33, 64, 300, 5000]


def _tiles(where):
    """Yield tiles of all kernels that load tiles for matrix units, with what else their steps load."""
    for bits in (8, 16, 32, 64):
        for block, n in itertools.product((16, 24, 64, 128, 300), (16, 64, 512, 8192)):
            yield configs.sdd(where, (block, block), n, n, bits), bits, 0, 0
            yield configs.ssd(where, (block, block), n, bits), bits, 0, 0
            yield configs.ssd_at(where, (block, block), n, bits), bits, 0, 0
    for bits, rows in itertools.product((16, 32, 64), ROWS):
        for listed in (False, True):
            dots, (combine, _) = (
                plans.dots(where, rows, bits, listed),
                plans.combine(where, rows, 4096, 4096, bits, listed),
            )
            yield from ((tile, bits, 0, 0) for tile in (dots, combine, plans.exact(where, combine)))
        for experts in (2, 64, 256, 512):
            yield moe_configs.routing(where, rows, experts, bits), bits, 0, 0
        for gated, pruned in itertools.product((False, True), repeat=2):
            tile, programs = moe_configs.grouped(where, rows, 4096, 4096, bits, gated, pruned)
            assert programs >= where.multiprocessors
            yield tile, bits, tile.m + tile.n * (1 + gated), 0
        yield attention_configs.pooled_scores(where, rows, rows, bits), bits, 0, 0
        for d, features, block in itertools.product((16, 64, 80, 128, 256), (16, 128, 256), (0, 16, 64, 128)):
            plan = attention_configs.attention(where, rows, 4096, rows, d, features, block, bits)
            keys = Tile(plan.tile.m, 0, plan.tile.n, plan.tile.warps, plan.tile.stages)
            own = plan.tile.m * (plan.tile.k + plan.tile.n) * bits // 8
            yield keys, bits, plan.tile.k + plan.features, own


@pytest.mark.parametrize("where", PLACES, ids=lambda where: where.name)
def test_every_tile_fits(where):
    """Of each kernel whose operands go through shared memory, whatever is asked of it."""
    for tile, bits, columns, own in _tiles(where):
        inner = (columns or tile.m + tile.n) * bits // 8
        assert held(where, tile.cut, inner, native=bits < 64, own=own, sums=max(bits // 8, 4)) <= where.shared
        assert tile.k >= 16
        assert tile.stages >= 1


def test_tables_are_kept_where_they_fit():
    """What is chosen for the GPU that stands for an architecture is its table's."""
    where = ahead("sm_80")
    assert configs.sdd(where, (64, 64), 512, 4096, 16) == Tile(64, 256, 64, 8, 3)
    assert attention_configs.attention(where, 4096, 4096, 4096, 256, 256, 64, 16).tile.stages == 3
    assert attention_configs.attention(SMALL, 4096, 4096, 4096, 256, 256, 64, 16).tile.stages == 2
    # Of many experts a step is as wide as all of them.
    assert moe_configs.routing(SMALL, 64, 1024, 32) == Tile(16, 1024, 16, 8, 2)


def test_the_model():
    where = ahead("sm_90")
    what = Product((128, 128), 4096, "half", 64, 32)
    narrow, wide = Cut(128, 16, 64, 4, 4), Cut(128, 256, 64, 8, 3)
    assert seconds(where, what, wide) < seconds(where, what, narrow)
    # One column wants a narrow tile, and what few programs there are, more of them.
    tile = configs.dsd(where, (128, 128), 16, 16, rows=64, blocks=32)
    assert (tile.m, tile.n) == (64, 16)
    assert configs.dsd(where, (128, 128), 8192, 16, rows=64, blocks=32).n >= 128
    # Twice the blocks take longer, and no product is faster than its roofline.
    assert seconds(where, what._replace(blocks=64), wide) > seconds(where, what, wide)
    flops = 2 * 64 * 32 * 128 * 128 * 4096
    assert seconds(where, what, wide) > roofline(where, flops, 0)


def test_roofline():
    where = ahead("sm_90")
    assert math.isclose(roofline(where, 0, 4.8e12), 1 / 0.9)
    assert math.isclose(roofline(where, 989.5e12, 0), 1 / 0.8)
    half = replace(where, multiprocessors=where.multiprocessors // 2)
    assert math.isclose(roofline(half, 989.5e12, 0), 2 / 0.8)


def test_steps():
    assert [configs.step(inner, 64) for inner in (16, 24, 32, 48, 64, 96, 100, 128)] == [
        32, 32, 32, 32, 64, 32, 32, 64,
    ]  # fmt: skip
    assert configs.step(16, 16) == 16


def test_patterns_share_tiles():
    where = ahead("sm_90")
    problem = partial(configs.problem, (64, 64), 512, 16, "ieee")
    assert problem(60, 7) == problem(64, 8)
    assert configs.dsd(where, (64, 64), 512, 16, rows=60, blocks=7) == configs.dsd(
        where, (64, 64), 512, 16, rows=64, blocks=8
    )


def test_the_fastest_is_kept_and_serves(tune, gpu, findings):
    best = Tile(32, 128, 32, 4, 3, "descriptors")
    found = tune(lambda tile: 1e-6 if tile == best else 1e-5)
    assert found.best == best
    assert found.kept == findings
    assert found.measured[0].seconds == 1e-6
    assert "descriptors" in str(found)
    assert configs.dsd(gpu, (32, 32), 64, 16, rows=8, blocks=1) == best
    # Of another problem, dtype or GPU nothing was found.
    assert configs.dsd(gpu, (32, 32), 512, 16, rows=8, blocks=1).loads == "pointers"
    assert configs.dsd(gpu, (32, 32), 64, 64, rows=8, blocks=1).loads == "pointers"
    other = replace(gpu, name="another")
    assert configs.dsd(other, (32, 32), 64, 16, rows=8, blocks=1).loads == "pointers"
    # A second one joins it.
    tuning.keep(other, "dsd", "x", (*best,))
    assert len(json.loads(findings.read_text())["found"]) == 2
    assert tuning.tuned(gpu, "dsd", configs.problem((32, 32), 64, 16, "ieee", 8, 1).key) == best


def test_medians_count(tune, findings):
    calls = []

    def times(tile):
        calls.append(tile)
        # Fast on the whole, slow once in a while; another is fast once.
        if tile.n == 64:
            return 1.0 if len(calls) % 7 == 0 else 1e-6
        return 1e-9 if len(calls) < 20 else 1e-5

    assert tune(times, keep=False).best.n == 64
    assert not findings.exists()
    # They take turns.
    tiles = list(dict.fromkeys(calls))
    assert calls[: len(tiles)] == tiles
    assert calls[len(tiles) : 2 * len(tiles)] == tiles


def test_what_fails_or_differs_is_refused(tune, findings):
    found = tune(lambda tile: 1e-9 if tile.n in (16, 32) and tile.loads == "descriptors" else 1e-6)
    refused = {(one.tile.n, one.tile.loads): one.why for one in found.measured if one.why}
    assert refused[16, "descriptors"] == refused[16, "pointers"] == "RuntimeError: does not fit"
    assert refused[32, "descriptors"] == "another result"
    assert (32, "pointers") not in refused
    assert found.best.loads == "pointers" or found.best.n > 32
    assert "another result" in str(found)


def test_candidates():
    what = Product((64, 64), 512, "half", 64, 8)
    by_arch = {arch: {tile.loads for tile in candidates(ahead(arch), what)} for arch in CHIPS}
    assert by_arch == {
        "sm_80": {"pointers"},
        "sm_90": {"pointers", "descriptors"},
        "sm_100": {"pointers", "descriptors", "warps"},
    }
    assert {tile.loads for tile in candidates(ahead("sm_90"), what._replace(kind="float32"))} == {"pointers"}


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"prunus tiles": 99}',
        '{"prunus tiles": 1}',
        '{"prunus tiles": 1, "found": []}',
        '{"prunus tiles": 1, "found": {"g": {"dsd": {"p": [64, 64, 64, 4, 3]}}}}',
        '{"prunus tiles": 1, "found": {"g": {"dsd": {"p": [64, 65, 64, 4, 3, "pointers"]}}}}',
        '{"prunus tiles": 1, "found": {"g": {"dsd": {"p": [64, 64, 64, 4, true, "pointers"]}}}}',
        '{"prunus tiles": 1, "found": {"g": {"dsd": {"p": [64, 64, 64, 4, 3, "magic"]}}}}',
    ],
)
def test_files_of_others_are_ignored(findings, gpu, text):
    findings.parent.mkdir()
    findings.write_text(text)
    with pytest.warns(RuntimeWarning, match="tiles.json: measured tiles are ignored"):
        assert tuning.tuned(gpu, "dsd", "p") is None
    # Once is enough.
    assert tuning.tuned(gpu, "dsd", "p") is None


def test_what_does_not_fit_is_not_taken(findings, gpu):
    key = configs.problem((64, 64), 512, 16, "ieee", 64, 8).key
    tuning.keep(gpu, "dsd", key, (64, 256, 256, 8, 8, "pointers"))
    tile = configs.dsd(gpu, (64, 64), 512, 16, rows=64, blocks=8)
    assert tile.k == 64
    # Nor what an architecture cannot do.
    tuning.keep(gpu, "dsd", key, (64, 128, 64, 4, 3, "warps"))
    assert configs.dsd(gpu, (64, 64), 512, 16, rows=64, blocks=8).loads == "pointers"


def test_switched_off(monkeypatch, gpu, findings):
    tuning.keep(gpu, "dsd", "p", (64, 64, 64, 4, 3, "pointers"))
    assert "1 found by autotune" in tuning.summary()
    monkeypatch.setenv(tuning.ENVIRONMENT, "off")
    tuning.forget()
    assert tuning.file_of_findings() is None
    assert tuning.tuned(gpu, "dsd", "p") is None
    assert "switched off" in tuning.summary()
    with pytest.raises(ValueError, match="off"):
        tuning.keep(gpu, "dsd", "p", (64, 64, 64, 4, 3, "pointers"))


def test_shown(capsys, findings):
    pr.show_config()
    assert f"CUDA tiles  by the model of costs; autotune has found nothing yet ({findings})" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (((0, 4), (16, 16), 1), ValueError, "at least 1"),
        (((64, 64), (8, 16), 1), ValueError, "at least 16 x 16"),
        (((64, 64), (16, 16), 1, "bfloat16", 0.0), ValueError, "density"),
        (((64, 64), (16, 16), 1, "bfloat16", math.nan), ValueError, "density"),
        (((64, 64), (16, 16), 1, "no such"), TypeError, "no torch dtype"),
        (((64, 64), (16, 16), 1, "complex64"), TypeError, "W has dtype"),
    ],
)
def test_bad_input(arguments, error, text):
    with pytest.raises(error, match=text):
        autotune(*arguments)


def test_nowhere_to_measure():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(pr.PrunusError, match=r"no device 'cuda'|interpreter is not measured"):
        autotune(*PROBLEM)
