"""Compiled part of prunus: the CPU engine's operations on raw arrays.

Callers in ``prunus.engines.cpu`` have checked shapes and dtypes; these functions check again whatever
memory safety depends on (index ranges, strides, writeability) and raise ValueError or TypeError.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from prunus.tensix.cores import CoreRange

__all__ = [
    "DiskFile",
    "Elementwise",
    "KernelContext",
    "Leftover",
    "Packed",
    "PackedColumns",
    "Pager",
    "Place",
    "Reader",
    "Segment",
    "TensixChip",
    "Verb",
    "Writer",
    "__version__",
    "attention",
    "available_levels",
    "check_chip",
    "chip_names",
    "chip_text",
    "combine",
    "count_rows",
    "cpu_info",
    "crc32c_pages",
    "default_threads",
    "dots",
    "dsd",
    "dsd_packed",
    "feed_forward",
    "follow_threads",
    "gates",
    "largest",
    "last_path",
    "lend_threads",
    "level",
    "measure_bandwidth",
    "measure_flops",
    "measure_io",
    "moments",
    "npy_header",
    "npy_header_size",
    "pack",
    "pack_columns",
    "parse_npy",
    "parse_safetensors",
    "pooled_scores",
    "rms_norm",
    "rotate",
    "safetensors_header_size",
    "scan",
    "sdd",
    "set_level",
    "ssd",
    "ssd_at",
    "tensix_blocking",
    "tensix_covered",
    "tensix_dram",
    "tensix_estimate",
    "tensix_estimate_mesh",
    "tensix_gather",
    "tensix_layer",
    "tensix_layer_cut",
    "tensix_multicast",
    "tensix_multiply",
    "tensix_norms",
    "tensix_product",
    "tensix_sparse",
    "tensix_sparse_covered",
    "tensix_streams",
    "tensix_traffic",
    "tensix_wide_norms",
    "tilize",
    "untilize",
    "write_safetensors_header",
    "writes_apart",
]

__version__: str

@final
class Packed:
    """A frozen block-sparse operand: validated indices in both orders, values in aligned (huge) pages."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def copy(self) -> NDArray[Any]: ...

