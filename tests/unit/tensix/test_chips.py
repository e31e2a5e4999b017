"""Chips, their memory and programs: what is refused, and in which words."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from prunus import PrunusError, tensix
from prunus.tensix import Chip, ChipSpec, CoreRange, Program

CORE = (0, 0)


def run(kernel, chip=None, role="reader", prepare=None, args=()):
    program = Program()
    if prepare is not None:
        prepare(program)
    program.kernel(kernel, CORE, role, args)
    return (chip or Chip("n150")).run(program)


@pytest.mark.parametrize("name", ChipSpec.names())
def test_shipped(name):
    spec = ChipSpec.named(name)
    assert spec.name == name
    chip = Chip(spec, mode="timing")
    assert (0, 0) in chip.compute_grid
    assert len(chip.cores) == len(spec.workers.x) * len(spec.workers.y)
    assert name in repr(spec)
    assert name in repr(chip)
    assert ChipSpec(dict(spec._tables)) == spec


def test_unknown_chip():
    with pytest.raises(tensix.SpecError, match=r'no chip "n151": there are n150, .*p150'):
        Chip("n151")
    with pytest.raises(TypeError, match="a chip's name or a ChipSpec, got int"):
        Chip(150)
    with pytest.raises(ValueError, match="mode is full or timing, got 'fast'"):
        Chip("n150", mode="fast")


def test_errors_are_values():
    assert issubclass(tensix.TensixError, PrunusError)
    for error in (tensix.SpecError, tensix.MisusedError):
        assert issubclass(error, ValueError)
    assert issubclass(tensix.UnsupportedError, NotImplementedError)


def test_attributes():
    spec = ChipSpec.named("n150")
    assert spec.noc.flit_bytes == spec.noc["flit_bytes"] == 32
    assert spec.dram.channels[0] == [0, 11]
    spec.dram.channels.clear()
    assert len(spec.dram.channels) == 12
    with pytest.raises(AttributeError, match="noc has no 'flits': there are flit_bytes"):
        _ = spec.noc.flits
    with pytest.raises(AttributeError, match="chip 'n150' has no 'nic'"):
        _ = spec.nic
    with pytest.raises(AttributeError, match="use replace"):
        spec.clock_ghz = 2
    with pytest.raises(AttributeError, match=r"use replace\(noc="):
        spec.noc.hop_cycles = 2
    assert "noc" in dir(spec)
    assert "hop_cycles" in dir(spec.noc)


def test_copies():
    spec = ChipSpec.named("n150")
    for other in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert other == spec
        assert hash(other) == hash(spec)
    assert spec != ChipSpec.named("p150")
    assert spec != "n150"


def test_replace():
    spec = ChipSpec.named("n150")
    faster = spec.replace(name="faster", clock_ghz=0.5, noc={"hop_cycles": 1})
    assert (faster.name, faster.clock_ghz, faster.noc.hop_cycles) == ("faster", 0.5, 1)
    assert faster.noc.flit_bytes == spec.noc.flit_bytes
    assert spec.clock_ghz == 1.0
    with pytest.raises(tensix.SpecError, match="unknown field `hops`"):
        spec.replace(noc={"hops": 1})
    with pytest.raises(tensix.SpecError, match="numbers, texts and lists"):
        spec.replace(clock_ghz=object())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"unpack": {"bytes_per_cycle": 1000.0}}, "one unpacker moves 1000 B a cycle and both together only"),
        ({"noc": {"write_rate": 2.0}}, "noc.write_rate is 2 flits a cycle, a link moves one"),
        ({"dram": {"nominal_gb_per_s": 1.0}}, "more than dram.nominal_gb_per_s = 1"),
        ({"workers": {"x": [3, 2]}}, "workers.x must be ascending"),
        ({"workers": {"compute_grid": [9, 9]}}, "is not within the"),
        ({"dram": {"channels": [[1, 1]]}}, "where a worker is"),
        ({"clock_ghz": -1.0}, "clock_ghz must be positive, got -1"),
        ({"matrix": {"formats": ["float64"]}}, 'matrix.formats has "float64", which no tile has'),
    ],
)
def test_contradictions(changes, text):
    with pytest.raises(tensix.SpecError, match=text):
        ChipSpec.named("n150").replace(**changes)


def test_load(tmp_path):
    path = tmp_path / "wide.toml"
    path.write_text('extends = "p150"\nname = "wide"\n[noc]\nflit_bytes = 128\n', encoding="utf-8")
    spec = ChipSpec.load(path)
    assert (spec.name, spec.noc.flit_bytes) == ("wide", 128)
    assert spec.noc.hop_cycles == ChipSpec.named("p150").noc.hop_cycles
    path.write_text(spec.text, encoding="utf-8")
    assert ChipSpec.load(str(path)) == spec


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"name = ", r"chip.toml: Invalid value"),
        (b"\xff", r"chip.toml: .*decode"),
        (b'name = "x"', r"missing field `arch`"),
        (b'extends = "n15"', r'chip.toml: no chip "n15"'),
        (b"extends = 5", r"chip.toml: extends is a chip's name, got 5"),
        (b'extends = "n150"\nnoc = 3', r"chip.toml: "),
    ],
)
def test_load_refuses(tmp_path, content, text):
    path = tmp_path / "chip.toml"
    path.write_bytes(content)
    with pytest.raises(tensix.SpecError, match=text):
        ChipSpec.load(path)


def test_load_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        ChipSpec.load(tmp_path / "none.toml")


@pytest.mark.parametrize("shape", [(32, 32), (40, 70), (1, 1), (64, 33)])
@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "bfloat8_b", "int8", "int32", "uint16", "uint32"]
)
def test_matrices(shape, dtype):
    chip = Chip("n150")
    values = np.random.default_rng(0).integers(0, 100, shape)
    host = tensix.buffers.HOST[dtype]
    matrix = chip.from_numpy(values.astype(host), dtype)
    assert matrix.page_bytes == tensix.tile_bytes(dtype)
    found = chip.to_numpy(matrix)
    assert found.dtype == host
    # bfloat8_b has 7 bits for 16 values of one exponent.
    np.testing.assert_array_equal(found.astype(int), values)


def test_default_dtype():
    chip = Chip("n150")
    assert chip.buffer(np.ones((2, 2), ml_dtypes.bfloat16)).dtype == "bfloat16"
    assert chip.buffer(np.ones((2, 2), np.int32)).dtype == "int32"
    assert chip.buffer((2, 2)).dtype == "bfloat16"
    assert chip.buffer(np.ones((2, 2)), np.float32).dtype == "float32"


def test_matrices_refuse():
    chip = Chip("n150")
    with pytest.raises(ValueError, match="no format 'float64'"):
        chip.buffer(np.ones((2, 2)))
    with pytest.raises(ValueError, match="cut from matrices, got 1 dimensions"):
        chip.buffer(np.ones(3, np.float32))
    with pytest.raises(TypeError, match="values of int64 as tiles of bfloat16"):
        chip.buffer(np.ones((2, 2), np.int64), "bfloat16")
    with pytest.raises(TypeError, match="values of float32 as tiles of int8"):
        chip.buffer(np.ones((2, 2), np.float32), "int8")
    with pytest.raises(ValueError, match="values from 0 to 300 do not fit into int8"):
        chip.buffer(np.array([[0, 300]]), "int8")
    with pytest.raises(tensix.MisusedError, match="holds nothing"):
        chip.buffer((0, 4))
    matrix = chip.buffer((40, 40))
    with pytest.raises(ValueError, match=r"expected an array of shape \(40, 40\), got \(4, 4\)"):
        chip.write(matrix, np.ones((4, 4), np.float32))
    with pytest.raises(tensix.MisusedError, match=r"tile \(2, 0\) of 2 x 2 tiles"):
        matrix.tile(2, 0)
    with pytest.raises(tensix.MisusedError, match="page 4, the buffer has 4 pages of 2048 B"):
        matrix.page(4)
    with pytest.raises(tensix.MisusedError, match="byte -1 of page 0"):
        matrix.page(0, -1)


def test_write_again():
    chip = Chip("n150")
    matrix = chip.buffer((40, 40), "float32")
    values = np.arange(1600, dtype=np.float32).reshape(40, 40)
    chip.write(matrix, values)
    np.testing.assert_array_equal(chip.to_numpy(matrix), values)
    chip.write(matrix, bytes(matrix.nbytes))
    assert not chip.to_numpy(matrix).any()
    with pytest.raises(tensix.MisusedError, match="got 3 B"):
        chip.write(matrix, b"abc")


def test_never_written():
    chip = Chip("n150")
    matrix, place = chip.buffer((64, 32)), chip.tensor(2048)
    with pytest.raises(tensix.UndefinedError, match="never written"):
        chip.to_numpy(matrix)
    with pytest.raises(tensix.UndefinedError, match="nothing was written at"):
        chip.read_l1(CORE, place, 64)

    def reads(k):
        yield k.noc_async_read(matrix.page(1), place, 2048)
        yield k.noc_async_read_barrier()

    with pytest.raises(
        tensix.UndefinedError, match=r"kernel reads on core \(0, 0\) reads page 1 of buffer 0"
    ):
        run(reads, chip)

    def sends(k):
        yield k.noc_async_write(place, k.get_noc_addr((1, 0), place), 64)

    with pytest.raises(tensix.UndefinedError, match=r"kernel sends on core \(0, 0\) reads 64 B at"):
        run(sends, chip)

    def loads(k):
        yield k.l1_load(place)

    with pytest.raises(tensix.UndefinedError, match="nothing was written"):
        run(loads, chip)

    def pushes(k):
        yield k.cb_reserve_back(0, 1)
        yield k.cb_push_back(0, 1)

    def multiplies(k):
        yield k.cb_wait_front(0, 1)
        yield k.tile_regs_acquire()
        yield k.matmul_tiles(0, 0, 0, 0, 0)

    program = Program()
    program.cb(0, CORE, "bfloat16", 1)
    program.kernel(pushes, CORE, "reader")
    program.kernel(multiplies, CORE, "compute")
    with pytest.raises(tensix.UndefinedError, match="reads tile 0 of circular buffer 0"):
        Chip("n150").run(program)


def test_timing_keeps_no_values():
    chip = Chip("n150", mode="timing")
    matrix = chip.buffer(np.ones((32, 32), np.float32))
    with pytest.raises(tensix.UnsupportedError, match="keeps no values"):
        chip.to_numpy(matrix)
    with pytest.raises(tensix.UnsupportedError, match="keeps no values"):
        chip.read_l1(CORE, 0, 16)


def test_same_time_with_and_without_values():
    def cycles(mode):
        chip = Chip("n150", mode=mode)
        matrix = chip.buffer(np.ones((64, 64), np.float32))

        def kernel(k):
            for i in range(4):
                yield k.noc_async_read(matrix.page(i), 4096 * i, 4096)
            yield k.noc_async_read_barrier()

        return run(kernel, chip).cycles

    assert cycles("full") == cycles("timing")


def test_l1_overflow():
    with pytest.raises(
        tensix.MisusedError, match=r"L1 overflow on core \(0, 0\): circular buffer 0 of 1000 "
    ):
        run(_nothing, prepare=lambda p: p.cb(0, CORE, "bfloat16", 1000))
    chip = Chip("n150")
    with pytest.raises(tensix.MisusedError, match="L1 overflow: a tensor of 2000000 B on each core"):
        chip.tensor(2_000_000)
    with pytest.raises(tensix.MisusedError, match="room of 0 B"):
        chip.tensor(0)
    with pytest.raises(tensix.MisusedError, match="in L1, which has 1499136 B"):
        chip.write_l1(CORE, -4, b"")

    def beyond(k):
        yield k.noc_async_read(k.get_noc_addr((1, 0), 1_499_136), 0, 64)

    with pytest.raises(
        tensix.MisusedError, match=r"64 B at 1499136 of core \(1, 0\)'s L1, which has 1499136 B"
    ):
        run(beyond)


def test_dram_overflow():
    chip = Chip("n150", mode="timing")
    with pytest.raises(tensix.MisusedError, match="B of DRAM"):
        chip.pages(2**31, 1000)
    # Nothing of what was refused is held.
    assert chip.pages(2**20, 12 * 1024).nbytes == 12 * 2**30
    with pytest.raises(tensix.MisusedError, match="channel 12: there are 12"):
        chip.pages(64, 1, channel=12)
    with pytest.raises(tensix.MisusedError, match="pages of a buffer is -1"):
        chip.pages(64, -1)


def _nothing(k):
    yield k.cycles(1)


def test_misaligned():
    chip = Chip("n150")
    matrix = chip.buffer(np.ones((32, 32), np.float32))

    def reads(k):
        yield k.noc_async_read(matrix.page(0), 40, 64)

    with pytest.raises(tensix.UndefinedError, match="they must agree modulo 32"):
        run(reads, chip)


def test_cores_that_do_not_exist():
    program = Program()
    program.kernel(_nothing, (8, 0))
    with pytest.raises(tensix.MisusedError, match=r"core \(8, 0\): n150 has 8 x 9"):
        Chip("n150").run(program)

    def far(k):
        yield k.noc_semaphore_inc((0, 9), 0)

    with pytest.raises(tensix.MisusedError, match=r"core \(0, 9\): n150 has 8 x 9"):
        run(far, prepare=lambda p: p.semaphore())
    with pytest.raises(tensix.MisusedError, match=r"core \(0, 9\)"):
        run(_nothing, prepare=lambda p: p.cb(0, (0, 9)))
    with pytest.raises(tensix.MisusedError, match="has none"):
        CoreRange((1, 0), (0, 0))
    with pytest.raises(tensix.MisusedError, match="no cores"):
        Program().cb(0, [])
    with pytest.raises(TypeError, match=r"expected cores as \(x, y\)"):
        Program().cb(0, [3])


def test_programs_refuse():
    program = Program()
    with pytest.raises(tensix.MisusedError, match="from 0 to 31, got 32"):
        program.cb(32, CORE)
    with pytest.raises(ValueError, match="no format 'float64'"):
        program.cb(0, CORE, "float64")
    with pytest.raises(tensix.MisusedError, match="pages of a circular buffer is -1"):
        program.cb(0, CORE, pages=-1)
    with pytest.raises(tensix.MisusedError, match="32-bit word"):
        program.semaphore(2**32)
    with pytest.raises(tensix.MisusedError, match="reader, writer or compute, got 'sender'"):
        program.kernel(_nothing, CORE, "sender")
    with pytest.raises(tensix.MisusedError, match="noc is 0 or 1, got 2"):
        program.kernel(_nothing, CORE, noc=2)
    with pytest.raises(TypeError, match="expected a Program, got NoneType"):
        Chip("n150").run(None)
    with pytest.raises(ValueError, match="fidelity is LoFi, HiFi2, HiFi3 or HiFi4"):
        Chip("n150").run(program, fidelity="best")
    with pytest.raises(tensix.TensixError, match="nothing has run"):
        Chip("n150").report()
    assert Chip("n150").run(Program()).cycles == 0
    program.kernel(_nothing, CORE)
    program.kernel(_nothing, CORE)
    with pytest.raises(tensix.MisusedError, match=r"core \(0, 0\) has another kernel"):
        Chip("n150").run(program)


def test_format_that_the_chip_lacks():
    chip = Chip(ChipSpec.named("n150").replace(matrix={"formats": ["bfloat16"]}))
    with pytest.raises(tensix.UnsupportedError, match="circular buffer 0 of float32: n150 has bfloat16"):
        run(_nothing, chip, prepare=lambda p: p.cb(0, CORE, "float32"))


@pytest.mark.parametrize(
    ("verb", "args", "text"),
    [
        ("cb_wait_front", (0, 3), "asks for 3 pages of circular buffer 0, which has 2"),
        ("cb_push_back", (0, 3), "pushes 3 pages to circular buffer 0, which has room for 2"),
        ("cb_pop_front", (0, 1), "pops 1 pages of circular buffer 0, which holds 0"),
        ("get_read_ptr", (1,), r"uses circular buffer 1, which the program has not on core \(0, 0\)"),
        ("noc_semaphore_wait", (1, 0), "uses semaphore 1, the program has 1"),
        ("tile_regs_acquire", (), "which compute kernels do"),
        ("cb_wait_front", (-1, 1), "expected 0 to 255, got -1"),
        ("cb_wait_front", (0, 2**40), "expected 0 to 4294967295, got 1099511627776"),
        ("cycles", (-1,), "takes -1 cycles"),
        ("cycles", (float("nan"),), "takes NaN cycles"),
        ("get_tile_size", (4,), r"uses circular buffer 4, which the program has not on core \(0, 0\)"),
    ],
)
def test_misused(verb, args, text):
    def kernel(k):
        yield getattr(k, verb)(*args)

    def prepare(program):
        program.cb(0, CORE, "bfloat16", 2)
        program.semaphore()

    with pytest.raises(tensix.MisusedError, match=text):
        run(kernel, prepare=prepare)


@pytest.mark.parametrize(
    ("verbs", "text"),
    [
        ([("noc_async_read_barrier",)], "which compute kernels do not"),
        ([("copy_tile", 0, 0, 0)], "computes into registers that it has not acquired"),
        ([("tile_regs_acquire",), ("tile_regs_acquire",)], "acquires registers that it has"),
        ([("tile_regs_commit",)], "commits registers that it has not acquired"),
        ([("pack_tile", 0, 0)], "packs registers that it has not waited for"),
        ([("tile_regs_acquire",), ("relu_tile", 8)], "uses 9 tiles of destination registers"),
    ],
)
def test_misused_compute(verbs, text):
    def kernel(k):
        for name, *args in verbs:
            yield getattr(k, name)(*args)

    with pytest.raises(tensix.MisusedError, match=text):
        run(kernel, role="compute", prepare=lambda p: p.cb(0, CORE, "bfloat16", 2))


def test_types_of_arguments():
    def kernel(k):
        yield k.cb_wait_front(0, 1.5)

    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        run(kernel)
