"""Whatever a kernel asks for, a run ends in a report or in an exception that says why."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus import tensix

# Some fit, some are beside it, some are far off.
NUMBERS = st.one_of(
    st.integers(0, 4), st.sampled_from([16, 32, 64, 2048, 4096, 65535, 2**31, 2**32 - 1, 2**32, -1])
)
CORES = st.tuples(st.integers(0, 2), st.integers(0, 2)) | st.just((7, 8)) | st.just((8, 9))
AREAS = st.tuples(CORES, CORES)


@st.composite
def places(draw):
    if draw(st.booleans()):
        return ("l1", draw(CORES), draw(NUMBERS))
    return ("dram", draw(st.integers(0, 2)), draw(NUMBERS), draw(NUMBERS))


def call(name, *arguments):
    return st.tuples(st.just(name), *arguments)


MOVES = st.one_of(
    *(call(name, NUMBERS, NUMBERS) for name in ("cb_reserve_back", "cb_push_back", "cb_wait_front")),
    call("cb_pop_front", NUMBERS, NUMBERS),
    call("get_read_ptr", NUMBERS),
    call("noc_async_read", places(), NUMBERS, NUMBERS),
    call("noc_async_write", NUMBERS, places(), NUMBERS),
    *(call(f"noc_async_{name}") for name in ("read_barrier", "write_barrier", "writes_flushed")),
    call("noc_async_write_multicast", NUMBERS, AREAS, NUMBERS, NUMBERS, st.booleans(), st.booleans()),
    call("noc_semaphore_inc", CORES, NUMBERS, NUMBERS),
    *(call(f"noc_semaphore_{name}", NUMBERS, NUMBERS) for name in ("set", "wait", "wait_min")),
    call("noc_semaphore_set_multicast", NUMBERS, NUMBERS, AREAS, st.booleans()),
    call("l1_load", NUMBERS),
    call("l1_store", NUMBERS, NUMBERS),
    call("cycles", st.floats(allow_nan=True)),
)
COMPUTES = st.one_of(
    *(call(f"tile_regs_{name}") for name in ("acquire", "commit", "wait", "release")),
    *(call(name, *[NUMBERS] * 5) for name in ("matmul_tiles", "add_tiles", "mul_tiles")),
    call("matmul_block", *[NUMBERS] * 8),
    call("copy_tile", *[NUMBERS] * 3),
    call("gelu_tile", NUMBERS),
    call("pack_tile", *[NUMBERS] * 3),
    call("pack_tile_block", *[NUMBERS] * 3),
    call("pack_reconfig_l1_acc", st.booleans()),
    *(call(name, NUMBERS, NUMBERS) for name in ("cb_reserve_back", "cb_push_back")),
    *(call(name, NUMBERS, NUMBERS) for name in ("cb_wait_front", "cb_pop_front")),
)


def place(given):
    kind, *arguments = given
    return getattr(tensix.Place, kind)(*arguments)


def kernel(k, calls):
    for name, *arguments in calls:
        made = [place(a) if isinstance(a, tuple) and a[0] in ("l1", "dram") else a for a in arguments]
        yield getattr(k, name)(*made)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(MOVES, max_size=8),
    st.lists(MOVES, max_size=8),
    st.lists(COMPUTES, max_size=12),
    st.sampled_from(["full", "timing"]),
)
def test_ends(reads, writes, computes, mode):
    chip = tensix.Chip("n150", mode=mode)
    chip.buffer(np.ones((64, 64), np.float32))
    chip.pages(48, 5)
    place = chip.tensor(8192)
    chip.write_l1((0, 0), place, bytes(8192))
    program = tensix.Program()
    program.semaphore()
    program.semaphore(1)
    program.cb(0, (0, 0), "float32", 2, address=place)
    program.cb(1, (0, 0), "bfloat8_b", 4)
    program.cb(2, (0, 0), "int8", 1)
    program.cb(3, (0, 0), "bfloat16", 3, page_bytes=100)
    for role, calls in (("reader", reads), ("writer", writes), ("compute", computes)):
        program.kernel(kernel, (0, 0), role, args=(calls,))
    try:
        report = chip.run(program, limit=1e6)
    except (tensix.TensixError, ValueError):
        return
    assert report.cycles <= 1e6
