"""Several chips that Ethernet joins: programs on them, what reports say, and the engine."""

import numpy as np
import pytest

import prunus as pr
from prunus.cli import main

MisusedError, UnsupportedError = pr.tensix.MisusedError, pr.tensix.UnsupportedError
MESHES = [(1, 2), (2, 1), (2, 3)]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def close(found, exact, tolerance=0.01):
    found, exact = np.asarray(found, float), np.asarray(exact, float)
    assert np.abs(found - exact).max() <= tolerance * np.abs(exact).max()


def names(chip):
    return [one.name for one in chip.report().operations]


@pytest.mark.parametrize("mesh", [(0, 2), (2, -1), (2, 1 << 16)])
def test_a_mesh_has_chips(mesh):
    with pytest.raises(ValueError, match="at least 1 each, got"):
        pr.tensix.Chip("n300", mesh=mesh)


@pytest.mark.parametrize("mesh", [(1.5, 2), "24", (1, 2, 3), 4, (None, 2)])
def test_a_mesh_is_two_whole_numbers(mesh):
    with pytest.raises(TypeError, match="expected two whole numbers"):
        pr.device("tensix:n300", mesh=mesh)


@pytest.mark.parametrize(
    ("name", "mesh", "what"),
    [
        ("e150", (1, 2), "e150 has no Ethernet links"),
        ("p100", (2, 4), "p100 has no Ethernet links"),
        ("n150", (2, 2), "n150 has no links along columns of chips"),
    ],
)
def test_boards_without_links(name, mesh, what):
    with pytest.raises(UnsupportedError, match=what):
        pr.device(f"tensix:{name}", mesh=mesh)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"east": [[9, 6]]}, "ethernet.west has 2 tiles and ethernet.east 1"),
        ({"east": [[9, 6], [1, 1]]}, "where a worker is"),
        ({"east": [[9, 6], [9, 0]]}, "twice"),
        ({"east": [[9, 6], [0, 11]]}, "where a channel of DRAM is"),
        ({"east": [[9, 6], [10, 0]]}, "outside of the 10 x 12 grid"),
        ({"gb_per_s": 0.0}, "ethernet.gb_per_s must be positive"),
        ({"latency_ns": -1.0}, "ethernet.latency_ns must be 0 to 1e9"),
        ({"packet_bytes": 9000}, "must be a multiple of 32"),
        ({"packet_bytes": 8192}, "at most the 8192 B of a packet of the NoC"),
        ({"buffer_bytes": 100}, "at least a packet of 4096 B"),
        ({"header_bytes": 4}, "ethernet.header_bytes must be at least 8"),
    ],
)
def test_links_whose_figures_contradict_each_other(change, what):
    with pytest.raises(pr.tensix.SpecError, match=what):
        pr.tensix.ChipSpec.named("n300").replace(ethernet=change)


def sends(k, place, size, flag):
    yield k.fabric_unicast_noc_fused_unicast_with_atomic_inc(0, place, size, flag, 0)


def waits(k, semaphore):
    yield k.noc_semaphore_wait(semaphore, 1)


def test_data_reaches_l1_and_dram_of_other_chips(rng):
    chip = pr.tensix.Chip("n300", mesh=(2, 3))
    values = rng.standard_normal((32, 32)).astype(np.float32)
    data = pr.tensix.tilize(values, "float32")
    chip.write_l1((2, 1), 0, data, chip=(0, 0))
    target = chip.buffer((32, 32), "float32", chip=(1, 2))
    seen = []

    def kernel(k, place):
        seen.append((k.chip, k.mesh, k.core))
        yield k.fabric_unicast_noc_unicast_write(0, place, 4096)
        yield k.fabric_unicast_noc_unicast_write(0, k.get_noc_addr((3, 3), 64, chip=(1, 2)), 4096)
        yield k.fabric_unicast_noc_unicast_atomic_inc((1, 2), (3, 3), 0)

    program = pr.tensix.Program()
    program.semaphore(0)
    program.kernel(kernel, (2, 1), args=(target.page(0),), chips=(0, 0))
    program.kernel(waits, (3, 3), args=(0,), chips=[(1, 2)])
    report = chip.run(program)
    np.testing.assert_array_equal(chip.to_numpy(target), values)
    assert chip.read_l1((3, 3), 64, 4096, chip=(1, 2)) == data
    with pytest.raises(pr.tensix.UndefinedError):
        chip.read_l1((3, 3), 64, 16, chip=(0, 0))
    assert seen == [((0, 0), (2, 3), (2, 1))]
    # Down the column first, then along the row.
    chips = [(link[0], link[1]) for link in report.ethernet]
    assert chips == [((0, 0), (1, 0)), ((1, 0), (1, 1)), ((1, 1), (1, 2))]
    assert report.ethernet_bytes == 3 * 2 * 4096
    assert report.on((1, 2)).dram_bytes == 4096 == report.dram_bytes
    assert {core["chip"] for core in report.cores} == {(0, 0), (1, 2)}
    assert report.on((0, 0)).cores[0]["core"] == (2, 1)
    with pytest.raises(MisusedError, match=r"chip \(2, 0\): the mesh has 2 x 3"):
        report.on((2, 0))
    with pytest.raises(MisusedError, match="a picture is of one chip"):
        report.plot()


