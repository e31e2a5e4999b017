"""Kernels written in Python: what goes through, and what every mistake is told as."""

import signal
import threading
import time
import traceback

import numpy as np
import pytest

import prunus as pr
from prunus import tensix
from prunus.tensix import Chip, CoreRange, Program

CORE = (0, 0)


def run(kernel, *, role="reader", args=(), chip=None, prepare=None, cores=CORE, **options):
    """Run one kernel; ``prepare`` adds to its program."""
    program = Program()
    if prepare is not None:
        prepare(program)
    program.kernel(kernel, cores, role, args)
    return (chip or Chip("n150")).run(program, **options)


def sleep(k, cycles=10):
    yield k.cycles(cycles)


def test_lazy_attribute():
    assert pr.tensix is tensix
    assert "tensix" in pr.__all__
    with pytest.raises(AttributeError, match="no attribute 'tensics'"):
        _ = pr.tensics


def test_replies():
    seen = []

    def kernel(k):
        assert (yield k.cb_reserve_back(3, 1)) is None
        address = yield k.get_write_ptr(3)
        seen.append(address)
        yield k.l1_store(address + 4, 77)
        seen.append((yield k.l1_load(address + 4)))
        yield k.cb_push_back(3, 1)
        yield k.cb_wait_front(3, 1)
        seen.append((yield k.get_read_ptr(3)))
        yield k.cb_pop_front(3, 1)
        assert (yield k.cycles(5)) is None
        seen.append((k.core, k.name, k.get_tile_size(3)))

    run(kernel, prepare=lambda program: program.cb(3, CORE, "float32", 2))
    assert seen[1] == 77
    assert seen[0] == seen[2]
    assert seen[3] == (CORE, "kernel", 4096)


def test_bytes_travel():
    """From DRAM to a core, to another core's L1, and back to DRAM: the same bytes."""
    chip = Chip("n150")
    data = np.random.default_rng(0).integers(0, 256, 3 * 1024, dtype=np.uint8)
    source, target = chip.pages(1024, 3), chip.pages(1024, 3, channel=5)
    chip.write(source, data)
    here, there = chip.tensor(3 * 1024), chip.tensor(3 * 1024)

    def kernel(k):
        for i in range(3):
            yield k.noc_async_read(source.page(i), here + i * 1024, 1024)
        yield k.noc_async_read_barrier()
        yield k.noc_async_write(here, k.get_noc_addr((2, 1), there), 3 * 1024)
        yield k.noc_async_write_barrier()
        yield k.noc_semaphore_inc((2, 1), 0)

    def other(k):
        yield k.noc_semaphore_wait_min(0, 1)
        for i in range(3):
            yield k.noc_async_write(there + i * 1024, target.page(i), 1024)
        yield k.noc_async_write_barrier()

    program = Program()
    program.semaphore()
    program.kernel(kernel, CORE)
    program.kernel(other, (2, 1), "writer")
    report = chip.run(program)
    assert chip.read(target) == data.tobytes()
    assert chip.read_l1((2, 1), there, 1024) == data[:1024].tobytes()
    assert report.dram_bytes == 2 * data.size
    assert [core["core"] for core in report.cores] == [CORE, (2, 1)]
    assert report == chip.report()
    assert report.seconds == pytest.approx(report.cycles * 1e-9)


