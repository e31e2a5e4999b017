"""All-reduce around a ring of simulated Tensix cores.

Each core has a vector in its L1, and all of them shall have the sum. Every vector is cut into as many chunks
as there are cores. First, sums travel: in each step a core sends a chunk to the next one, which adds its own
(reduce, scatter). After that each core has one finished chunk, and these travel once around (gather). Each
core sends 2 (n - 1) / n of a vector, whatever the number of cores, and all links of the ring work at once.

Partial sums land in a circular buffer, so the receiver grants room with a semaphore of the sender. Finished
chunks land where they stay: nobody has to ask.
"""

from __future__ import annotations

import argparse

import numpy as np

import prunus as pr

# Own vector, partial sums that arrive, and what was added up here.
OWN, PARTIAL, SUM = 0, 1, 16
# Room granted by the next core; partial sums and finished chunks that have come from the one before.
ROOM, PARTIALS, FINISHED = 0, 1, 2

Core = tuple[int, int]


def receiver(k: pr.tensix.KernelContext, ring: list[Core], tiles: int) -> pr.tensix.Kernel:
    """Take partial sums from the core before."""
    n, me = len(ring), ring.index(k.core)
    # The vector lies there already.
    yield k.cb_reserve_back(OWN, n * tiles)
    yield k.cb_push_back(OWN, n * tiles)
    for step in range(n - 1):
        yield k.cb_reserve_back(PARTIAL, tiles)
        yield k.noc_semaphore_inc(ring[me - 1], ROOM)
        yield k.noc_semaphore_wait_min(PARTIALS, step + 1)
        yield k.cb_push_back(PARTIAL, tiles)


def compute(k: pr.tensix.KernelContext, ring: list[Core], tiles: int) -> pr.tensix.Kernel:
    """Add the own chunk to each partial sum."""
    n, me = len(ring), ring.index(k.core)
    yield k.cb_wait_front(OWN, n * tiles)
    for step in range(n - 1):
        chunk = (me - 1 - step) % n
        yield k.cb_wait_front(PARTIAL, tiles)
        yield k.cb_reserve_back(SUM, tiles)
        for i in range(tiles):
            yield k.tile_regs_acquire()
            yield k.add_tiles(OWN, PARTIAL, chunk * tiles + i, i, 0)
            yield k.tile_regs_commit()
            yield k.tile_regs_wait()
            yield k.pack_tile(0, SUM)
            yield k.tile_regs_release()
        yield k.cb_push_back(SUM, tiles)
        yield k.cb_pop_front(PARTIAL, tiles)


def sender(
    k: pr.tensix.KernelContext, ring: list[Core], tiles: int, landing: int, result: int
) -> pr.tensix.Kernel:
    """Pass partial sums on to the next core, then finished chunks."""
    n, me = len(ring), ring.index(k.core)
    after, size = ring[(me + 1) % n], tiles * k.get_tile_size(OWN)
    # The own chunk sets out; sums of it come back after a whole round.
    yield k.cb_wait_front(OWN, n * tiles)
    address = yield k.get_read_ptr(OWN)
    address += me * size
    for step in range(n - 1):
        yield k.noc_semaphore_wait_min(ROOM, step + 1)
        # Chunks land in two places in turn, as the circular buffer of the next core hands them out.
        yield k.noc_async_write(address, k.get_noc_addr(after, landing + step % 2 * size), size)
        yield k.noc_async_write_barrier()
        yield k.noc_semaphore_inc(after, PARTIALS)
        if step > 0:
            yield k.cb_pop_front(SUM, tiles)
        yield k.cb_wait_front(SUM, tiles)
        address = yield k.get_read_ptr(SUM)
    chunk = (me + 1) % n
    yield k.noc_async_write(address, k.get_noc_addr(k.core, result + chunk * size), size)
    for step in range(n - 1):
        yield k.noc_async_write(address, k.get_noc_addr(after, result + chunk * size), size)
        yield k.noc_async_write_barrier()
        yield k.noc_semaphore_inc(after, FINISHED)
        yield k.noc_semaphore_wait_min(FINISHED, step + 1)
        chunk = (chunk - 1) % n
        address = result + chunk * size
    yield k.cb_pop_front(SUM, tiles)


def all_reduce(chip: pr.tensix.Chip, vectors: np.ndarray, ring: list[Core], tiles: int) -> np.ndarray:
    """Add the vectors of all cores in bfloat16; row ``i`` of the result is what core ``i`` has then."""
    n, size = len(ring), tiles * pr.tensix.tile_bytes("bfloat16")
    own, result, landing = chip.tensor(n * size), chip.tensor(n * size), chip.tensor(2 * size)
    # A tile holds 1024 values of a vector, in any order: sums do not care.
    shape = (n * tiles * 32, 32)
    for core, vector in zip(ring, vectors, strict=True):
        chip.write_l1(core, own, pr.tensix.tilize(vector.reshape(shape), "bfloat16"))

    program = pr.tensix.Program()
    for _ in (ROOM, PARTIALS, FINISHED):
        program.semaphore(0)
    program.cb(OWN, ring, "bfloat16", pages=n * tiles, address=own)
    program.cb(PARTIAL, ring, "bfloat16", pages=2 * tiles, address=landing)
    program.cb(SUM, ring, "bfloat16", pages=2 * tiles)
    # NoC 0 goes right, as the ring does.
    program.kernel(receiver, ring, "reader", args=(ring, tiles), noc=1)
    program.kernel(compute, ring, "compute", args=(ring, tiles))
    program.kernel(sender, ring, "writer", args=(ring, tiles, landing, result), noc=0)
    chip.run(program)
    parts = [chip.read_l1(core, result, n * size) for core in ring]
    return np.stack([pr.tensix.untilize(part, shape, "bfloat16").ravel() for part in parts])


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Reduce vectors of several lengths on several rings; ``size`` is "small" or "full"."""
    rng = np.random.default_rng(0)
    cases = [(4, 1), (8, 1)] if size == "small" else [(2, 4), (4, 4), (8, 4), (8, 1), (8, 16)]

    print(f"{'cores':>5} {'KiB each':>9} {'cycles':>9} {'sent by a core, B a cycle':>26} {'error':>9}")
    found = {}
    for n, tiles in cases:
        chip = pr.tensix.Chip("n150")
        ring = [(x, 0) for x in range(n)]
        vectors = rng.standard_normal((n, n * tiles * 1024)).astype(np.float32)
        sums = all_reduce(chip, vectors, ring, tiles).astype(np.float64)
        exact = vectors.astype(np.float64).sum(axis=0)
        error = float(np.abs(sums - exact).max() / np.abs(exact).max())
        cycles, held = chip.report().cycles, n * tiles * 2048
        rate = held * 2 * (n - 1) / n / cycles
        print(f"{n:5} {held / 1024:9.0f} {cycles:9.0f} {rate:26.1f} {error:9.1e}")
        found[f"{n} cores, {tiles} tiles"] = {"cycles": cycles, "rate": rate, "error": error}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
