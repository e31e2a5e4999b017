"""What hardware would do in silence, the simulator says: one program for each way to go wrong."""

import numpy as np
import pytest

from prunus.tensix import (
    Chip,
    ChipSpec,
    EndlessError,
    MisusedError,
    Program,
    UndefinedError,
    UnsupportedError,
)

CORE = (0, 0)
TILE = 32


def chip_with(value, dtype="bfloat16"):
    """A chip with one tile of a value in DRAM."""
    chip = Chip("n150")
    kind = np.int32 if "int" in dtype else np.float32
    return chip, chip.buffer(np.full((TILE, TILE), value, kind), dtype)


def fetch(k, source, cb, pages):
    """Bring the one tile to all pages of a circular buffer."""
    yield k.cb_reserve_back(cb, pages)
    address = yield k.get_write_ptr(cb)
    for page in range(pages):
        yield k.noc_async_read(source.page(0), address + page * source.page_bytes, source.page_bytes)
    yield k.noc_async_read_barrier()
    yield k.cb_push_back(cb, pages)


def store(k, target, cb):
    yield k.cb_wait_front(cb, 1)
    address = yield k.get_read_ptr(cb)
    yield k.noc_async_write(address, target.page(0), target.page_bytes)
    yield k.noc_async_write_barrier()
    yield k.cb_pop_front(cb, 1)


def run(chip, source, compute, *, pages=2, dtype="bfloat16", out="bfloat16", **options):
    target = chip.buffer((TILE, TILE), out)
    program = Program()
    program.cb(0, CORE, dtype, pages=pages)
    program.cb(16, CORE, out, pages=2)
    program.kernel(fetch, CORE, "reader", args=(source, 0, pages))
    program.kernel(compute, CORE, "compute")
    program.kernel(store, CORE, "writer", args=(target, 16))
    chip.run(program, **options)
    return chip.to_numpy(target)


def computing(middle, dst=0):
    """A compute kernel around what is done with registers."""

    def compute(k):
        yield k.cb_wait_front(0, 1)
        yield k.tile_regs_acquire()
        yield from middle(k)
        yield k.tile_regs_commit()
        yield k.cb_reserve_back(16, 1)
        yield k.tile_regs_wait()
        yield k.pack_tile(dst, 16)
        yield k.tile_regs_release()
        yield k.cb_push_back(16, 1)
        yield k.cb_pop_front(0, 1)

    return compute


def test_tiles_beyond_what_is_there():
    chip, source = chip_with(1)
    with pytest.raises(MisusedError, match=r"uses tile 7 of circular buffer 0, which holds 2"):
        run(chip, source, computing(lambda k: (yield k.copy_tile(0, 7, 0))))


def test_packing_beyond_registers():
    chip, source = chip_with(1)
    with pytest.raises(MisusedError, match="half of them holds 4"):
        run(chip, source, computing(lambda k: (yield k.copy_tile(0, 0, 0)), dst=5), fp32_dest_acc=True)


def test_tiles_across_the_end():
    def compute(k):
        yield k.cb_wait_front(0, 2)
        yield k.cb_pop_front(0, 1)
        yield k.cb_wait_front(0, 2)
        yield k.tile_regs_acquire()
        yield k.copy_tile(0, 1, 0)

    def twice(k, source):
        yield from fetch(k, source, 0, 2)
        yield from fetch(k, source, 0, 1)

    chip, source = chip_with(1)
    program = Program()
    program.cb(0, CORE, "bfloat16", pages=2)
    program.kernel(twice, CORE, "reader", args=(source,))
    program.kernel(compute, CORE, "compute")
    with pytest.raises(UndefinedError, match="behind the buffer's end"):
        chip.run(program)


@pytest.mark.parametrize(
    ("dtype", "out", "message"),
    [("int32", "bfloat16", "Integers to bfloat16"), ("bfloat16", "int32", "Floats to int32")],
)
def test_integers_are_not_floats(dtype, out, message):
    chip, source = chip_with(7, dtype)
    with pytest.raises(UnsupportedError, match=message):
        run(chip, source, computing(lambda k: (yield k.copy_tile(0, 0, 0))), dtype=dtype, out=out)


def test_integers_have_no_vector_functions():
    def middle(k):
        yield k.copy_tile(0, 0, 0)
        yield k.abs_tile(0)

    chip, source = chip_with(-7, "int32")
    with pytest.raises(UnsupportedError, match="mixes integers and floats"):
        run(chip, source, computing(middle), dtype="int32", out="int32")