def test_multicast():
    chip = Chip("n150")
    area = CoreRange((1, 1), (3, 2))
    address = chip.tensor(64)
    chip.write_l1((1, 1), address, bytes(range(64)))

    def kernel(k, loopback):
        to = address
        yield k.noc_async_write_multicast(address, area, to, 64, loopback_src=loopback)
        yield k.noc_async_write_barrier()
        yield k.noc_semaphore_set_multicast(0, 1, ((1, 1), (3, 2)))

    def receiver(k):
        yield k.noc_semaphore_wait(1, 1)
        assert (yield k.l1_load(address)) == 0x03020100

    program = Program()
    program.semaphore(1)
    program.semaphore(0)
    program.kernel(kernel, (1, 1), args=(False,))
    program.kernel(receiver, [core for core in area if core != (1, 1)], "writer")
    chip.run(program)
    for core in area:
        assert chip.read_l1(core, address, 64) == bytes(range(64))
    with pytest.raises(tensix.UndefinedError):
        chip.read_l1((0, 1), address, 64)


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("add", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("relu", lambda a, b: np.maximum(a, 0)),
        ("exp", lambda a, b: np.exp(a)),
        ("recip", lambda a, b: 1 / a),
        ("abs", lambda a, b: np.abs(a)),
        ("silu", lambda a, b: a / (1 + np.exp(-a))),
        ("matmul", np.matmul),
    ],
)
def test_tiles(op, function):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((32, 32)).astype(np.float32) for _ in range(2))
    chip = Chip("n150")
    A, B, C = chip.buffer(a), chip.buffer(b), chip.buffer((32, 32), "float32")

    def reader(k):
        for cb, source in enumerate((A, B)):
            yield k.cb_reserve_back(cb, 1)
            yield k.noc_async_read(source.page(0), (yield k.get_write_ptr(cb)), source.page_bytes)
            yield k.noc_async_read_barrier()
            yield k.cb_push_back(cb, 1)

    def compute(k):
        yield k.cb_wait_front(0, 1)
        yield k.cb_wait_front(1, 1)
        yield k.tile_regs_acquire()
        if op in ("add", "sub", "mul", "matmul"):
            yield getattr(k, f"{op}_tiles")(0, 1, 0, 0, 0)
        else:
            yield k.copy_tile(0, 0, 0)
            yield getattr(k, f"{op}_tile")(0)
        yield k.tile_regs_commit()
        yield k.cb_reserve_back(2, 1)
        yield k.tile_regs_wait()
        yield k.pack_tile(0, 2)
        yield k.tile_regs_release()
        yield k.cb_push_back(2, 1)

    def writer(k):
        yield k.cb_wait_front(2, 1)
        yield k.noc_async_write((yield k.get_read_ptr(2)), C.tile(0, 0), C.page_bytes)
        yield k.noc_async_write_barrier()

    program = Program()
    for cb in range(3):
        program.cb(cb, CORE, "float32", 1)
    program.kernel(reader, CORE, "reader")
    program.kernel(compute, CORE, "compute")
    program.kernel(writer, CORE, "writer")
    chip.run(program, fp32_dest_acc=True)
    np.testing.assert_allclose(chip.to_numpy(C), function(a, b), rtol=2e-2, atol=2e-2)


def test_pack_in_order():
    """Without a page, tiles go to one page after the other from each push on."""

    def kernel(k):
        verbs = [k.pack_tile]
        for _ in range(2):
            yield k.tile_regs_acquire()
            yield k.tile_regs_commit()
            yield k.cb_reserve_back(0, 2)
            yield k.tile_regs_wait()
            yield verbs[0](0, 0)
            yield verbs[0](1, 0)
            yield k.tile_regs_release()
            yield k.cb_push_back(0, 2)

    chip = Chip("n150")
    place = chip.tensor(4 * 2048)
    run(kernel, role="compute", chip=chip, prepare=lambda p: p.cb(0, CORE, "bfloat16", 4, address=place))
    assert chip.read_l1(CORE, place, 4 * 2048) == bytes(4 * 2048)


def test_deterministic():
    def once():
        chip = Chip("p150")
        cores = CoreRange((0, 0), (3, 3))
        source = chip.buffer(np.ones((256, 256), np.float32))
        place = chip.tensor(8192)

        def kernel(k, first):
            for i in range(first, 64, 16):
                yield k.noc_async_read(source.page(i), place, 4096)
                yield k.noc_async_read_barrier()
                yield k.noc_async_write(place, k.get_noc_addr((3 - k.core[0], k.core[1]), place + 4096), 4096)
                yield k.noc_async_write_barrier()

        return run(kernel, chip=chip, cores=cores, args=lambda core: (core[0] + 4 * core[1],))

    assert once() == once()


def test_a_program_runs_again():
    program = Program()
    program.kernel(sleep, CORE, args=(100,))
    chip = Chip("n150", mode="timing")
    assert chip.run(program).cycles == chip.run(program).cycles == 100
    assert Chip("p150").run(program).cycles == 100


class OwnError(Exception):
    pass


