"""A matrix product on one core of a simulated Tensix chip, tile by tile and in blocks.

Tile by tile, each product of two tiles needs two fresh tiles from DRAM: the core waits for data nearly all
the time. The destination registers hold eight tiles, so a block of 2 x 4 tiles can grow at once:
six tiles are read for eight products, and each tile of the left matrix is unpacked once for four of them.
"""

from __future__ import annotations

import argparse

import numpy as np

import prunus as pr

IN0, IN1, OUT = 0, 1, 16
CORE = (0, 0)

Block = tuple[int, int]


def blocks(c: pr.tensix.Matrix, block: Block) -> list[Block]:
    """Return the first tile row and column of each block of the result."""
    rows, columns = c.tiles
    return [(i, j) for i in range(0, rows, block[0]) for j in range(0, columns, block[1])]


def reader(
    k: pr.tensix.KernelContext,
    a: pr.tensix.Matrix,
    b: pr.tensix.Matrix,
    c: pr.tensix.Matrix,
    block: Block,
) -> pr.tensix.Kernel:
    """Bring a column of tiles of ``a`` and a row of tiles of ``b`` for each step along the sum."""
    h, w = block
    for i, j in blocks(c, block):
        for step in range(a.tiles[1]):
            yield k.cb_reserve_back(IN0, h)
            yield k.cb_reserve_back(IN1, w)
            address = yield k.get_write_ptr(IN0)
            for r in range(h):
                yield k.noc_async_read(a.tile(i + r, step), address + r * a.page_bytes, a.page_bytes)
            address = yield k.get_write_ptr(IN1)
            for s in range(w):
                yield k.noc_async_read(b.tile(step, j + s), address + s * b.page_bytes, b.page_bytes)
            yield k.noc_async_read_barrier()
            yield k.cb_push_back(IN0, h)
            yield k.cb_push_back(IN1, w)


def compute(k: pr.tensix.KernelContext, count: int, steps: int, block: Block) -> pr.tensix.Kernel:
    """Add the products of a block in the destination registers, then pack it."""
    h, w = block
    for _ in range(count):
        yield k.tile_regs_acquire()
        for _ in range(steps):
            yield k.cb_wait_front(IN0, h)
            yield k.cb_wait_front(IN1, w)
            yield k.matmul_block(IN0, IN1, 0, 0, 0, ct_dim=w, rt_dim=h, kt_dim=1)
            yield k.cb_pop_front(IN0, h)
            yield k.cb_pop_front(IN1, w)
        yield k.tile_regs_commit()
        yield k.cb_reserve_back(OUT, h * w)
        yield k.tile_regs_wait()
        yield k.pack_tile_block(0, OUT, h * w)
        yield k.tile_regs_release()
        yield k.cb_push_back(OUT, h * w)


def writer(k: pr.tensix.KernelContext, c: pr.tensix.Matrix, block: Block) -> pr.tensix.Kernel:
    """Take finished blocks to DRAM."""
    h, w = block
    for i, j in blocks(c, block):
        yield k.cb_wait_front(OUT, h * w)
        address = yield k.get_read_ptr(OUT)
        for r in range(h):
            for s in range(w):
                yield k.noc_async_write(
                    address + (r * w + s) * c.page_bytes, c.tile(i + r, j + s), c.page_bytes
                )
        yield k.noc_async_write_barrier()
        yield k.cb_pop_front(OUT, h * w)


def matmul(chip: pr.tensix.Chip, a: np.ndarray, b: np.ndarray, block: Block) -> np.ndarray:
    """Multiply two matrices in bfloat16 on one core; blocks divide the result."""
    A, B = chip.buffer(a, "bfloat16"), chip.buffer(b, "bfloat16")
    C = chip.buffer((a.shape[0], b.shape[1]), "bfloat16")
    h, w = block
    program = pr.tensix.Program()
    program.cb(IN0, CORE, "bfloat16", pages=2 * h)
    program.cb(IN1, CORE, "bfloat16", pages=2 * w)
    program.cb(OUT, CORE, "bfloat16", pages=2 * h * w)
    program.kernel(reader, CORE, "reader", args=(A, B, C, block))
    program.kernel(compute, CORE, "compute", args=(len(blocks(C, block)), A.tiles[1], block))
    program.kernel(writer, CORE, "writer", args=(C, block))
    chip.run(program)
    return chip.to_numpy(C)


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Multiply in blocks of several shapes; ``size`` is "small" or "full"."""
    rng = np.random.default_rng(0)
    n = 128 if size == "small" else 256
    a, b = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    exact = a.astype(np.float64) @ b
    # HiFi4 takes four phases of 16 cycles for a product of two tiles.
    ideal = (n // 32) ** 3 * 64

    print(f"{'tiles at once':>13} {'cycles':>10} {'of the peak':>12} {'KiB of DRAM':>12} {'error':>9}")
    found = {}
    for block in ((1, 1), (1, 4), (2, 4)):
        chip = pr.tensix.Chip("n150")
        c = matmul(chip, a, b, block).astype(np.float64)
        report = chip.report()
        error = float(np.abs(c - exact).max() / np.abs(exact).max())
        name = f"{block[0]} x {block[1]}"
        print(
            f"{name:>13} {report.cycles:10.0f} {ideal / report.cycles:12.1%} {report.dram_bytes / 1024:12.0f}"
            f" {error:9.1e}"
        )
        found[name] = {"cycles": report.cycles, "bytes": report.dram_bytes, "error": error}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