def test_tiles_that_are_written_over_are_read_anew():
    """Multiply, pack into the operand's own place, and multiply again."""
    chip = Chip("n150")
    source = chip.buffer(2 * np.eye(TILE, dtype=np.float32), "bfloat16")
    target = chip.buffer((TILE, TILE), "bfloat16")

    def compute(k):
        yield k.cb_wait_front(0, 1)
        for to in (1, 16):
            yield k.tile_regs_acquire()
            yield k.matmul_tiles(0, 0, 0, 0, 0)
            yield k.tile_regs_commit()
            yield k.cb_reserve_back(to, 1)
            yield k.tile_regs_wait()
            yield k.pack_tile(0, to)
            yield k.tile_regs_release()
            yield k.cb_push_back(to, 1)
            if to == 1:
                yield k.cb_wait_front(1, 1)
        yield k.cb_pop_front(0, 1)

    program = Program()
    program.cb(0, CORE, "bfloat16", pages=1)
    program.cb(1, CORE, "bfloat16", pages=1, shares=0)
    program.cb(16, CORE, "bfloat16", pages=1)
    program.kernel(fetch, CORE, "reader", args=(source, 0, 1))
    program.kernel(compute, CORE, "compute")
    program.kernel(store, CORE, "writer", args=(target, 16))
    chip.run(program)
    np.testing.assert_array_equal(chip.to_numpy(target).astype(np.float32), 16 * np.eye(TILE))


def test_packing_goes_on_while_unpacking_waits():
    def compute(k):
        yield k.cb_wait_front(0, 1)
        yield k.cb_reserve_back(16, 1)
        yield k.cb_push_back(16, 1)
        yield k.cb_pop_front(0, 1)

    def reader(k):
        yield k.cb_wait_front(16, 1)
        yield k.cb_reserve_back(0, 1)
        yield k.cb_push_back(0, 1)

    program = Program()
    program.cb(0, CORE, "bfloat16", pages=1)
    program.cb(16, CORE, "bfloat16", pages=1)
    program.kernel(reader, CORE, "reader")
    program.kernel(compute, CORE, "compute")
    assert Chip("n150").run(program).cycles > 0


@pytest.mark.parametrize("role", ["reader", "compute"])
def test_verbs_that_round_to_no_time_do_not_go_on_for_ever(role):
    def kernel(k):
        while True:
            yield k.cycles(0.001)

    program = Program()
    program.kernel(kernel, CORE, role)
    with pytest.raises(EndlessError, match="take no time"):
        Chip("n150").run(program, limit=1000)


def test_words_are_aligned_in_both_modes():
    def kernel(k, address):
        yield k.l1_store(address, 1)

    for mode in ("full", "timing"):
        for address in (1002, 2**32 - 4):
            program = Program()
            program.kernel(kernel, CORE, "reader", args=(address,))
            with pytest.raises(MisusedError, match="kernel"):
                Chip("n150", mode=mode).run(program)


def test_memory_that_there_is_not():
    with pytest.raises(MisusedError, match="L1 overflow"):
        Chip("n150").tensor(2**32 - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noc": {"hop_cycles": 1e300}}, "hop_cycles"),
        ({"noc": {"flit_bytes": 65536, "max_packet_flits": 65536}}, "packet"),
        ({"dram": {"channel_bytes": 2**62}}, "channel_bytes"),
        ({"dram": {"channels": [[0, 11], [0, 11]]}}, "twice"),
    ],
    ids=str,
)
def test_specs_beyond_reason(change, message):
    with pytest.raises(ValueError, match=message):
        ChipSpec.named("n150").replace(**change)


def test_circular_buffers_do_not_overlap_by_accident():
    def kernel(k, found):
        for cb in range(3):
            found.append((yield k.get_write_ptr(cb)))

    found = []
    program = Program()
    program.cb(0, CORE, "bfloat16", pages=1)
    program.cb(1, CORE, "bfloat16", pages=300, shares=0)
    program.cb(2, CORE, "bfloat16", pages=1)
    program.kernel(kernel, CORE, "reader", args=(found,))
    Chip("n150").run(program)
    assert found == [found[0], found[0], found[0] + 300 * 2048]