def test_own_exception():
    raised = OwnError("mine")

    def faulty(k):
        yield k.cycles(250)
        raise raised

    with pytest.raises(OwnError) as caught:
        run(faulty, cores=(3, 2))
    assert caught.value is raised
    assert caught.value.__notes__ == ["in kernel faulty on core (3, 2) at cycle 250"]
    assert "raise raised" in "".join(traceback.format_exception(raised))


def test_stop_iteration_is_an_exception():
    def faulty(k):
        yield k.cycles(1)
        next(iter(()))

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        run(faulty)


def test_others_are_closed():
    closed = []

    def endless(k):
        try:
            while True:
                yield k.cycles(100)
        finally:
            closed.append(k.core)

    def faulty(k):
        yield k.cycles(1000)
        raise OwnError

    program = Program()
    program.kernel(endless, [(1, 0), (2, 0)])
    program.kernel(faulty, CORE)
    with pytest.raises(OwnError):
        Chip("n150").run(program)
    assert sorted(closed) == [(1, 0), (2, 0)]


def test_not_yielded():
    def forgets(k):
        yield k.cycles(1)
        k.noc_async_read_barrier()
        yield k.cycles(1)

    text = r"kernel forgets on core \(0, 0\) did not yield its noc_async_read_barrier before cycles"
    with pytest.raises(tensix.MisusedError, match=text) as caught:
        run(forgets)
    # The traceback ends in the kernel, at the next verb.
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "forgets"


def test_not_yielded_at_the_end():
    def forgets(k):
        yield k.cycles(1)
        k.cb_push_back(0, 1)

    with pytest.raises(tensix.MisusedError, match="did not yield its cb_push_back before its end"):
        run(forgets)


def test_not_yielded_and_another_one_is():
    def forgets(k):
        first = k.cycles(1)
        yield first
        k.cycles(2)
        yield first

    with pytest.raises(tensix.MisusedError, match="did not yield its cycles before cycles"):
        run(forgets)


def test_a_verb_twice():
    def kernel(k):
        pause = k.cycles(7)
        yield pause
        yield pause

    assert run(kernel).cycles == 14


@pytest.mark.parametrize("value", [None, 5, "cb_push_back", (1, 2)])
def test_no_verb(value):
    def kernel(k):
        yield value

    with pytest.raises(TypeError, match=r"kernel kernel on core \(0, 0\) yielded .*methods of its context"):
        run(kernel)


def test_no_generator():
    with pytest.raises(TypeError, match="must be a generator function: its call returned NoneType"):
        run(lambda k: None)
    with pytest.raises(TypeError, match="must be a generator function: its call returned list"):
        run(lambda k: [])
    with pytest.raises(TypeError, match="a kernel is a generator function, got int"):
        Program().kernel(5, CORE)


def stuck(k):
    yield k.cycles(1)
    while True:
        pass


def test_never_yields():
    began = time.perf_counter()
    with pytest.raises(
        tensix.EndlessError, match=r"kernel stuck on core \(0, 0\) ran for 0.2 s without a yield"
    ) as caught:
        run(stuck, patience=0.2)
    assert time.perf_counter() - began < 5
    # The cause says where the kernel was.
    assert traceback.extract_tb(caught.value.__cause__.__traceback__)[-1].name == "stuck"
    assert run(sleep).cycles == 10


def test_never_yields_and_catches_everything():
    def stubborn(k):
        while True:
            try:
                yield from stuck(k)
            except Exception:
                continue

    with pytest.raises(tensix.EndlessError):
        run(stubborn, patience=0.2)


def test_patience_is_for_a_kernel_without_a_yield():
    def slow(k):
        for _ in range(4):
            time.sleep(0.1)
            yield k.cycles(1)

    assert run(slow, patience=0.3).cycles == 4
    assert run(slow, patience=None).cycles == 4
    with pytest.raises(ValueError, match="patience is positive"):
        run(slow, patience=0)


def test_never_yields_on_another_thread():
    seen = []

    def work():
        with pytest.raises(tensix.EndlessError):
            run(stuck, patience=0.2)
        seen.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen


@pytest.mark.parametrize("kernel", [stuck, "turns"])
def test_ctrl_c(kernel):
    def turns(k):
        while True:
            yield k.cycles(1)

    # Whoever started the tests may have the signal ignored, as shells do for what runs in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            run(turns if kernel == "turns" else kernel, limit=1e12)
    finally:
        signal.signal(signal.SIGINT, before)