@final
class Elementwise:
    """A compiled elementwise expression: steps (ufunc or "cast", dtype, values taken) over some inputs."""

    def __new__(
        cls, inputs: list[str], steps: list[tuple[str, str, list[int]]], outputs: list[int]
    ) -> Self: ...
    def run(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> int: ...
    @staticmethod
    def available() -> bool: ...

# Files whose bytes are paged (rust/pager). Offsets and sizes are in bytes.
@final
class Pager:
    def __new__(cls, budget: int, io: str | None = None, depth: int = 64) -> Self: ...
    @property
    def budget(self) -> int: ...
    def open(self, path: str | PathLike[str], mode: str, size: int = 0) -> DiskFile: ...
    def flush(self) -> None: ...
    def stats(self) -> dict[str, int | float]: ...

# Removes the file when it is dropped.
@final
class Leftover:
    def __new__(cls, path: str | PathLike[str]) -> Self: ...

@final
class DiskFile:
    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> int: ...
    @property
    def engine(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def writable(self) -> bool: ...
    def resize(self, size: int) -> None: ...
    def sync(self) -> None: ...
    def check(self) -> None: ...
    def close(self) -> None: ...
    def read(self, offset: int, size: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...
    def segment(self, start: int, length: int, page: int) -> Segment: ...

@final
class Segment:
    @property
    def start(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def page(self) -> int: ...
    def gather(self, offsets: NDArray[np.int64], size: int, out: NDArray[np.uint8]) -> None: ...
    def scatter(self, offsets: NDArray[np.int64], size: int, values: NDArray[np.uint8]) -> None: ...
    def prefetch(self, offsets: NDArray[np.int64], size: int) -> None: ...
    def reader(self, begin: int, end: int, panel: int) -> Reader: ...
    def writer(self, begin: int, end: int, panel: int) -> Writer: ...
    def flush(self) -> None: ...

@final
class Reader:
    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[int, NDArray[np.uint8]]: ...
    def close(self) -> None: ...

@final
class Writer:
    def panel(self) -> NDArray[np.uint8]: ...
    def put(self) -> None: ...
    def close(self) -> None: ...

def pack(
    data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], shape: tuple[int, int], transposed: bool
) -> Packed: ...
def dsd(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    shape: tuple[int, int],
    transposed: bool,
    x: NDArray[Any],
    out: NDArray[Any],
    bias: NDArray[Any] | None,
    activation: str | None,
    threads: int,
    packed: PackedColumns | None = None,
    add: bool = False,
) -> None: ...

@final
class PackedColumns:
    """A dense operand in the kernels' panels, for products with many operands."""

def pack_columns(
    x: NDArray[Any], w: np.dtype[Any], out: np.dtype[Any], blocksize: tuple[int, int], threads: int
) -> PackedColumns | None: ...
def dsd_packed(
    w: Packed,
    transposed: bool,
    x: NDArray[Any],
    out: NDArray[Any],
    bias: NDArray[Any] | None,
    activation: str | None,
    threads: int,
) -> None: ...
def ssd(
    a_data: NDArray[Any],
    a_indices: NDArray[Any],
    a_indptr: NDArray[Any],
    a_shape: tuple[int, int],
    a_transposed: bool,
    b_data: NDArray[Any],
    b_indices: NDArray[Any],
    b_indptr: NDArray[Any],
    b_shape: tuple[int, int],
    b_transposed: bool,
    out_dtype: np.dtype[Any],
    threads: int,
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]: ...
def ssd_at(
    a_data: NDArray[Any],
    a_indices: NDArray[Any],
    a_indptr: NDArray[Any],
    a_shape: tuple[int, int],
    a_transposed: bool,
    b_data: NDArray[Any],
    b_indices: NDArray[Any],
    b_indptr: NDArray[Any],
    b_shape: tuple[int, int],
    b_transposed: bool,
    indices: NDArray[Any],
    indptr: NDArray[Any],
    out_data: NDArray[Any],
    threads: int,
) -> None: ...
def sdd(
    a: NDArray[Any],
    b: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    out_data: NDArray[Any],
    threads: int,
) -> None: ...
def attention(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    out: NDArray[Any],
    live: NDArray[np.int8] | None,
    scale: float,
    causal: bool,
    blocksize: int,
    threads: int,
) -> None: ...
def pooled_scores(
    q: NDArray[Any], k: NDArray[Any], out: NDArray[Any], scale: float, blocksize: int, threads: int
) -> None: ...
def scan(
    u: NDArray[Any],
    delta: NDArray[Any],
    a: NDArray[Any],
    b: NDArray[Any],
    c: NDArray[Any],
    d: NDArray[Any] | None,
    z: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    softplus: bool,
    state: NDArray[Any] | None,
    out: NDArray[Any],
    live: NDArray[np.bool_] | None,
    branch: int,
    threads: int,
) -> None: ...
def gates(z: NDArray[Any], branch: int, l2: bool, norms: NDArray[np.float32], threads: int) -> None: ...
def writes_apart(out: NDArray[Any], *inputs: NDArray[Any] | Packed | None) -> bool: ...
def available_levels() -> list[str]: ...
def level() -> str: ...
def set_level(name: str) -> None: ...
def default_threads() -> int: ...
def follow_threads(address: int) -> None: ...
def lend_threads(address: int) -> None: ...
def last_path() -> str: ...
def cpu_info() -> dict[str, Any]: ...
def measure_io(
    path: str,
    io: str | None,
    accesses: list[str],
    blocks: list[int],
    depths: list[int],
    seconds: float,
) -> list[tuple[str, str, int, int, float, float, float, float]]: ...
def moments(
    values: NDArray[Any], by_column: bool, skip_nan: bool, squares: bool, threads: int
) -> NDArray[np.float64]: ...
def measure_flops(dtype: str, threads: int, seconds: float) -> float: ...
def measure_bandwidth(threads: int, seconds: float) -> float: ...
def dots(
    x: NDArray[Any],
    w: NDArray[Any],
    out: NDArray[Any],
    live: NDArray[np.uint8] | None,
    branch: int,
    bias: NDArray[Any] | None,
    activation: str | None,
    scale: NDArray[Any] | None,
    found_branch: int,
    found_norm: str,
    norms: NDArray[Any] | None,
    found: NDArray[np.uint8] | None,
    tau: float,
    threads: int,
) -> None: ...
def largest(
    values: NDArray[Any],
    wanted: NDArray[np.int64],
    visible: NDArray[np.uint8] | None,
    out: NDArray[np.int8],
    threads: int,
) -> None: ...
def count_rows(
    live: NDArray[np.uint8] | None,
    branch: int,
    rows: int,
    units: int,
    tile: int,
    tables: list[tuple[NDArray[Any], bool]],
) -> tuple[int, int, int, int, int, int, int, int]: ...
def combine(
    h: NDArray[Any],
    w: NDArray[Any],
    out: NDArray[Any],
    live: NDArray[np.uint8] | None,
    branch: int,
    bias: NDArray[Any] | None,
    threads: int,
    add: bool = False,
) -> None: ...
def feed_forward(
    x: NDArray[Any],
    up: NDArray[Any],
    gate: NDArray[Any] | None,
    down: NDArray[Any],
    out: NDArray[Any],
    live: NDArray[np.uint8] | None,
    branch: int,
    b_up: NDArray[Any] | None,
    b_down: NDArray[Any] | None,
    activation: str | None,
    threads: int,
) -> None: ...
def rms_norm(
    x: NDArray[np.float32], scale: NDArray[np.float32], epsilon: float, y: NDArray[np.float32]
) -> None: ...
def rotate(heads: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> None: ...

# Headers of files (rust/pager/src/format). Paths are for messages alone; dtypes are NumPy's or ml_dtypes'
# names; tensors are (name, dtype, shape, first byte, one past the last), counted from the start of the file.
def safetensors_header_size(head: bytes, file_size: int, path: str) -> int: ...
def parse_safetensors(
    header: bytes, file_size: int, path: str
) -> tuple[list[tuple[str, str, tuple[int, ...], int, int]], dict[str, str]]: ...
def write_safetensors_header(
    specs: list[tuple[str, str, tuple[int, ...]]],
    metadata: dict[str, str],
    align: int,
    last: str | None,
    path: str,
) -> tuple[bytes, list[tuple[str, str, tuple[int, ...], int, int]], int]: ...
def npy_header_size(head: bytes, file_size: int, path: str) -> int: ...
def parse_npy(header: bytes, file_size: int, path: str) -> tuple[str, tuple[int, ...], bool, int, int]: ...
def npy_header(dtype: str, shape: tuple[int, ...], fortran: bool, align: int, path: str) -> bytes: ...
def crc32c_pages(data: NDArray[np.uint8], page: int) -> NDArray[np.uint32]: ...

# The Tensix simulator (rust/tensix). `spec_text` is a chip's description in TOML; `stop` has `is_set`, as
# `threading.Event`, and ends a run when it is set. Sizes of products are in tiles of 32 x 32.
def tensix_traffic(
    spec_text: str,
    traffic: str,
    multicast: bool,
    transactions: int,
    partners: int,
    same_axis: bool,
    stateful: bool,
    loopback: bool,
    noc: int,
    bytes: int,
    linked: bool = False,
    stop: Any | None = None,
) -> dict[str, float]: ...
def tensix_dram(
    spec_text: str,
    one_channel: bool,
    write: bool,
    cores: int,
    transactions: int,
    bytes: int,
    stop: Any | None = None,
) -> dict[str, float]: ...
def tensix_estimate(
    spec_text: str,
    tiles: tuple[int, int, int],
    live: tuple[Sequence[int], Sequence[int]] | None,
    format: str,
    fidelity: str,
    wide: bool,
    decide: str = "static",
    balance: bool = True,
    in0_l1: bool = False,
    out_l1: bool = False,
    stop: Any | None = None,
) -> dict[str, Any]: ...
def tensix_estimate_mesh(
    spec_text: str,
    mesh: tuple[int, int],
    tiles: tuple[int, int, int],
    live: tuple[Sequence[int], Sequence[int]] | None,
    format: str,
    fidelity: str,
    wide: bool,
    decide: str = "static",
    balance: bool = True,
    stop: Any | None = None,
) -> list[dict[str, Any]]: ...
def tensix_gather(
    chip: TensixChip,
    lines: Sequence[tuple[bool, int, Sequence[tuple[int, Sequence[int]]]]],
    timeline: int = 0,
    threads: int = 1,
    stop: Any | None = None,
) -> dict[str, Any]: ...
def tensix_multiply(
    spec_text: str,
    tiles: tuple[int, int, int],
    in0: bytes,
    in1: bytes,
    format: str,
    fidelity: str,
    wide: bool,
    threads: int,
    stop: Any | None = None,
) -> tuple[dict[str, Any], bytes]: ...
def tensix_blocking(
    spec_text: str,
    tiles: tuple[int, int, int],
    grid: tuple[int, int],
    format: str,
    in0_sharded: bool,
    out_sharded: bool,
    wide: bool,
    tuned: bool,
) -> dict[str, Any]: ...
def tensix_product(
    spec_text: str,
    k: int,
    grid: tuple[int, int],
    per_core: tuple[int, int],
    in0_block_w: int,
    out_block: tuple[int, int],
    out_subblock: tuple[int, int],
    format: str,
    fidelity: str,
    in0_sharded: bool,
    out_sharded: bool,
    packer_l1_acc: bool,
    wide: bool,
    stop: Any | None = None,
) -> dict[str, float]: ...
def tensix_covered(
    chip: TensixChip, tiles: tuple[int, int, int], format: str, wide: bool
) -> tuple[int, int, int]: ...
def tensix_multicast(
    chip: TensixChip,
    tiles: tuple[int, int, int],
    buffers: tuple[int, int, int],
    format: str,
    fidelity: str,
    wide: bool,
    timeline: int,
    threads: int = 1,
    stop: Any | None = None,
) -> dict[str, Any]: ...
def tensix_sparse(
    chip: TensixChip,
    tiles: tuple[int, int, int],
    pattern: tuple[Sequence[int], Sequence[int]] | None,
    mask: bytes | None,
    buffers: tuple[int, int, int],
    formats: tuple[str, str, str],
    ending: Any,
    fidelity: str,
    wide: bool,
    timeline: int,
    threads: int = 1,
    stop: Any | None = None,
) -> dict[str, Any]: ...
def tensix_sparse_covered(
    chip: TensixChip,
    tiles: tuple[int, int, int],
    known: bool,
    formats: tuple[str, str, str],
    ending: Any,
    wide: bool,
) -> tuple[int, int, int]: ...
def tensix_layer(
    chip: TensixChip,
    tiles: tuple[int, int, int],
    buffers: tuple[int, int, int],
    formats: tuple[str, str, str],
    ending: Any,
    fidelity: str,
    wide: bool,
    timeline: int,
    threads: int = 1,
    stop: Any | None = None,
) -> dict[str, Any]: ...
def tensix_layer_cut(
    chip: TensixChip,
    tiles: tuple[int, int, int],
    formats: tuple[str, str, str],
    ending: Any,
    wanted: float,
    fidelity: str,
    wide: bool,
) -> tuple[tuple[int, int, int], float, float, bool]: ...
def tensix_norms(branch: int, columns: int) -> tuple[int, int]: ...
def tensix_wide_norms(
    chip: TensixChip,
    result: int,
    norms: tuple[int, int, int, str, bool, float | None, int, bytes | None],
    timeline: int,
    threads: int = 1,
    stop: Any | None = None,
) -> dict[str, Any]: ...
def tensix_streams(
    chip: TensixChip,
    buffers: Sequence[tuple[int, str, int, int]],
    inputs: Sequence[tuple[int, int, int]],
    outputs: Sequence[tuple[int, int, int]],
    text: tuple[Sequence[Verb], Sequence[Verb], Sequence[Verb]],
    repeats: NDArray[np.uint32],
    groups: NDArray[np.uint32],
    reads: tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint32]],
    writes: tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint32]],
    norms: tuple[int, int, int, str, bool, float | None, int, int, bytes | None] | None,
    fidelity: str,
    wide: bool,
    timeline: int,
    threads: int = 1,
    stop: Any | None = None,
) -> dict[str, Any]: ...