def test_links_that_bind_are_named():
    chip = pr.tensix.Chip("n300", "timing", mesh=(1, 2))

    def kernel(k):
        for _ in range(200):
            yield k.fabric_unicast_noc_unicast_write(0, k.get_noc_addr((0, 0), 0, chip=(0, 1)), 4096)
        yield k.fabric_unicast_noc_unicast_atomic_inc((0, 1), (0, 0), 0)

    program = pr.tensix.Program("flood")
    program.semaphore(0)
    program.kernel(kernel, (0, 0), chips=(0, 0))
    program.kernel(waits, (0, 0), args=(0,), chips=(0, 1))
    report = chip.run(program, timeline=True)
    assert report.bound == "ethernet"
    # 12.5 GB/s at 1 GHz, less what packets on the wire carry beside data.
    assert 200 * 4096 / 12.5 < report.cycles < 1.1 * 200 * 4096 / 12.5
    assert "ethernet" in report.energy
    assert "Ethernet MB" in report.table()
    timeline = report.operations[0].timeline
    assert timeline.places == [((0, 0), (0, 0)), ((0, 1), (0, 0))]
    assert any(one.waits and one.what == "wait_for_empty_write_slot" for one in timeline)


def refused(kernel, *args):
    chip = pr.tensix.Chip("n300", mesh=(1, 2))
    program = pr.tensix.Program()
    program.semaphore(0)
    program.kernel(kernel, (0, 0), args=args, chips=(0, 0))
    with pytest.raises(pr.tensix.TensixError) as error:
        chip.run(program)
    return str(error.value)


def test_networks_on_chip_end_there():
    far = pr.tensix.Place.l1((1, 1), 0, (0, 1))

    def writes(k):
        yield k.noc_async_write(0, far, 32)

    def reads(k):
        yield k.noc_async_read(far, 0, 32)

    for kernel in (writes, reads):
        assert "a place on chip (0, 1), which its networks do not reach" in refused(kernel)


def test_places_on_chips_that_there_are_not():
    def nowhere(k):
        yield k.fabric_unicast_noc_unicast_write(0, k.get_noc_addr((0, 0), 0, chip=(1, 0)), 32)

    def home(k):
        yield k.fabric_unicast_noc_unicast_write(0, k.get_noc_addr((0, 0), 0), 32)

    def own(k):
        yield k.fabric_unicast_noc_unicast_atomic_inc((0, 0), (0, 0), 0)

    assert "chip (1, 0): the mesh has 1 x 2" in refused(nowhere)
    assert "to a place without a chip" in refused(home)
    assert "another one than its own" in refused(own)
    chip, program = pr.tensix.Chip("n300", mesh=(1, 2)), pr.tensix.Program()
    program.kernel(own, (0, 0), chips=(0, 2))
    with pytest.raises(MisusedError, match=r"chip \(0, 2\): the mesh has 1 x 2"):
        chip.run(program)
    with pytest.raises(MisusedError, match=r"chip \(0, 2\): the mesh has 1 x 2"):
        chip.buffer((32, 32), chip=(0, 2))
    with pytest.raises(MisusedError, match="no chips"):
        program.kernel(own, (0, 0), chips=[])


def test_who_waits_is_told_with_the_chip():
    def lonely(k):
        yield k.noc_semaphore_wait(0, 1)

    assert "lonely on core (0, 0) of chip (0, 0) waits" in refused(lonely)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("shape", [(100, 70, 130), (512, 512, 768), (5, 3, 2)])
