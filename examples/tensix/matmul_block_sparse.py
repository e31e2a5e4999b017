"""A block-sparse matrix product on a grid of simulated Tensix cores: dead blocks are never sent.

The sparse matrix W has live tiles and dead ones, and the kernels know which. The matrix unit does not skip
zeros: skipping is the decision of the cores that move data. The first core of a row reads the live tiles of
its rows of W and multicasts them to its row; a dead tile is not read, not sent, not unpacked and not
multiplied. Each column of cores keeps its columns of the dense matrix X in L1: each of its cores reads a part
of them and multicasts it to the others.

Rows of W have different numbers of live tiles. They are dealt to rows of cores, heaviest first, each to the
one with the least work so far; what imbalance is left costs time, and is printed. What does not shrink with
the live tiles is X and the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

import prunus as pr

SPARSE, DENSE, OUT = 0, 1, 16
# Receivers with room, and that tiles have arrived; ONE is always 1: what flags are set to. From PARTS on
# there is a flag for the part of X that each row of cores reads.
READY, VALID, ONE, PARTS = range(4)
# Live tiles that travel together, and tiles of X's columns on a core.
BATCH, W = 8, 4

Core = tuple[int, int]
#: Rows of tiles of W that a row of cores has, with the columns of the live ones.
Share = list[tuple[int, list[int]]]


def batches(live: list[int]) -> Iterator[list[int]]:
    """Cut the live tiles of a row into what travels together."""
    for i in range(0, len(live), BATCH):
        yield live[i : i + BATCH]


def reader(
    k: pr.tensix.KernelContext, w: pr.tensix.Matrix, share: Share, row: pr.tensix.CoreRange
) -> pr.tensix.Kernel:
    """Bring the live tiles of this row of cores."""
    size = w.page_bytes
    for i, live in share:
        for batch in batches(live):
            yield k.cb_reserve_back(SPARSE, BATCH)
            if k.core == row.first:
                address = yield k.get_write_ptr(SPARSE)
                for slot, j in enumerate(batch):
                    yield k.noc_async_read(w.tile(i, j), address + slot * size, size)
                yield k.noc_async_read_barrier()
                yield k.noc_semaphore_wait(READY, len(row) - 1)
                yield k.noc_semaphore_set(READY, 0)
                yield k.noc_async_write_multicast(address, row, address, len(batch) * size, linked=True)
                yield k.noc_semaphore_set_multicast(ONE, VALID, row)
                yield k.noc_async_writes_flushed()
            else:
                yield k.noc_semaphore_set(VALID, 0)
                yield k.noc_semaphore_inc(row.first, READY)
                yield k.noc_semaphore_wait(VALID, 1)
            # Slots of a batch that is not full stay empty, so that batches never wrap around.
            yield k.cb_push_back(SPARSE, BATCH)


def compute(k: pr.tensix.KernelContext, share: Share, steps: int) -> pr.tensix.Kernel:
    """Multiply live tiles by this core's columns of X."""
    yield k.cb_wait_front(DENSE, steps * W)
    for _, live in share:
        yield k.tile_regs_acquire()
        for batch in batches(live):
            yield k.cb_wait_front(SPARSE, BATCH)
            for slot, j in enumerate(batch):
                yield k.matmul_block(SPARSE, DENSE, slot, j * W, 0, ct_dim=W, rt_dim=1, kt_dim=1)
            yield k.cb_pop_front(SPARSE, BATCH)
        yield k.tile_regs_commit()
        yield k.cb_reserve_back(OUT, W)
        yield k.tile_regs_wait()
        yield k.pack_tile_block(0, OUT, W)
        yield k.tile_regs_release()
        yield k.cb_push_back(OUT, W)