# The Tensix simulator (rust/tensix). Cores are logical coordinates (x, y).
def chip_names() -> list[str]: ...
def chip_text(name: str) -> str: ...
def check_chip(text: str) -> None: ...
def tilize(format: str, array: NDArray[np.float32] | NDArray[np.int32]) -> bytes: ...
def untilize(format: str, data: bytes, rows: int, columns: int) -> NDArray[Any]: ...

@final
class Place:
    @staticmethod
    def l1(core: tuple[int, int], address: int, chip: tuple[int, int] | None = None) -> Place: ...
    @staticmethod
    def dram(buffer: int, page: int, offset: int, chip: tuple[int, int] | None = None) -> Place: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class Verb: ...

@final
class KernelContext:
    @property
    def core(self) -> tuple[int, int]: ...
    @property
    def name(self) -> str: ...
    @property
    def chip(self) -> tuple[int, int]: ...
    @property
    def mesh(self) -> tuple[int, int]: ...
    def get_noc_addr(
        self, core: tuple[int, int], address: int, chip: tuple[int, int] | None = None
    ) -> Place: ...
    def get_tile_size(self, cb: int) -> int: ...
    def cb_reserve_back(self, cb: int, pages: int) -> Verb: ...
    def cb_wait_front(self, cb: int, pages: int) -> Verb: ...
    def cb_pop_front(self, cb: int, pages: int) -> Verb: ...
    def cb_push_back(self, cb: int, pages: int) -> Verb: ...
    def get_write_ptr(self, cb: int) -> Verb: ...
    def get_read_ptr(self, cb: int) -> Verb: ...
    def noc_async_read(self, src: Place, dst: int, size: int) -> Verb: ...
    def noc_async_read_barrier(self) -> Verb: ...
    def noc_async_write(self, src: int, dst: Place, size: int) -> Verb: ...
    def noc_async_write_barrier(self) -> Verb: ...
    def noc_async_writes_flushed(self) -> Verb: ...
    def noc_async_write_multicast(
        self,
        src: int,
        cores: CoreRange | tuple[tuple[int, int], tuple[int, int]],
        dst: int,
        size: int,
        linked: bool = False,
        loopback_src: bool = False,
    ) -> Verb: ...
    def fabric_unicast_noc_unicast_write(
        self, src: int, dst: Place, size: int, link: int | None = None
    ) -> Verb: ...
    def fabric_unicast_noc_fused_unicast_with_atomic_inc(
        self,
        src: int,
        dst: Place,
        size: int,
        core: tuple[int, int],
        semaphore: int,
        by: int = ...,
        link: int | None = None,
    ) -> Verb: ...
    def fabric_unicast_noc_unicast_atomic_inc(
        self,
        chip: tuple[int, int],
        core: tuple[int, int],
        semaphore: int,
        by: int = ...,
        link: int | None = None,
    ) -> Verb: ...
    def noc_semaphore_inc(self, core: tuple[int, int], semaphore: int, by: int = ...) -> Verb: ...
    def noc_semaphore_set(self, semaphore: int, value: int) -> Verb: ...
    def noc_semaphore_wait(self, semaphore: int, value: int) -> Verb: ...
    def noc_semaphore_wait_min(self, semaphore: int, value: int) -> Verb: ...
    def noc_semaphore_set_multicast(
        self,
        src: int,
        semaphore: int,
        cores: CoreRange | tuple[tuple[int, int], tuple[int, int]],
        loopback_src: bool = False,
    ) -> Verb: ...
    def l1_load(self, address: int) -> Verb: ...
    def l1_store(self, address: int, value: int) -> Verb: ...
    def cycles(self, cycles: float) -> Verb: ...
    def tile_regs_acquire(self) -> Verb: ...
    def tile_regs_commit(self) -> Verb: ...
    def tile_regs_wait(self) -> Verb: ...
    def tile_regs_release(self) -> Verb: ...
    def matmul_tiles(self, in0_cb: int, in1_cb: int, in0: int, in1: int, dst: int) -> Verb: ...
    def matmul_block(
        self, in0_cb: int, in1_cb: int, in0: int, in1: int, dst: int, ct_dim: int, rt_dim: int, kt_dim: int
    ) -> Verb: ...
    def copy_tile(self, cb: int, tile: int, dst: int) -> Verb: ...
    def add_tiles(self, in0_cb: int, in1_cb: int, in0: int, in1: int, dst: int) -> Verb: ...
    def sub_tiles(self, in0_cb: int, in1_cb: int, in0: int, in1: int, dst: int) -> Verb: ...
    def mul_tiles(self, in0_cb: int, in1_cb: int, in0: int, in1: int, dst: int) -> Verb: ...
    def relu_tile(self, dst: int) -> Verb: ...
    def gelu_tile(self, dst: int) -> Verb: ...
    def silu_tile(self, dst: int) -> Verb: ...
    def exp_tile(self, dst: int) -> Verb: ...
    def recip_tile(self, dst: int) -> Verb: ...
    def abs_tile(self, dst: int) -> Verb: ...
    def sqrt_tile(self, dst: int) -> Verb: ...
    def square_tile(self, dst: int) -> Verb: ...
    def softplus_tile(self, dst: int) -> Verb: ...
    def mul_unary_tile(self, dst: int, value: float) -> Verb: ...
    def add_unary_tile(self, dst: int, value: float) -> Verb: ...
    def add_binary_tile(self, dst: int, other: int) -> Verb: ...
    def sub_binary_tile(self, dst: int, other: int) -> Verb: ...
    def mul_binary_tile(self, dst: int, other: int) -> Verb: ...
    def binary_max_tile(self, dst: int, other: int) -> Verb: ...
    def mask_tile(self, dst: int, mask: int) -> Verb: ...
    def unary_bcast(self, broadcast: str, cb: int, tile: int, dst: int) -> Verb: ...
    def reduce_tile(self, op: str, along: str, cb: int, tile: int, dst: int) -> Verb: ...
    def pack_tile(self, dst: int, cb: int, tile: int | None = None) -> Verb: ...
    def pack_tile_block(self, dst: int, cb: int, tiles: int) -> Verb: ...
    def pack_reconfig_l1_acc(self, on: bool) -> Verb: ...