def test_cycle_limit():
    def endless(k):
        while True:
            yield k.cycles(100)

    with pytest.raises(tensix.EndlessError, match=r"after 10000 cycles: endless on core \(0, 0\) runs"):
        run(endless, limit=10000)
    with pytest.raises(tensix.EndlessError, match="after 10000 cycles"):
        run(endless, role="compute", limit=10000)
    with pytest.raises(tensix.MisusedError, match="a limit of 0 cycles"):
        run(endless, limit=0)


def test_no_time_passes():
    def endless(k):
        while True:
            yield k.get_read_ptr(0)

    with pytest.raises(tensix.EndlessError, match="take no time"):
        run(endless, prepare=lambda program: program.cb(0, CORE))


def test_deadlock():
    def reader(k):
        yield k.cb_reserve_back(0, 2)
        yield k.cb_push_back(0, 2)
        yield k.cb_reserve_back(0, 1)

    def waits(k):
        yield k.noc_semaphore_wait(0, 3)

    program = Program()
    program.semaphore(1)
    program.cb(0, CORE, "bfloat16", 2)
    program.kernel(reader, CORE)
    program.kernel(waits, (1, 4), "writer")
    text = (
        r"deadlock: at cycle \d+ nothing can happen any more: "
        r"reader on core \(0, 0\) waits for room for 1 pages in circular buffer 0, which has room for 0; "
        r"waits on core \(1, 4\) waits for semaphore 0 to be 3, it is 1"
    )
    with pytest.raises(tensix.DeadlockError, match=text):
        Chip("n150").run(program)


def test_the_chip_is_its_programs_own():
    chip = Chip("n150")
    buffer = chip.buffer(np.ones((32, 32), np.float32))

    def meddles(k):
        yield k.cycles(1)
        chip.to_numpy(buffer)

    with pytest.raises(tensix.MisusedError, match="its program's own"):
        run(meddles, chip=chip)
    assert chip.to_numpy(buffer).sum() == 1024


def test_a_buffer_is_one_chips():
    here, there = Chip("n150"), Chip("n150")
    own, other = (chip.buffer(np.full((32, 32), i, np.float32)) for i, chip in enumerate((here, there)))

    def reads(k, source):
        yield k.noc_async_read(source.page(0), 0, source.page_bytes)
        yield k.noc_async_read_barrier()

    for wrong in (
        lambda: here.to_numpy(other),
        lambda: here.write(other, np.zeros((32, 32), np.float32)),
        lambda: run(reads, args=(other,), chip=here),
    ):
        with pytest.raises(tensix.MisusedError, match="another chip's"):
            wrong()
    assert here.to_numpy(own).sum() == 0
    assert there.to_numpy(other).sum() == 1024
    run(reads, args=(own,), chip=here)


@pytest.mark.parametrize("core", [(0.5, 0), (np.float32(1.7), 0), (0, "1"), (0, 1, 2)], ids=str)
def test_cores_are_whole_numbers(core):
    with pytest.raises(TypeError, match="core"):
        run(sleep, cores=[core])
    with pytest.raises(TypeError, match="core"):
        Chip("n150").write_l1(core, 0, bytes(16))


def test_cores_are_counted_from_0():
    with pytest.raises(tensix.MisusedError, match=r"core \(-1, 0\)"):
        run(sleep, cores=(-1, 0))
    with pytest.raises(tensix.MisusedError, match=r"core \(0, -1\)"):
        Chip("n150").read_l1((0, -1), 0, 16)


def test_a_compute_kernel_acts_on_a_word_of_l1():
    chip, program = Chip("n150"), Program()
    place = 65536
    seen = []

    def writer(k):
        yield k.cycles(500)
        yield k.l1_store(place, 7)
        yield k.cb_push_back(0, 1)

    def compute(k):
        yield k.cb_wait_front(0, 1)
        seen.append((yield k.l1_load(place)))

    program.cb(0, (0, 0), "bfloat16", pages=1)
    program.kernel(writer, (0, 0), "writer")
    program.kernel(compute, (0, 0), "compute")
    chip.run(program)
    assert seen == [7]
