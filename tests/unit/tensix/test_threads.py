"""Values on several threads: the same bits and the same cycles."""

import numpy as np
import pytest

import prunus as pr
from prunus.bench.tensix import measure_full
from prunus.cli.tensix_bench import run as bench
from prunus.tensix import Chip, CoreRange, Program

ROUNDS = 12


def product(threads):
    """Multiply tiles on 16 cores, many at once, so that there is work to share; bytes and the report."""
    chip = Chip("n150")
    rng = np.random.default_rng(3)
    A, B = (chip.buffer(rng.standard_normal((128, 128)).astype(np.float32), "bfloat16") for _ in range(2))
    C = chip.buffer((16 * 32, 8 * 32), "float32")
    cores = CoreRange((0, 0), (3, 3))

    def reader(k, number):
        for cb, source in enumerate((A, B)):
            yield k.cb_reserve_back(cb, 16)
            to = yield k.get_write_ptr(cb)
            for page in range(16):
                yield k.noc_async_read(source.page((page + number) % 16), to + 2048 * page, 2048)
            yield k.noc_async_read_barrier()
            yield k.cb_push_back(cb, 16)

    def compute(k, number):
        yield k.cb_wait_front(0, 16)
        yield k.cb_wait_front(1, 16)
        yield k.tile_regs_acquire()
        for i in range(ROUNDS):
            for j in range(8):
                yield k.matmul_tiles(0, 1, (i + j) % 16, j, j % 4)
        yield k.relu_tile(number % 4)
        yield k.tile_regs_commit()
        yield k.cb_reserve_back(2, 8)
        yield k.tile_regs_wait()
        for page in range(8):
            yield k.pack_tile(page % 4, 2)
        yield k.tile_regs_release()
        yield k.cb_push_back(2, 8)

    def writer(k, number):
        yield k.cb_wait_front(2, 8)
        source = yield k.get_read_ptr(2)
        for page in range(8):
            yield k.noc_async_write(source + 4096 * page, C.page(8 * number + page), 4096)
        yield k.noc_async_write_barrier()

    program = Program()
    for cb, (dtype, pages) in enumerate((("bfloat16", 16), ("bfloat16", 16), ("float32", 8))):
        program.cb(cb, cores, dtype, pages)
    for kernel, role in ((reader, "reader"), (compute, "compute"), (writer, "writer")):
        program.kernel(kernel, cores, role, lambda core: (core[0] + 4 * core[1],))
    with pr.num_threads(threads):
        report = chip.run(program, fp32_dest_acc=True)
    return chip.to_numpy(C), report


def test_kernels_in_python():
    alone, report = product(1)
    assert np.abs(alone).max() > 1
    for threads in (2, 4):
        values, other = product(threads)
        np.testing.assert_array_equal(values.view(np.uint32), alone.view(np.uint32))
        assert other == report


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_what_was_never_written(threads):
    def kernel(k):
        yield k.cb_wait_front(0, 0)
        yield k.tile_regs_acquire()
        yield k.tile_regs_commit()
        yield k.cb_reserve_back(0, 2)
        yield k.cb_push_back(0, 2)
        yield k.cb_wait_front(0, 2)
        yield k.tile_regs_acquire()
        yield k.matmul_tiles(0, 0, 0, 1, 0)

    program = Program()
    program.cb(0, (1, 2), "bfloat16", 2)
    program.kernel(kernel, (1, 2), "compute")
    with (
        pr.num_threads(threads),
        pytest.raises(pr.tensix.UndefinedError, match=r"kernel on core \(1, 2\).*circular buffer 0"),
    ):
        Chip("n150").run(program)


def test_full_mode_beside_numpy():
    with pr.num_threads(2):
        found = measure_full("n150", 128, 1)
    assert (found.chip, found.size, found.threads) == ("n150", 128, 2)
    assert found.seconds > 0
    assert found.numpy > 0


def test_bench_prints_both_parts(capsys, monkeypatch):
    import argparse

    monkeypatch.setattr("prunus.cli.tensix_bench._FULL", ("n150", 64))
    assert bench(argparse.Namespace(sizes=[64], rounds=1)) == 0
    text = capsys.readouterr().out
    assert "events/s" in text
    assert "x NumPy" in text