@final
class TensixChip:
    def __new__(cls, spec: str, values: bool, mesh: tuple[int, int] = ...) -> Self: ...
    def stand_on(self, chip: tuple[int, int]) -> None: ...
    def buffer(self, page_bytes: int, pages: int, channel: int | None = None) -> int: ...
    def tensor(self, size: int) -> int: ...
    def write_buffer(self, buffer: int, data: bytes) -> None: ...
    def write_pages(self, buffer: int, pages: Sequence[int], data: bytes) -> None: ...
    def read_buffer(self, buffer: int) -> bytes: ...
    def write_l1(
        self, core: tuple[int, int], address: int, data: bytes, chip: tuple[int, int] = ...
    ) -> None: ...
    def read_l1(
        self, core: tuple[int, int], address: int, size: int, chip: tuple[int, int] = ...
    ) -> bytes: ...
    def context(
        self,
        core: tuple[int, int],
        name: str,
        pages: Sequence[tuple[int, int]],
        chip: tuple[int, int] = ...,
    ) -> KernelContext: ...
    def recorder(self) -> KernelContext: ...
    def buffers(self) -> int: ...
    def keep_buffers(self, count: int) -> None: ...
    def run(
        self,
        buffers: Sequence[
            tuple[
                int,
                Sequence[tuple[int, int]],
                Sequence[tuple[int, int]],
                str,
                int,
                int,
                int | None,
                int | None,
            ]
        ],
        semaphores: Sequence[int],
        kernels: Sequence[tuple[KernelContext, str, int, object]],
        fidelity: str,
        fp32_dest_acc: bool,
        limit: float,
        patience: float | None = None,
        timeline: int = 0,
        threads: int = 1,
    ) -> dict[str, Any]: ...
    def l1_bytes(self) -> int: ...
    def pruned_columns(
        self, tiles: tuple[int, int, int], format: str, out_format: str, fp32_dest_acc: bool
    ) -> int: ...
    def pruned_product(
        self,
        tiles: tuple[int, int, int],
        buffers: tuple[int, int, int],
        tau: float,
        formats: tuple[str, str],
        fidelity: str,
        fp32_dest_acc: bool,
        limit: float,
        decide: str = "dynamic",
        mask: bytes | None = None,
        threads: int = 1,
        stop: Any | None = None,
    ) -> tuple[dict[str, Any], bytes]: ...
