"""Element-wise addition on several cores of a simulated Tensix chip.

The first program to write: on each core a reader brings tiles of two matrices from DRAM into circular
buffers, the compute kernel adds them, and a writer takes the sums back. The three run at the same time, and
the circular buffers are all they have in common. Cores share nothing: each has every n-th tile.
"""

from __future__ import annotations

import argparse

import numpy as np

import prunus as pr

IN0, IN1, OUT = 0, 1, 16


def reader(
    k: pr.tensix.KernelContext, a: pr.tensix.Matrix, b: pr.tensix.Matrix, tiles: range
) -> pr.tensix.Kernel:
    """Bring tiles of both matrices, a pair at a time."""
    for i in tiles:
        for cb, source in ((IN0, a), (IN1, b)):
            yield k.cb_reserve_back(cb, 1)
            address = yield k.get_write_ptr(cb)
            yield k.noc_async_read(source.page(i), address, source.page_bytes)
        yield k.noc_async_read_barrier()
        yield k.cb_push_back(IN0, 1)
        yield k.cb_push_back(IN1, 1)


def compute(k: pr.tensix.KernelContext, tiles: range) -> pr.tensix.Kernel:
    """Add pairs of tiles in the destination registers, and pack the sums."""
    for _ in tiles:
        yield k.cb_wait_front(IN0, 1)
        yield k.cb_wait_front(IN1, 1)
        yield k.tile_regs_acquire()
        yield k.add_tiles(IN0, IN1, 0, 0, 0)
        yield k.tile_regs_commit()
        yield k.cb_pop_front(IN0, 1)
        yield k.cb_pop_front(IN1, 1)
        yield k.cb_reserve_back(OUT, 1)
        yield k.tile_regs_wait()
        yield k.pack_tile(0, OUT)
        yield k.tile_regs_release()
        yield k.cb_push_back(OUT, 1)


def writer(k: pr.tensix.KernelContext, c: pr.tensix.Matrix, tiles: range) -> pr.tensix.Kernel:
    """Take sums to DRAM."""
    for i in tiles:
        yield k.cb_wait_front(OUT, 1)
        address = yield k.get_read_ptr(OUT)
        yield k.noc_async_write(address, c.page(i), c.page_bytes)
        yield k.noc_async_write_barrier()
        yield k.cb_pop_front(OUT, 1)


def add(chip: pr.tensix.Chip, a: np.ndarray, b: np.ndarray, cores: list[tuple[int, int]]) -> np.ndarray:
    """Add two matrices in bfloat16 on some cores of a chip."""
    A, B = chip.buffer(a, "bfloat16"), chip.buffer(b, "bfloat16")
    C = chip.buffer(a.shape, "bfloat16")
    shares = {core: range(i, C.pages, len(cores)) for i, core in enumerate(cores)}

    program = pr.tensix.Program()
    for cb in (IN0, IN1, OUT):
        program.cb(cb, cores, "bfloat16", pages=2)
    program.kernel(reader, cores, "reader", args=lambda core: (A, B, shares[core]))
    program.kernel(compute, cores, "compute", args=lambda core: (shares[core],))
    program.kernel(writer, cores, "writer", args=lambda core: (C, shares[core]))
    chip.run(program)
    return chip.to_numpy(C)


def main(size: str = "full") -> dict[int, dict[str, float]]:
    """Add on more and more cores; ``size`` is "small" or "full"."""
    rng = np.random.default_rng(0)
    n = 128 if size == "small" else 512
    a, b = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    exact = a.astype(np.float64) + b

    print(f"{'cores':>5} {'cycles':>10} {'DRAM bytes a cycle':>20} {'error':>9}")
    found = {}
    for across in (1, 2, 4, 8):
        chip = pr.tensix.Chip("n150")
        cores = list(pr.tensix.CoreRange((0, 0), (across - 1, 0)))
        c = add(chip, a, b, cores).astype(np.float64)
        report = chip.report()
        error = float(np.abs(c - exact).max() / np.abs(exact).max())
        rate = report.dram_bytes / report.cycles
        print(f"{len(cores):5} {report.cycles:10.0f} {rate:20.1f} {error:9.1e}")
        found[len(cores)] = {"cycles": report.cycles, "bytes": report.dram_bytes, "error": error}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