def writer(
    k: pr.tensix.KernelContext,
    x: pr.tensix.Matrix,
    y: pr.tensix.Matrix,
    share: Share,
    column: pr.tensix.CoreRange,
) -> pr.tensix.Kernel:
    """Bring this column's part of X once, then take rows of the result to DRAM."""
    size, first, pages = x.page_bytes, k.core[0] * W, x.tiles[0] * W
    yield k.cb_reserve_back(DENSE, pages)
    address = yield k.get_write_ptr(DENSE)
    # Nothing has been in that place before: all have room for all parts.
    begin, end = (pages * (k.core[1] + i) // len(column) for i in (0, 1))
    for page in range(begin, end):
        yield k.noc_async_read(x.tile(page // W, first + page % W), address + page * size, size)
    yield k.noc_async_read_barrier()
    own = address + begin * size
    yield k.noc_async_write_multicast(own, column, own, (end - begin) * size, linked=True)
    yield k.noc_semaphore_set_multicast(ONE, PARTS + k.core[1], column)
    for other in column:
        if other != k.core:
            yield k.noc_semaphore_wait(PARTS + other[1], 1)
    yield k.cb_push_back(DENSE, pages)
    for i, _ in share:
        yield k.cb_wait_front(OUT, W)
        address = yield k.get_read_ptr(OUT)
        for s in range(W):
            yield k.noc_async_write(address + s * y.page_bytes, y.tile(i, first + s), y.page_bytes)
        yield k.noc_async_write_barrier()
        yield k.cb_pop_front(OUT, W)


def deal(mask: np.ndarray, rows: int) -> list[Share]:
    """Deal rows of tiles to rows of cores, heaviest first, to the one with the least work."""
    shares: list[Share] = [[] for _ in range(rows)]
    load = np.zeros(rows)
    for i in np.argsort(-mask.sum(axis=1), kind="stable"):
        least = int(load.argmin())
        shares[least].append((int(i), np.flatnonzero(mask[i]).tolist()))
        # A row without live tiles is still packed and written.
        load[least] += mask[i].sum() + 1
    return shares


def matmul(
    chip: pr.tensix.Chip, w: np.ndarray, mask: np.ndarray, x: np.ndarray, rows: int
) -> tuple[np.ndarray, float]:
    """Multiply W's live tiles by X in bfloat16; also return the heaviest load over the mean."""
    weights, inputs = chip.buffer(w, "bfloat16"), chip.buffer(x, "bfloat16")
    y = chip.buffer((w.shape[0], x.shape[1]), "bfloat16")
    right, low = inputs.tiles[1] // W - 1, rows - 1
    cores = pr.tensix.CoreRange((0, 0), (right, low))
    shares = deal(mask, rows)

    program = pr.tensix.Program()
    for semaphore in range(PARTS + rows):
        program.semaphore(int(semaphore == ONE))
    program.cb(SPARSE, cores, "bfloat16", pages=2 * BATCH)
    program.cb(DENSE, cores, "bfloat16", pages=inputs.tiles[0] * W)
    program.cb(OUT, cores, "bfloat16", pages=2 * W)
    program.kernel(
        reader,
        cores,
        "reader",
        args=lambda core: (weights, shares[core[1]], pr.tensix.CoreRange((0, core[1]), (right, core[1]))),
    )
    program.kernel(compute, cores, "compute", args=lambda core: (shares[core[1]], inputs.tiles[0]))
    program.kernel(
        writer,
        cores,
        "writer",
        args=lambda core: (inputs, y, shares[core[1]], pr.tensix.CoreRange((core[0], 0), (core[0], low))),
    )
    chip.run(program)
    loads = [sum(len(live) for _, live in share) for share in shares]
    return chip.to_numpy(y), max(loads) / max(np.mean(loads), 1e-9)


def main(size: str = "full") -> dict[float, dict[str, float]]:
    """Multiply at several densities; ``size`` is "small" or "full"."""
    rng = np.random.default_rng(0)
    columns, rows, n, K = (2, 2, 256, 256) if size == "small" else (8, 8, 2048, 1024)
    w = rng.standard_normal((n, K)).astype(np.float32)
    x = rng.standard_normal((K, columns * W * 32)).astype(np.float32)
    order = rng.permutation(n // 32 * (K // 32)).reshape(n // 32, K // 32)

    print(f"{n} x {K} x {x.shape[1]} on {columns} x {rows} cores, tiles of W chosen at random")
    print(
        f"{'live':>6} {'cycles':>10} {'of dense':>9} {'KiB of DRAM':>12} {'KiB into the NoC':>17}"
        f" {'imbalance':>10} {'error':>9}"
    )
    found: dict[float, dict[str, float]] = {}
    for density in (1.0, 0.5, 0.25, 0.1):
        mask = order < density * order.size
        live = w * np.kron(mask, np.ones((32, 32), np.float32))
        # A dead tile would spoil everything: nobody reads one.
        stored = np.where(np.kron(mask, np.ones((32, 32))) > 0, w, np.float32(np.nan))
        chip = pr.tensix.Chip("n150")
        y, imbalance = matmul(chip, stored, mask, x, rows)
        report = chip.report()
        exact = live.astype(np.float64) @ x
        error = float(np.abs(y.astype(np.float64) - exact).max() / np.abs(exact).max())
        dram, noc = report.dram_bytes / 1024, report.noc_bytes / 1024
        dense = found[1.0]["cycles"] if found else report.cycles
        print(
            f"{density:6.0%} {report.cycles:10.0f} {report.cycles / dense:9.1%}"
            f" {dram:12.0f} {noc:17.0f} {imbalance:10.2f} {error:9.1e}"
        )
        found[density] = {
            "cycles": report.cycles,
            "dram": report.dram_bytes,
            "noc": report.noc_bytes,
            "error": error,
        }
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
