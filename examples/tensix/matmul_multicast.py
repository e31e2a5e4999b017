"""A matrix product on a grid of simulated Tensix cores: tiles are read once and multicast.

Rows of cores need the same tiles of the left matrix, columns of cores the same tiles of the right one. The
first core of a row reads its tiles from DRAM and multicasts them to its row, and the first core of a column
does so downwards. Two semaphores make it safe: one counts receivers that have room, the other one says that
a block is there. For comparison, each core reads for itself what it needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

import prunus as pr

IN0, IN1, OUT = 0, 1, 16
# Receivers with room, and blocks that have arrived; ONE is always 1: what flags are set to.
IN0_READY, IN0_VALID, IN1_READY, IN1_VALID, ONE = range(5)
# Tiles of the result on each core: as many as the destination registers hold.
H, W = 2, 4

Core = tuple[int, int]
Tile = Callable[[int, int], pr.tensix.Place]


def send(
    k: pr.tensix.KernelContext,
    area: pr.tensix.CoreRange,
    ready: int,
    valid: int,
    address: int,
    size: int,
) -> pr.tensix.Kernel:
    """Multicast a block to the other cores of an area, to the address where it lies here."""
    yield k.noc_semaphore_wait(ready, len(area) - 1)
    yield k.noc_semaphore_set(ready, 0)
    yield k.noc_async_write_multicast(address, area, address, size, linked=True)
    yield k.noc_semaphore_set_multicast(ONE, valid, area)
    yield k.noc_async_writes_flushed()


def receive(k: pr.tensix.KernelContext, sender: Core, ready: int, valid: int) -> pr.tensix.Kernel:
    """Tell the sender that there is room, and wait for the block."""
    yield k.noc_semaphore_set(valid, 0)
    yield k.noc_semaphore_inc(sender, ready)
    yield k.noc_semaphore_wait(valid, 1)


def bring(
    k: pr.tensix.KernelContext,
    cb: int,
    count: int,
    steps: int,
    place: Tile,
    area: pr.tensix.CoreRange | None,
    semaphores: tuple[int, int],
) -> pr.tensix.Kernel:
    """Bring blocks of ``count`` tiles: as the first core of an area, as another one of it, or alone."""
    size = k.get_tile_size(cb)
    for step in range(steps):
        yield k.cb_reserve_back(cb, count)
        if area is not None and k.core != area.first:
            yield from receive(k, area.first, *semaphores)
        else:
            address = yield k.get_write_ptr(cb)
            for i in range(count):
                yield k.noc_async_read(place(step, i), address + i * size, size)
            yield k.noc_async_read_barrier()
            if area is not None:
                yield from send(k, area, *semaphores, address, count * size)
        yield k.cb_push_back(cb, count)


def reader(
    k: pr.tensix.KernelContext, a: pr.tensix.Matrix, row: pr.tensix.CoreRange | None
) -> pr.tensix.Kernel:
    """Bring this row's tiles of the left matrix."""
    i = k.core[1] * H
    yield from bring(k, IN0, H, a.tiles[1], lambda step, r: a.tile(i + r, step), row, (IN0_READY, IN0_VALID))


def compute(k: pr.tensix.KernelContext, steps: int) -> pr.tensix.Kernel:
    """Let one block of the result grow in the destination registers."""
    yield k.tile_regs_acquire()
    for _ in range(steps):
        yield k.cb_wait_front(IN0, H)
        yield k.cb_wait_front(IN1, W)
        yield k.matmul_block(IN0, IN1, 0, 0, 0, ct_dim=W, rt_dim=H, kt_dim=1)
        yield k.cb_pop_front(IN0, H)
        yield k.cb_pop_front(IN1, W)
    yield k.tile_regs_commit()
    yield k.cb_reserve_back(OUT, H * W)
    yield k.tile_regs_wait()
    yield k.pack_tile_block(0, OUT, H * W)
    yield k.tile_regs_release()
    yield k.cb_push_back(OUT, H * W)


def writer(
    k: pr.tensix.KernelContext,
    b: pr.tensix.Matrix,
    c: pr.tensix.Matrix,
    column: pr.tensix.CoreRange | None,
) -> pr.tensix.Kernel:
    """Bring this column's tiles of the right matrix, then take the result to DRAM."""
    i, j = k.core[1] * H, k.core[0] * W
    yield from bring(
        k, IN1, W, b.tiles[0], lambda step, s: b.tile(step, j + s), column, (IN1_READY, IN1_VALID)
    )
    yield k.cb_wait_front(OUT, H * W)
    address = yield k.get_read_ptr(OUT)
    for r in range(H):
        for s in range(W):
            yield k.noc_async_write(address + (r * W + s) * c.page_bytes, c.tile(i + r, j + s), c.page_bytes)
    yield k.noc_async_write_barrier()


def matmul(chip: pr.tensix.Chip, a: np.ndarray, b: np.ndarray, *, multicast: bool) -> np.ndarray:
    """Multiply two matrices in bfloat16, on as many cores as the result has blocks."""
    A, B = chip.buffer(a, "bfloat16"), chip.buffer(b, "bfloat16")
    C = chip.buffer((a.shape[0], b.shape[1]), "bfloat16")
    right, low = C.tiles[1] // W - 1, C.tiles[0] // H - 1
    cores = pr.tensix.CoreRange((0, 0), (right, low))

    def row(core: Core) -> pr.tensix.CoreRange | None:
        return pr.tensix.CoreRange((0, core[1]), (right, core[1])) if multicast else None

    def column(core: Core) -> pr.tensix.CoreRange | None:
        return pr.tensix.CoreRange((core[0], 0), (core[0], low)) if multicast else None

    program = pr.tensix.Program()
    for semaphore in (IN0_READY, IN0_VALID, IN1_READY, IN1_VALID, ONE):
        program.semaphore(int(semaphore == ONE))
    program.cb(IN0, cores, "bfloat16", pages=2 * H)
    program.cb(IN1, cores, "bfloat16", pages=2 * W)
    program.cb(OUT, cores, "bfloat16", pages=H * W)
    program.kernel(reader, cores, "reader", args=lambda core: (A, row(core)))
    program.kernel(compute, cores, "compute", args=(A.tiles[1],))
    program.kernel(writer, cores, "writer", args=lambda core: (B, C, column(core)))
    chip.run(program)
    return chip.to_numpy(C)


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Multiply with and without multicasts; ``size`` is "small" or "full"."""
    rng = np.random.default_rng(0)
    across, down, K = (3, 2, 256) if size == "small" else (8, 8, 1024)
    a = rng.standard_normal((down * H * 32, K)).astype(np.float32)
    b = rng.standard_normal((K, across * W * 32)).astype(np.float32)
    exact = a.astype(np.float64) @ b

    print(f"{a.shape[0]} x {K} x {b.shape[1]} on {across} x {down} cores")
    print(f"{'':22} {'cycles':>10} {'KiB of DRAM':>12} {'KiB into the NoC':>17} {'error':>9}")
    found = {}
    for name, multicast in (("each reads its own", False), ("read once, multicast", True)):
        chip = pr.tensix.Chip("n150")
        c = matmul(chip, a, b, multicast=multicast).astype(np.float64)
        report = chip.report()
        error = float(np.abs(c - exact).max() / np.abs(exact).max())
        dram, noc = report.dram_bytes / 1024, report.noc_bytes / 1024
        print(f"{name:22} {report.cycles:10.0f} {dram:12.0f} {noc:17.0f} {error:9.1e}")
        found[name] = {"cycles": report.cycles, "bytes": report.dram_bytes, "error": error}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
