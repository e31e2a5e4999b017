"""The Tensix simulator: Tenstorrent's chips, kernels written as generators, and what they take.

A *kernel* is a generator function. It yields *verbs*, which have the names of the hardware's API, and gets
back what they return::

    def reader(k, source, tiles):
        for i in range(tiles):
            yield k.cb_reserve_back(0, 1)
            address = yield k.get_write_ptr(0)
            yield k.noc_async_read(source.page(i), address, source.page_bytes)
            yield k.noc_async_read_barrier()
            yield k.cb_push_back(0, 1)

A :class:`Program` says which kernels run on which cores, and a :class:`Chip` runs it.
"""

from prunus._core import KernelContext, Place, Verb
from prunus.tensix.buffers import Buffer, Matrix, tile_bytes, tilize, untilize
from prunus.tensix.chip import Chip
from prunus.tensix.cores import CoreRange
from prunus.tensix.engine import TensixEngine
from prunus.tensix.errors import (
    DeadlockError,
    EndlessError,
    MisusedError,
    SpecError,
    TensixError,
    UndefinedError,
    UnsupportedError,
)
from prunus.tensix.estimate import Estimate, estimate_matmul, random_blocks
from prunus.tensix.program import Kernel, Program
from prunus.tensix.report import Operation, Report
from prunus.tensix.spec import ChipSpec
from prunus.tensix.timeline import Interval, Timeline

__all__ = [
    "Buffer",
    "Chip",
    "ChipSpec",
    "CoreRange",
    "DeadlockError",
    "EndlessError",
    "Estimate",
    "Interval",
    "Kernel",
    "KernelContext",
    "Matrix",
    "MisusedError",
    "Operation",
    "Place",
    "Program",
    "Report",
    "SpecError",
    "TensixEngine",
    "TensixError",
    "Timeline",
    "UndefinedError",
    "UnsupportedError",
    "Verb",
    "estimate_matmul",
    "random_blocks",
    "tile_bytes",
    "tilize",
    "untilize",
]
