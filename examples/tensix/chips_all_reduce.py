"""All-reduce over a line of simulated chips that Ethernet joins.

Each chip has a vector in its DRAM, and all of them shall have the sum. Partial sums go along the line: each
chip adds its own vector to what the one before sends, tile by tile, and sends the sum on. What the last one
has is whole, and goes back along the line, where each chip keeps a copy. A vector is cut over as many cores
as there are links to a neighbour, each of which sends by a link of its own.

Data comes straight into a circular buffer of the next chip, so that one grants room with a semaphore of the
sender: both ways are messages over Ethernet. Copies that go back land in DRAM, where there is room.
"""

from __future__ import annotations

import argparse

import numpy as np

import prunus as pr

# Own tiles, partial sums that come, sums that go, and finished tiles on their way back.
OWN, COME, SUM, BACK = 0, 1, 16, 17
# Room granted by the next chip, partial sums that have come, and finished tiles that have.
ROOM, ARRIVED, DONE = 0, 1, 2
# Tiles for which there is room at a time.
DEEP = 8


def reader(k: pr.tensix.KernelContext, own: pr.tensix.Matrix, tiles: list[int]) -> pr.tensix.Kernel:
    """Read the own vector, and take what comes from the chip before."""
    column = k.chip[1]
    for number, tile in enumerate(tiles):
        yield k.cb_reserve_back(OWN, 1)
        address = yield k.get_write_ptr(OWN)
        yield k.noc_async_read(own.page(tile), address, own.page_bytes)
        if column > 0:
            yield k.cb_reserve_back(COME, 1)
            yield k.fabric_unicast_noc_unicast_atomic_inc((0, column - 1), k.core, ROOM)
            yield k.noc_semaphore_wait_min(ARRIVED, number + 1)
            yield k.cb_push_back(COME, 1)
        yield k.noc_async_read_barrier()
        yield k.cb_push_back(OWN, 1)


def compute(k: pr.tensix.KernelContext, tiles: list[int]) -> pr.tensix.Kernel:
    """Add the own tile to the partial sum; the first chip of the line has nothing to add."""
    first = k.chip[1] == 0
    for _ in tiles:
        yield k.cb_wait_front(OWN, 1)
        if not first:
            yield k.cb_wait_front(COME, 1)
        yield k.cb_reserve_back(SUM, 1)
        yield k.tile_regs_acquire()
        if first:
            yield k.copy_tile(OWN, 0, 0)
        else:
            yield k.add_tiles(OWN, COME, 0, 0, 0)
        yield k.tile_regs_commit()
        yield k.tile_regs_wait()
        yield k.pack_tile(0, SUM)
        yield k.tile_regs_release()
        yield k.cb_push_back(SUM, 1)
        yield k.cb_pop_front(OWN, 1)
        if not first:
            yield k.cb_pop_front(COME, 1)


def writer(
    k: pr.tensix.KernelContext, results: list[pr.tensix.Matrix], tiles: list[int], landing: int
) -> pr.tensix.Kernel:
    """Send sums to the next chip; the last one sends what is whole back, and the others hand it on."""
    column, last = k.chip[1], k.mesh[1] - 1
    size = k.get_tile_size(SUM)
    for number, tile in enumerate(tiles):
        yield k.cb_wait_front(SUM, 1)
        address = yield k.get_read_ptr(SUM)
        if column < last:
            yield k.noc_semaphore_wait_min(ROOM, number + 1)
            place = k.get_noc_addr(k.core, landing + number % DEEP * size, chip=(0, column + 1))
            yield k.fabric_unicast_noc_fused_unicast_with_atomic_inc(address, place, size, k.core, ARRIVED)
        else:
            yield k.noc_async_write(address, results[column].page(tile), size)
            place = results[column - 1].page(tile)
            yield k.fabric_unicast_noc_fused_unicast_with_atomic_inc(address, place, size, k.core, DONE)
        # What has left may be written over.
        yield k.noc_async_writes_flushed()
        yield k.cb_pop_front(SUM, 1)
    if column == last:
        yield k.noc_async_write_barrier()
        return
    yield k.cb_reserve_back(BACK, 1)
    address = yield k.get_write_ptr(BACK)
    for number, tile in enumerate(tiles):
        yield k.noc_semaphore_wait_min(DONE, number + 1)
        if column > 0:
            yield k.noc_async_read(results[column].page(tile), address, size)
            yield k.noc_async_read_barrier()
            place = results[column - 1].page(tile)
            yield k.fabric_unicast_noc_fused_unicast_with_atomic_inc(address, place, size, k.core, DONE)
            yield k.noc_async_writes_flushed()


def all_reduce(chip: pr.tensix.Chip, vectors: np.ndarray) -> tuple[np.ndarray, pr.tensix.Report]:
    """Add the vectors of all chips in bfloat16; row ``i`` of the result is what chip ``i`` has then."""
    # A tile holds 1024 values of a vector, in any order: sums do not care.
    shape = (vectors.shape[1] // 32, 32)
    size = pr.tensix.tile_bytes("bfloat16")
    own = [
        chip.buffer(vector.reshape(shape), "bfloat16", chip=at)
        for at, vector in zip(chip.chips, vectors, strict=True)
    ]
    results = [chip.buffer(shape, "bfloat16", chip=at) for at in chip.chips]
    landing = chip.tensor(DEEP * size)
    links = len(chip.spec.ethernet.east)
    program = pr.tensix.Program("all_reduce")
    for _ in (ROOM, ARRIVED, DONE):
        program.semaphore(0)
    cores = [(x, 0) for x in range(links)]
    for number, pages, address in ((OWN, 2, None), (COME, DEEP, landing), (SUM, 2, None), (BACK, 1, None)):
        program.cb(number, cores, "bfloat16", pages=pages, address=address)
    for x, core in enumerate(cores):
        tiles = list(range(x, own[0].pages, links))
        program.kernel(compute, core, "compute", args=(tiles,))
        program.kernel(writer, core, "writer", args=(results, tiles, landing))
        for at, operand in zip(chip.chips, own, strict=True):
            program.kernel(reader, core, "reader", args=(operand, tiles), chips=at)
    report = chip.run(program)
    return np.stack([chip.to_numpy(result).astype(np.float32).ravel() for result in results]), report


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Reduce vectors of several lengths on several lines of chips; ``size`` is "small" or "full"."""
    rng = np.random.default_rng(0)
    cases = [("n300", 2, 16), ("n300", 4, 16), ("p150", 4, 16)]
    if size == "full":
        cases = [("n300", n, tiles) for n, tiles in ((2, 256), (4, 256), (8, 256), (4, 1024))]
        cases += [("p150", n, 256) for n in (2, 4)]

    print(f"{'chips':>8} {'KiB each':>9} {'us':>8} {'Ethernet MB':>12} {'bound':>9} {'error':>9}")
    found = {}
    for name, n, tiles in cases:
        chip = pr.tensix.Chip(name, mesh=(1, n))
        vectors = rng.standard_normal((n, tiles * 1024)).astype(np.float32)
        sums, report = all_reduce(chip, vectors)
        exact = vectors.astype(np.float64).sum(axis=0)
        error = float(np.abs(sums - exact).max() / np.abs(exact).max())
        moved = report.ethernet_bytes
        print(
            f"{n:3} {name} {tiles * 2:9} {report.microseconds:8.1f} {moved / 1e6:12.2f} "
            f"{report.bound:>9} {error:9.1e}"
        )
        found[f"{n} {name}, {tiles} tiles"] = {
            "cycles": report.cycles,
            "bytes": moved,
            "error": error,
            "same": float((sums == sums[0]).all()),
        }
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