def test_dense_products(mesh, shape, rng):
    m, k, n = shape
    a, b = (rng.integers(-2, 3, s).astype(np.float32).astype("bfloat16") for s in ((m, k), (k, n)))
    with pr.device("tensix:n300", mesh=mesh) as chip:
        found = pr.matmul(a, b)
        assert names(chip)[-1] == "matmul"
        full = chip.report()
    close(found, a.astype(float) @ b.astype(float))
    if m > 64:
        # Each page that a chip lacks passes each link of its line once.
        rows, columns = mesh
        tile = 32 * 32 * 2
        down, inner, across = (-(-length // 32) for length in (m, k, n))
        most = down * inner * (columns - 1) + inner * across * (rows - 1)
        assert full.ethernet_bytes == most * tile
    with pr.device("tensix:n300", mesh=mesh, mode="timing") as chip:
        assert pr.matmul(a, b) is None
    assert chip.report() == full


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("size", [150, 512])
def test_block_sparse_products(mesh, size, rng):
    w = rng.standard_normal((size, size)).astype(np.float32)
    W = pr.BSR.from_dense(w, blocksize=(32, 32), density=0.3).astype("bfloat16")
    x = rng.standard_normal((size, 512)).astype(np.float32).astype("bfloat16")
    exact = W.toarray().astype(float)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((size, 64), (64, size)))
    with pr.device("tensix:n300", mesh=mesh) as chip:
        close(W @ x, exact @ x.astype(float))
        assert names(chip) == ["all_gather", "dsd"]
        dense = chip.report().ethernet_bytes
        close(x.T @ W.T, x.astype(float).T @ exact.T)
        close((W @ W).toarray(), exact @ exact)
        assert names(chip)[-1] == "ssd"
        close(pr.sddmm(a, b, W).toarray(), np.where(exact != 0, a @ b, 0), 0.02)
    everything = 2 * size * (size * (mesh[1] - 1) + 512 * (mesh[0] - 1))
    if mesh[1] > 1:
        assert dense < everything, "dead blocks stay where they are"


@pytest.mark.parametrize("mesh", MESHES)
def test_layers_are_cut_over_chips(mesh, rng):
    up, down = (rng.standard_normal(s).astype(np.float32) for s in ((256, 64), (64, 256)))
    x = rng.standard_normal((200, 64)).astype(np.float32)
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in ((8, 70, 32), (2, 80, 32), (2, 80, 16)))
    layer = {"prune": pr.Threshold(0.5), "branch": 32}
    with pr.device("tensix:n300") as one:
        alone = pr.ffn(x, up, down, **layer), pr.attention(q, k, v)
    with pr.device("tensix:n300", mesh=mesh) as chip:
        found = pr.ffn(x, up, down, **layer), pr.attention(q, k, v)
        assert {core["chip"] for core in chip.report().cores} == set(chip.chip.chips)
    for mine, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert chip.report().cycles < one.report().cycles
    assert chip.report().ethernet_bytes == 0


def test_estimates():
    alone = pr.tensix.estimate_matmul(1024, 1024, 1024, "p150")
    four = pr.tensix.estimate_matmul(1024, 1024, 1024, "p150", mesh=(2, 2))
    assert four.mesh == (2, 2)
    assert four.ethernet_bytes == 2 * 2 * 1024 * 1024 * 2 // 2
    assert 0 < four.ethernet_cycles < four.cycles
    assert four.bound == "ethernet"
    assert four.cycles - four.ethernet_cycles < alone.cycles
    assert (alone.mesh, alone.ethernet_bytes, alone.ethernet_cycles) == ((1, 1), 0, 0)
    with pytest.raises(UnsupportedError, match="operands in L1 on a mesh of 2 x 2 chips"):
        pr.tensix.estimate_matmul(1024, 1024, 1024, "p150", mesh=(2, 2), in0="l1")
    sparse = pr.tensix.estimate_matmul(1024, 1024, 1024, "p150", mesh=(2, 2), live=0.1)
    assert sparse.ethernet_bytes < four.ethernet_bytes
    for decide in ("dynamic", "epilogue", "host"):
        pruned = pr.tensix.estimate_matmul(1024, 1024, 1024, "p150", mesh=(2, 2), live=0.1, decide=decide)
        assert pruned.ethernet_bytes == four.ethernet_bytes


def test_the_command_prints_ethernet(capsys):
    assert main(["tensix", "matmul", "512", "512", "512", "--chip", "n300", "--mesh", "2x4"]) == 0
    said = capsys.readouterr().out
    assert "n300 mesh of 2 x 4" in said
    assert "Ethernet MB" in said
    assert main(["tensix", "matmul", "64", "64", "64", "--chip", "e150", "--mesh", "1x2"]) == 1
    assert "e150 has no Ethernet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tensix", "matmul", "64", "64", "64", "--mesh", "2"])
    assert "rows and columns such as 2x4" in capsys.readouterr().err
    assert main(["tensix", "matmul", "64", "64", "64", "--chip", "n300", "--mesh", "1x2", "--sweep"]) == 1
